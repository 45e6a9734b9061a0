"""Transactions of the caller's: what may be given as `tx=`, checked before anything is written."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, TypeAlias, cast

from psycopg import AsyncConnection, Connection
from typing_extensions import TypeVar

from queuert_py.errors import UsageError
from queuert_py.postgres.calls import Call
from queuert_py.postgres.carriers import Alchemy, Psycopg, Psycopg2, carrier_of
from queuert_py.postgres.plans import Carrier

Row = TypeVar("Row")


class SqlAlchemyTransaction(Protocol):
    """A SQLAlchemy Session, AsyncSession, scoped_session, Connection or AsyncConnection."""

    def in_transaction(self) -> bool: ...


class AsyncpgTransaction(Protocol):
    """An asyncpg Connection."""

    def is_in_transaction(self) -> bool: ...


class DjangoTransaction(Protocol):
    """django.db.connection, or one of django.db.connections."""

    @property
    def in_atomic_block(self) -> bool: ...


class Psycopg2Transaction(Protocol):
    """A psycopg2 connection."""

    def get_transaction_status(self) -> int: ...


Joinable: TypeAlias = (
    AsyncConnection[Any] | Connection[Any] | SqlAlchemyTransaction | AsyncpgTransaction | DjangoTransaction | Psycopg2Transaction
)
"""What `join` takes."""


class ForeignTx:
    """A transaction of the caller's, made by `join`: for `tx=`, while that transaction is open. Statements are run in it, it is never
    ended here."""

    __slots__ = ("_on", "_transaction")

    def __init__(self, transaction: Joinable) -> None:
        self._transaction = transaction
        self._on = carrier_of(transaction)

    @property
    def transaction(self) -> object:
        """What was joined."""
        return self._transaction

    @property
    def blocks(self) -> bool:
        """Is it a sync one, whose statements hold the thread that runs them?"""
        return isinstance(self._on, (Psycopg, Psycopg2, Alchemy))

    @property
    def session(self) -> object:
        """See `Carrier.session`."""
        return self._on.session

    async def run(self, call: Call[Row], /) -> list[Row]:
        """A statement in it. In a thread, if it is a sync one: it may wait for a lock that somebody on this event loop holds."""
        if isinstance(self._on, (Psycopg, Psycopg2, Alchemy)):
            return await asyncio.to_thread(self._on.run_sync, call)
        return await self._on.run(call)

    def run_sync(self, call: Call[Row], /) -> list[Row]:
        """A statement in it, in this thread. UsageError for an async one."""
        if isinstance(self._on, (Psycopg, Psycopg2, Alchemy)):
            return self._on.run_sync(call)
        raise UsageError(f"{self!r}: an async transaction belongs to its event loop: use `await engine.…` there.")

    def __repr__(self) -> str:
        return f"join({type(self._transaction).__name__})"


def join(transaction: Joinable, /) -> ForeignTx:
    """The caller's own open transaction, for `tx=`: what is started in it exists if and only if it commits.

    transaction: a psycopg Connection or AsyncConnection; a SQLAlchemy Session, AsyncSession, Connection or AsyncConnection (driver
    psycopg, asyncpg or psycopg2); an asyncpg Connection; `django.db.connection` inside `transaction.atomic()`; a psycopg2 connection. It
    must be on the database that holds the engine's schema. Nothing here commits it or rolls it back. UsageError when it is something
    else, closed, in autocommit, or has no transaction open (psycopg and SQLAlchemy open one by themselves where they would do so).
    """
    return ForeignTx(transaction)


def carrier_for(tx: object, *, native: bool) -> Carrier | None:
    """What runs statements in the caller's transaction `tx`. native: the engine is built on what is no psycopg connection, so that `tx`
    may be a session as it is. UsageError when it cannot be joined."""
    if tx is None or isinstance(tx, ForeignTx):
        return tx
    if native or isinstance(tx, AsyncConnection):
        return join(cast("Joinable", tx))
    raise UsageError(f"tx={type(tx).__name__}: a psycopg AsyncConnection with an open transaction, or tx=join(…) for one of another kind.")
