"""queuert_py.testing.run_handler: a handler without a database."""

from __future__ import annotations

import logging
import math
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, field_serializer

from queuert_py import Continuation, Engine, Fail, Job, JobSequence, JobType, JobTypes, Retry, continue_with
from queuert_py.errors import InvalidInputError, InvalidOutputError, UsageError
from queuert_py.job import current
from queuert_py.testing import run_handler


class Number(BaseModel):
    n: float


class Half(BaseModel):
    n: float


class Odd(BaseModel):
    n: float


jobs = JobTypes()


@jobs.job_type
async def halve(job: Job[Number]) -> Half | Continuation[Odd]:
    if job.input.n % 2:
        return continue_with(odd, job.input)
    return Half(n=job.input.n / 2)


@jobs.job_type(internal=True)
async def odd(job: Job[Number]) -> Odd:
    return Odd(n=job.input.n)


async def test_it_gives_the_output() -> None:
    assert await run_handler(halve, Number(n=8)) == Half(n=4)
    assert await run_handler(odd, Number(n=3)) == Odd(n=3)


async def test_it_gives_the_continuation_to_look_into() -> None:
    next = await run_handler(halve, Number(n=3))
    assert isinstance(next, Continuation)
    assert next.job_type is odd
    assert next.input == Number(n=3)


async def test_the_handler_sees_what_comes_back_from_json() -> None:
    class When(BaseModel):
        at: datetime

        @field_serializer("at")
        def without_microseconds(self, at: datetime) -> str:
            return at.replace(microsecond=0).isoformat()

    given: list[When] = []

    @JobTypes().job_type
    async def keep(job: Job[When]) -> None:
        given.append(job.input)

    input = When(at=datetime(2030, 1, 1, 12, 0, 0, 7))
    assert await run_handler(keep, input) is None
    assert given == [When(at=datetime(2030, 1, 1, 12))]
    assert given[0] is not input


async def test_the_job_is_a_first_attempt_unless_told_otherwise() -> None:
    seen: list[Any] = []

    @JobTypes().job_type("look")
    async def look(job: Job[Number]) -> None:
        seen.append((job.attempt, job.type, job.aborted, job.shutting_down, job.abort_reason))
        assert isinstance(job.id, UUID)
        assert job.id == job.sequence_id == job.root_id
        assert job.origin_id is None

    await run_handler(look, Number(n=1))
    await run_handler(look, Number(n=1), attempt=4)
    assert seen == [(1, "look", False, False, None), (4, "look", False, False, None)]


async def test_the_log_of_the_job_works(caplog: pytest.LogCaptureFixture) -> None:
    @JobTypes().job_type
    async def speak(job: Job[Number]) -> None:
        job.log.warning("halfway")

    with caplog.at_level(logging.WARNING):
        await run_handler(speak, Number(n=1))
    assert [record.message for record in caplog.records] == ["halfway"]


async def test_an_input_that_could_not_be_stored_is_refused_before_the_handler_runs() -> None:
    with pytest.raises(InvalidInputError, match=r"input\.n: nan cannot be stored"):
        await run_handler(halve, Number(n=math.nan))


async def test_what_is_returned_must_be_what_is_declared() -> None:
    @JobTypes().job_type
    async def wrong(job: Job[Number]) -> Half:
        return Odd(n=1)  # type: ignore[return-value] # pyright: ignore

    with pytest.raises(InvalidOutputError, match="the handler of 'wrong' returned Odd, it declares Half"):
        await run_handler(wrong, Number(n=1))

    @JobTypes().job_type
    async def unstorable(job: Job[Number]) -> Half:
        return Half(n=math.inf)

    with pytest.raises(InvalidOutputError, match=r"output\.n"):
        await run_handler(unstorable, Number(n=1))


async def test_a_continuation_must_have_an_input_that_can_be_stored() -> None:
    @JobTypes().job_type
    async def onward(job: Job[Number]) -> Continuation[Odd]:
        return continue_with(odd, Number(n=math.nan))

    with pytest.raises(InvalidInputError, match=r"'odd' refuses its input: input\.n"):
        await run_handler(onward, Number(n=1))


@pytest.mark.parametrize("error", [ValueError("no"), Retry(after=3), Fail("never")], ids=repr)
async def test_what_the_handler_raises_is_raised(error: Exception) -> None:
    @JobTypes().job_type
    async def fails(job: Job[Number]) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await run_handler(fails, Number(n=1))
    assert raised.value is error
    assert current.get() is None, "nothing of the attempt is left behind"


@pytest.mark.parametrize("phase", ["prepare", "finalize", "atomic"])
async def test_a_phase_says_that_it_takes_a_database_and_how_to_get_one(phase: str) -> None:
    @JobTypes().job_type
    async def writes(job: Job[Number]) -> None:
        async with getattr(job, phase)():
            raise AssertionError

    with pytest.raises(UsageError, match=rf"{phase}\(\) of 'writes' needs a database.*Engine\.embedded\(ephemeral=True\)"):
        await run_handler(writes, Number(n=1))


async def test_prepare_in_atomic_mode_says_so_too() -> None:
    @JobTypes().job_type
    async def writes(job: Job[Number]) -> None:
        async with job.prepare(mode="atomic"):
            raise AssertionError

    with pytest.raises(UsageError, match=r"atomic\(\) of 'writes' needs a database"):
        await run_handler(writes, Number(n=1))


async def test_awaiting_a_result_inside_a_handler_is_refused_as_in_a_worker() -> None:
    engine = Engine("postgresql://", jobs)
    other: JobSequence[Odd] = engine.sequence(JobType[Number, Odd]("other"), UUID(int=7))

    @JobTypes().job_type
    async def waits(job: Job[Number]) -> Odd:
        return await other.result()

    with pytest.raises(UsageError, match="Blocker"):
        await run_handler(waits, Number(n=1))


async def test_a_contract_without_handler_says_what_to_import() -> None:
    with pytest.raises(UsageError, match="'contract' has no handler here: import the module that implements it"):
        await run_handler(JobType[Number, Odd]("contract"), Number(n=1))
