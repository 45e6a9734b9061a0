"""Statements in transactions of other libraries (SQLAlchemy, asyncpg, Django, psycopg2), which are recognised without being imported.

Nothing here begins, commits or rolls back by itself; what a library begins by itself at its first statement, it begins here too.
"""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from typing import Any, TypeAlias, cast

from psycopg import AsyncConnection, Connection
from psycopg.pq import PipelineStatus, TransactionStatus
from typing_extensions import TypeVar

from queuert_py.errors import UsageError
from queuert_py.postgres.calls import PING, Call

Row = TypeVar("Row")

ACCEPTED = (
    "a psycopg Connection or AsyncConnection, a SQLAlchemy Session, AsyncSession, Connection or AsyncConnection (on psycopg, asyncpg or "
    "psycopg2), an asyncpg Connection, django.db.connection, or a psycopg2 connection"
)
_PLACEHOLDER = re.compile(r"%\((\w+)\)s(::jsonb?\b)?|%%")
_IDLE = 0  # libpq's PGTransactionStatusType, as psycopg2 gives it


def carrier_of(transaction: object) -> Async | Sync:
    """What runs statements in this transaction. UsageError for what is not accepted, is closed, or has no transaction open."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(transaction).__mro__}
    match transaction:
        case AsyncConnection():
            return AsyncPsycopg(cast("AsyncConnection[Any]", transaction))
        case Connection():
            return Psycopg(cast("Connection[Any]", transaction))
        case _ if kinds & {("sqlalchemy", "scoped_session"), ("sqlalchemy", "async_scoped_session")}:
            return carrier_of(cast("Any", transaction)())
        case _ if kinds & {("sqlalchemy", "AsyncSession"), ("sqlalchemy", "AsyncConnection")}:
            return AsyncAlchemy(transaction)
        case _ if kinds & {("sqlalchemy", "Session"), ("sqlalchemy", "Connection")}:
            return Alchemy(transaction)
        case _ if kinds & {("asyncpg", "Connection"), ("asyncpg", "PoolConnectionProxy")}:
            return Asyncpg(transaction)
        case _ if kinds & {("django", "ConnectionProxy"), ("django", "BaseDatabaseWrapper")}:
            return carrier_of(_driver_of_django(transaction))
        case _ if ("psycopg2", "connection") in kinds:
            return Psycopg2(transaction)
        case _:
            raise UsageError(f"{type(transaction).__name__} is no transaction that can be joined: {ACCEPTED}.")


class AsyncPsycopg:
    """An async connection of psycopg."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        _check_psycopg(connection)

    @property
    def session(self) -> object:
        return self._connection.pgconn

    async def run(self, call: Call[Row], /) -> list[Row]:
        async with self._connection.lock:  # not in the middle of an executemany(), which has a pipeline of its own
            _check_psycopg(self._connection)
            _refuse_pipeline(self._connection)
        return await call.on(self._connection)


class Psycopg:
    """A sync connection of psycopg."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        _check_psycopg(connection)

    @property
    def session(self) -> object:
        return self._connection.pgconn

    def run_sync(self, call: Call[Row], /) -> list[Row]:
        with self._connection.lock:
            _check_psycopg(self._connection)
            _refuse_pipeline(self._connection)
        return call.on_sync(self._connection)


def _check_psycopg(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    status = connection.pgconn.transaction_status
    if connection.closed:
        raise UsageError("the connection of this transaction is closed.")
    if connection.autocommit and status == TransactionStatus.IDLE:
        how = "async with" if isinstance(connection, AsyncConnection) else "with"
        raise UsageError(f"the connection has no open transaction: use it inside `{how} connection.transaction():`.")


def _refuse_pipeline(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """There the answers, by which the next statement is chosen, come later."""
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        raise UsageError("the connection is in pipeline mode: leave `connection.pipeline()` first.")


@lru_cache(256)
def numbered(sql: bytes) -> tuple[str, tuple[str, ...]]:
    """The statement with $1, $2, … for its named placeholders, and their names in this order.

    JSON travels as text, whatever codec the connection has for jsonb.
    """
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        cast = match[2] or ""
        return f"${names.setdefault(match[1], len(names) + 1)}{'::text' if cast else ''}{cast}"

    text = _PLACEHOLDER.sub(number, sql.decode())
    return text, tuple(names)


class Asyncpg:
    """A connection of asyncpg."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        if connection.is_closed():
            raise UsageError("the connection of this transaction is closed.")
        self._check()

    @property
    def session(self) -> object:
        return self._connection

    def _check(self) -> None:
        if not self._connection.is_in_transaction():
            raise UsageError("the connection has no open transaction: use it inside `async with connection.transaction():`.")

    async def run(self, call: Call[Row], /) -> list[Row]:
        self._check()
        text, names = numbered(call.sql)
        found = await self._connection.fetch(text, *(call.parameters[name] for name in names))
        return [call.make(tuple(row)) for row in found]


class Psycopg2:
    """A connection of psycopg2."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._check()

    @property
    def session(self) -> object:
        return self._connection

    def _check(self) -> None:
        if self._connection.closed:
            raise UsageError("the connection of this transaction is closed.")
        if self._connection.autocommit and self._connection.get_transaction_status() == _IDLE:
            raise UsageError("the connection has no open transaction: set autocommit = False, or execute BEGIN.")

    def run_sync(self, call: Call[Row], /) -> list[Row]:
        self._check()
        with self._connection.cursor() as cursor:
            cursor.execute(call.sql, dict(call.parameters))
            return [call.make(tuple(row)) for row in cursor.fetchall()] if cursor.description else []


class AsyncAlchemy:
    """An AsyncSession or AsyncConnection of SQLAlchemy. Its own driver's connection is used, so that nothing is translated twice."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        _check_alchemy(owner)

    @property
    def session(self) -> object:
        return self._owner

    async def run(self, call: Call[Row], /) -> list[Row]:
        connection = await self._owner.connection() if hasattr(self._owner, "sync_session") else self._owner
        if not connection.in_transaction():
            await connection.exec_driver_sql(PING.sql.decode())  # SQLAlchemy begins with it: only then will its commit() be one
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        if isinstance(driver, AsyncConnection):
            return await AsyncPsycopg(cast("AsyncConnection[Any]", driver)).run(call)
        if type(driver).__module__.startswith("asyncpg"):
            # Through SQLAlchemy: only so does its adapter send BEGIN.
            _refuse_autocommit(raw.dbapi_connection.autocommit)
            text, names = numbered(call.sql)
            result = await connection.exec_driver_sql(text, tuple(call.parameters[name] for name in names))
            return [call.make(tuple(row)) for row in result] if result.returns_rows else []
        raise _unknown_driver(driver)


class Alchemy:
    """A Session or Connection of SQLAlchemy."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        _check_alchemy(owner)

    @property
    def session(self) -> object:
        return self._owner

    def run_sync(self, call: Call[Row], /) -> list[Row]:
        connection = self._owner.connection() if hasattr(self._owner, "identity_map") else self._owner
        if not connection.in_transaction():
            connection.exec_driver_sql(PING.sql.decode())  # as above
        driver = connection.connection.driver_connection
        if isinstance(driver, Connection):
            return Psycopg(cast("Connection[Any]", driver)).run_sync(call)
        if type(driver).__module__.startswith("psycopg2"):
            _refuse_autocommit(driver.autocommit)
            return Psycopg2(driver).run_sync(call)
        raise _unknown_driver(driver)


Async: TypeAlias = AsyncPsycopg | Asyncpg | AsyncAlchemy
Sync: TypeAlias = Psycopg | Psycopg2 | Alchemy


def explained(error: Exception) -> Exception:
    """The error of a statement in a caller's transaction: the driver's own, but where that cannot say what is wrong."""
    own: Any = getattr(error, "orig", error)  # as SQLAlchemy raises it
    state = getattr(own, "sqlstate", None) or getattr(own, "pgcode", None)
    if state not in ("42P01", "3F000"):
        return error
    wrong = UsageError("this transaction is on a database without the engine's schema: tx= must be on the one that holds the sequences.")
    wrong.__cause__ = error
    return wrong


def _check_alchemy(owner: Any) -> None:
    dialect = "postgresql"
    with contextlib.suppress(Exception):  # a session of several databases, which shows at its first statement
        dialect = (owner.get_bind() if hasattr(owner, "get_bind") else owner).dialect.name
    if dialect != "postgresql":
        raise UsageError(f"this SQLAlchemy transaction is on {dialect}: sequences are started in the PostgreSQL that holds them.")
    if getattr(owner, "closed", False):
        raise UsageError("the SQLAlchemy connection is closed.")
    begins = getattr(getattr(owner, "sync_session", owner), "autobegin", True)
    if not begins and not owner.in_transaction():
        raise UsageError("the session has no open transaction: use it inside `with session.begin():`.")


def _refuse_autocommit(autocommit: bool) -> None:
    if autocommit:
        raise UsageError("the connection is in autocommit: there is no transaction to join. Use an isolation level like READ COMMITTED.")


def _unknown_driver(driver: object) -> UsageError:
    name = f"{type(driver).__module__.partition('.')[0]} ({type(driver).__name__})"
    return UsageError(f"SQLAlchemy uses {name} here: use postgresql+psycopg, postgresql+asyncpg or postgresql+psycopg2.")


def _driver_of_django(connection: Any) -> Any:
    if connection.vendor != "postgresql":
        raise UsageError(f"this Django connection is {connection.vendor}: sequences are started in the PostgreSQL that holds them.")
    if not connection.in_atomic_block and connection.get_autocommit():
        raise UsageError("Django has no open transaction: use it inside `with transaction.atomic():`.")
    connection.ensure_connection()
    return connection.connection
