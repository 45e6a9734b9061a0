"""Faces of a connection: what handlers hold of it. The pool's own object stays with the engine; a face is of no use after its block."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus, PipelineStatus

from queuert_py.errors import PhaseError, TransactionEscapedError

_SYNC = "_queuert_sync"
_FACE = "_queuert_face"


@contextmanager
def lent(connection: AsyncConnection[Any]) -> Generator[AsyncConnection[Any]]:
    """Another connection object over the same libpq session, for the block; afterwards every use of it is a PhaseError.

    Both share what belongs to the session: its lock, the names of its prepared statements. What is set on the face (row factory, adapters,
    handlers of notices) goes with it.
    """
    face: AsyncConnection[Any] = object.__new__(type(connection))
    face.__dict__.update(connection.__dict__)
    if connection._adapters is not None:
        face._adapters = AdaptersMap(connection._adapters)
    face.__dict__.update(wait=_marking(face), close=_refuse_to_close)
    handlers: list[list[Any]] = [connection._notice_handlers, connection._notify_handlers]
    before = [len(each) for each in handlers]
    try:
        yield face
        if connection.pgconn.pipeline_status != PipelineStatus.OFF:
            raise PhaseError("the block ended inside `tx.pipeline()`: leave that first.")
    finally:
        _end(face, sync_face(face))
        for each, count in zip(handlers, before, strict=True):
            del each[count:]


def failed_on(error: BaseException, face: AsyncConnection[Any]) -> bool:
    """Has a statement through this face, or through its sync face, raised this very error?"""
    return getattr(error, _FACE, None) is face


def _marking(face: AsyncConnection[Any]) -> Callable[..., Any]:
    """Its `wait`, through which all its statements go, with a mark on what they raise: errors do not say of which connection they are."""
    wait = face.wait

    async def marking(*args: Any, **options: Any) -> Any:
        try:
            return await wait(*args, **options)
        except (psycopg.Error, OSError) as error:
            error.__dict__[_FACE] = face
            raise

    return marking


def _marking_sync(sync: Connection[Any], face: AsyncConnection[Any]) -> Callable[..., Any]:
    """As `_marking`."""
    wait = sync.wait

    def marking(*args: Any, **options: Any) -> Any:
        try:
            return wait(*args, **options)
        except (psycopg.Error, OSError) as error:
            error.__dict__[_FACE] = face
            raise

    return marking


def _refuse_to_close(*_: object) -> NoReturn:
    raise TransactionEscapedError("the connection of a phase is the engine's: do not close it.")


def sync_face(face: AsyncConnection[Any]) -> Connection[Any] | None:
    """The sync face that `make_sync_face` has made."""
    return face.__dict__.get(_SYNC)


def make_sync_face(face: AsyncConnection[Any]) -> Connection[Any]:
    """A psycopg Connection over the same session, for a handler in a thread: one transaction, for the thread and the event loop in turn.

    Neither is safe against the other: whoever uses one must know that the other rests. The async one keeps notices and notifications.
    """
    sync = sync_face(face)
    if sync is None:
        handlers = face.pgconn.notice_handler, face.pgconn.notify_handler
        sync = Connection(face.pgconn)
        face.pgconn.notice_handler, face.pgconn.notify_handler = handlers
        sync._autocommit = face.autocommit
        sync._prepared = face._prepared
        sync._adapters = face.adapters
        sync._pool = getattr(face, "_pool", None)  # so that the end of `with tx:` does not close it
        sync.__dict__.update(wait=_marking_sync(sync, face), close=_refuse_to_close)
        sync.row_factory = face.row_factory  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
        face.__dict__[_SYNC] = sync
    return sync


def _refuse(*_: object, **__: object) -> NoReturn:
    raise PhaseError("this transaction is over: use it inside the `with` block, or the function, that it was given to.")


class _Over:
    """Stands for the libpq session that is no longer lent: closed, and an error for whoever asks anything else."""

    status = ConnStatus.BAD

    def __getattr__(self, name: str) -> NoReturn:
        _refuse()


_ENDED: dict[str, Any] = {"pgconn": _Over(), "_closed": True, "cursor": _refuse, "pipeline": _refuse, "wait": _refuse, "close": _refuse}


def _end(*faces: AsyncConnection[Any] | Connection[Any] | None) -> None:
    for face in faces:
        if face is not None:
            face.__dict__.update(_ENDED)
