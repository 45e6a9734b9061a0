"""trigger and reschedule: another time for what waits, all or none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker, Engine, Job
from queuert_py.errors import SequenceEndedError, SequenceNotFoundError, SequenceRunningError, UsageError
from tests.engine.kit import Number, Runs


async def test_triggered_sequences_run_now_in_the_order_of_the_ids(engine: Engine) -> None:
    order: list[int] = []

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        order.append(job.input.n)
        return job.input

    sequences = await engine.start_sequences([note(Number(n=n), delay=3600) for n in range(20)])
    async with engine.worker(concurrency=1, poll_interval=60):
        await engine.trigger([each.id for each in reversed(sequences)])
        for each in sequences:
            await each.result(timeout=10)
    assert order == list(reversed(range(20)))


async def test_a_retry_that_waits_for_its_backoff_can_be_triggered(engine: Engine) -> None:
    @engine.job_type(backoff=3600)
    async def second_time(job: Job[Number]) -> Number:
        if job.attempt == 1:
            raise ValueError
        return Number(n=job.attempt)

    sequence = await engine.start_sequence(second_time, Number(n=1))
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(sequence.id)).status == "scheduled"
    async with engine.worker(poll_interval=60):
        await engine.trigger([sequence.id])
        assert (await sequence.result(timeout=10)).n == 2


async def test_rescheduled_by_a_span_or_to_an_instant_earlier_or_later(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    first, second = await engine.start_sequences([note(Number(n=n)) for n in range(2)])
    noon = datetime(2100, 1, 1, 12, tzinfo=UTC)
    await engine.reschedule([first.id, second.id], at=noon)
    jobs = [(await engine.list_jobs(each.id))[0] for each in (first, second)]
    assert [job.run_at - noon for job in jobs] == [timedelta(0), timedelta(microseconds=1)]
    assert [job.status for job in jobs] == ["scheduled", "scheduled"]
    async with engine.worker(poll_interval=60):
        await engine.reschedule([second.id], delay=0.05)
        assert (await second.result(timeout=10)).n == 1
        assert (await engine.get_sequence(first.id)).status == "scheduled"


async def test_an_instant_in_the_past_is_now(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    early = await engine.start_sequence(note, Number(n=1))
    late = await engine.start_sequence(note, Number(n=2), delay=3600)
    await engine.reschedule([late.id], at=datetime(2000, 1, 1, tzinfo=UTC))
    jobs = [(await engine.list_jobs(each.id))[0] for each in (early, late)]
    assert jobs[0].run_at < jobs[1].run_at, "it does not overtake what was due before"


class Needs(BaseModel):
    number: Blocker[Number]


async def test_a_blocked_one_keeps_its_blockers_and_takes_the_time(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def wait(job: Job[Needs]) -> Number:
        return job.input.number.output

    blocker = await engine.start_sequence(note, Number(n=1))
    dependent = await engine.start_sequence(wait, Needs(number=blocker))
    await engine.reschedule([dependent.id], delay=3600)
    assert (await engine.get_sequence(dependent.id)).status == "blocked"
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(dependent.id)).status == "scheduled"
    await engine.trigger([dependent.id])
    async with engine.worker(drain=True):
        pass
    assert (await dependent.result(timeout=20)).n == 1


async def test_all_or_none_and_the_error_names_who_forbids_it(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    running = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(concurrency=1):
        await runs.begun.wait()
        waiting = await engine.start_sequence(hold, Number(n=2), delay=3600)
        missing = uuid4()
        before = (await engine.list_jobs(waiting.id))[0].run_at
        with pytest.raises(SequenceRunningError, match=str(running.id)) as refused:
            await engine.trigger([waiting.id, running.id])
        assert refused.value.ids == [running.id]
        with pytest.raises(SequenceNotFoundError, match=str(missing)):
            await engine.reschedule([waiting.id, missing], delay=1)
        assert (await engine.list_jobs(waiting.id))[0].run_at == before
        runs.go_on.set()
        await running.result(timeout=10)
        with pytest.raises(SequenceEndedError, match="completed") as ended:
            await engine.trigger([running.id, waiting.id])
        assert ended.value.status == "completed"
        assert (await engine.list_jobs(waiting.id))[0].run_at == before


async def test_in_the_callers_transaction(engine: Engine, db: AsyncConnection[tuple[object, ...]]) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    sequence = await engine.start_sequence(note, Number(n=1), delay=3600)
    async with engine.worker(poll_interval=60):
        async with db.transaction(force_rollback=True):
            await engine.trigger([sequence.id], tx=db)
        assert (await engine.get_sequence(sequence.id)).status == "scheduled"
        async with db.transaction():
            await engine.trigger([sequence.id], tx=db)
        assert (await sequence.result(timeout=10)).n == 1


async def test_wrong_times_are_named(engine: Engine) -> None:
    with pytest.raises(UsageError, match="trigger"):
        await engine.reschedule([uuid4()])
    with pytest.raises(UsageError, match="both given"):
        await engine.reschedule([uuid4()], delay=1, at=datetime.now(UTC))
    with pytest.raises(UsageError, match="aware"):
        await engine.reschedule([uuid4()], at=datetime(2030, 1, 1))
    with pytest.raises(UsageError, match="not negative"):
        await engine.reschedule([uuid4()], delay=-1)
