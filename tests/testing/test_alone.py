"""run_handler: dependencies, blockers, steps, waits and callbacks of a handler, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Depends, Engine, Job, JobTypes, SyncJob, continue_with
from queuert_py.errors import BlockerFailedError, EventTimeoutError, UsageError
from queuert_py.testing import failed, finished, run_handler

Connection = AsyncConnection[tuple[Any, ...]]
jobs = JobTypes()


class Number(BaseModel):
    n: int


class Book(BaseModel):
    cover: Blocker[Number]
    pages: Sequence[Blocker[Number]] = ()


class Answer(BaseModel):
    yes: bool


async def test_blocker_fields_are_given_with_their_outputs() -> None:
    @jobs.job_type
    async def bind(job: Job[Book]) -> Number:
        return Number(n=job.input.cover.output.n + sum(page.output.n for page in job.input.pages))

    book = Book(cover=finished(Number(n=1)), pages=[finished(Number(n=2)), finished(Number(n=3))])
    assert await run_handler(bind, book) == Number(n=6)


async def test_a_blocker_that_failed_is_given_too() -> None:
    @jobs.job_type(on_blocker_failure="ignore")
    async def look(job: Job[Book]) -> Number:
        assert job.input.cover.outcome == "failed"
        assert (job.input.cover.error or {})["message"] == "no ink"
        return job.input.cover.output

    with pytest.raises(BlockerFailedError):
        await run_handler(look, Book(cover=failed("no ink")))


async def test_a_continuation_may_wait_for_blockers() -> None:
    @jobs.job_type
    async def first(job: Job[Book]) -> Continuation[Number]:
        return continue_with(then, job.input)

    @jobs.job_type(internal=True)
    async def then(job: Job[Book]) -> Number:
        return job.input.cover.output

    cover = finished(Number(n=1))
    following = await run_handler(first, Book(cover=cover))
    assert isinstance(following, Continuation)
    assert isinstance(following.input, Book)
    assert following.input.cover.id == cover.id


async def test_a_def_handler_runs_in_a_thread() -> None:
    @jobs.job_type
    def double(job: SyncJob[Number]) -> Number:
        return Number(n=job.input.n * job.step("two", lambda: 2))

    assert await run_handler(double, Number(n=4)) == Number(n=8)


async def test_a_dependency_is_given_or_what_overrides_it() -> None:
    def factor() -> int:
        return 2

    @jobs.job_type
    async def scale(job: Job[Number], by: int = Depends(factor)) -> Number:
        return Number(n=job.input.n * by)

    assert await run_handler(scale, Number(n=4)) == Number(n=8)
    assert await run_handler(scale, Number(n=4), overrides={factor: lambda: 10}) == Number(n=40)


async def test_time_passes_where_it_sleeps_and_steps_are_not_repeated() -> None:
    said: list[str] = []

    @jobs.job_type
    async def remind(job: Job[Number]) -> Number:
        said.append("begun")
        await job.step("first", lambda: said.append("first"))
        await job.sleep(timedelta(days=1))
        await job.step("second", lambda: said.append("second"))
        await job.sleep(timedelta(days=1))
        return job.input

    assert await run_handler(remind, Number(n=1)) == Number(n=1)
    assert said == ["begun", "first", "begun", "second", "begun"]


async def test_an_event_is_given_or_does_not_come_in_time() -> None:
    @jobs.job_type
    async def ask(job: Job[Number]) -> Answer:
        try:
            return await job.wait_for_event("answer", type=Answer, timeout=timedelta(days=3))
        except EventTimeoutError:
            return Answer(yes=False)

    assert await run_handler(ask, Number(n=1), events={"answer": Answer(yes=True)}) == Answer(yes=True)
    assert await run_handler(ask, Number(n=1), events={"answer": {"yes": True}}) == Answer(yes=True)
    assert await run_handler(ask, Number(n=1)) == Answer(yes=False)


async def test_what_cannot_come_is_named() -> None:
    @jobs.job_type
    async def wait_for_ever(job: Job[Number]) -> Answer:
        return await job.wait_for_event("answer", type=Answer)

    @jobs.job_type
    async def wait_for_blocker(job: Job[Book]) -> Number:
        [cover] = await job.wait_for([job.input.cover])
        return cover.output

    with pytest.raises(UsageError, match=r"events=\{'answer'"):
        await run_handler(wait_for_ever, Number(n=1))
    assert await run_handler(wait_for_blocker, Book(cover=finished(Number(n=3)))) == Number(n=3)
    with pytest.raises(UsageError, match="finished"):
        await run_handler(wait_for_blocker, Book(cover=Blocker("01999999-9999-7999-8999-999999999999")))


async def test_a_phase_needs_a_database() -> None:
    @jobs.job_type
    async def write(job: Job[Number]) -> Number:
        async with job.finalize() as tx:
            await tx.execute("select 1")
            return job.input

    with pytest.raises(UsageError, match="needs a database"):
        await run_handler(write, Number(n=1))


@pytest.mark.parametrize("verb", ["start_sequence", "send_event", "cancel_sequences", "complete_sequence", "sync"])
async def test_what_writes_never_reaches_the_engines_own_database(engine: Engine, db: Connection, verb: str) -> None:
    @engine.job_type
    async def leaf(job: Job[Number]) -> Number:
        return job.input

    async def call(id: UUID) -> None:
        match verb:
            case "start_sequence":
                await engine.start_sequence(leaf, Number(n=2))
            case "send_event":
                await engine.send_event(id, "go")
            case "cancel_sequences":
                await engine.cancel_sequences([id])
            case "complete_sequence":
                await engine.complete_sequence(id, Number(n=3))
            case _:
                await asyncio.to_thread(lambda: engine.sync.start_sequence(leaf, Number(n=2)))

    before = await engine.start_sequence(leaf, Number(n=1))

    @jobs.job_type(f"uses {verb}")
    async def use(job: Job[Number]) -> None:
        await call(before.id)

    with pytest.raises(UsageError, match=rf"'uses {verb}' starts or changes sequences: that needs a database, run_handler\(\) has none"):
        await run_handler(use, Number(n=1))
    assert await (await db.execute("select status from queuert.sequence")).fetchall() == [("pending",)]


async def test_callbacks_are_called_at_the_end_and_only_after_success() -> None:
    called: list[int] = []

    @jobs.job_type
    async def note(job: Job[Number]) -> Number:
        job.on_commit(lambda: called.append(job.input.n))
        await job.progress(50, "half")
        job.state["a"] = 1
        if job.input.n < 0:
            raise ValueError
        return job.input

    await run_handler(note, Number(n=1))
    with pytest.raises(ValueError):
        await run_handler(note, Number(n=-1))
    assert called == [1]
