"""`job.sleep`: a job that sleeps holds nothing, survives its worker, and begins again from its first line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Dedup, Depends, Engine, Job, JobTypes
from queuert_py.errors import PhaseError, UsageError


class Number(BaseModel):
    n: int


async def wake(db: psycopg.AsyncConnection[Any]) -> None:
    """Let the time of every sleep come, as if it had passed."""
    await db.execute(
        "update queuert.live_job set run_at = clock_timestamp(), memo = jsonb_set(memo, '{sleeps}', ("
        "select jsonb_object_agg(key, clock_timestamp() - interval '1 second') from jsonb_each(memo -> 'sleeps')))"
    )


async def test_a_handler_goes_on_behind_its_sleep_and_no_attempt_is_charged(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def nap(job: Job[Number]) -> Number:
        runs.append(job.attempt)
        await job.sleep(0.05)
        await job.sleep(timedelta(seconds=0.05))
        return job.input

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(nap, Number(n=4))
        assert (await sequence.result(timeout=10)).n == 4
    assert runs == [1, 1, 1]
    assert await engine.list_attempts(sequence.id) == []
    assert [(job.attempt, job.crash_count) for job in await engine.list_jobs(sequence.id)] == [(1, 0)]


async def test_a_sleeping_job_holds_no_slot_and_its_sleep_survives_the_worker(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    done: list[str] = []

    @engine.job_type
    async def hibernate(job: Job[Number]) -> None:
        await job.sleep(timedelta(days=100), name="winter")
        done.append("spring")

    @engine.job_type
    async def other(job: Job[Number]) -> None:
        done.append("other")

    async with engine.worker(concurrency=1, drain=True):
        sequence = await engine.start_sequence(hibernate, Number(n=1), priority=1)
        await engine.start_sequence(other, Number(n=1))
    assert done == ["other"]
    asleep = await engine.get_sequence(sequence.id)
    assert (asleep.status, asleep.attempt) == ("scheduled", 0)
    row = await (
        await db.execute("select leased_by, run_at - clock_timestamp() > '99 days', memo ->> 'sleeping' from queuert.live_job")
    ).fetchone()
    assert row == (None, True, "winter")
    await wake(db)
    async with engine.worker(drain=True):
        pass
    assert done == ["other", "spring"]


async def test_a_job_that_is_woken_early_sleeps_on_until_its_time(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    runs: list[int] = []

    @engine.job_type
    async def nap(job: Job[Number]) -> None:
        runs.append(1)
        await job.sleep(timedelta(days=1))

    async with engine.worker(drain=True):
        await engine.start_sequence(nap, Number(n=1))
    when = await (await db.execute("select run_at from queuert.live_job")).fetchone()
    await db.execute("update queuert.live_job set run_at = clock_timestamp()")
    async with engine.worker(drain=True):
        pass
    assert await (await db.execute("select run_at from queuert.live_job")).fetchone() == when
    assert len(runs) == 2


async def test_an_operator_ends_a_sleep(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type(backoff=0)
    async def nap(job: Job[Number]) -> Number:
        runs.append(job.attempt)
        await job.sleep(timedelta(days=1))
        if job.attempt == 1:
            raise ValueError("again")
        return job.input

    async with engine.worker(poll_interval=60) as worker:
        sequence = await engine.start_sequence(nap, Number(n=3))
        await worker.drained()
        await engine.trigger([sequence.id])
        assert (await sequence.result(timeout=10)).n == 3
    assert runs == [1, 1, 2]


async def test_an_instant_that_has_passed_is_no_reason_to_stop(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def late(job: Job[Number]) -> Number:
        runs.append(1)
        await job.sleep(until=datetime(2020, 1, 1, tzinfo=UTC))
        await job.sleep(0)
        return job.input

    async with engine.worker():
        await (await engine.start_sequence(late, Number(n=1))).result(timeout=10)
    assert runs == [1]


async def test_until_an_instant(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def nap(job: Job[Number]) -> Number:
        runs.append(1)
        await job.sleep(until=datetime.now(UTC) + timedelta(milliseconds=200))
        return job.input

    async with engine.worker(poll_interval=60):
        await (await engine.start_sequence(nap, Number(n=1))).result(timeout=10)
    assert runs == [1, 1]


async def test_a_retry_after_a_sleep_does_not_sleep_again(engine: Engine) -> None:
    seen: list[str] = []

    @engine.job_type(backoff=0)
    async def nap(job: Job[Number]) -> Number:
        await job.sleep(0.05, name="first")
        seen.append("awake")
        if job.attempt == 1:
            raise ValueError("again")
        return job.input

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(nap, Number(n=1))
        await sequence.result(timeout=10)
    assert seen == ["awake", "awake"]
    assert [each.attempt for each in await engine.list_attempts(sequence.id)] == [1]


@pytest.mark.parametrize("then", ["return", "raise", "write"])
async def test_whatever_a_handler_does_after_its_sleep_was_begun_it_sleeps(engine: Engine, then: str) -> None:
    """A `finally` or `except BaseException` around it cannot undo what the handler has asked for."""
    runs: list[int] = []
    written: list[int] = []

    @engine.job_type(max_attempts=1)
    async def stubborn(job: Job[Number]) -> Number:
        runs.append(1)
        try:
            await job.sleep(0.05)
        except BaseException:
            if then == "return":
                return Number(n=-1)
            if then == "raise":
                raise ValueError("not a nap") from None
            async with job.finalize():
                written.append(1)
                return Number(n=-2)
        return job.input

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(stubborn, Number(n=7))
        assert (await sequence.result(timeout=10)).n == 7
    assert (len(runs), written) == (2, [])
    assert await engine.list_attempts(sequence.id) == []


async def test_cleaning_up_around_a_sleep_is_done_before_it(engine: Engine) -> None:
    seen: list[str] = []

    @engine.job_type
    async def tidy(job: Job[Number]) -> None:
        seen.append("open")
        try:
            await job.sleep(0.05)
        except Exception:
            seen.append("not an Exception")
        finally:
            await asyncio.sleep(0)
            seen.append("close")

    async with engine.worker(poll_interval=60):
        await (await engine.start_sequence(tidy, Number(n=1))).result(timeout=10)
    assert seen == ["open", "close", "open", "close"]


async def test_dependencies_are_closed_for_the_sleep_and_made_anew_for_the_next_run(engine: Engine) -> None:
    seen: list[str] = []

    async def resource() -> AsyncIterator[str]:
        seen.append("open")
        try:
            yield "resource"
        finally:
            seen.append("close")

    @engine.job_type
    async def nap(job: Job[Number], given: str = Depends(resource)) -> None:
        await job.sleep(0.05)
        seen.append(f"awake with the {given}")

    async with engine.worker(poll_interval=60):
        await (await engine.start_sequence(nap, Number(n=1))).result(timeout=10)
    assert seen == ["open", "close", "open", "awake with the resource", "close"]


async def test_a_sleep_in_a_task_of_the_handlers_suspends_the_whole_job(engine: Engine) -> None:
    runs: list[str] = []

    @engine.job_type
    async def both(job: Job[Number]) -> None:
        runs.append("run")

        async def branch(name: str) -> None:
            await job.sleep(0.05, name=name)
            runs.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(branch("a"))
            group.create_task(branch("b"))

    async with engine.worker(poll_interval=60):
        await (await engine.start_sequence(both, Number(n=1))).result(timeout=10)
    assert runs == ["run", "run", "a", "run", "a", "b"]


async def test_where_and_how_a_sleep_is_refused(engine: Engine) -> None:
    @engine.job_type
    async def wrong(job: Job[Number]) -> Number:
        for phase in (job.prepare, job.atomic):
            with pytest.raises(PhaseError, match="sleep\\(\\) cannot be part of a phase"):
                async with phase():
                    await job.sleep(1)
        with pytest.raises(PhaseError, match="not into its step"):
            await job.step("nap", lambda: job.sleep(1))
        with pytest.raises(UsageError, match="a duration, or until="):
            await job.sleep()
        with pytest.raises(UsageError, match="a duration, or until="):
            await job.sleep(1, until=datetime.now(UTC))
        with pytest.raises(UsageError, match="not negative"):
            await job.sleep(-1)
        with pytest.raises(UsageError, match="aware"):
            await job.sleep(until=datetime(2026, 1, 1))
        async with job.finalize():
            pass
        with pytest.raises(PhaseError, match="cannot be part of a phase"):
            await job.sleep(1)
        return job.input

    async with engine.worker():
        assert (await (await engine.start_sequence(wrong, Number(n=3))).result(timeout=10)).n == 3


async def test_a_job_that_has_slept_has_begun(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    """Neither does it expire, nor is it replaced by a start of its key."""

    @engine.job_type
    async def nap(job: Job[Number]) -> Number:
        await job.sleep(3600)
        return job.input

    async with engine.worker(drain=True):
        expiring = await engine.start_sequence(nap, Number(n=1), expires=1800)
        keyed = await engine.start_sequence(nap, Number(n=1), key="k")
    await db.execute("update queuert.live_job set expires_at = clock_timestamp() where expires_at is not null")
    again = await engine.start_sequence(nap, Number(n=2), dedup=Dedup("k", on_match="replace"))
    assert (again.id, again.deduplicated) == (keyed.id, True)
    await wake(db)
    async with engine.worker(poll_interval=60):
        assert [(await each.result(timeout=10)).n for each in (expiring, keyed)] == [1, 1]


async def test_a_stopping_worker_does_not_lose_a_sleep_that_has_begun(engine: Engine, dsn: str) -> None:
    jobs = JobTypes()
    begun = asyncio.Event()
    stopping = asyncio.Event()
    runs: list[int] = []

    @jobs.job_type
    async def nap(job: Job[Number]) -> Number:
        runs.append(1)
        try:
            await job.sleep(0.05, name="nap")
        finally:
            begun.set()
            await stopping.wait()
        return job.input

    async with Engine(dsn, jobs) as one:
        worker = await one.worker(grace=0.2).start()
        sequence = await one.start_sequence(nap, Number(n=1))
        await begun.wait()
        await worker.stop(0)
        stopping.set()
        async with one.worker(poll_interval=60):
            assert (await sequence.result(timeout=10)).n == 1
    assert runs == [1, 1]
