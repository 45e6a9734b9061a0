"""SQLAlchemy (extra `sqlalchemy`): `Engine(SqlAlchemy("postgresql://…"))` is an Engine[AsyncSession], whose handlers get sessions.

In its phases a handler holds an AsyncSession on the engine's own open transaction: what it adds is flushed at the end of the block, and
committed together with the completion. Elsewhere `tx=session` takes the application's own sessions, on any of its engines.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any, Generic

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.json import set_json_dumps, set_json_loads
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool
from typing_extensions import TypeVar

from queuert_py.errors import ConfigurationError, PhaseError, TransactionAbortedError

Session = TypeVar("Session", bound=AsyncSession, default=AsyncSession)
_NOT_LIBPQ = {"prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback"}
_LIMITS: dict[str, Any] = {"connect_timeout": 5}
_lent: ContextVar[psycopg.AsyncConnection[Any]] = ContextVar("queuert_lent")


class SqlAlchemy(Generic[Session]):
    """What an engine is built on for handlers that work with AsyncSessions.

    source: a URL (any driver's; the engine itself uses psycopg) or the application's AsyncEngine, of which the address, the JSON functions
    and the execution options are taken; without it the DSN in QUEUERT_DSN. conninfo: where the database is, if the URL does not say it
    (connections made by a creator). sessions: the application's `async_sessionmaker`, whose class and options the sessions have.
    ConfigurationError for what is no PostgreSQL.
    """

    def __init__(
        self,
        source: str | URL | AsyncEngine | None = None,
        *,
        conninfo: str | None = None,
        sessions: async_sessionmaker[Session] | None = None,
    ) -> None:
        try:
            given = source.url if isinstance(source, AsyncEngine) else _url(source)
            self._conninfo = conninfo or _conninfo(given)
        except (ArgumentError, ValueError, psycopg.ProgrammingError):
            raise ConfigurationError(
                "SqlAlchemy(): the URL cannot be read: write postgresql+psycopg://user:password@host:port/database."
            ) from None
        dialect: Any = source.dialect if isinstance(source, AsyncEngine) else None
        self._json: tuple[Any, Any] = (getattr(dialect, "_json_serializer", None), getattr(dialect, "_json_deserializer", None))
        engine = create_async_engine("postgresql+psycopg://", poolclass=NullPool, pool_reset_on_return=None, async_creator=_borrow)
        options: dict[str, Any] = dict(source.get_execution_options()) if isinstance(source, AsyncEngine) else {}
        self._engine = engine.execution_options(**{name: value for name, value in options.items() if name != "isolation_level"})
        self._sessions: Callable[..., Session] = sessions or async_sessionmaker(expire_on_commit=False)  # type: ignore[assignment]
        self._turn = asyncio.Lock()
        self._known = False

    @property
    def conninfo(self) -> str:
        """Where the database is, for the engine's own connections."""
        return self._conninfo

    def transaction(self, connection: psycopg.AsyncConnection[Any], /) -> AbstractAsyncContextManager[Session]:
        """A session on the engine's open transaction, for one phase. It is flushed at the end of the block and closed after it.

        PhaseError for its `commit()` and `rollback()`: use `session.begin_nested()` for what may fail by itself.
        """
        return self._transaction(connection)

    @asynccontextmanager
    async def _transaction(self, connection: psycopg.AsyncConnection[Any]) -> AsyncGenerator[Session]:
        await self._look()
        guard = _Guard(connection, self._json)
        token = _lent.set(connection)
        try:
            bound = await self._engine.connect()
        finally:
            _lent.reset(token)
        session = self._sessions(bind=bound)
        try:
            yield session
            guard.check()
            await session.flush()
        finally:
            guard.leaving = True
            await session.close()
            await bound.close()

    async def _look(self) -> None:
        """Let SQLAlchemy look at the server once, on a connection apart: it ends with a rollback."""
        async with self._turn:
            if self._known:
                return
            async with await psycopg.AsyncConnection.connect(make_conninfo("", **_LIMITS | conninfo_to_dict(self._conninfo))) as own:
                token = _lent.set(own)
                try:
                    async with self._engine.connect():
                        self._known = True
                finally:
                    _lent.reset(token)


async def _borrow() -> psycopg.AsyncConnection[Any]:
    """What SQLAlchemy takes for a new connection."""
    return _lent.get()


class _Guard:
    """Keeps a session from ending the transaction on which it works: COMMIT, ROLLBACK and closing are the engine's."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], json: tuple[Any, Any]) -> None:
        self._connection = connection
        self.leaving = False
        self._ended: Exception | None = None
        connection.cursor_factory = _Cursor
        connection.__dict__.update(queuert_json=json, commit=self._commit, rollback=self._rollback, close=self._close)

    def check(self) -> None:
        """Raise what the session did wrong: nothing of this phase is to be kept then."""
        if self._ended is not None:
            raise self._ended

    async def _commit(self) -> None:
        self._ended = PhaseError("commit() in a phase: the engine commits it, together with the job. To send what is pending: flush().")
        raise self._ended

    async def _rollback(self) -> None:
        if self.leaving or self._ended is not None:
            return
        if self._connection.info.transaction_status == TransactionStatus.INERROR:
            self._ended = TransactionAbortedError(
                "a statement of this phase failed and was caught: wrap it in `async with session.begin_nested():`, to roll back only it."
            )
        else:
            self._ended = PhaseError("rollback() in a phase: raise an exception instead, or use `async with session.begin_nested():`.")

    async def _close(self) -> None:
        return


class _Cursor(psycopg.AsyncCursor[Any]):
    """A session's cursor, with the application's JSON functions."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], **more: Any) -> None:
        super().__init__(connection, **more)
        dumps, loads = connection.__dict__["queuert_json"]
        if dumps is not None:
            set_json_dumps(dumps, self)
        if loads is not None:
            set_json_loads(loads, self)


def _url(source: str | URL | None) -> URL:
    if source is not None and not isinstance(source, (str, URL)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(
            f"SqlAlchemy({type(source).__name__}(…)): a URL or what create_async_engine(…) made is needed; of a sync Engine "
            "give `engine.url`."
        )
    found = source or os.environ.get("QUEUERT_DSN")
    if not found:
        raise ConfigurationError("SqlAlchemy() needs a database: a URL or an AsyncEngine as its argument, or a DSN in QUEUERT_DSN.")
    if isinstance(found, str) and "://" not in found:  # libpq's name=value pairs
        return URL.create("postgresql+psycopg", query={"conninfo": found})
    return make_url(found)


def _conninfo(url: URL) -> str:
    if url.get_backend_name() != "postgresql":
        raise ConfigurationError(f"SqlAlchemy({url.get_backend_name()}://…): sequences live in PostgreSQL.")
    query = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items() if name not in _NOT_LIBPQ}
    if "ssl" in query:  # asyncpg's name for it
        query["sslmode"] = query.pop("ssl")
    known = {"host": url.host, "port": url.port, "user": url.username, "password": url.password, "dbname": url.database}
    return make_conninfo(query.pop("conninfo", ""), **{**{name: value for name, value in known.items() if value is not None}, **query})
