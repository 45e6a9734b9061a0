"""engine.run and engine.map: sequences that run in this process, whoever else works on the database."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Dedup, Engine, Fail, Job, JobTypes, Retry, continue_with
from queuert_py.errors import (
    InvalidInputError,
    MapStoppedError,
    NotStartableError,
    QueuertError,
    SequenceCancelledError,
    SequenceFailedError,
    UsageError,
)
from queuert_py.events import Event

Connection = psycopg.AsyncConnection[Any]


class Number(BaseModel):
    n: int


class Sum(BaseModel):
    first: Blocker[Number]
    second: Blocker[Number]


async def leased_by(db: Connection) -> list[str | None]:
    return [row[0] for row in await (await db.execute("select leased_by from queuert.live_job order by sequence_id")).fetchall()]


# --- run


async def test_it_runs_where_no_worker_is(engine: Engine) -> None:
    @engine.job_type
    async def double(job: Job[Number]) -> Number:
        return Number(n=job.input.n * 2)

    async with engine:
        assert await engine.run(double, Number(n=2)) == Number(n=4)
        assert await engine.run("double", {"n": 3}) == Number(n=6)
        assert await engine.run("double", {"n": 3}, output=Number) == Number(n=6)


async def test_the_row_is_born_leased_so_that_no_other_worker_can_take_it(engine: Engine, dsn: str, db: Connection) -> None:
    jobs = JobTypes()
    ran_on: list[str | None] = []

    @jobs.job_type
    async def note(job: Job[Number]) -> Number:
        ran_on.extend(await leased_by(db))
        return job.input

    engine.mount(jobs)
    async with Engine(dsn, jobs) as other, other.worker(poll_interval=0.001) as elsewhere, engine:
        for n in range(20):
            await engine.run(note, Number(n=n))
    assert len(ran_on) == 20
    assert elsewhere.id not in ran_on
    assert len(set(ran_on)) == 1


async def test_a_worker_of_this_engine_runs_it_if_it_serves_everything_and_has_room(engine: Engine, db: Connection) -> None:
    ran_on: list[str | None] = []

    @engine.job_type
    async def note(job: Job[Number]) -> None:
        ran_on.extend(await leased_by(db))

    async with engine.worker() as worker:
        await engine.run(note, Number(n=1))
        assert ran_on == [worker.id]
    async with engine.worker(queues=["side"]) as restricted:
        await engine.run(note, Number(n=1))
        assert restricted.id not in ran_on
        assert len(ran_on) == 2


async def test_the_jobs_after_it_run_here_as_well(engine: Engine, dsn: str, db: Connection) -> None:
    jobs = JobTypes()
    ran_on: list[str | None] = []

    @jobs.job_type
    async def first(job: Job[Number]) -> Continuation[Number]:
        ran_on.extend(await leased_by(db))
        return continue_with(second, job.input)

    @jobs.job_type(internal=True, queue="another")
    async def second(job: Job[Number]) -> Number:
        ran_on.extend(await leased_by(db))
        return job.input

    engine.mount(jobs)
    async with Engine(dsn, jobs) as other, other.worker(poll_interval=0.001) as elsewhere, engine:
        await engine.run(first, Number(n=1))
    assert len(ran_on) == 2
    assert elsewhere.id not in ran_on


async def test_a_delayed_continuation_and_a_retry_run_here_where_nobody_else_does(engine: Engine) -> None:
    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(second, job.input, delay=0.05)

    @engine.job_type(internal=True)
    async def second(job: Job[Number]) -> Number:
        if job.attempt < 3:
            raise Retry("not yet", after=0.05)
        return Number(n=job.attempt)

    async with engine:
        assert (await engine.run(first, Number(n=1))).n == 3


async def test_a_failure_is_raised(engine: Engine) -> None:
    @engine.job_type
    async def fail(job: Job[Number]) -> None:
        raise Fail("no")

    async with engine:
        with pytest.raises(SequenceFailedError, match="no"):
            await engine.run(fail, Number(n=1))


async def test_a_key_that_is_held_gives_the_result_of_its_holder(engine: Engine) -> None:
    ran: list[int] = []

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        ran.append(job.input.n)
        return job.input

    async with engine:
        await engine.start_sequence(note, Number(n=1), key="k")
        assert (await engine.run(note, Number(n=2), key="k")).n == 1
        assert ran == [1]


async def test_one_that_waits_with_the_same_key_is_replaced_and_runs_here(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    newest = Dedup("k", on_match="replace")
    async with engine:
        await engine.start_sequence(note, Number(n=1), key="k", delay=3600)
        async with asyncio.timeout(20):
            assert (await engine.run(note, Number(n=2), dedup=newest)).n == 2
        await engine.start_sequence(note, Number(n=1), key="k", delay=3600)
        async with asyncio.timeout(20), engine.worker(poll_interval=60):
            assert (await engine.run(note, Number(n=3), dedup=newest)).n == 3


async def test_its_events_come_in_their_order(engine: Engine) -> None:
    told: list[str] = []

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.on(Event)
    def hear(event: Event) -> None:
        told.append(type(event).__name__)

    async with engine:
        await engine.run(note, Number(n=1))
    assert told == ["SequenceStarted", "JobStarted", "JobCompleted"]


async def test_it_waits_for_blockers_and_runs_then(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def add(job: Job[Sum]) -> Number:
        return Number(n=job.input.first.output.n + job.input.second.output.n)

    async with engine:
        first = await engine.start_sequence(note, Number(n=1))
        await engine.run_once()
        second = await engine.start_sequence(note, Number(n=2))
        adding = asyncio.create_task(engine.run(add, Sum(first=first, second=second)))
        while len(await engine.list_sequences()) < 3:
            await asyncio.sleep(0)
        await engine.run_once(types=["note"])
        async with asyncio.timeout(20):
            assert (await adding).n == 3
        third = await engine.start_sequence(note, Number(n=3))
        await engine.run_once()
        assert (await engine.run(add, Sum(first=first, second=third))).n == 4


async def test_a_cancelled_caller_gives_the_job_back_uncharged(engine: Engine) -> None:
    begun, told = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def wait(job: Job[Number]) -> Number:
        if begun.is_set():
            return Number(n=job.attempt)
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()
        raise AssertionError

    async with engine:
        running = asyncio.create_task(engine.run(wait, Number(n=1)))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await told.wait()
        [sequence] = await engine.list_sequences()
        async with engine.worker():
            assert (await engine.sequence(wait, sequence.id).result(timeout=10)).n == 1


class Held:
    """A handler of the tests below: it has begun, it may go on, and how it ended."""

    def __init__(self, engine: Engine) -> None:
        self.begun, self.gate, self.ends = asyncio.Event(), asyncio.Event(), list[str]()

        @engine.job_type("wait")
        async def wait(job: Job[Number]) -> Number:
            self.begun.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.ends.append("aborted")
                raise
            self.ends.append("done")
            return job.input

        self.type = wait


async def waiters(engine: Engine, count: int) -> None:
    while sum(map(len, engine._waiters._waiting.values())) != count:
        await asyncio.sleep(0)


async def test_a_cancelled_caller_leaves_alone_what_somebody_else_has_started(engine: Engine) -> None:
    held = Held(engine)
    async with engine, engine.worker():
        sequence = await engine.start_sequence(held.type, Number(n=1), key="k")
        await held.begun.wait()
        joined = asyncio.create_task(engine.run(held.type, Number(n=2), key="k"))
        await waiters(engine, 1)
        joined.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joined
        held.gate.set()
        assert (await sequence.result(timeout=10)).n == 1
    assert held.ends == ["done"]


@pytest.mark.parametrize("cancelled", [0, 1])
@pytest.mark.parametrize("worker", [True, False])
async def test_a_cancelled_caller_leaves_alone_what_another_waits_for(engine: Engine, worker: bool, cancelled: int) -> None:
    held = Held(engine)
    async with engine, engine.worker(types=None if worker else [held.type.name]):
        calls = [asyncio.create_task(engine.run(held.type, Number(n=1), key="k"))]
        await held.begun.wait()
        calls.append(asyncio.create_task(engine.run(held.type, Number(n=2), key="k")))
        await waiters(engine, 2)
        calls[cancelled].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[cancelled]
        held.gate.set()
        assert (await calls[1 - cancelled]).n == 1
    assert held.ends == ["done"]


CRASHING = """
import asyncio
from pydantic import BaseModel
from queuert_py import Engine, Job

engine = Engine()

class Number(BaseModel):
    n: int

@engine.job_type
async def wait(job: Job[Number]) -> Number:
    print("begun", flush=True)
    await asyncio.Event().wait()
    return job.input

asyncio.run(engine.run(wait, Number(n=1)))
"""


async def test_after_a_crash_any_worker_goes_on(engine: Engine, dsn: str) -> None:
    @engine.job_type
    async def wait(job: Job[Number]) -> Number:
        return Number(n=job.attempt)

    root = str(Path(__file__).parents[2])
    environment = {"QUEUERT_DSN": dsn, "PYTHONPATH": root}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CRASHING, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    process.kill()
    await process.wait()
    async with engine.worker():
        [sequence] = await engine.list_sequences()
        assert (await engine.sequence(wait, sequence.id).result(timeout=20)).n == 2


async def test_what_cannot_be_run_here_is_said_before_anything_is_written(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type(internal=True)
    async def later(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def inside(job: Job[Number]) -> None:
        await engine.run(note, job.input)

    from queuert_py import JobType

    elsewhere = JobType[Number, Number]("elsewhere")
    engine.add(elsewhere)
    async with engine:
        with pytest.raises(UsageError, match=r"leave out delay=, at= and Dedup\.debounce"):
            await engine.run(note, Number(n=1), delay=1)
        with pytest.raises(UsageError, match=r"leave out delay=, at= and Dedup\.debounce"):
            await engine.run(note, Number(n=1), at=datetime.now(UTC))
        with pytest.raises(UsageError, match=r"leave out delay=, at= and Dedup\.debounce"):
            await engine.run(note, Number(n=1), dedup=Dedup.debounce("k", 1))
        with pytest.raises(UsageError, match="'elsewhere' has no handler in this process"):
            await engine.run(elsewhere, Number(n=1))
        with pytest.raises(NotStartableError):
            await engine.run("later", {"n": 1})
        with pytest.raises(InvalidInputError):
            await engine.run("note", {"n": "x"})
        assert await engine.list_sequences() == []
        with pytest.raises(SequenceFailedError, match="inside a handler would hold its slot"):
            await engine.run(inside, Number(n=1), max_attempts=1)


async def test_a_paused_queue_holds_it_back(engine: Engine, db: Connection) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine:
        await db.execute("insert into queuert.queue (name, paused) values ('default', true)")
        running = asyncio.create_task(engine.run(note, Number(n=1)))
        while not await leased_by(db):
            await asyncio.sleep(0)
        assert await leased_by(db) == [None]
        await db.execute("update queuert.queue set paused = false")
        async with asyncio.timeout(20):
            assert (await running).n == 1


async def test_many_at_once(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine:
        done = await asyncio.gather(*(engine.run(note, Number(n=n)) for n in range(200)))
        assert [each.n for each in done] == list(range(200))


# --- map


async def test_map_gives_the_outputs_in_the_order_of_the_inputs_and_keeps_that_many_running(engine: Engine) -> None:
    four = asyncio.Event()
    ended: list[int] = []
    running = most = 0

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 4:
            four.set()
        await four.wait()
        while job.input.n == 0 and len(ended) < 9:  # the first one is the last to end
            await asyncio.sleep(0)
        running -= 1
        ended.append(job.input.n)
        return job.input

    async with engine:
        assert await engine.map(note, (Number(n=n) for n in range(10)), concurrency=4) == [Number(n=n) for n in range(10)]
        assert (most, ended[-1]) == (4, 0)
        assert await engine.map(note, []) == []


async def test_an_error_stands_in_its_place(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def odd_only(job: Job[Number]) -> Number:
        if job.input.n % 2 == 0:
            raise ValueError(f"{job.input.n} is even")
        return job.input

    async with engine:
        results = await engine.map(odd_only, [Number(n=n) for n in range(4)])
    outputs = [each for each in results if not isinstance(each, QueuertError)]
    assert outputs == [Number(n=1), Number(n=3)]
    assert [type(each) for each in results] == [SequenceFailedError, Number, SequenceFailedError, Number]


async def test_stop_on_error_leaves_the_rest_unstarted_and_says_so(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def below_three(job: Job[Number]) -> Number:
        if job.input.n >= 3:
            raise ValueError("too much")
        return job.input

    async with engine:
        assert await engine.map(below_three, [Number(n=1)], stop_on_error=True) == [Number(n=1)]
        with pytest.raises(MapStoppedError, match="were not started") as caught:
            await engine.map(below_three, [Number(n=n) for n in range(10)], concurrency=1, stop_on_error=True)
        assert caught.value.results == {n: Number(n=n) for n in range(3)}
        assert list(caught.value.errors) == [3]
        assert caught.value.not_started == [4, 5, 6, 7, 8, 9]
        assert isinstance(caught.value.__cause__, SequenceFailedError)
        assert len(await engine.list_sequences()) == 5


async def test_map_checks_every_input_before_the_first_one_starts(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine:
        wrong = Number.model_construct(n="x")
        with pytest.raises(InvalidInputError, match=r"\(input 2\)"):
            await engine.map(note, [Number(n=0), Number(n=1), wrong])
        with pytest.raises(UsageError, match="would make them one"):
            await engine.map(note, [Number(n=0)], key="k")
        with pytest.raises(UsageError, match="concurrency=0"):
            await engine.map(note, [Number(n=0)], concurrency=0)
        assert await engine.list_sequences() == []


async def test_a_cancelled_map_gives_everything_back(engine: Engine) -> None:
    begun: list[UUID] = []

    @engine.job_type
    async def wait(job: Job[Number]) -> None:
        begun.append(job.id)
        await asyncio.Event().wait()

    async with engine:
        mapping = asyncio.create_task(engine.map(wait, [Number(n=n) for n in range(5)], concurrency=2))
        while len(begun) < 2:
            await asyncio.sleep(0)
        mapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mapping
        while {each.status for each in await engine.list_sequences()} != {"pending"}:
            await asyncio.sleep(0)
        assert len(await engine.list_sequences()) == 2


async def test_a_cancelled_sequence_is_an_error_of_its_own(engine: Engine) -> None:
    begun = asyncio.Event()

    @engine.job_type
    async def wait(job: Job[Number]) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with engine:
        running = asyncio.create_task(engine.run(wait, Number(n=1)))
        await begun.wait()
        await engine.cancel_sequences([each.id for each in await engine.list_sequences()])
        with pytest.raises(SequenceCancelledError):
            await running
