"""Not before, and not too late: delays, instants, expiry and deadlines. (`trigger` and `reschedule` are in test_reschedule.py.)"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Job, JobType, continue_with
from queuert_py.errors import DeclarationError, SequenceExpiredError, SequenceFailedError, UsageError
from tests.engine.kit import patiently

TIMEOUT = 20


class Note(BaseModel):
    text: str = ""


class After(BaseModel):
    first: Blocker[None]


@pytest.fixture
def note(engine: Engine) -> JobType[Note, None]:
    @engine.job_type("note")
    async def note(job: Job[Note]) -> None: ...

    return note


@pytest.fixture
def after(engine: Engine) -> JobType[After, None]:
    @engine.job_type("after")
    async def after(job: Job[After]) -> None: ...

    return after


async def test_a_time_that_is_still_to_come_survives_a_blocker(
    engine: Engine, note: JobType[Note, None], after: JobType[After, None], db: psycopg.AsyncConnection[Any]
) -> None:
    async with engine.worker():
        first = await engine.start_sequence(note, Note())
        later = await engine.start_sequence(after, After(first=first), delay=3600)
        await first.result(timeout=TIMEOUT)
        row = await (await db.execute("select open_blockers, run_at > now() + interval '50 minutes' from queuert.live_job")).fetchone()
        assert row == (0, True)
        assert (await engine.get_sequence(later.id)).status == "scheduled"


async def test_what_never_begins_expires_though_nobody_could_claim_it(
    engine: Engine, note: JobType[Note, None], after: JobType[After, None]
) -> None:
    """It waits for a blocker that will not end; a worker's sweep finds it."""
    first = await engine.start_sequence(note, Note(), delay=3600)
    blocked = await engine.start_sequence(after, After(first=first), expires=0.001)
    scheduled = await engine.start_sequence(note, Note(), delay=3600, expires=0.001)
    async with engine.worker():
        for each in (blocked, scheduled):
            with pytest.raises(SequenceExpiredError):
                await each.result(timeout=TIMEOUT)


async def test_expiry_is_over_once_the_job_has_begun(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    failed = asyncio.Event()

    @engine.job_type(backoff=0.001)
    async def flaky(job: Job[Note]) -> None:
        if job.attempt == 1:
            await db.execute("update queuert.live_job set expires_at = clock_timestamp()")
            failed.set()
            raise ValueError("once")

    async with engine.worker():
        await (await engine.start_sequence(flaky, Note(), expires=3600)).result(timeout=TIMEOUT)
    assert failed.is_set()


@pytest.mark.parametrize("how", ["start", "type"])
async def test_a_handler_that_runs_into_the_deadline_is_cancelled_and_not_tried_again(engine: Engine, how: str) -> None:
    reasons: list[str | None] = []

    async def wait(job: Job[Note]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            reasons.append(job.abort_reason)

    async def run(deadline: float) -> str | None:
        slow = engine.job_type(f"slow {deadline}", deadline=deadline if how == "type" else None)(wait)
        async with engine.worker(types=[slow.name]):
            starting = engine.start_sequence(slow, Note(), deadline=deadline) if how == "start" else engine.start_sequence(slow, Note())
            with pytest.raises(SequenceFailedError, match="deadline") as failed:
                await (await starting).result(timeout=deadline + TIMEOUT)
        return failed.value.reason if reasons else None

    assert await patiently(run) == "timeout"
    assert reasons == ["timeout"], "one attempt, whatever max_attempts says"


async def test_the_deadline_holds_over_continuations(engine: Engine) -> None:
    begun: list[int] = []

    @engine.job_type(internal=True)
    async def second(job: Job[Note]) -> None:
        begun.append(job.attempt)
        await asyncio.Event().wait()

    @engine.job_type
    async def first(job: Job[Note]) -> Continuation[None]:
        return continue_with(second, job.input)

    async def run(deadline: float) -> bool | None:
        sequence = await engine.start_sequence(first, Note(), deadline=deadline)
        with pytest.raises(SequenceFailedError, match="deadline"):
            await sequence.result(timeout=deadline + TIMEOUT)
        return True if begun else None

    async with engine.worker():
        assert await patiently(run)
    assert begun == [1]


async def test_the_deadline_ends_what_waits(engine: Engine, note: JobType[Note, None], after: JobType[After, None]) -> None:
    first = await engine.start_sequence(note, Note(), delay=3600)
    late = datetime.now(UTC) - timedelta(seconds=1)
    blocked = await engine.start_sequence(after, After(first=first), deadline=late)
    due = await engine.start_sequence(note, Note(), deadline=0.0001)
    async with engine.worker():
        for each in (blocked, due):
            with pytest.raises(SequenceFailedError, match="deadline") as failed:
                await each.result(timeout=TIMEOUT)
            assert failed.value.reason == "timeout"


@pytest.mark.parametrize("wrong", [-1, 0, float("nan"), "soon", datetime(2030, 1, 1)])
async def test_wrong_limits_are_named(engine: Engine, note: JobType[Note, None], wrong: Any) -> None:
    for name in ("deadline", "expires"):
        with pytest.raises(UsageError, match=f"{name}="):
            await engine.start_sequence(note, Note(), **{name: wrong})
    with pytest.raises(DeclarationError, match="deadline="):

        @engine.job_type("x", deadline=wrong)
        async def nothing(job: Job[Note]) -> None: ...
