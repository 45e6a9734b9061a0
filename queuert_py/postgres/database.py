"""Connections that heal: the pool for handlers and callers, dedicated links for the engine, and the health that gates both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from queuert_py.decisions.faults import Fault, classify, pause, retries
from queuert_py.errors import ConfigurationError, DatabaseUnavailableError, SequenceBusyError
from queuert_py.postgres.calls import Call, together
from queuert_py.postgres.health import Health
from queuert_py.postgres.store import Store

logger = logging.getLogger("queuert_py.postgres")
T = TypeVar("T")
Row = TypeVar("Row")
DEADLINE, LINK_DEADLINE = 10.0, 5.0
"""Seconds that a statement of the engine's own may take, on the pool and on its own connections, before its socket is shut down."""
CANCELLING = 2.0
"""Seconds that it takes at most to cancel a statement; then its socket is shut down."""
LOCKED = "another transaction holds what this one waits for, and does not end: commit it or roll it back. Nothing was changed."

_DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "target_session_attrs": "read-write",
    "application_name": "queuert",
}
# A client that is gone ends what it waits for, a lock too. Not every platform can tell (nor PostgreSQL behind one).
_SESSION = (
    "set default_transaction_isolation = 'read committed'; "
    "do $$ begin set client_connection_check_interval = '2s'; exception when others then null; end $$; "
)
# The server gives a lock up before the socket is shut down: the connection stays.
_LINK = f"{_SESSION} set lock_timeout = '{LINK_DEADLINE - 1:.0f}s'; "
# Pins the plans of the engine's own connections: every batch goes through indexes, whatever the statistics say about a new table.
_PLANS = (
    f"{_LINK} set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off; set jit = off; "
    "set plan_cache_mode = force_generic_plan"
)


def fault_of(error: BaseException, connection: AsyncConnection[Any] | Connection[Any] | None = None) -> Fault | None:
    """The class of a database error, of the first one in a group; None for anything else."""
    match error:
        case BaseExceptionGroup():
            found = (fault_of(each, connection) for each in cast("BaseExceptionGroup[Any]", error).exceptions)
            return next((fault for fault in found if fault is not None), None)
        case PoolTimeout():
            return Fault.OVERLOADED
        case PoolClosed():
            return Fault.LOST
        case psycopg.Error():
            connected = error.sqlstate is not None if connection is None else not (connection.closed or connection.broken)
            return classify(error.sqlstate, connected=connected)
        case OSError() if connection is None or connection.closed or connection.broken:
            return Fault.LOST
        case _ if isinstance(wrapped := getattr(error, "orig", None), psycopg.Error):  # as SQLAlchemy raises it
            return fault_of(wrapped, connection)
        case _:
            return None


def unreachable(error: BaseException, conninfo: str) -> DatabaseUnavailableError:
    """The error for callers, with host and port but no secret."""
    known = conninfo_to_dict(conninfo)
    where = f"{known.get('host') or 'local socket'}:{known.get('port') or 5432}/{known.get('dbname') or ''}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    why = lines[0].rpartition(" failed: ")[2]
    secret = known.get("password")
    if secret:
        why = why.replace(str(secret), "***")
    return DatabaseUnavailableError(f"PostgreSQL at {where} cannot be used: {why}", where=where)


class Database:
    """One PostgreSQL, one schema. `source`: a conninfo (DSN) or a caller's pool; `pool_size`: connections for handlers and callers.

    `pooler`: the way there leads through a transaction pooler, so nothing may be left in a session: no prepared statements, no settings,
    no session locks, no LISTEN.
    """

    def __init__(
        self,
        source: str | AsyncConnectionPool[Any],
        *,
        schema: str = "queuert",
        pool_size: int = 10,
        pooler: bool = False,
        health_interval: float = 30.0,
    ) -> None:
        self._own = isinstance(source, str)
        if isinstance(source, str):
            try:
                given = conninfo_to_dict(source)
            except psycopg.ProgrammingError:
                raise ConfigurationError(
                    "the DSN cannot be read: write postgresql://user:password@host:port/database (with special characters "
                    "percent-encoded), or name=value pairs."
                ) from None
            self.conninfo = make_conninfo("", **{**_DEFAULTS, **given})
        else:
            given_pool: Any = source.kwargs
            if pooler and (not isinstance(given_pool, dict) or cast("dict[str, Any]", given_pool).get("prepare_threshold", 0) is not None):
                raise ConfigurationError("pooler=True with a pool of your own: make it with kwargs={'prepare_threshold': None}.")
            self.conninfo = make_conninfo(source.conninfo if isinstance(source.conninfo, str) else "", **_pool_keywords(source))
        self.schema = schema
        known = conninfo_to_dict(self.conninfo)
        self.place = (known.get("host"), known.get("hostaddr"), known.get("port"), known.get("dbname"), schema)
        """Which sequences are meant: engines of one place have the same ones."""
        self.pooler = pooler
        self._keywords: dict[str, Any] = {"autocommit": True, **({"prepare_threshold": None} if pooler else {})}
        self.store = Store(schema)
        self.channel = f"queuert_{schema}"
        self._size = pool_size
        self._pool: AsyncConnectionPool[Any] | None = None if isinstance(source, str) else source
        self._leaving: set[asyncio.Task[None]] = set()
        self.health = Health(self, health_interval)
        self.aside = Link(self, "aside", patient=False)
        """For what is committed apart, by one who may hold a connection of the pool: never wait for a second one."""
        self.looks = Link(self, "look", pinned=False, patient=False)
        """For looks by such a one."""
        self.inside: Callable[[], bool] = lambda: False
        """Does the code that runs hold a connection of the pool?"""

    # --- connections

    async def connect(self, purpose: str, *, pinned: bool = True) -> AsyncConnection[Any]:
        """A new connection of the engine's own: autocommit, plans pinned (or not), its purpose in application_name."""
        connection = await AsyncConnection.connect(self._named(purpose), **self._keywords)
        if self.pooler:
            return connection
        try:
            await connection.execute((_PLANS if pinned else _LINK).encode(), prepare=False)
        except BaseException:
            await connection.close()
            raise
        return connection

    def connect_sync(self, purpose: str) -> Connection[Any]:
        """As `connect`, for a thread."""
        connection = Connection.connect(self._named(purpose), **self._keywords)
        if not self.pooler:
            connection.execute(_PLANS.encode(), prepare=False)
        return connection

    def _named(self, purpose: str) -> str:
        name = conninfo_to_dict(self.conninfo).get("application_name") or "queuert"
        return make_conninfo(self.conninfo, application_name=f"{name}:{purpose}")

    async def open(self) -> None:
        """Open the pool and start watching the health. DatabaseUnavailableError when the server cannot be reached now."""
        report = await self.health.check()
        if report.state != "healthy":
            error = DatabaseUnavailableError(report.error or "no answer")
            raise unreachable(error, self.conninfo)
        if self._pool is None:
            self._pool = self._new_pool()
        if self._pool.closed:
            await self._pool.open()
            if self._own:  # asked before its first connection is there, it would make a second one
                with contextlib.suppress(PoolTimeout):
                    await self._pool.wait(DEADLINE / 2)
        self.health.start()

    async def close(self) -> None:
        """Close what `open` opened; a caller's own pool stays open."""
        await self.health.stop()
        await self.aside.close()
        await self.looks.close()
        if self._own and self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()
        for task in list(self._leaving):
            await task

    def _new_pool(self) -> AsyncConnectionPool[Any]:
        return AsyncConnectionPool(
            self.conninfo,
            kwargs=self._keywords,
            min_size=1,
            max_size=self._size,
            open=False,
            name="queuert",
            reconnect_timeout=30,
            configure=self._configure,
        )

    async def _configure(self, connection: AsyncConnection[Any]) -> None:
        """READ COMMITTED, whatever the database's default: what is decided after a lock must see what the lock waited for."""
        await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        if not self.pooler:
            await connection.execute(_SESSION.encode())

    def renew_pool(self) -> None:
        """After an outage: a new pool at once, instead of one whose slots sleep between tries of their own."""
        if self._own and self._pool is not None:
            old, self._pool = self._pool, self._new_pool()
            task = asyncio.get_running_loop().create_task(old.close(0))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def up(self) -> None:
        """Wait until the database is not known to be down, for a few seconds. PoolTimeout."""
        try:
            async with asyncio.timeout(DEADLINE / 2):  # not wait_for, which swallows cancellation in Python 3.11
                await self.health.usable()
        except TimeoutError:
            raise PoolTimeout(f"the database has been down for {self.health.report.since:.0f} s") from None

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[AsyncConnection[Any]]:
        """A pool connection; a failure of the connection is told to the health monitor."""
        await self.up()
        pool = self._pool
        if pool is None:
            raise ConfigurationError("the engine is not open: use `async with engine`, or call a method that opens it first.")
        if pool.closed:
            await pool.open()
        try:
            task = asyncio.current_task()
            asked = task.cancelling() if task is not None else 0
            async with pool.connection() as connection:
                if task is not None and task.cancelling() > asked:  # the pool waits by wait_for, which swallows it in Python 3.11
                    raise asyncio.CancelledError
                try:
                    yield connection
                except (psycopg.Error, OSError) as error:
                    if fault_of(error, connection) in (Fault.LOST, Fault.READ_ONLY):
                        await connection.close()
                        self.health.failed(error)
                    raise
        except PoolTimeout as error:
            self.health.failed(error)
            raise

    # --- statements

    async def run(self, call: Call[Row]) -> list[Row]:
        """One statement in its own transaction, tried again as long as that can help: only for what is idempotent by construction."""
        if self.inside():
            return await self.looks.retrying(call)
        return await self.retrying(call.on)

    async def retrying(self, work: Callable[[AsyncConnection[Any]], Awaitable[T]], limit: float = DEADLINE) -> T:
        """Run `work` on a pool connection, again after a fault that may pass. When it does not: SequenceBusyError if it was another
        transaction's lock, else DatabaseUnavailableError.

        limit: seconds after which one try is given up."""
        connection: AsyncConnection[Any] | None = None

        async def once() -> T:
            nonlocal connection
            connection = None
            async with self.connection() as own:
                connection = own
                async with limited(own, limit):
                    return await work(own)

        return await self.again(once, lambda error: fault_of(error, connection))

    async def again(self, once: Callable[[], Awaitable[T]], fault_of: Callable[[BaseException], Fault | None]) -> T:
        """Once, and again after a fault that may pass: see `retrying`."""
        tried = 0
        while True:
            try:
                return await once()
            except (psycopg.Error, OSError) as error:
                fault = fault_of(error)
                tried += 1
                if fault is None or fault is Fault.BROKEN:
                    raise
                if tried > retries(fault):
                    raise (SequenceBusyError(LOCKED) if fault is Fault.BUSY else unreachable(error, self.conninfo)) from error
                await asyncio.sleep(pause(fault, tried, random.random()))


def _pool_keywords(pool: AsyncConnectionPool[Any]) -> dict[str, Any]:
    given: Any = pool.kwargs
    known = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    names = conninfo_to_dict("").keys() | {"host", "port", "dbname", "user", "password", "options", "sslmode"}
    return {**_DEFAULTS, **{key: value for key, value in known.items() if key in names}}


@contextlib.contextmanager
def deadline(connection: AsyncConnection[Any], seconds: float = DEADLINE) -> Generator[None]:
    """Shut the connection's socket down when the block takes longer: cancelling alone may never return on a half-open socket."""
    timer = asyncio.get_running_loop().call_later(seconds, sever, connection)
    try:
        yield
    finally:
        timer.cancel()


@contextlib.asynccontextmanager
async def limited(connection: AsyncConnection[Any], seconds: float) -> AsyncGenerator[None]:
    """As `deadline`, for what may wait for another transaction: its statement is cancelled first (psycopg's QueryCanceled), lest the
    server should go on waiting, and in the end do what nobody expects any more."""
    cancelling: asyncio.Task[None] | None = None

    def cancel() -> None:
        nonlocal cancelling
        cancelling = asyncio.get_running_loop().create_task(_cancel(connection))

    timer, cancelled = asyncio.get_running_loop().call_later(seconds, cancel), False
    try:
        with deadline(connection, seconds + CANCELLING):
            yield
    except psycopg.errors.QueryCanceled:
        cancelled = True
        raise
    finally:
        timer.cancel()
        if cancelling is not None:
            if not cancelled:  # it would meet what comes next on this connection
                await connection.close()
            await cancelling


async def _cancel(connection: AsyncConnection[Any]) -> None:
    with contextlib.suppress(psycopg.Error, OSError):
        await connection.cancel_safe(timeout=CANCELLING)


def sever(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """End whatever waits on this connection, now."""
    with contextlib.suppress(OSError, psycopg.Error):
        with socket.socket(fileno=connection.fileno()) as handle:
            try:
                handle.shutdown(socket.SHUT_RDWR)
            finally:
                handle.detach()


class Link:
    """One connection of the engine's own, remade whenever it breaks. Its users take turns. patient: they wait for as long as the database
    is down."""

    def __init__(self, database: Database, purpose: str, *, pinned: bool = True, patient: bool = True) -> None:
        self._database = database
        self._purpose = purpose
        self._pinned = pinned
        self._patient = patient
        self._connection: AsyncConnection[Any] | None = None
        self._turn = asyncio.Lock()

    async def connection(self) -> AsyncConnection[Any]:
        """The connection, made first if need be. Raises what connecting raises."""
        if self._connection is None or self._connection.closed:
            if self._patient:
                await self._database.health.usable()
            try:
                self._connection = await self._database.connect(self._purpose, pinned=self._pinned)
            except (psycopg.Error, OSError) as error:
                self._database.health.failed(error)
                raise
        return self._connection

    async def use(self, work: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        """Run `work` on the connection, once, under the deadline. Any failure is raised; a failed connection is dropped."""
        async with self._turn:
            return await self._use(work)

    async def _use(self, work: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
        connection = await self.connection()
        try:
            with deadline(connection, LINK_DEADLINE):
                return await work(connection)
        except BaseException as error:
            fault = fault_of(error, connection) if isinstance(error, Exception) else Fault.LOST
            if fault in (Fault.LOST, Fault.READ_ONLY) or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                await self.close()
            if fault in (Fault.LOST, Fault.READ_ONLY) and isinstance(error, Exception):
                self._database.health.failed(error)
            raise

    async def run(self, call: Call[Row]) -> list[Row]:
        """One statement by itself."""
        return await self.use(call.on)

    async def retrying(self, call: Call[Row]) -> list[Row]:
        """As `Database.run`, here."""

        async def once() -> list[Row]:
            await self._database.up()
            return await self.run(call)

        return await self._database.again(once, fault_of)

    async def transact(self, *calls: Call[Any]) -> list[list[Any]]:
        """Several statements in one transaction and one round trip; their answers.

        What a pipeline sends up to its sync is one implicit transaction (PostgreSQL, "Pipelining"): no BEGIN, no COMMIT.
        """

        async def work(connection: AsyncConnection[Any]) -> list[list[Any]]:
            return await together(connection, *calls)

        return await self.use(work)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()
