"""An engine on SQLAlchemy: its handlers get sessions on the engine's own transaction; the application's sessions are joined as they are."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from typing import Any, cast

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from queuert_py import Engine, Fail, Job, join
from queuert_py.errors import ConfigurationError, PhaseError, SequenceFailedError, TransactionAbortedError, UsageError
from queuert_py.integrations.sqlalchemy import SqlAlchemy


class Base(DeclarativeBase):
    """The application's tables."""


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list[Book]] = relationship(back_populates="author", lazy="selectin")
    facts: Mapped[Any] = mapped_column(JSONB, nullable=True)


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


class Name(BaseModel):
    name: str


class Known(BaseModel):
    id: int
    books: int


def url_of(dsn: str, driver: str = "psycopg") -> URL:
    known = conninfo_to_dict(dsn)
    host, port = str(known["host"]), str(known.get("port") or 5432)
    password = str(known["password"]) if known.get("password") else None
    query = {"host": host, "port": port}  # a socket's folder is no host of a URL
    return URL.create(f"postgresql+{driver}", str(known["user"]), password, database=str(known["dbname"]), query=query)


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncEngine]:
    """The application's own SQLAlchemy engine, with its tables."""
    app = create_async_engine(url_of(dsn))
    async with app.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield app
    await app.dispose()


@pytest.fixture
async def engine(app: AsyncEngine) -> AsyncIterator[Engine[AsyncSession]]:
    engine = Engine(SqlAlchemy(app))
    yield engine
    await engine.close()


async def names(db: psycopg.AsyncConnection[Any]) -> list[str]:
    return [row[0] for row in await (await db.execute("select name from author order by id")).fetchall()]


async def test_a_handler_reads_and_writes_through_sessions(engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]) -> None:
    @engine.job_type
    async def write(job: Job[Name, AsyncSession]) -> Known:
        async with job.prepare() as session:
            session.add(Author(name=job.input.name))  # flushed at the end of the block, committed with it
        async with job.prepare() as session:
            before = (await session.scalars(select(Author).where(Author.name == job.input.name))).one()
        async with job.finalize() as session:
            author = await session.get_one(Author, before.id)
            author.books.append(Book(title="One"))
            session.add(Book(title="Two", author_id=author.id))
            await session.flush()
            count = await session.scalar(select(func.count()).select_from(Book))
            return Known(id=author.id, books=count or 0)

    async with engine.worker():
        sequence = await engine.start_sequence(write, Name(name="Ann"))
        known = await sequence.result(timeout=20)
    assert known.books == 2
    assert await names(db) == ["Ann"]


async def test_what_was_only_added_is_flushed_before_the_job_completes(
    engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]
) -> None:
    @engine.job_type
    async def write(job: Job[Name, AsyncSession]) -> None:
        async with job.atomic() as session:
            session.add(Author(name=job.input.name))

    async with engine.worker():
        await (await engine.start_sequence(write, Name(name="Ann"))).result(timeout=20)
    assert await names(db) == ["Ann"]


async def test_a_failing_handler_leaves_nothing(engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]) -> None:
    @engine.job_type(max_attempts=1)
    async def inside(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name="inside"))
            await session.flush()
            raise Fail("no")

    @engine.job_type(max_attempts=1)
    async def behind(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name="behind"))
        raise Fail("no")

    async with engine.worker():
        for kind in (inside, behind):
            with pytest.raises(SequenceFailedError):
                await (await engine.start_sequence(kind, Name(name=""))).result(timeout=20)
    assert await names(db) == []


async def test_a_flush_that_fails_at_the_end_of_the_block_is_the_handlers(
    engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]
) -> None:
    seen: list[type[BaseException]] = []

    @engine.job_type
    async def write(job: Job[Name, AsyncSession]) -> None:
        try:
            async with job.finalize() as session:
                session.add_all([Author(name="twice"), Author(name="twice")])
        except IntegrityError as error:
            seen.append(type(error))
        async with job.finalize() as session:
            session.add(Author(name="once"))

    async with engine.worker():
        await (await engine.start_sequence(write, Name(name=""))).result(timeout=20)
    assert seen == [IntegrityError]
    assert await names(db) == ["once"]


async def test_the_session_can_neither_commit_nor_roll_back(engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]) -> None:
    @engine.job_type(max_attempts=1)
    async def commits(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name="committed"))
            await session.commit()

    @engine.job_type(max_attempts=1)
    async def hides_it(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name="hidden"))
            with contextlib.suppress(PhaseError):
                await session.commit()

    @engine.job_type(max_attempts=1)
    async def rolls_back(job: Job[Name, AsyncSession]) -> None:
        async with job.prepare() as session:
            session.add(Author(name="rolled back"))
            await session.flush()
            await session.rollback()

    @engine.job_type(max_attempts=1)
    async def goes_on(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            await session.scalar(select(func.count()).select_from(Author))
            await session.rollback()
            await session.execute(text("insert into author (name) values ('after')"))

    async with engine.worker():
        for kind, word in ((commits, "commit()"), (hides_it, "commit()"), (rolls_back, "rollback()"), (goes_on, "rollback()")):
            with pytest.raises(SequenceFailedError) as failed:
                await (await engine.start_sequence(kind, Name(name=""))).result(timeout=20)
            assert failed.value.error["type"] == "PhaseError", kind
            assert word in str(failed.value.error["message"])
    assert await names(db) == []


async def test_a_statement_that_failed_and_was_caught_fails_the_attempt_unless_it_was_nested(
    engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]
) -> None:
    await db.execute("insert into author (name) values ('Ann')")

    @engine.job_type(max_attempts=1)
    async def caught(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name="Ann"))
            with contextlib.suppress(IntegrityError):
                await session.flush()

    @engine.job_type(max_attempts=1)
    async def nested(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name="before"))
            with pytest.raises(IntegrityError):
                async with session.begin_nested():
                    session.add(Author(name="Ann"))
            async with session.begin_nested():
                session.add(Author(name="Ben"))

    async with engine.worker():
        with pytest.raises(SequenceFailedError) as failed:
            await (await engine.start_sequence(caught, Name(name=""))).result(timeout=20)
        assert failed.value.error["type"] == TransactionAbortedError.__name__
        assert "begin_nested" in str(failed.value.error["message"])
        await (await engine.start_sequence(nested, Name(name=""))).result(timeout=20)
    assert sorted(await names(db)) == ["Ann", "Ben", "before"]


async def test_between_block_and_return_the_session_takes_no_statement(
    engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]
) -> None:
    @engine.job_type(max_attempts=1)
    async def late(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name="in time"))
        await session.execute(text("insert into author (name) values ('late')"))

    async with engine.worker():
        with pytest.raises(SequenceFailedError) as failed:
            await (await engine.start_sequence(late, Name(name=""))).result(timeout=20)
    assert failed.value.error["type"] == ResourceClosedError.__name__
    assert await names(db) == []


async def test_a_lost_lease_rolls_the_session_back(engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]) -> None:
    tries: list[int] = []

    @engine.job_type
    async def write(job: Job[Name, AsyncSession]) -> None:
        tries.append(job.attempt)
        if len(tries) == 1:  # another worker has taken it over meanwhile
            await db.execute("update queuert.live_job set epoch = epoch + 1, leased_by = null, leased_until = null, leased_at = null")
        async with job.finalize() as session:
            session.add(Author(name=f"attempt {job.attempt}"))

    async with engine.worker(poll_interval=0.05):
        await (await engine.start_sequence(write, Name(name=""))).result(timeout=20)
    assert await names(db) == [f"attempt {tries[-1]}"]
    assert len(tries) == 2


async def test_a_conflict_of_the_server_is_run_again_without_charge(engine: Engine[AsyncSession], db: psycopg.AsyncConnection[Any]) -> None:
    attempts: list[int] = []

    @engine.job_type
    async def write(job: Job[Name, AsyncSession]) -> None:
        attempts.append(job.attempt)
        async with job.finalize() as session:
            session.add(Author(name=f"run {len(attempts)}"))
            await session.flush()
            if len(attempts) == 1:
                await session.execute(text("do $$ begin raise exception 'conflict' using errcode = '40001'; end $$"))

    async with engine.worker():
        await (await engine.start_sequence(write, Name(name=""))).result(timeout=20)
    assert attempts == [1, 1]
    assert await names(db) == ["run 2"]


async def test_the_connection_goes_back_as_it_came(app: AsyncEngine, db: psycopg.AsyncConnection[Any]) -> None:
    engine = Engine(SqlAlchemy(app), pool_size=1)
    backends: set[int] = set()

    @engine.job_type
    async def write(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            session.add(Author(name=job.input.name))
            backends.add(await session.scalar(text("select pg_backend_pid()")) or 0)

    async with engine, engine.worker():
        for number in range(3):
            await (await engine.start_sequence(write, Name(name=str(number)))).result(timeout=20)
        async with engine.database.connection() as connection:
            assert not connection.__dict__.keys() & {"commit", "rollback", "close", "wait", "queuert_json"}
            assert connection.cursor_factory is psycopg.AsyncCursor
    assert len(backends) == 1
    assert await names(db) == ["0", "1", "2"]


async def test_starts_in_the_session_of_a_phase(engine: Engine[AsyncSession]) -> None:
    @engine.job_type
    async def child(job: Job[Name, AsyncSession]) -> None: ...

    @engine.job_type(max_attempts=1)
    async def parent(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            await engine.start_sequence(child, Name(name="of the phase"), tx=session)
            if job.input.name == "fails":
                raise Fail("no")

    async with engine.worker():
        with pytest.raises(SequenceFailedError):
            await (await engine.start_sequence(parent, Name(name="fails"))).result(timeout=20)
        assert not await engine.list_sequences(type="child")
        await (await engine.start_sequence(parent, Name(name="works"))).result(timeout=20)
        assert len(await engine.list_sequences(type="child")) == 1


async def test_what_is_done_inside_begin_nested_is_undone_with_it(engine: Engine[AsyncSession]) -> None:
    @engine.job_type
    async def child(job: Job[Name, AsyncSession]) -> None: ...

    @engine.job_type(max_attempts=1)
    async def parent(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            kept = await engine.start_sequence(child, Name(name="kept"), tx=session)
            with contextlib.suppress(ValueError):
                async with session.begin_nested():
                    await engine.start_sequence(child, Name(name="undone"), tx=session)
                    raise ValueError
            with contextlib.suppress(ValueError):
                async with session.begin_nested():
                    await engine.cancel_sequences([kept.id], tx=session)
                    raise ValueError
            with contextlib.suppress(ValueError):
                async with session.begin_nested():
                    assert await engine.send_event(kept, "told", tx=session)
                    raise ValueError
            assert await engine.send_event(kept, "told", tx=session)

    async with engine.worker(types=["parent"]):
        await (await engine.start_sequence(parent, Name(name=""))).result(timeout=20)
    assert [(each.input, each.status) for each in await engine.list_sequences(type="child")] == [({"name": "kept"}, "pending")]


async def test_a_session_takes_over_the_handlers_own_key_in_every_form(engine: Engine[AsyncSession]) -> None:
    @engine.job_type(max_attempts=1)
    async def chain(job: Job[Name, AsyncSession]) -> None:
        async with job.finalize() as session:
            if job.input.name != "xx":
                forms: Any = {"": session, "x": join(session)}
                await engine.start_sequence(chain, Name(name=job.input.name + "x"), key="chain", tx=forms[job.input.name])
        with pytest.raises(PhaseError):
            await engine.start_sequence(chain, Name(name="late"), tx=session)

    async with engine.worker(drain=True):
        await engine.start_sequence(chain, Name(name=""), key="chain")
    assert sorted(each.input["name"] for each in await engine.list_sequences()) == ["", "x", "xx"]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_the_applications_own_session_is_joined_as_it_is(
    engine: Engine[AsyncSession], dsn: str, app: AsyncEngine, driver: str
) -> None:
    @engine.job_type
    async def greet(job: Job[Name, AsyncSession]) -> None: ...

    own = create_async_engine(url_of(dsn, driver))
    sessions = async_sessionmaker(own)
    async with sessions() as session:
        session.add(Author(name="Ann"))
        await engine.start_sequence(greet, Name(name="rolled back"), tx=session)
        await session.rollback()
    assert not await engine.list_sequences()
    async with sessions.begin() as session:
        session.add(Author(name="Ann"))
        await engine.start_sequence(greet, Name(name="committed"), tx=session)
        assert not await engine.list_sequences()
    assert [each.input for each in await engine.list_sequences()] == [{"name": "committed"}]
    await own.dispose()


async def test_the_json_functions_and_the_sessions_class_of_the_application_are_used(app: AsyncEngine, dsn: str) -> None:
    class Own(AsyncSession):
        """The application's own class of sessions."""

    def dumps(value: object) -> str:
        return json.dumps(value, default=str)

    def loads(text: str) -> Any:
        return json.loads(text, parse_float=Decimal)

    own = create_async_engine(url_of(dsn), json_serializer=dumps, json_deserializer=loads)
    engine = Engine(SqlAlchemy(own, sessions=async_sessionmaker(class_=Own)))
    seen: list[Any] = []

    @engine.job_type
    async def write(job: Job[Name, Own]) -> None:
        async with job.prepare() as session:
            seen.append(type(session))
            session.add(Author(name="Ann", facts={"price": 1.5, "day": date(2024, 2, 29)}))
        async with job.prepare() as session:
            seen.append((await session.scalars(select(Author))).one().facts)

    async with engine, engine.worker():
        await (await engine.start_sequence(write, Name(name=""))).result(timeout=20)
    assert seen == [Own, {"price": Decimal("1.5"), "day": "2024-02-29"}]
    await own.dispose()


async def test_where_the_database_is_comes_from_a_url_an_engine_or_the_environment(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: value for name, value in conninfo_to_dict(dsn).items() if name in ("host", "port", "user", "dbname")}
    for driver in ("psycopg", "asyncpg", "psycopg2"):
        assert (
            conninfo_to_dict(SqlAlchemy(url_of(dsn, driver)).conninfo).items() >= {"dbname": known["dbname"], "user": known["user"]}.items()
        )
    for source in (url_of(dsn), url_of(dsn).render_as_string(hide_password=False)):
        async with Engine(SqlAlchemy(source)):
            pass
    monkeypatch.setenv("QUEUERT_DSN", dsn)
    async with Engine(SqlAlchemy()):
        pass
    async with Engine(SqlAlchemy("postgresql+psycopg://wrong:1", conninfo=dsn)):
        pass
    monkeypatch.delenv("QUEUERT_DSN")
    with pytest.raises(ConfigurationError, match="QUEUERT_DSN"):
        SqlAlchemy()
    with pytest.raises(ConfigurationError, match="PostgreSQL"):
        SqlAlchemy("sqlite://")
    query = SqlAlchemy("postgresql+asyncpg://me:geheim@here/base?ssl=require&prepared_statement_cache_size=0").conninfo
    assert conninfo_to_dict(query) == {"user": "me", "password": "geheim", "host": "here", "dbname": "base", "sslmode": "require"}


async def test_the_slips_of_those_who_come_from_sqlalchemy_are_told_the_way(app: AsyncEngine) -> None:
    url = "postgresql+psycopg://me:geheim@here/base"
    with pytest.raises(ConfigurationError, match=r"SqlAlchemy\(Engine\(…\)\): a URL or what create_async_engine.*give `engine.url`"):
        SqlAlchemy(cast("Any", create_engine(url)))
    for unreadable in ("garbage", "post gres://here", "postgresql://here:port/base"):
        with pytest.raises(ConfigurationError, match=r"SqlAlchemy\(\): the URL cannot be read: write postgresql"):
            SqlAlchemy(unreadable)
    for given in (app, url, url.replace("psycopg", "asyncpg")):
        with pytest.raises(ConfigurationError, match=r"SqlAlchemy\(") as refused:
            Engine(cast("Any", given))
        assert "geheim" not in str(refused.value)


async def test_an_engine_on_psycopg_says_that_a_session_is_to_be_joined(dsn: str, app: AsyncEngine) -> None:
    engine = Engine(dsn)

    @engine.job_type
    async def greet(job: Job[Name]) -> None: ...

    session: Any
    async with engine, AsyncSession(app) as session:
        with pytest.raises(UsageError, match=r"tx=AsyncSession: .*join"):
            await engine.start_sequence(greet, Name(name=""), tx=session)
