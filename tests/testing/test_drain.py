"""drain(): everything that is due runs, in this process, until nothing is left."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, Retry, continue_with
from queuert_py.errors import ResultTimeoutError, UsageError
from queuert_py.testing import Harness, VirtualClock, drain
from tests.engine.kit import patiently


class Number(BaseModel):
    n: int


async def test_what_handlers_start_runs_too(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def halve(job: Job[Number]) -> None:
        if job.input.n > 1:
            await engine.start_sequence(halve, Number(n=job.input.n // 2))

    async with queuert(engine):
        await engine.start_sequence(halve, Number(n=8))
        assert (await drain(engine)).outcomes == {"completed": 4}


async def test_the_errors_of_attempts_are_told(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type(max_attempts=2, backoff=0)
    async def fail(job: Job[Number]) -> None:
        raise ValueError(f"no {job.input.n}")

    async with queuert(engine):
        await engine.start_sequence(fail, Number(n=3))
        first, second = (await drain(engine)).ran
        assert [(each.attempt, each.outcome, (each.error or {})["message"]) for each in (first, second)] == [
            (1, "retried", "no 3"),
            (2, "failed", "no 3"),
        ]


async def test_what_is_not_due_stays_and_through_goes_on_to_it_in_its_order(queuert: Harness) -> None:
    engine = Engine("postgresql://")
    ran: list[tuple[int, timedelta]] = []
    clock = VirtualClock(engine)

    @engine.job_type
    async def note(job: Job[Number]) -> None:
        ran.append((job.input.n, await clock.now() - begun))

    async with queuert(engine):
        begun = await clock.now()
        await engine.start_sequences([note(Number(n=hours), delay=timedelta(hours=hours)) for hours in (5, 0, 24, 2)])
        await drain(engine)
        assert [n for n, _ in ran] == [0]
        await drain(engine, through=timedelta(hours=6))
        assert [(n, round(after / timedelta(hours=1))) for n, after in ran] == [(0, 0), (2, 2), (5, 5)]
        assert round((await clock.now() - begun) / timedelta(hours=1)) == 6


async def test_retries_run_with_their_backoff_when_time_goes_on(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type(max_attempts=5)
    async def stubborn(job: Job[Number]) -> Number:
        if job.attempt < 3:
            raise Retry("not yet", after=3600)
        return job.input

    async with queuert(engine):
        sequence = await engine.start_sequence(stubborn, Number(n=1))
        assert (await drain(engine)).outcomes == {"retried": 1}
        assert (await drain(engine, through=timedelta(hours=3))).outcomes == {"retried": 1, "completed": 1}
        assert (await sequence.result(timeout=10)).n == 1


async def test_only_the_types_that_are_named(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(second, job.input)

    @engine.job_type(internal=True)
    async def second(job: Job[Number]) -> Number:
        return job.input

    async with queuert(engine):
        await engine.start_sequence(first, Number(n=1))
        done = await drain(engine, types=["first"])
        assert done.outcomes == {"continued": 1}
        assert (await drain(engine)).outcomes == {"completed": 1}


async def test_what_starts_itself_over_and_over_ends_with_an_error(queuert: Harness) -> None:
    engine = Engine("postgresql://")
    runs: list[int] = []

    @engine.job_type
    async def again(job: Job[Number]) -> None:
        runs.append(1)
        await engine.start_sequence(again, job.input)

    async def over(timeout: float) -> str | None:
        with pytest.raises(ResultTimeoutError) as late:
            await drain(engine, timeout=timeout)
        return str(late.value) if runs else None

    async with queuert(engine):
        await engine.start_sequence(again, Number(n=1))
        assert "is not done; at last: again" in await patiently(over)
        with pytest.raises(UsageError, match="timeout"):
            await drain(engine, timeout=0)
