"""Whose a transaction is: a phase's ends with its block, `tx=` finds it in every form, starts in one take turns, engines have their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from queuert_py import Dedup, Engine, Fail, Job, SyncJob, join
from queuert_py.control import OpenJob
from queuert_py.errors import DuplicateKeyError, PhaseError, SequenceFailedError, TransactionAbortedError, UsageError
from queuert_py.job import Connection

Db = psycopg.AsyncConnection[Any]


class In(BaseModel):
    n: int = 0


@pytest.fixture
async def effects(db: Db) -> Callable[[], Awaitable[list[str]]]:
    """What handlers have written, in order."""
    await db.execute("create table effect (id int generated always as identity, what text)")

    async def read() -> list[str]:
        return [row[0] for row in await (await db.execute("select what from effect order by id")).fetchall()]

    return read


async def inputs(engine: Engine, type: str) -> list[int]:
    """The sequences of this type, by the number in their input."""
    return sorted(each.input["n"] for each in await engine.list_sequences(type=type))


async def keep(tx: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    """What a handler may do with its transaction, by itself and by what it has made of it before."""
    cursor = tx.cursor()

    async def enter(what: Any) -> None:
        async with what:
            raise AssertionError

    async def first(what: Any) -> None:
        await anext(what)

    return {
        "execute": lambda: tx.execute("insert into effect (what) values ('late')"),
        "cursor": lambda: cursor.execute("insert into effect (what) values ('late')"),
        "transaction": lambda: enter(tx.transaction()),
        "pipeline": lambda: enter(tx.pipeline()),
        "commit": tx.commit,
        "rollback": tx.rollback,
        "notifies": lambda: first(tx.notifies(timeout=0)),
        "set_autocommit": lambda: tx.set_autocommit(False),
    }


async def refused(uses: dict[str, Callable[[], Awaitable[Any]]]) -> None:
    for use in uses.values():
        with pytest.raises(PhaseError, match="use it inside"):
            await use()


# --- it ends with its block


async def test_every_use_after_the_block_is_refused(engine: Engine, effects: Any) -> None:
    kept: list[dict[str, Any]] = []

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        for phase in (job.prepare, job.prepare, job.finalize):
            async with phase() as tx:
                uses = await keep(tx)
                await tx.execute("insert into effect (what) values ('in time')")
            kept.append(uses)
            await refused(uses)
            assert tx.closed
            with pytest.raises(PhaseError):
                await tx.close()
            with pytest.raises(PhaseError):
                await engine.start_sequence(work, In(), tx=tx)

    async with engine.worker():
        await (await engine.start_sequence(work, In())).result(timeout=20)
    for uses in kept:
        await refused(uses)
    assert await effects() == ["in time"] * 3


async def test_the_transaction_of_a_block_that_failed_is_over_as_well(engine: Engine, effects: Any) -> None:
    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        tx: Connection | None = None
        with contextlib.suppress(ValueError):
            async with job.finalize() as tx:
                raise ValueError
        assert tx is not None
        with pytest.raises(PhaseError):
            await tx.execute("insert into effect (what) values ('late')")

    async with engine.worker():
        await (await engine.start_sequence(work, In())).result(timeout=20)
    assert await effects() == []


@pytest.mark.parametrize("other_fails", [True, False])
async def test_a_late_write_never_gets_into_another_jobs_transaction(dsn: str, effects: Any, other_fails: bool) -> None:
    engine = Engine(dsn, pool_size=1)
    ready, opened, wrote = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @engine.job_type(max_attempts=1)
    async def careless(job: Job[In]) -> None:
        async with job.prepare() as tx:
            await tx.execute("select 1")
        ready.set()
        await opened.wait()
        try:
            await tx.execute("insert into effect (what) values ('careless')")
        finally:
            wrote.set()

    @engine.job_type(max_attempts=1)
    async def other(job: Job[In]) -> None:
        await ready.wait()
        async with job.finalize() as tx:
            await tx.execute("insert into effect (what) values ('other')")
            opened.set()
            await wrote.wait()
            if other_fails:
                raise Fail("no")

    async with engine, engine.worker():
        sequences = [await engine.start_sequence(each, In()) for each in (careless, other)]
        first, second = await engine.wait_all(sequences, timeout=20, return_exceptions=True)
    assert isinstance(first, SequenceFailedError)
    assert first.error["type"] == "PhaseError"
    assert isinstance(second, SequenceFailedError) == other_fails
    assert await effects() == ([] if other_fails else ["other"])


async def test_what_is_set_on_it_goes_with_it(dsn: str) -> None:
    """The pool's connection is as before for the next one; it is of the pool's own class."""

    class Own(psycopg.AsyncConnection[Any]):
        """The application's own class of connections."""

    pool = AsyncConnectionPool(dsn, connection_class=Own, kwargs={"autocommit": True}, min_size=1, max_size=1, open=False)
    engine = Engine(pool)
    seen: list[Any] = []

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        for _ in range(2):
            async with job.prepare() as tx:
                seen.append((isinstance(tx, Own), await (await tx.execute("select 1 as one")).fetchone(), len(tx._notice_handlers)))
                given: Any = tx
                given.row_factory = dict_row
                tx.add_notice_handler(seen.append)

    async with pool, engine, engine.worker():
        await (await engine.start_sequence(work, In())).result(timeout=20)
    assert seen == [(True, (1,), 0)] * 2


async def test_a_pipeline_must_be_left_inside_the_block(engine: Engine, effects: Any) -> None:
    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize() as tx:
            await tx.execute("insert into effect (what) values ('lost')")
            await tx.pipeline().__aenter__()

    async with engine.worker():
        with pytest.raises(SequenceFailedError, match=r"PhaseError: the block ended inside"):
            await (await engine.start_sequence(work, In())).result(timeout=20)
    assert await effects() == []


async def test_the_function_of_complete_sequence_has_it_until_it_returns(engine: Engine, db: Db) -> None:
    @engine.job_type
    async def approve(job: Job[In]) -> None: ...

    @engine.job_type
    async def follow(job: Job[In]) -> None: ...

    kept: list[Connection] = []

    async def decide(job: OpenJob[In], tx: Connection) -> None:
        kept.append(tx)
        await engine.start_sequence(follow, job.input, tx=tx)

    sequence = await engine.start_sequence(approve, In(n=7))
    await engine.complete_sequence(sequence.id, decide, job_type=approve)
    with pytest.raises(PhaseError):
        await kept[0].execute("select 1")
    assert await inputs(engine, "follow") == [7]


# --- tx= in a phase


def as_it_is(tx: Any) -> Any:
    return tx


@pytest.mark.parametrize("form", [as_it_is, join])
async def test_the_phases_transaction_is_known_in_every_form(engine: Engine, form: Callable[[Any], Any]) -> None:
    @engine.job_type(max_attempts=1)
    async def chain(job: Job[In]) -> None:
        async with job.finalize() as tx:
            with pytest.raises(UsageError, match="its own sequence"):
                await engine.cancel_sequences([job.sequence_id], tx=form(tx))
            if job.input.n < 3:  # under its own key, which it lets go
                assert not (await engine.start_sequence(chain, In(n=job.input.n + 1), key="chain", tx=form(tx))).deduplicated

    async with engine.worker(drain=True):
        await engine.start_sequence(chain, In(), key="chain")
    assert await inputs(engine, "chain") == [0, 1, 2, 3]


async def test_the_thread_of_a_def_handler_may_join_it(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    def chain(job: SyncJob[In]) -> None:
        with job.finalize() as tx:
            if job.input.n < 3:
                engine.sync.start_sequence(chain, In(n=job.input.n + 1), key="chain", tx=join(tx))

    async with engine.worker(drain=True):
        await engine.start_sequence(chain, In(), key="chain")
    assert await inputs(engine, "chain") == [0, 1, 2, 3]


async def test_a_start_after_a_statement_that_failed_says_what_to_do(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize() as tx:
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                await tx.execute("select 1 / 0")
            with pytest.raises(TransactionAbortedError, match=r"tx\.transaction"):
                await engine.start_sequence(work, In(), tx=tx)
            raise Fail("seen")

    async with engine.worker():
        with pytest.raises(SequenceFailedError, match="seen"):
            await (await engine.start_sequence(work, In())).result(timeout=20)


# --- plans take turns


def declare(engine: Engine) -> Any:
    @engine.job_type
    async def note(job: Job[In]) -> None: ...

    return note


async def start_pairs(engine: Engine, note: Any, tx: Any) -> list[int]:
    """Six starts of two each, at once; every second one meets a key that is held, and is undone. The numbers that were started."""

    async def pair(n: int) -> list[int]:
        key = Dedup("held" if n % 2 else f"free {n}", on_match="raise")
        await engine.start_sequences([note(In(n=2 * n), key=f"first {n}"), note(In(n=2 * n + 1), dedup=key)], tx=tx)
        return [2 * n, 2 * n + 1]

    outcomes = await asyncio.gather(*map(pair, range(6)), return_exceptions=True)
    assert [type(each) for each in outcomes] == [list, DuplicateKeyError] * 3
    return [n for each in outcomes if isinstance(each, list) for n in each]


async def test_starts_at_once_on_one_connection_do_not_undo_each_other(engine: Engine, dsn: str) -> None:
    note = declare(engine)
    await engine.start_sequence(note, In(n=100), key="held")
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        started = await start_pairs(engine, note, connection)
    assert await inputs(engine, "note") == [*started, 100]


async def test_nor_do_they_in_a_phase(engine: Engine) -> None:
    note = declare(engine)
    await engine.start_sequence(note, In(n=100), key="held")
    started: list[int] = []

    @engine.job_type(max_attempts=1)
    async def fan(job: Job[In]) -> None:
        async with job.finalize() as tx:
            started.extend(await start_pairs(engine, note, tx))

    async with engine.worker(types=["fan"]):
        await (await engine.start_sequence(fan, In())).result(timeout=20)
    assert await inputs(engine, "note") == [*started, 100]


async def test_in_pipeline_mode_nothing_is_sent(engine: Engine, dsn: str) -> None:
    note = declare(engine)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        async with asyncio.timeout(60), connection.pipeline():
            for tx in (connection, join(connection)):
                with pytest.raises(UsageError, match="pipeline mode"):
                    await engine.start_sequence(note, In(), key="k", tx=tx)
        await engine.start_sequence(note, In(n=1), key="k", tx=connection)
    assert await inputs(engine, "note") == [1]


async def test_nor_in_the_pipeline_of_a_phase(engine: Engine) -> None:
    note = declare(engine)

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize() as tx:
            async with asyncio.timeout(60), tx.pipeline():
                with pytest.raises(UsageError, match="pipeline mode"):
                    await engine.start_sequence(note, In(), key="k", tx=tx)
            await engine.start_sequence(note, In(n=1), key="k", tx=tx)

    async with engine.worker(types=["work"]):
        await (await engine.start_sequence(work, In())).result(timeout=20)
    assert await inputs(engine, "note") == [1]


async def test_a_start_beside_an_executemany_waits_for_its_pipeline(engine: Engine, dsn: str, db: Db) -> None:
    note = declare(engine)
    await db.execute("create table number (n int)")
    async with await psycopg.AsyncConnection.connect(dsn) as connection, connection.cursor() as cursor:
        many = cursor.executemany("insert into number values (%s)", [[n] for n in range(2000)])
        await asyncio.gather(many, engine.start_sequence(note, In(n=1), key="k", tx=connection))
    assert await inputs(engine, "note") == [1]


# --- a join that is kept


async def test_a_join_that_outlives_its_transaction_writes_nothing(engine: Engine, dsn: str) -> None:
    note = declare(engine)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        async with connection.transaction():
            kept = join(connection)
            await engine.start_sequence(note, In(n=1), tx=kept)
        with pytest.raises(UsageError, match="no open transaction"):
            await engine.start_sequence(note, In(n=2), tx=kept)
    with psycopg.connect(dsn, autocommit=True) as blocking:
        with blocking.transaction():
            kept = join(blocking)
        with pytest.raises(UsageError, match="no open transaction"):
            await engine.start_sequence(note, In(n=3), tx=kept)
    assert await inputs(engine, "note") == [1]


async def test_a_join_that_outlives_its_phase_is_refused(engine: Engine) -> None:
    note = declare(engine)

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.prepare() as tx:
            kept = join(tx)
        with pytest.raises(PhaseError):
            await engine.start_sequence(note, In(), tx=kept)
        async with job.prepare() as tx:
            with pytest.raises(PhaseError):
                await engine.start_sequence(note, In(), tx=kept)
            await engine.start_sequence(note, In(n=1), tx=tx)

    async with engine.worker(types=["work"]):
        await (await engine.start_sequence(work, In())).result(timeout=20)
    assert await inputs(engine, "note") == [1]


async def test_a_transaction_on_another_database_is_named(engine: Engine, fresh_database: Callable[[], str]) -> None:
    note = declare(engine)
    async with await psycopg.AsyncConnection.connect(fresh_database()) as connection:
        with pytest.raises(UsageError, match="must be on the one that holds the sequences"):
            await engine.start_sequence(note, In(), tx=connection)
        await connection.rollback()


# --- two engines


async def test_another_engine_is_outside_of_a_handler(engine: Engine, fresh_database: Callable[[], str]) -> None:
    other = Engine(fresh_database())

    @other.job_type
    async def remote(job: Job[In]) -> None: ...

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize():
            sequence = await other.start_sequence(remote, In(n=1))
            await sequence.result(timeout=20)
            await other.wait_all([sequence])
            await other.cancel_sequences([sequence.id])
            record = await other.get_sequence(sequence.id)
            assert (record.tags, record.correlation_id, record.status) == ([], None, "completed")
            (first,) = await other.list_jobs(sequence.id)
            assert first.origin_id is None

    async with other, other.worker(), engine.worker():
        await (await engine.start_sequence(work, In(), tags=["a"], correlation_id="c")).result(timeout=20)


async def test_another_engine_on_the_same_schema_is_not(engine: Engine, dsn: str) -> None:
    note = declare(engine)
    same = Engine(dsn)
    same.add(note)

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize() as tx:
            with pytest.raises(UsageError, match="pass tx=tx"):
                await same.start_sequence(note, In())
            await same.start_sequence(note, In(n=1), tx=tx)

    async with same, engine.worker(types=["work"]):
        sequence = await engine.start_sequence(work, In())
        await sequence.result(timeout=20)
        (started,) = await same.list_sequences(type="note")
        assert (await same.list_jobs(started.id))[0].origin_id == sequence.id


async def test_an_engine_of_another_schema_may_write_in_the_phase(engine: Engine, dsn: str) -> None:
    other = Engine(dsn, schema="second")
    note = declare(other)

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize() as tx:
            await other.start_sequence(note, In(n=1), tx=tx)
            if job.input.n:
                raise Fail("no")

    try:
        async with other, engine.worker():
            with pytest.raises(SequenceFailedError):
                await (await engine.start_sequence(work, In(n=1))).result(timeout=20)
            assert await inputs(other, "note") == []
            await (await engine.start_sequence(work, In())).result(timeout=20)
            assert await inputs(other, "note") == [1]
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("drop schema second cascade")
