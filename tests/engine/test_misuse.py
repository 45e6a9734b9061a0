"""What can only be seen with a database: time limits that a start lifts, types that no worker knows, continuations with no job type."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from psycopg_pool import AsyncConnectionPool

from queuert_py import Continuation, Engine, Job, JobType, continue_with
from queuert_py.errors import ConfigurationError, SequenceFailedError, UnknownJobTypeError
from queuert_py.job import Connection
from tests.engine.kit import Number

TIMEOUT = 20

# --- time limits


async def failed(engine: Engine, job_type: JobType[Number, Number], **options: Any) -> SequenceFailedError:
    sequence = await engine.start_sequence(job_type, Number(n=1), **options)
    async with engine.worker():
        with pytest.raises(SequenceFailedError) as caught:
            await sequence.result(timeout=TIMEOUT)
    assert caught.value.reason == "timeout"
    return caught.value


@pytest.mark.parametrize("declared", [5, None])
async def test_a_timeout_names_the_limit_that_was_in_force(engine: Engine, declared: float | None) -> None:
    @engine.job_type(timeout=declared, max_attempts=1)
    async def stuck(job: Job[Number]) -> Number:
        await asyncio.Event().wait()
        return job.input

    error = await failed(engine, stuck, timeout=0.05)
    assert error.error["message"] == "the handler took longer than its timeout of 0.05 s"


async def test_a_timeout_of_the_type_is_named_as_well(engine: Engine) -> None:
    @engine.job_type(timeout=0.05, max_attempts=1)
    async def stuck(job: Job[Number]) -> Number:
        await asyncio.Event().wait()
        return job.input

    error = await failed(engine, stuck)
    assert error.error["message"] == "the handler took longer than its timeout of 0.05 s"


async def test_a_start_lifts_the_timeout_of_its_type(engine: Engine) -> None:
    long_runs, over = asyncio.Event(), asyncio.Event()

    @engine.job_type(timeout=0.1, max_attempts=1)
    async def limited(job: Job[Number]) -> Number:
        if job.input.n == 0:
            long_runs.set()
            await over.wait()
        else:
            await asyncio.Event().wait()
        return job.input

    async with engine.worker(), asyncio.timeout(TIMEOUT):
        unlimited = await engine.start_sequence(limited, Number(n=0), timeout=None)
        await long_runs.wait()
        later = await engine.start_sequence(limited, Number(n=1))
        with pytest.raises(SequenceFailedError, match="its timeout"):
            await later.result()
        over.set()  # by now the first one has run for longer than the timeout of the type
        assert await unlimited.result() == Number(n=0)


async def test_the_jobs_after_it_keep_the_timeouts_of_their_types(engine: Engine) -> None:
    @engine.job_type(timeout=0.05, max_attempts=1)
    async def second(job: Job[Number]) -> Number:
        await asyncio.Event().wait()
        return job.input

    @engine.job_type(timeout=5)
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(second, job.input)

    error = await failed(engine, first, timeout=None)
    assert error.error["message"] == "the handler took longer than its timeout of 0.05 s"


# --- workers


@pytest.fixture
def typed(engine: Engine) -> Engine:
    """One type with a handler, one whose handler is elsewhere."""

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    engine.add(JobType[Number, Number]("elsewhere"))
    return engine


@pytest.mark.parametrize("types", [["note", "misspelt"], ["misspelt"]])
async def test_a_worker_of_a_type_that_nobody_declares_does_not_start(typed: Engine, types: list[str]) -> None:
    with pytest.raises(UnknownJobTypeError, match=r"no job type 'misspelt' is declared here \(known: elsewhere, note\)"):
        await typed.worker(types=types).start()
    with pytest.raises(UnknownJobTypeError, match="'misspelt'"):
        await typed.run_once(types=types)


@pytest.mark.parametrize("types", [["note", "elsewhere"], ["elsewhere"]])
async def test_nor_does_one_of_a_type_without_a_handler(typed: Engine, types: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="job type elsewhere without a handler"):
        await typed.worker(types=types).start()


async def test_nor_does_one_of_no_queues(typed: Engine) -> None:
    with pytest.raises(ConfigurationError, match="at least one, or None"):
        typed.worker(queues=[])
    with pytest.raises(ConfigurationError, match="at least one, or None"):
        await typed.run_once(queues=[])


async def test_without_types_a_worker_serves_those_that_have_handlers(typed: Engine) -> None:
    sequence = await typed.start_sequence("note", {"n": 1})
    async with typed.worker(queues=("default", "other"), types=("note",)), asyncio.timeout(TIMEOUT):
        assert await sequence.result() == Number(n=1)
    async with typed.worker():
        pass


# --- continuations


async def test_a_continuation_with_no_job_type_fails_where_it_is_made(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(cast("Any", "second"), job.input)

    sequence = await engine.start_sequence(first, Number(n=1))
    async with engine.worker():
        with pytest.raises(SequenceFailedError) as caught:
            await sequence.result(timeout=TIMEOUT)
    assert caught.value.error["type"] == "UsageError"
    assert "'second' is no job type" in str(caught.value.error["message"])


# --- lists by reason


async def test_what_failed_is_listed_by_its_reason(engine: Engine) -> None:
    @engine.job_type(timeout=0.05, max_attempts=1)
    async def fragile(job: Job[Number]) -> Number:
        if job.input.n == 0:
            await asyncio.Event().wait()
        if job.input.n == 1:
            raise ValueError("broken")
        return job.input

    late, broken, _ = await engine.start_sequences([fragile(Number(n=n)) for n in range(3)])
    async with engine.worker(drain=True):
        pass
    waits = await engine.start_sequence(fragile, Number(n=3), delay=3600)
    assert [each.id for each in await engine.list_sequences(reason="timeout")] == [late.id]
    assert [each.id for each in await engine.list_sequences(reason="error", status="failed")] == [broken.id]
    assert [each.sequence_id for each in await engine.list_jobs(reason="error")] == [broken.id]
    for none in ({"status": "completed"}, {"status": "scheduled"}, {"type": "other"}):
        assert await engine.list_sequences(reason="error", **cast("Any", none)) == []
    assert waits.id in [each.id for each in await engine.list_sequences(reason=None)]


# --- a pool of the caller's own


@pytest.mark.parametrize("opened", [True, False], ids=["open", "not open yet"])
async def test_an_engine_works_on_the_callers_pool_and_leaves_it_open(dsn: str, opened: bool) -> None:
    pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
        dsn, min_size=1, max_size=3, open=False, kwargs={"application_name": "mine"}
    )
    if opened:
        await pool.open()
    engine = Engine(pool)
    seen: list[Any] = []

    @engine.job_type
    async def look(job: Job[Number]) -> Number:
        async with job.finalize() as tx:
            cursor = await tx.execute("select current_setting('application_name')")
            seen.append(await cursor.fetchone())
        return job.input

    try:
        async with engine, engine.worker(), asyncio.timeout(TIMEOUT):
            sequence = await engine.start_sequence(look, Number(n=1))
            assert await sequence.result() == Number(n=1)
            async with pool.connection() as tx, tx.transaction():
                joined = await engine.start_sequence(look, Number(n=2), tx=tx)
            assert await joined.result() == Number(n=2)
        assert seen == [("mine",), ("mine",)], "handlers have connections of that pool"
        assert not pool.closed
        async with pool.connection() as connection:
            assert not connection.autocommit, "and they are given back as they were"
            assert (await (await connection.execute("select 1 as one")).fetchone()) == (1,)
    finally:
        await pool.close()
