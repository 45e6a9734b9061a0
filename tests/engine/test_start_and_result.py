"""A sequence from start to result."""

from __future__ import annotations

from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, continue_with


class Number(BaseModel):
    n: int


class Doubled(BaseModel):
    n: int


class Odd(BaseModel):
    n: int


async def test_a_started_sequence_runs_and_its_output_is_awaited(engine: Engine) -> None:
    @engine.job_type
    async def double(job: Job[Number]) -> Doubled:
        return Doubled(n=2 * job.input.n)

    async with engine.worker():
        sequence = await engine.start_sequence(double, Number(n=4))
        assert await sequence.result(timeout=10) == Doubled(n=8)


async def test_a_sequence_continues_until_a_job_returns(engine: Engine) -> None:
    @engine.job_type
    async def halve(job: Job[Number]) -> Odd | Continuation[Odd]:
        if job.input.n % 2:
            return Odd(n=job.input.n)
        return continue_with(halve, Number(n=job.input.n // 2))

    async with engine.worker():
        sequence = await engine.start_sequence("halve", {"n": 40}, output=Odd)
        assert await sequence.result(timeout=10) == Odd(n=5)
    assert [job.status for job in await engine.list_jobs(sequence.id)] == ["continued"] * 3 + ["completed"]


async def test_every_attempt_of_a_job_has_the_same_idempotency_key(engine: Engine) -> None:
    keys: list[str] = []

    @engine.job_type(backoff=0)
    async def charge(job: Job[Number]) -> Number:
        keys.append(job.idempotency_key)
        if job.attempt < 3:
            raise ConnectionError("the bank does not answer")
        return job.input

    async with engine.worker():
        sequence = await engine.start_sequence(charge, Number(n=1))
        await sequence.result(timeout=10)
    assert keys == [str(sequence.id)] * 3
