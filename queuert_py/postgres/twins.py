"""A sync face of an async connection: one session, one transaction, for a handler in a thread and for the event loop, in turn."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, Connection

from queuert_py.errors import PhaseError

_TWIN = "_queuert_twin"


def sync_twin(connection: AsyncConnection[Any]) -> Connection[Any] | None:
    """The sync face that `make_sync_twin` has made of a connection."""
    return connection.__dict__.get(_TWIN)


def make_sync_twin(connection: AsyncConnection[Any]) -> Connection[Any]:
    """A psycopg Connection over the same libpq session; kept with the async one, and gone with it.

    Both share what belongs to the session: the prepared statements' names, the adapters, the row factory. Neither is safe against the
    other: whoever uses one must know that the other rests. The async one keeps notices and notifications.
    """
    twin = sync_twin(connection)
    if twin is None:
        handlers = connection.pgconn.notice_handler, connection.pgconn.notify_handler
        twin = Connection(connection.pgconn)
        connection.pgconn.notice_handler, connection.pgconn.notify_handler = handlers
        twin._autocommit = connection.autocommit
        twin._prepared = connection._prepared
        twin._adapters = connection.adapters
        twin._pool = None  # psycopg: "only set if the connection is from a pool"; it is closed with the async one
        connection.__dict__[_TWIN] = twin
    twin.row_factory = connection.row_factory  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
    return twin


def refuse(connection: AsyncConnection[Any]) -> None:
    """Between the end of the block and the handler's return, the transaction takes no more statements."""

    async def refused(generator: Any, *_: Any, **__: Any) -> Any:
        generator.close()
        raise PhaseError("this transaction waits for the handler's return: write inside the `async with` block.")

    def refused_sync(generator: Any, *_: Any, **__: Any) -> Any:
        generator.close()
        raise PhaseError("this transaction waits for the handler's return: write inside the `with` block.")

    connection.__dict__["wait"] = refused
    twin = sync_twin(connection)
    if twin is not None:
        twin.__dict__["wait"] = refused_sync


def wait_again(connection: AsyncConnection[Any]) -> None:
    """Undo `refuse`."""
    connection.__dict__.pop("wait", None)
    twin = sync_twin(connection)
    if twin is not None:
        twin.__dict__.pop("wait", None)
