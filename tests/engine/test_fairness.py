"""What a worker has claimed and does not run goes back to the queue; what it must not run hides nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Engine, Job
from queuert_py.runtime import patience
from tests.engine.kit import Number, Runs, until_blocked

Db = psycopg.AsyncConnection[Any]


async def test_a_job_claimed_ahead_goes_to_another_worker_when_no_slot_becomes_free(
    engine: Engine, runs: Runs, claims_ahead: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker claims ahead as many as have just ended in it; if those that it then runs take long, the rest is not kept."""
    monkeypatch.setattr(patience, "PREFETCHED", 0.01)
    begun: list[int] = []

    @engine.job_type
    async def work(job: Job[Number]) -> Number:
        begun.append(job.input.n)
        if job.input.n < 2:
            await runs.go_on.wait()
        return job.input

    async with engine.worker(concurrency=2, lease=600) as busy:
        first = await engine.start_sequences([work(Number(n=n)) for n in range(2)])
        while len(begun) < 2:
            await asyncio.sleep(0)
        third = await engine.start_sequence(work, Number(n=2))
        while not busy.waiting:
            await asyncio.sleep(0)
        claims_ahead[0] = 0
        async with engine.worker():
            assert (await third.result(timeout=20)).n == 2
        assert busy.running == 2
        runs.go_on.set()
        assert [(await each.result(timeout=20)).n for each in first] == [0, 1]
    (job,) = await engine.list_jobs(third.id)
    assert (job.attempt, await engine.list_attempts(third.id)) == (1, []), "having been held back was no attempt"


async def test_a_suspect_does_not_stop_a_worker_that_never_is_empty(
    engine: Engine, db: Db, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job with which workers have died runs alone: it waits for an empty worker, but not for ever with nothing else being claimed."""
    monkeypatch.setattr(patience, "SUSPECT", 0.0)
    monkeypatch.setattr(patience, "PREFETCHED", 0.01)
    alone: list[int] = []

    @engine.job_type
    async def work(job: Job[Number]) -> Number:
        if job.input.n == 1:
            await runs.hold(job)
        return job.input

    @engine.job_type
    async def deadly(job: Job[Number]) -> Number:
        alone.append(worker.running)
        return job.input

    async with engine.worker(lease=600) as worker:
        long = await engine.start_sequence(work, Number(n=1))
        await runs.begun.wait()
        suspect = await engine.start_sequence(deadly, Number(n=2), delay=3600)
        await db.execute("update queuert.live_job set crash_count = 2 where sequence_id = %s", [suspect.id])
        await engine.trigger([suspect.id])
        while not worker.suspects:
            await asyncio.sleep(0)
        quick = [await engine.start_sequence(work, Number(n=n)) for n in range(3, 6)]
        assert [(await each.result(timeout=20)).n for each in quick] == [3, 4, 5]
        assert alone == []
        runs.go_on.set()
        assert (await suspect.result(timeout=20)).n == 2
        assert (await long.result(timeout=20)).n == 1
    assert alone == [1]


async def test_what_a_worker_does_not_serve_does_not_hide_when_the_next_job_is_due(engine: Engine) -> None:
    @engine.job_type
    async def other(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def later(job: Job[Number]) -> Number:
        return job.input

    await engine.start_sequence(other, Number(n=1))
    delayed = await engine.start_sequence(later, Number(n=2), delay=timedelta(seconds=0.5))
    async with engine.worker(types=["later"], poll_interval=600):
        assert (await delayed.result(timeout=20)).n == 2


class Sum(BaseModel):
    of: Blocker[Number]


async def test_a_claim_whose_jobs_cannot_be_made_ready_gives_them_back(engine: Engine, db: Db, dsn: str) -> None:
    """The claim is committed, then the outputs of blockers are read: if that fails, nobody else would know of the leases."""

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def after(job: Job[Sum]) -> Number:
        return job.input.of.output

    blocker = await engine.start_sequence(note, Number(n=7))
    waiting = await engine.start_sequence(after, Sum(of=blocker), delay=3600)
    await engine.complete_sequence(blocker.id, Number(n=8))
    async with engine.worker(types=["after"], lease=600):
        async with await psycopg.AsyncConnection.connect(dsn) as holder:
            await holder.execute("lock table queuert.finished_job in access exclusive mode")
            await engine.trigger([waiting.id])
            await until_blocked(engine)
            await db.execute(
                "select pg_cancel_backend(pid) from pg_stat_activity"
                " where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0"
            )
        assert (await waiting.result(timeout=20)).n == 8
    (job,) = await engine.list_jobs(waiting.id)
    assert (job.attempt, await engine.list_attempts(waiting.id)) == (1, [])
