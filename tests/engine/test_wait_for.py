"""`job.wait_for`: a handler starts sequences, gives its slot back until they have completed, and goes on with their outputs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Job, JobSequence, continue_with
from queuert_py.errors import (
    BlockerCycleError,
    BlockerFailedError,
    NotRepeatableError,
    PhaseError,
    SequenceFailedError,
    SequenceNotFoundError,
    UsageError,
)
from queuert_py.ids import uuid7


class Number(BaseModel):
    n: int


class Odd(BaseModel):
    n: int


class Even(BaseModel):
    half: int


class Total(BaseModel):
    sum: int


async def test_fan_out_and_fan_in_within_one_handler(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def square(job: Job[Number]) -> Number:
        return Number(n=job.input.n**2)

    @engine.job_type
    async def sum_of_squares(job: Job[Number]) -> Total:
        runs.append(job.attempt)
        squares = await job.step("start", lambda: engine.start_sequences([square(Number(n=n)) for n in range(job.input.n)]))
        done = await job.wait_for(squares)
        assert [each.id for each in done] == [each.id for each in squares]
        return Total(sum=sum(each.output.n for each in done))

    async with engine.worker(concurrency=1, poll_interval=60):
        sequence = await engine.start_sequence(sum_of_squares, Number(n=10))
        assert (await sequence.result(timeout=10)).sum == 285
    assert runs == [1, 1]
    assert await engine.list_attempts(sequence.id) == []
    assert [(job.attempt, job.crash_count) for job in await engine.list_jobs(sequence.id)] == [(1, 0)]


async def test_what_has_completed_already_is_not_waited_for(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def halve(job: Job[Number]) -> Odd | Even:
        return Odd(n=job.input.n) if job.input.n % 2 else Even(half=job.input.n // 2)

    @engine.job_type
    async def look(job: Job[Number]) -> Total:
        runs.append(1)
        found = await job.wait_for([*done, done[0]])
        assert [each.outcome for each in found] == ["completed"] * 3
        assert [each.output for each in found] == [Odd(n=3), Even(half=2), Odd(n=3)]
        assert await job.wait_for([]) == []
        bare: list[Blocker[Odd | Even]] = [Blocker(done[0].id)]
        assert (await job.wait_for(bare))[0].output == Odd(n=3)
        return Total(sum=0)

    async with engine.worker():
        done = await engine.start_sequences([halve(Number(n=3)), halve(Number(n=4))])
        for each in done:
            await each.result(timeout=10)
        await (await engine.start_sequence(look, Number(n=1))).result(timeout=10)
    assert runs == [1]


async def test_several_waits_one_after_the_other(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def chain(job: Job[Number]) -> Total:
        runs.append(1)
        total = 0
        for n in range(3):
            one = await job.step(f"start {n}", lambda n=n: engine.start_sequence(echo, Number(n=n)))  # type: ignore[misc]
            (done,) = await job.wait_for([one], name=f"wait {n}")
            total += done.output.n
            await job.sleep(0.01)
        return Total(sum=total)

    async with engine.worker(poll_interval=60):
        assert (await (await engine.start_sequence(chain, Number(n=1))).result(timeout=10)).sum == 3
    assert len(runs) >= 4


async def test_a_blocked_job_shows_as_blocked_and_waits_for_the_whole_sequence(engine: Engine) -> None:
    @engine.job_type
    async def second(job: Job[Number]) -> Number:
        return Number(n=job.input.n + 1)

    @engine.job_type(queue="side")
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(second, Number(n=job.input.n * 10))

    @engine.job_type
    async def wait(job: Job[Number]) -> Total:
        one = await job.step(lambda: engine.start_sequence(first, Number(n=4)))
        return Total(sum=(await job.wait_for([one]))[0].output.n)

    async with engine.worker(queues=["default"], drain=True):
        sequence = await engine.start_sequence(wait, Number(n=1))
    assert (await engine.get_sequence(sequence.id)).status == "blocked"
    async with engine.worker():
        assert (await sequence.result(timeout=10)).sum == 41


async def test_the_job_waits_until_a_failed_sequence_was_retried(engine: Engine) -> None:
    broken = True

    @engine.job_type(max_attempts=1)
    async def fragile(job: Job[Number]) -> Number:
        if broken:
            raise ValueError("broken")
        return job.input

    @engine.job_type
    async def wait(job: Job[Number]) -> Total:
        one = await job.step(lambda: engine.start_sequence(fragile, Number(n=4)))
        return Total(sum=(await job.wait_for([one]))[0].output.n)

    async with engine.worker(poll_interval=60) as worker:
        sequence = await engine.start_sequence(wait, Number(n=1))
        await worker.drained()
        assert (await engine.get_sequence(sequence.id)).status == "blocked"
        broken = False
        (failed,) = await engine.list_sequences(status="failed")
        await engine.retry_sequences([failed.id])
        assert (await sequence.result(timeout=10)).sum == 4


async def test_a_job_that_ignores_failures_looks_at_the_outcome(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def fragile(job: Job[Number]) -> Number:
        if job.input.n:
            raise ValueError("broken")
        return job.input

    @engine.job_type(on_blocker_failure="ignore")
    async def wait(job: Job[Number]) -> Total:
        both = await job.step(lambda: engine.start_sequences([fragile(Number(n=0)), fragile(Number(n=1))]))
        good, bad = await job.wait_for(both)
        assert (good.outcome, bad.outcome) == ("completed", "failed")
        assert bad.error is not None
        assert bad.error["message"] == "broken"
        with pytest.raises(BlockerFailedError):
            _ = bad.output
        return Total(sum=good.output.n)

    async with engine.worker(poll_interval=60):
        assert (await (await engine.start_sequence(wait, Number(n=1))).result(timeout=10)).sum == 0


async def test_a_job_that_fails_with_its_blockers(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def fragile(job: Job[Number]) -> Number:
        raise ValueError("broken")

    @engine.job_type(on_blocker_failure="fail")
    async def wait(job: Job[Number]) -> Total:
        await job.wait_for([await job.step(lambda: engine.start_sequence(fragile, Number(n=0)))])
        raise AssertionError("it must not get here")

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(wait, Number(n=1))
        with pytest.raises(SequenceFailedError) as failed:
            await sequence.result(timeout=10)
    assert failed.value.reason == "blocker_failed"


async def test_sequences_that_are_started_anew_in_every_run_are_told_instead_of_waited_for(engine: Engine) -> None:
    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type(backoff=0)
    async def forgetful(job: Job[Number]) -> Total:
        await job.wait_for([await engine.start_sequence(echo, Number(n=1))])
        raise AssertionError("it must not get here")

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(forgetful, Number(n=1))
        with pytest.raises(SequenceFailedError, match="start them in a step") as failed:
            await sequence.result(timeout=10)
    assert failed.value.error["type"] == NotRepeatableError.__name__
    assert len(await engine.list_sequences(type="echo")) == 2


async def test_a_ring_is_refused_in_the_handler(engine: Engine) -> None:
    refused: list[Exception] = []

    class Waits(BaseModel):
        other: Blocker[Total]

    @engine.job_type
    async def dependent(job: Job[Waits]) -> Total:
        return job.input.other.output

    @engine.job_type
    async def ring(job: Job[Number]) -> Total:
        own: JobSequence[Total] = engine.sequence(ring, job.sequence_id)
        other = await job.step(lambda: engine.start_sequence(dependent, Waits(other=own)))
        for each in (own, other):
            with pytest.raises(BlockerCycleError) as error:
                await job.wait_for([each], name=f"wait {each.id}")
            refused.append(error.value)
        return Total(sum=5)

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(ring, Number(n=1))
        assert (await sequence.result(timeout=10)).sum == 5
    assert len(refused) == 2


async def test_how_waiting_is_refused(engine: Engine) -> None:
    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def wrong(job: Job[Number]) -> Number:
        unknown = engine.sequence(echo, UUID(uuid7()))
        with pytest.raises(SequenceNotFoundError, match=str(unknown.id)):
            await job.wait_for([unknown])
        with pytest.raises(UsageError, match="takes started sequences"):
            await job.wait_for(["x"])  # type: ignore[arg-type]
        with pytest.raises(PhaseError, match="cannot be part of a phase"):
            async with job.prepare():
                await job.wait_for([unknown])
        return job.input

    async with engine.worker():
        await (await engine.start_sequence(wrong, Number(n=1))).result(timeout=10)


async def test_a_job_that_waits_has_begun(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    @engine.job_type(queue="side")
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def wait(job: Job[Number]) -> Total:
        one = await job.step(lambda: engine.start_sequence(echo, Number(n=1)))
        return Total(sum=(await job.wait_for([one]))[0].output.n)

    async with engine.worker(queues=["default"], drain=True):
        sequence = await engine.start_sequence(wait, Number(n=1), expires=0.3)
    row = await (await db.execute("select expires_at, attempt, open_blockers from queuert.live_job where type = 'wait'")).fetchone()
    assert row == (None, 0, 1)
    async with engine.worker(poll_interval=60):
        assert (await sequence.result(timeout=10)).sum == 1
