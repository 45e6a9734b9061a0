"""tx=join(…): a sequence that is started in a transaction of another kind exists if and only if that transaction commits."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from pydantic import BaseModel
from sqlalchemy import Engine as SyncAlchemy
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from queuert_py import Blocker, Engine, JobType, join
from queuert_py.errors import UsageError
from queuert_py.postgres.carriers import numbered
from tests.engine.kit import until_blocked
from tests.engine.test_sqlalchemy import url_of

asyncpg: Any = importlib.import_module("asyncpg")
psycopg2: Any = importlib.import_module("psycopg2")


OWN_ID = UUID("01890000-0000-7000-8000-000000000001")


class Note(BaseModel):
    text: str


class After(BaseModel):
    first: Blocker[Note]


Greet = JobType[Note, Note]("greet")
Follow = JobType[After, None]("follow")


@pytest.fixture
async def engine(dsn: str) -> AsyncIterator[Engine]:
    engine = Engine(dsn)
    engine.add(Greet, Follow)
    async with engine:
        yield engine


Joined = Callable[[str], AbstractAsyncContextManager[Any]]
"""Opens a transaction on the database and gives what is joined; commits at the end, rolls back when an exception passes."""


@asynccontextmanager
async def psycopg_async(dsn: str) -> AsyncGenerator[Any]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        yield connection


@asynccontextmanager
async def psycopg_sync(dsn: str) -> AsyncGenerator[Any]:
    with psycopg.connect(dsn) as connection:
        yield connection


@asynccontextmanager
async def psycopg_sync_autocommit(dsn: str) -> AsyncGenerator[Any]:
    rows: Any = dict_row
    with psycopg.connect(dsn, autocommit=True, row_factory=rows) as connection, connection.transaction():
        yield connection


@asynccontextmanager
async def asyncpg_plain(dsn: str) -> AsyncGenerator[Any]:
    connection = await asyncpg.connect(asyncpg_dsn(dsn))
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def asyncpg_pool_with_codec(dsn: str) -> AsyncGenerator[Any]:
    def encode(value: object) -> str:
        return f'"{value!r}"'

    async def prepare(connection: Any) -> None:
        await connection.set_type_codec("jsonb", encoder=encode, decoder=len, schema="pg_catalog")

    async with asyncpg.create_pool(asyncpg_dsn(dsn), min_size=1, init=prepare) as pool, pool.acquire() as connection:
        async with connection.transaction():
            yield connection


@asynccontextmanager
async def async_engine(dsn: str, driver: str = "psycopg", **options: Any) -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine(url_of(dsn, driver), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@contextmanager
def sync_engine(dsn: str, driver: str = "psycopg", **options: Any) -> Generator[SyncAlchemy]:
    engine = create_engine(url_of(dsn, driver), **options)
    try:
        yield engine
    finally:
        engine.dispose()


def async_session(driver: str) -> Joined:
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncGenerator[Any]:
        async with async_engine(dsn, driver) as engine, AsyncSession(engine) as session, session.begin():
            yield session

    return opened


@asynccontextmanager
async def async_session_that_begins_by_itself(dsn: str) -> AsyncGenerator[Any]:
    async with async_engine(dsn, "asyncpg") as engine, AsyncSession(engine) as session:
        yield session
        await session.commit()


@asynccontextmanager
async def async_scoped(dsn: str) -> AsyncGenerator[Any]:
    async with async_engine(dsn) as engine:
        session: Any = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        async with session.begin():
            yield session
        await session.remove()


def async_connection(driver: str) -> Joined:
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncGenerator[Any]:
        async with async_engine(dsn, driver) as engine, engine.connect() as connection:
            yield connection  # nothing has begun yet
            await connection.commit()

    return opened


def sync_session(driver: str) -> Joined:
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncGenerator[Any]:
        with sync_engine(dsn, driver) as engine, Session(engine) as session, session.begin():
            yield session

    return opened


@asynccontextmanager
async def sync_scoped(dsn: str) -> AsyncGenerator[Any]:
    with sync_engine(dsn) as engine:
        session: Any = scoped_session(sessionmaker(engine))
        with session.begin():
            yield session
        session.remove()


def sync_connection(driver: str) -> Joined:
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncGenerator[Any]:
        with sync_engine(dsn, driver) as engine, engine.connect() as connection:
            yield connection
            connection.commit()

    return opened


@asynccontextmanager
async def psycopg2_plain(dsn: str) -> AsyncGenerator[Any]:
    connection = psycopg2.connect(libpq(dsn))
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def libpq(dsn: str) -> str:
    known = conninfo_to_dict(dsn)
    return make_conninfo("", **{name: value for name, value in known.items() if name in ("host", "port", "user", "dbname")})


def asyncpg_dsn(dsn: str) -> str:
    return url_of(dsn, "asyncpg").set(drivername="postgresql").render_as_string(hide_password=False)


KINDS: dict[str, Joined] = {
    "psycopg async": psycopg_async,
    "psycopg sync": psycopg_sync,
    "psycopg sync, autocommit, inside transaction()": psycopg_sync_autocommit,
    "asyncpg": asyncpg_plain,
    "asyncpg, from a pool, with a jsonb codec": asyncpg_pool_with_codec,
    "AsyncSession on psycopg": async_session("psycopg"),
    "AsyncSession on asyncpg": async_session("asyncpg"),
    "AsyncSession on asyncpg, not begun": async_session_that_begins_by_itself,
    "async_scoped_session": async_scoped,
    "AsyncConnection on psycopg": async_connection("psycopg"),
    "AsyncConnection on asyncpg": async_connection("asyncpg"),
    "Session on psycopg": sync_session("psycopg"),
    "Session on psycopg2": sync_session("psycopg2"),
    "scoped_session": sync_scoped,
    "Connection on psycopg": sync_connection("psycopg"),
    "Connection on psycopg2": sync_connection("psycopg2"),
    "psycopg2": psycopg2_plain,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


async def texts(engine: Engine) -> list[str]:
    return sorted(each.input["text"] for each in await engine.list_sequences(type="greet"))


@each_kind
async def test_what_was_started_exists_when_the_transaction_has_committed(engine: Engine, dsn: str, kind: str) -> None:
    async with KINDS[kind](dsn) as transaction:
        tx = join(transaction)
        one = await engine.start_sequence(Greet, Note(text="one"), tx=tx)
        two, three = await engine.start_sequences((Greet(Note(text="two"), delay=3600, tags=["a"]), Greet(Note(text="three"))), tx=tx)
        assert await texts(engine) == []
    assert await texts(engine) == ["one", "three", "two"]
    assert {(await engine.get_sequence(each.id)).status for each in (one, three)} == {"pending"}
    assert (await engine.get_sequence(two.id)).status == "scheduled"


class Undo(Exception):
    """Rolls a transaction back."""


@each_kind
async def test_nothing_was_started_when_the_transaction_is_rolled_back(engine: Engine, dsn: str, kind: str) -> None:
    async def start_and_undo() -> None:
        async with KINDS[kind](dsn) as transaction:
            await engine.start_sequence(Greet, Note(text="never"), tx=join(transaction))
            raise Undo

    with pytest.raises(Undo):
        await start_and_undo()
    assert await texts(engine) == []


@each_kind
async def test_keys_own_ids_and_blockers_are_as_exact_as_elsewhere(engine: Engine, dsn: str, kind: str) -> None:
    before = await engine.start_sequence(Greet, Note(text="before"), key="held")
    async with KINDS[kind](dsn) as transaction:
        tx = join(transaction)
        again = await engine.start_sequence(Greet, Note(text="again"), key="held", tx=tx)
        first = await engine.start_sequence(Greet, Note(text="first"), key="free", tx=tx)
        second = await engine.start_sequence(Greet, Note(text="second"), key="free", tx=tx)
        old = await engine.start_sequence(Follow, After(first=before), tx=tx)
        new = await engine.start_sequence(Follow, After(first=first), tx=tx)
        with_id = await engine.start_sequence(Greet, Note(text="own"), id=OWN_ID, tx=tx)
        repeated = await engine.start_sequence(Greet, Note(text="own"), id=OWN_ID, tx=tx)
    assert (again.id, again.deduplicated) == (before.id, True)
    assert (second.id, second.deduplicated, first.deduplicated) == (first.id, True, False)
    assert (with_id.id, repeated.id) == (OWN_ID, OWN_ID)
    assert await texts(engine) == ["before", "first", "own"]
    assert {(await engine.get_sequence(each.id)).status for each in (old, new)} == {"blocked"}


@each_kind
async def test_workers_are_told_by_the_commit(engine: Engine, db: psycopg.AsyncConnection[Any], dsn: str, kind: str) -> None:
    """The hint is part of the transaction: it comes after what others have said before the commit."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listening:
        await listening.execute("listen queuert_queuert")
        async with KINDS[kind](dsn) as transaction:
            await engine.start_sequence(Greet, Note(text="hello"), priority=3, tx=join(transaction))
            await db.execute("notify queuert_queuert, 'before the commit'")
        heard = [each.payload async for each in listening.notifies(timeout=20, stop_after=2)]
    assert heard == ["before the commit", "q:0:3:default"]


async def test_a_sync_transaction_that_waits_for_a_lock_does_not_hold_the_event_loop(engine: Engine, dsn: str) -> None:
    """Two transactions of one event loop, one key: the second start waits for the first one's commit, which only the loop can do."""
    with psycopg.connect(dsn) as one, psycopg.connect(dsn) as two:
        first = await engine.start_sequence(Greet, Note(text="one"), key="k", tx=join(one))
        waiting = asyncio.create_task(engine.start_sequence(Greet, Note(text="two"), key="k", tx=join(two)))
        await until_blocked(engine)
        one.commit()
        second = await waiting
    assert (second.id, second.deduplicated) == (first.id, True)


async def test_the_transaction_is_used_as_it_is(engine: Engine, dsn: str) -> None:
    """No savepoint, no commit, no rollback: one transaction id from the first statement to the last."""
    async with async_session("asyncpg")(dsn) as session:
        before = await session.scalar(text("select pg_current_xact_id()::text"))
        await engine.start_sequence(Greet, Note(text="one"), tx=join(session))
        assert await session.scalar(text("select pg_current_xact_id()::text")) == before
        assert await session.scalar(text("select count(*) from queuert.live_job where xmin::text = :xid"), {"xid": before}) == 1


# --- what cannot be joined


async def closed(dsn: str) -> Sequence[Any]:
    sync, asynchronous = psycopg.connect(dsn), await psycopg.AsyncConnection.connect(dsn)
    plain, old = await asyncpg.connect(asyncpg_dsn(dsn)), psycopg2.connect(libpq(dsn))
    alchemy = create_engine(url_of(dsn))
    core = alchemy.connect()
    for each in (sync, old, core):
        each.close()
    await asynchronous.close()
    await plain.close()
    alchemy.dispose()
    return sync, asynchronous, plain, old, core


async def test_a_closed_connection_is_refused(engine: Engine, dsn: str) -> None:
    for each in await closed(dsn):
        with pytest.raises(UsageError, match="closed"):
            join(each)


async def test_a_connection_without_a_transaction_is_refused(engine: Engine, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as sync:
        with pytest.raises(UsageError, match=r"with connection.transaction\(\)"):
            join(sync)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as asynchronous:
        with pytest.raises(UsageError, match=r"async with connection.transaction\(\)"):
            join(asynchronous)
    plain = await asyncpg.connect(asyncpg_dsn(dsn))
    with pytest.raises(UsageError, match=r"async with connection.transaction\(\)"):
        join(plain)
    async with plain.transaction():
        ended = join(plain)
    with pytest.raises(UsageError, match="no open transaction"):
        await engine.start_sequence(Greet, Note(text="late"), tx=ended)
    await plain.close()
    old = psycopg2.connect(libpq(dsn))
    old.autocommit = True
    with pytest.raises(UsageError, match="autocommit"):
        join(old)
    old.close()
    with pytest.raises(UsageError, match=r"session.begin\(\)"):
        join(Session(autobegin=False))
    assert await texts(engine) == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_sqlalchemy_in_autocommit_is_refused(engine: Engine, dsn: str, driver: str) -> None:
    async with async_engine(dsn, driver, isolation_level="AUTOCOMMIT") as alchemy, AsyncSession(alchemy) as session:
        with pytest.raises(UsageError, match=r"autocommit|no open transaction"):
            await engine.start_sequence(Greet, Note(text="never"), tx=join(session))
    assert await texts(engine) == []


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
async def test_sync_sqlalchemy_in_autocommit_is_refused(engine: Engine, dsn: str, driver: str) -> None:
    with sync_engine(dsn, driver, isolation_level="AUTOCOMMIT") as alchemy, Session(alchemy) as session:
        with pytest.raises(UsageError, match=r"autocommit|no open transaction"):
            await engine.start_sequence(Greet, Note(text="never"), tx=join(session))
    assert await texts(engine) == []


async def test_anything_else_is_refused_by_name(engine: Engine, dsn: str) -> None:
    wrong: Any
    for wrong in (3, "postgresql://", engine, create_engine("sqlite://"), object()):
        with pytest.raises(UsageError, match=f"{type(wrong).__name__} is no transaction.*psycopg.*SQLAlchemy.*asyncpg.*django"):
            join(wrong)
    with Session(create_engine("sqlite://")) as session, pytest.raises(UsageError, match="sqlite"):
        join(session)
    async with psycopg_pool.AsyncConnectionPool(dsn, open=False) as pool:
        wrong = pool
        with pytest.raises(UsageError, match="AsyncConnectionPool"):
            join(wrong)


async def test_tx_of_another_kind_says_that_it_is_to_be_joined(engine: Engine, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        wrong: Any = connection
        with pytest.raises(UsageError, match=r"tx=Connection: .*join"):
            await engine.start_sequence(Greet, Note(text="never"), tx=wrong)


async def test_an_error_of_the_driver_comes_as_it_is_and_the_transaction_is_the_callers(engine: Engine, dsn: str) -> None:
    async with async_engine(dsn, "asyncpg") as alchemy, AsyncSession(alchemy) as session:
        with pytest.raises(ProgrammingError, match="does not exist"):
            await session.execute(text("select nothing_of_this_name"))
        with pytest.raises(DBAPIError, match="current transaction is aborted"):
            await engine.start_sequence(Greet, Note(text="never"), tx=join(session))
        await session.rollback()
        await engine.start_sequence(Greet, Note(text="afterwards"), tx=join(session))
        await session.commit()
    assert await texts(engine) == ["afterwards"]


def test_placeholders_are_numbered_once_each() -> None:
    sql = b"select %(a)s, %(b)s::jsonb, '100%%', %(a)s::text, %(c)s::json"
    assert numbered(sql) == ("select $1, $2::text::jsonb, '100%', $1::text, $3::text::json", ("a", "b", "c"))
