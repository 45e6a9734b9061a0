"""A sequence from start to result."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, continue_with
from queuert_py.control import Failure
from queuert_py.errors import DeclarationError, InvalidContinuationError, InvalidOutputError, SequenceFailedError, UsageError


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


async def test_a_handle_by_name_holds_its_type_to_the_output_it_names(engine: Engine) -> None:
    @engine.job_type
    async def double(job: Job[Number]) -> Doubled | None:
        return Doubled(n=2 * job.input.n) if job.input.n else None

    async with engine.worker():
        sequence = await engine.start_sequence("double", {"n": 0}, output=Doubled)
        with pytest.raises(InvalidOutputError, match=r"returned None .*; of 'double' Doubled was expected"):
            await sequence.result(timeout=10)
        await engine.sequence("double", sequence.id, output=type(None)).result(timeout=10)
        for call in (
            lambda: engine.start_sequence("double", {"n": 1}, output=Odd),
            lambda: engine.run("double", {"n": 1}, output=Odd),
        ):
            with pytest.raises(UsageError, match=r"output=Odd, but 'double' returns Doubled \| None"):
                await call()
        with pytest.raises(UsageError, match=r"sequence\(\): output=Odd"):
            engine.sequence("double", sequence.id, output=Odd)


async def test_a_job_continues_only_with_what_its_type_returns(engine: Engine) -> None:
    """What a checker says of the annotations holds at run time as well: a result is never of a type that the handle excludes."""

    class More(Doubled):
        pass

    @engine.job_type(internal=True)
    async def more(job: Job[Number]) -> More:
        return More(n=job.input.n)

    @engine.job_type(internal=True)
    async def odd(job: Job[Number]) -> Odd:
        return Odd(n=job.input.n)

    @engine.job_type(max_attempts=1)
    async def double(job: Job[Number]) -> Doubled | Continuation[Doubled]:
        wrong: Any = odd
        return continue_with(more if job.input.n else wrong, job.input)

    async with engine.worker():
        assert await engine.run(double, Number(n=1)) == More(n=1), "a kind of what it returns"
        with pytest.raises(SequenceFailedError, match=r"'double' returns Doubled, it cannot continue with 'odd': Odd"):
            await engine.run(double, Number(n=0))
    waiting = await engine.start_sequence(double, Number(n=1))
    with pytest.raises(InvalidContinuationError, match="cannot continue with 'odd'"):
        await engine.complete_sequence(waiting.id, continue_with(odd, Number(n=1)))


async def undo(failure: Failure) -> Continuation[Odd] | None:
    return None


async def test_on_failed_continues_only_with_what_the_type_returns(engine: Engine) -> None:
    @engine.job_type(on_failed=undo)
    async def both(job: Job[Number]) -> Doubled | Continuation[Odd]:
        return Doubled(n=job.input.n)

    engine.validate()

    @engine.job_type(on_failed=undo)
    async def double(job: Job[Number]) -> Doubled:
        return Doubled(n=job.input.n)

    with pytest.raises(DeclarationError, match=r"'double': its on_failed .* returns Odd, .* write `-> Doubled \| Continuation\[Odd\]`"):
        engine.validate()
