"""A worker's slots: what ends makes room for what comes next, and passes nothing else on to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from queuert_py import Engine, Job, events
from queuert_py.runtime import patience
from tests.engine.kit import Number, Runs

TENANT: ContextVar[str] = ContextVar("TENANT", default="nobody")


@pytest.mark.usefixtures("claims_ahead")
async def test_a_job_that_is_cancelled_before_its_handler_begins_frees_its_slot(engine: Engine, runs: Runs) -> None:
    """A batch and what was prefetched behind it are cancelled at once: the second gets the slot of the first, and loses it unbegun."""

    @engine.batch_type("slow", size=2)
    async def slow(jobs: Sequence[Job[Number]]) -> Sequence[Number]:
        await runs.hold(jobs[0])
        return [job.input for job in jobs]

    @engine.job_type
    async def quick(job: Job[Number]) -> Number:
        return job.input

    batch = await engine.start_sequences([slow(Number(n=n)) for n in range(2)])
    async with engine.worker(concurrency=2) as worker:
        await runs.begun.wait()
        behind = await engine.start_sequence(quick, Number(n=3))
        while not worker.waiting:
            await asyncio.sleep(0)
        await engine.cancel_sequences([*(each.id for each in batch), behind.id])
        after = await engine.start_sequences([quick(Number(n=n)) for n in range(4)])
        assert [(await each.result(timeout=20)).n for each in after] == [0, 1, 2, 3]
        assert worker.running == 0


@pytest.mark.usefixtures("claims_ahead")
async def test_what_a_handler_sets_in_its_context_is_seen_by_no_other(engine: Engine) -> None:
    """Prefetched jobs: each begins when one before it ends, which here happens in that one's own task."""
    seen: list[str] = []

    @engine.job_type
    async def visit(job: Job[Number]) -> Number:
        seen.append(TENANT.get())
        async with job.finalize():
            TENANT.set(f"tenant {job.input.n}")
            return job.input

    @engine.batch_type("together", size=1)
    async def together(jobs: Sequence[Job[Number]]) -> Sequence[Number]:
        seen.append(TENANT.get())
        TENANT.set("a batch")
        return [job.input for job in jobs]

    TENANT.set("whoever starts the worker")
    async with engine.worker(concurrency=4, drain=True):
        TENANT.set("somebody else")
        await engine.start_sequences([kind(Number(n=n)) for n in range(8) for kind in (visit, together)])
    assert seen == ["whoever starts the worker"] * 16


@pytest.mark.usefixtures("claims_ahead")
async def test_a_prefetched_job_is_given_back_once(engine: Engine, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has never run: that is no suspension; and a stop that waits for nothing has nothing to abort there."""
    given_back: list[str] = []

    @engine.on(events.JobSuspended, events.JobReleased)
    def _(event: events.JobSuspended | events.JobReleased) -> None:
        given_back.append(f"{type(event).__name__} {event.sequence_id == behind.id}")

    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    await engine.start_sequences([hold(Number(n=n)) for n in range(2)])
    async with engine.worker(concurrency=2) as worker:
        await runs.begun.wait()
        monkeypatch.setattr(patience, "PREFETCHED", 0.01)
        behind = await engine.start_sequence(hold, Number(n=2))
        while not given_back:
            await asyncio.sleep(0)
        monkeypatch.setattr(patience, "PREFETCHED", 600.0)
        while not worker.waiting:
            await asyncio.sleep(0)
        before = given_back.copy()
        await worker.stop(timeout=0)
    assert set(before) == {"JobReleased True"}
    assert sorted(given_back[len(before) :]) == ["JobReleased False", "JobReleased False", "JobReleased True"]
    assert not await engine.list_attempts(behind.id)


async def test_a_worker_that_has_been_idle_is_drained_only_when_it_has_looked_again(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine.worker() as worker:
        await worker.drained()
        sequence = await engine.start_sequence(note, Number(n=1))
        await worker.drained()
        assert (await engine.get_sequence(sequence.id)).status == "completed"
    await worker.drained()  # of one that has stopped: at once
