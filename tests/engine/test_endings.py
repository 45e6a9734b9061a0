"""What is left of attempts once a sequence has ended: how many there were, the last error, the reason; and what `expires` makes of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Fail, Job, JobSequence, JobType, Snooze, continue_with
from queuert_py.errors import SequenceFailedError, UsageError
from queuert_py.values import EARLIEST, LATEST
from tests.engine.kit import Number

TIMEOUT = 20
Db = psycopg.AsyncConnection[Any]


async def failure(sequence: JobSequence[Any]) -> SequenceFailedError:
    with pytest.raises(SequenceFailedError) as failed:
        await sequence.result(timeout=TIMEOUT)
    return failed.value


async def drained(engine: Engine) -> None:
    async with engine.worker(drain=True):
        pass


# --- how many attempts


async def test_attempts_are_counted_not_the_lines_of_the_log(engine: Engine) -> None:
    @engine.job_type(max_attempts=2, backoff=0)
    async def broken(job: Job[Number]) -> Number:
        raise ValueError("broken")

    sequence = await engine.start_sequence(broken, Number(n=0))
    await drained(engine)
    assert "after 2 attempt(s)" in str(await failure(sequence))
    for tried in (4, 6):
        assert await engine.retry_sequences([sequence.id]) == {sequence.id: "retried"}
        await drained(engine)
        assert f"after {tried} attempt(s)" in str(await failure(sequence))
    assert len((await failure(sequence)).attempts) == 8, "the log keeps when it was retried"


async def test_one_attempt_more_is_one_more(engine: Engine) -> None:
    @engine.job_type(max_attempts=2, backoff=0)
    async def broken(job: Job[Number]) -> Number:
        raise ValueError("broken")

    sequence = await engine.start_sequence(broken, Number(n=0))
    await drained(engine)
    await engine.retry_sequences([sequence.id], reset_attempts=False)
    await drained(engine)
    assert "after 3 attempt(s)" in str(await failure(sequence))


async def test_snoozes_are_no_attempts(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type(max_attempts=1)
    async def later(job: Job[Number]) -> Number:
        runs.append(job.attempt)
        if len(runs) < 3:
            raise Snooze("not now", after=0)
        raise Fail("never")

    sequence = await engine.start_sequence(later, Number(n=0))
    async with engine.worker():
        assert "after 1 attempt(s)" in str(await failure(sequence))
    assert runs == [1, 1, 1]


async def test_what_failed_because_of_its_blocker_never_ran(engine: Engine) -> None:
    class After(BaseModel):
        first: Blocker[Number]

    @engine.job_type(max_attempts=1)
    async def broken(job: Job[Number]) -> Number:
        raise ValueError("broken")

    @engine.job_type(on_blocker_failure="fail")
    async def strict(job: Job[After]) -> Number:
        return Number(n=1)

    sequence = await engine.start_sequence(strict, After(first=await engine.start_sequence(broken, Number(n=0))))
    async with engine.worker():
        error = await failure(sequence)
    assert error.reason == "blocker_failed"
    assert "after 0 attempt(s)" in str(error)


# --- reasons and errors


async def test_a_worker_that_dies_with_the_last_attempt_has_crashed_it(engine: Engine, db: Db) -> None:
    @engine.job_type(max_attempts=1)
    async def fragile(job: Job[Number]) -> Number:
        return job.input

    sequence = await engine.start_sequence(fragile, Number(n=1))
    await db.execute(
        "update queuert.live_job set leased_by = 'gone', leased_at = now(), leased_until = clock_timestamp() - interval '1 s', "
        "begun = true, attempt = 1"
    )
    async with engine.worker():
        error = await failure(sequence)
    assert error.reason == "crashed"
    assert "after 1 attempt(s)" in str(error)
    assert [each.id for each in await engine.list_sequences(reason="crashed")] == [sequence.id]


async def test_too_many_steps_fail_the_sequence_and_say_so(engine: Engine) -> None:
    loop = JobType[Number, Number]("loop", max_steps=2)
    runs: list[int] = []

    @engine.handler(loop)
    async def run(job: Job[Number]) -> Number | Continuation[Number]:
        runs.append(job.input.n)
        return continue_with(loop, Number(n=job.input.n + 1))

    sequence = await engine.start_sequence(loop, Number(n=0))
    async with engine.worker():
        error = await failure(sequence)
    assert (error.reason, runs) == ("max_steps", [0, 1])
    assert "max_steps" in str(error.error["message"])
    assert (await engine.get_sequence(sequence.id)).steps == 2


async def test_the_error_of_an_attempt_is_gone_once_a_later_one_succeeds(engine: Engine) -> None:
    failed, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type(backoff=0)
    async def flaky(job: Job[Number]) -> Number:
        if job.attempt == 1:
            raise ConnectionError("once")
        failed.set()
        await go_on.wait()
        return job.input

    sequence = await engine.start_sequence(flaky, Number(n=1))
    async with engine.worker(), asyncio.timeout(TIMEOUT):
        await failed.wait()
        error = (await engine.get_sequence(sequence.id)).error
        assert error is not None
        assert error["message"] == "once"
        go_on.set()
        await sequence.result()
    assert (await engine.get_sequence(sequence.id)).error is None
    job = await engine.get_job(sequence.id, attempts=True)
    assert (job.error, job.attempt) == (None, 2)


# --- the ends of time


async def test_the_first_and_the_last_instant_that_are_taken_can_be_read(engine: Engine) -> None:
    """Also where the session is in the time zone that is furthest away."""
    beyond = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12)))

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        if job.input.n:
            await job.sleep(until=beyond)
        return job.input

    @engine.job_type(max_attempts=1)
    async def on(job: Job[Number]) -> Continuation[Number]:
        return continue_with(note, job.input, at=beyond)

    last = await engine.start_sequence(note, Number(n=0), at=LATEST, deadline=LATEST, expires=LATEST)
    await engine.start_sequence(note, Number(n=0), at=EARLIEST)
    assert {each.id: each.run_at for each in await engine.list_sequences()}[last.id] == LATEST
    assert (await engine.why(last.id)).facts["deadline_at"] == LATEST
    with pytest.raises(UsageError, match="at="):
        await engine.reschedule([last.id], at=beyond)
    failing = await engine.start_sequence(on, Number(n=0)), await engine.start_sequence(note, Number(n=1), max_attempts=1)
    async with engine.worker(drain=True):
        pass
    for each in failing:
        assert "to 9999-12-30 (UTC) is needed" in str((await failure(each)).error["message"])
    found = await engine.list_sequences(created_before=datetime.max.replace(tzinfo=UTC), created_after=datetime.min.replace(tzinfo=UTC))
    assert len(found) == 4, "to compare with, any will do"


# --- expires


async def test_what_has_begun_does_not_expire_when_it_is_put_off(engine: Engine, db: Db) -> None:
    @engine.job_type
    async def later(job: Job[Number]) -> Number:
        raise Snooze("not now", after=3600)

    sequence = await engine.start_sequence(later, Number(n=1), expires=1800)
    await drained(engine)
    assert await limits(db) == [(None, 0)]
    assert (await engine.get_sequence(sequence.id)).status == "scheduled"


async def test_nor_when_its_worker_stops(engine: Engine, db: Db) -> None:
    begun = asyncio.Event()

    @engine.job_type
    async def slow(job: Job[Number]) -> Number:
        begun.set()
        await asyncio.Event().wait()
        return job.input

    await engine.start_sequence(slow, Number(n=1), expires=1800)
    async with engine.worker(shutdown_timeout=0.05), asyncio.timeout(TIMEOUT):
        await begun.wait()
    assert await limits(db) == [(None, 0)]


async def test_what_was_only_fetched_still_expires(engine: Engine, db: Db) -> None:
    begun = asyncio.Event()

    @engine.job_type
    async def slow(job: Job[Number]) -> Number:
        begun.set()
        await asyncio.Event().wait()
        return job.input

    await engine.start_sequences([slow(Number(n=n), expires=1800) for n in range(20)])
    async with engine.worker(concurrency=1, shutdown_timeout=0.05), asyncio.timeout(TIMEOUT):
        await begun.wait()
    found = await limits(db)
    assert [attempt for _, attempt in found] == [0] * 20
    assert sum(expires is None for expires, _ in found) == 1


async def limits(db: Db) -> list[tuple[Any, int]]:
    return await (await db.execute("select expires_at, attempt from queuert.live_job")).fetchall()
