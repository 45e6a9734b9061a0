"""`batch_type`: one call for several jobs, an outcome for each, and each with a lease, a time limit and a fate of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel, field_validator

from queuert_py import (
    Blocker,
    Continuation,
    Depends,
    Engine,
    Job,
    JobSequence,
    JobType,
    JobTypes,
    Request,
    Retry,
    Snooze,
    SyncJob,
    continue_with,
)
from queuert_py.errors import DeclarationError, PhaseError
from queuert_py.middleware import Middleware
from queuert_py.testing import run_handler


class In(BaseModel):
    n: int = 0


class Out(BaseModel):
    n: int = 0


class Broken(Exception):
    """The handler's own failure."""


Batched = JobType[In, Out]


async def fates(engine: Engine) -> dict[int, str]:
    """The status of every sequence by its input's number."""
    return {each.input["n"]: each.status for each in await engine.list_sequences(limit=1000)}


async def reasons(engine: Engine, n: int) -> tuple[str | None, str]:
    (found,) = [each for each in await engine.list_sequences(limit=1000) if each.input["n"] == n]
    assert found.error is not None
    return found.reason, str(found.error["type"])


async def drain(engine: Engine, job_type: Batched, count: int, **worker: Any) -> None:
    await engine.start_sequences([job_type(In(n=n)) for n in range(count)])
    async with engine.worker(drain=True, **worker):
        pass


# --- what is gathered, and what becomes of it


async def test_up_to_size_jobs_are_in_one_call_and_each_gets_its_outcome(engine: Engine) -> None:
    sizes: list[int] = []

    @engine.batch_type("double", size=10)
    async def double(jobs: Sequence[Job[In]]) -> list[Out]:
        sizes.append(len(jobs))
        return [Out(n=job.input.n * 2) for job in jobs]

    await drain(engine, double, 35)
    assert sorted(sizes) == [5, 10, 10, 10]
    found = await engine.list_sequences(limit=1000)
    assert {each.input["n"]: each.output["n"] for each in found} == {n: 2 * n for n in range(35)}


async def test_it_does_not_wait_to_be_full(engine: Engine) -> None:
    @engine.batch_type("double", size=1000)
    async def double(jobs: Sequence[Job[In]]) -> list[Out]:
        return [Out(n=job.input.n * 2) for job in jobs]

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(double, In(n=4))
        assert await sequence.result(timeout=20) == Out(n=8)


async def test_jobs_of_other_types_go_their_own_way_meanwhile(engine: Engine) -> None:
    @engine.batch_type("batched", size=10)
    async def batched(jobs: Sequence[Job[In]]) -> list[Out]:
        return [Out(n=len(jobs)) for _ in jobs]

    @engine.job_type("single")
    async def single(job: Job[In]) -> Out:
        return Out(n=-1)

    requests: list[Request[Out]] = [(batched if n % 2 else single)(In(n=n)) for n in range(10)]
    handles = await engine.start_sequences(requests)
    async with engine.worker(drain=True):
        pass
    found = [(await engine.get_sequence(each.id)).output["n"] for each in handles]
    assert found == [-1, 5] * 5


async def test_an_exception_among_the_outcomes_fails_that_job_alone_by_its_policy(engine: Engine) -> None:
    calls: list[list[tuple[int, int]]] = []

    @engine.batch_type("work", size=10, max_attempts=2, backoff=0)
    async def work(jobs: Sequence[Job[In]]) -> Sequence[Out | Exception]:
        calls.append([(job.input.n, job.attempt) for job in jobs])
        return [Broken("no") if job.input.n == 3 else Retry(after=0) if (job.input.n, job.attempt) == (4, 1) else Out() for job in jobs]

    await drain(engine, work, 6)
    assert await fates(engine) == {0: "completed", 1: "completed", 2: "completed", 3: "failed", 4: "completed", 5: "completed"}
    assert await reasons(engine, 3) == ("error", "Broken")
    assert sorted(each for call in calls[1:] for each in call) == [(3, 2), (4, 2)]


async def test_an_exception_raised_is_that_of_every_job(engine: Engine) -> None:
    @engine.batch_type("work", size=10, max_attempts=1)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        raise Broken

    await drain(engine, work, 3)
    assert set((await fates(engine)).values()) == {"failed"}
    assert await reasons(engine, 0) == ("error", "Broken")


@pytest.mark.parametrize("outcomes", [[], [Out()], [Out()] * 4, 7, None], ids=repr)
async def test_another_number_of_outcomes_fails_every_job(engine: Engine, outcomes: Any) -> None:
    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        return outcomes  # type: ignore[no-any-return]

    await drain(engine, work, 3)
    assert set((await fates(engine)).values()) == {"failed"}
    assert await reasons(engine, 1) == ("validation", "InvalidOutputError")


async def test_an_outcome_that_is_not_declared_fails_its_job(engine: Engine) -> None:
    other = JobType[In, Out]("other")

    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        wrong: list[Any] = [Out(), In(), continue_with(other, In())]
        return wrong

    await drain(engine, work, 3)
    assert await fates(engine) == {0: "completed", 1: "failed", 2: "failed"}
    assert [await reasons(engine, n) for n in (1, 2)] == [("validation", "InvalidOutputError")] * 2


async def test_an_input_that_its_model_refuses_fails_alone(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        return [Out(n=len(jobs)) for _ in jobs]

    handles = await engine.start_sequences([work(In(n=n)) for n in range(3)])
    await db.execute("update queuert.live_job set input = '{\"n\": \"x\"}' where input ->> 'n' = '1'")
    async with engine.worker(drain=True):
        pass
    records = [await engine.get_sequence(each.id) for each in handles]
    assert [(each.status, each.reason) for each in records] == [("completed", None), ("failed", "validation"), ("completed", None)]
    assert records[0].output == {"n": 2}


class Picky(BaseModel):
    n: int = 0

    @field_validator("n")
    @classmethod
    def mistaken(cls, n: int) -> int:
        return {0: 0}[n] if broken else n


broken = False


async def test_a_validator_that_fails_by_mistake_is_an_error_of_its_job(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    @engine.batch_type("several", size=10, max_attempts=1)
    async def several(jobs: Sequence[Job[Picky]]) -> list[Out]:
        return [Out(n=len(jobs)) for _ in jobs]

    @engine.job_type("single", max_attempts=1)
    async def single(job: Job[Picky]) -> Out:
        return Out()

    handles = await engine.start_sequences([several(Picky(n=0)), several(Picky(n=1)), single(Picky(n=1))])
    monkeypatch.setattr(sys.modules[__name__], "broken", True)
    async with engine.worker(drain=True):
        pass
    records = [await engine.get_sequence(each.id) for each in handles]
    assert [each.status for each in records] == ["completed", "failed", "failed"]
    assert [each.error["type"] for each in records if each.error is not None] == ["KeyError", "KeyError"]


async def test_snoozed_jobs_are_not_charged(engine: Engine) -> None:
    @engine.batch_type("work", size=10, max_attempts=1)
    async def work(jobs: Sequence[Job[In]]) -> Sequence[Out | Exception]:
        return [Snooze(after=3600) for _ in jobs]

    handles = await engine.start_sequences([work(In(n=n)) for n in range(2)])
    async with engine.worker(drain=True):
        pass
    assert [(each.status, each.attempt) for handle in handles for each in await engine.list_jobs(handle.id)] == [("scheduled", 0)] * 2


# --- each job its own fate


async def test_a_job_that_is_cancelled_is_dropped_and_the_others_go_on(engine: Engine) -> None:
    started = asyncio.Event()
    seen: list[Any] = []

    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        started.set()
        while not any(job.aborted for job in jobs):
            await asyncio.sleep(0)
        seen.extend((job.input.n, job.abort_reason) for job in jobs)
        return [Out(n=job.input.n) for job in jobs]

    handles = await engine.start_sequences([work(In(n=n)) for n in range(3)])
    async with engine.worker(drain=True):
        await started.wait()
        await engine.cancel_sequences([handles[1].id])
    assert await fates(engine) == {0: "completed", 1: "cancelled", 2: "completed"}
    assert sorted(seen) == [(0, None), (1, "cancelled"), (2, None)]


async def test_a_job_has_its_own_time_limit_and_one_end(engine: Engine) -> None:
    committed: list[int] = []

    @engine.batch_type("work", size=10, max_attempts=1)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        for job in jobs:
            job.on_commit(partial(committed.append, job.input.n))
        while not any(job.aborted for job in jobs):
            await asyncio.sleep(0)
        return [Out(n=job.input.n) for job in jobs]

    await engine.start_sequences([work(In(n=0)), work(In(n=1), timeout=0.1), work(In(n=2))])
    async with engine.worker(drain=True):
        pass
    assert await fates(engine) == {0: "completed", 1: "failed", 2: "completed"}
    assert await reasons(engine, 1) == ("timeout", "TimeoutError")
    assert sorted(committed) == [0, 2], "what its handler returns for it comes to nothing"


async def test_the_handler_is_cancelled_when_no_job_is_left(engine: Engine) -> None:
    met: list[str] = []

    @engine.batch_type("work", size=10, timeout=0.1, max_attempts=1)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            met.append(str(error))
            raise
        return []

    await drain(engine, work, 3)
    assert met == ["timeout"]
    assert set((await fates(engine)).values()) == {"failed"}


async def test_a_handler_that_ignores_it_is_left_behind_and_can_write_nothing(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    go_on, over = asyncio.Event(), asyncio.Event()

    @engine.batch_type("work", size=10, timeout=0.1, max_attempts=1)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue
        over.set()
        return [Out() for _ in jobs]

    await engine.start_sequences([work(In(n=n)) for n in range(3)])
    async with engine.worker(drain=True, grace=0.1):
        pass
    assert set((await fates(engine)).values()) == {"failed"}
    go_on.set()
    await over.wait()
    assert set((await fates(engine)).values()) == {"failed"}


async def test_a_stopping_worker_gives_the_jobs_back(engine: Engine) -> None:
    started = asyncio.Event()

    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        started.set()
        await asyncio.Event().wait()
        return []

    handles = await engine.start_sequences([work(In(n=n)) for n in range(3)])
    worker = await engine.worker(shutdown_timeout=0.1).start()
    await started.wait()
    await worker.stop()
    assert [(each.status, each.attempt) for handle in handles for each in await engine.list_jobs(handle.id)] == [("pending", 0)] * 3


async def test_a_stopping_worker_lets_the_handler_clean_up_before_it_gives_the_jobs_back(engine: Engine, dsn: str) -> None:
    started, cleaning, clean = asyncio.Event(), asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    def declare(on: Engine) -> Batched:
        @on.batch_type("work", size=10)
        async def work(jobs: Sequence[Job[In]]) -> list[Out]:
            calls.append(len(jobs))
            if len(calls) == 1:
                started.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaning.set()
                    await clean.wait()
            return [Out(n=job.input.n) for job in jobs]

        return work

    other = Engine(dsn)
    work, _ = declare(engine), declare(other)
    await engine.start_sequences([work(In(n=n)) for n in range(3)])
    worker = await engine.worker(shutdown_timeout=0, grace=60).start()
    await started.wait()
    stopping = asyncio.create_task(worker.stop())
    await cleaning.wait()
    async with other.worker(drain=True):
        pass
    assert (calls, worker.running, stopping.done()) == ([3], 3, False), "they are still this worker's"
    clean.set()
    await stopping
    async with other, other.worker(drain=True):
        pass
    assert await fates(engine) == dict.fromkeys(range(3), "completed")
    assert sum(calls) == 6


async def test_a_batch_that_swallows_the_end_of_its_worker_has_its_outcomes_and_one_that_ignores_it_is_left_behind(engine: Engine) -> None:
    started, never = asyncio.Event(), asyncio.Event()

    @engine.batch_type("swallows", size=10)
    async def swallows(jobs: Sequence[Job[In]]) -> list[Out]:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await never.wait()
        return [Out(n=job.input.n) for job in jobs]

    @engine.batch_type("ignores", size=10)
    async def ignores(jobs: Sequence[Job[In]]) -> list[Out]:
        started.set()
        while not never.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await never.wait()
        return [Out(n=job.input.n) for job in jobs]

    for job_type, becomes in ((swallows, "completed"), (ignores, "pending")):
        started.clear()
        handles = await engine.start_sequences([job_type(In(n=n)) for n in range(3)])
        worker = await engine.worker(shutdown_timeout=0, grace=0.05, types=[job_type.name]).start()
        await started.wait()
        await worker.stop()
        assert [(await engine.get_sequence(each.id)).status for each in handles] == [becomes] * 3
    never.set()


# --- what belongs to one job is refused, what does not is there


async def test_there_are_no_phases_steps_or_waits_in_a_batch(engine: Engine) -> None:
    refused: list[str] = []

    async def phase(job: Job[In], name: str) -> None:
        async with getattr(job, name)():
            raise AssertionError

    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        (job,) = jobs
        calls: list[Callable[[], Any]] = [
            lambda: phase(job, "prepare"),
            lambda: phase(job, "finalize"),
            lambda: phase(job, "atomic"),
            lambda: job.step("one", lambda: 1),
            lambda: job.sleep(1),
            lambda: job.wait_for_event("event"),
            lambda: job.wait_for(list[JobSequence[Out]]()),
        ]
        for call in calls:
            try:
                await call()
            except PhaseError as error:
                refused.append(str(error))
        return [Out(n=len(refused))]

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        assert await sequence.result(timeout=20) == Out(n=7)
    assert all("one outcome per job" in each for each in refused)


async def test_sequences_started_in_it_belong_to_none_of_its_jobs(engine: Engine) -> None:
    seen: list[Any] = []

    @engine.job_type("other")
    async def other(job: Job[In]) -> None:
        seen.append(job.origin_id)

    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        await engine.start_sequence(other, In())
        return [Out() for _ in jobs]

    await drain(engine, work, 2)
    assert seen == [None]


async def test_dependencies_are_made_once_for_a_batch_and_middleware_stands_around_each_job(engine: Engine) -> None:
    log: list[str] = []

    async def connect() -> AsyncIterator[str]:
        log.append("+db")
        yield "db"
        log.append("-db")

    class Noting(Middleware[Any]):
        @asynccontextmanager
        async def around_attempt(self, job: Job[Any, Any]) -> AsyncGenerator[None]:
            if job.input.n == 2:
                raise Broken
            log.append(f"+{job.input.n}")
            try:
                yield
            except Broken:
                log.append(f"{job.input.n} failed")
                raise
            log.append(f"-{job.input.n}")

    engine.use(Noting())

    @engine.batch_type("work", size=10, max_attempts=1)
    async def work(jobs: Sequence[Job[In]], db: str = Depends(connect)) -> Sequence[Out | Exception]:
        log.append(f"{db} {len(jobs)}")
        return [Out() if job.input.n else Broken() for job in jobs]

    await drain(engine, work, 3)
    assert log == ["+0", "+1", "+db", "db 2", "-db", "-1", "0 failed"]
    assert await fates(engine) == {0: "failed", 1: "completed", 2: "failed"}


async def test_run_handler_gives_it_a_batch_of_one() -> None:
    @JobTypes().batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> Sequence[Out | Exception]:
        return [Out(n=job.input.n) if job.input.n else Broken() for job in jobs]

    assert await run_handler(work, In(n=2)) == Out(n=2)
    with pytest.raises(Broken):
        await run_handler(work, In(n=0))


# --- declarations


async def one_job(job: Job[In]) -> list[Out]: ...  # type: ignore[empty-body]
async def one_outcome(jobs: Sequence[Job[In]]) -> Out: ...  # type: ignore[empty-body]
async def sync_jobs(jobs: Sequence[SyncJob[In]]) -> list[Out]: ...  # type: ignore[empty-body]
def no_coroutine(jobs: Sequence[Job[In]]) -> list[Out]: ...  # type: ignore[empty-body]
async def numbers(jobs: Sequence[Job[In]]) -> list[int]: ...  # type: ignore[empty-body]
def of_job(job: Job[In]) -> int: ...  # type: ignore[empty-body]
async def with_job(jobs: Sequence[Job[In]], n: int = Depends(of_job)) -> list[Out]: ...  # type: ignore[empty-body]
async def onward(jobs: Sequence[Job[In]]) -> list[Out | Continuation[Out]]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (one_job, r"annotate its parameter as `job: Sequence\[Job\[Input\]\]`"),
        (one_outcome, r"annotate what it returns as `Sequence\[Output \| Exception\]`"),
        (sync_jobs, r"annotate its parameter as `jobs: Sequence\[Job\[Input\]\]`, an `async def` takes Job"),
        (no_coroutine, r"write `async def no_coroutine\(jobs: Sequence\[Job\[Input\]\]\)"),
        (numbers, "its output is int"),
        (onward, "a batch cannot continue"),
        (with_job, "its provider of_job takes the job, and a batch has many"),
    ],
)
def test_a_handler_that_takes_no_batch_is_refused(handler: Any, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        JobTypes().batch_type("work", size=3)(handler)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_at_least_one(size: int) -> None:
    with pytest.raises(DeclarationError, match="size="):
        JobTypes().batch_type("work", size=size)(one_job)  # type: ignore[arg-type] # pyright: ignore


async def test_its_jobs_have_blockers_callbacks_progress_a_state_and_a_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    class Twice(BaseModel):
        of: Blocker[Out]

    committed: list[int] = []
    states: list[dict[str, Any]] = []

    @engine.job_type
    async def single(job: Job[In]) -> Out:
        return Out(n=job.input.n)

    @engine.batch_type("twice", size=10, max_attempts=1)
    async def twice(jobs: Sequence[Job[Twice]]) -> Sequence[Out | Exception]:
        for job in jobs:
            job.on_commit(partial(committed.append, job.input.of.output.n))
            job.state["n"] = job.input.of.output.n
            job.log.warning("at %d", job.input.of.output.n)
            await job.progress(50)
        states.extend(job.state for job in jobs)
        return [Out(n=n * 2) if (n := job.input.of.output.n) < 3 else Broken() for job in jobs]

    blockers = await engine.start_sequences([single(In(n=n)) for n in range(1, 4)])
    sequences = await engine.start_sequences([twice(Twice(of=each)) for each in blockers])
    async with engine.worker(drain=True):
        pass
    found = [await engine.get_sequence(each.id) for each in sequences]
    assert [each.status for each in found] == ["completed", "completed", "failed"]
    assert [each.output for each in found] == [{"n": 2}, {"n": 4}, None]
    assert sorted(committed) == [1, 2], "only what has completed is committed"
    assert sorted(each["n"] for each in states) == [1, 2, 3]
    assert {record.__dict__["sequence_id"] for record in caplog.records if record.message.startswith("at ")} == {
        str(each.id) for each in sequences
    }


async def test_run_and_map_give_it_one_job_at_a_time_or_several(engine: Engine) -> None:
    @engine.batch_type("work", size=10)
    async def work(jobs: Sequence[Job[In]]) -> list[Out]:
        return [Out(n=job.input.n + 1) for job in jobs]

    async with engine:
        assert await engine.run(work, In(n=1)) == Out(n=2)
        assert await engine.map(work, [In(n=n) for n in range(5)], concurrency=3) == [Out(n=n + 1) for n in range(5)]
