"""VirtualClock: delays, retries, leases, expiry and keys by a clock that a test moves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from queuert_py import Dedup, Engine, Job
from queuert_py.errors import SequenceExpiredError, UsageError
from queuert_py.postgres.migrate import script
from queuert_py.postgres.store import statements
from queuert_py.testing import Harness, VirtualClock, drain

HOUR = timedelta(hours=1)


class Number(BaseModel):
    n: int


async def test_a_running_worker_takes_what_has_become_due(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with queuert(engine):
        later = await engine.start_sequence(note, Number(n=1), delay=24 * HOUR)
        worker = await engine.worker(poll_interval=60).start()
        while engine.listener.deaf:
            await asyncio.sleep(0)
        await worker.drained()  # it sleeps now: nothing but the clock can wake it
        assert (await engine.get_sequence(later.id)).status == "scheduled"
        await VirtualClock(engine).advance(25 * HOUR)
        assert (await later.result(timeout=10)).n == 1


async def test_a_live_workers_job_is_kept_over_the_jump(queuert: Harness) -> None:
    engine = Engine("postgresql://")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def slow(job: Job[Number]) -> Number:
        begun.set()
        await go_on.wait()
        return Number(n=job.attempt)

    async with queuert(engine), engine.worker(), engine.worker():
        sequence = await engine.start_sequence(slow, Number(n=1))
        await begun.wait()
        await VirtualClock(engine).advance(48 * HOUR)
        assert (await drain(engine)).reaped == 0
        go_on.set()
        assert (await sequence.result(timeout=10)).n == 1


async def test_a_dead_workers_job_is_taken_back_when_its_lease_has_ended(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return Number(n=job.attempt)

    async with queuert(engine):
        sequence = await engine.start_sequence(note, Number(n=1))
        async with engine.database.connection() as connection:  # a worker that claimed it and was never heard of again
            await connection.execute(
                "update queuert.live_job set leased_by = 'gone', leased_at = queuert.virtual_now(), begun = true, attempt = 1, "
                "leased_until = queuert.virtual_now() + interval '30 seconds'"
            )
        assert (await drain(engine)).ran == ()
        await VirtualClock(engine).advance(31)
        done = await drain(engine)
        assert (done.reaped, done.outcomes) == (1, {"completed": 1})
        assert (await sequence.result(timeout=10)).n == 2


async def test_a_sequence_expires(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def note(job: Job[Number]) -> None: ...

    async with queuert(engine):
        sequence = await engine.start_sequence(note, Number(n=1), expires=HOUR)
        await VirtualClock(engine).advance(2 * HOUR)
        await drain(engine)
        with pytest.raises(SequenceExpiredError):
            await sequence.result(timeout=10)


async def test_the_window_of_a_key_passes(queuert: Harness) -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def note(job: Job[Number]) -> None: ...

    async with queuert(engine):
        daily = Dedup("today", scope="all", window=24 * HOUR)
        first = await engine.start_sequence(note, Number(n=1), dedup=daily)
        await drain(engine, through=HOUR)
        assert (await engine.start_sequence(note, Number(n=1), dedup=daily)).id == first.id
        await VirtualClock(engine).advance(24 * HOUR)
        assert (await engine.start_sequence(note, Number(n=1), dedup=daily)).id != first.id


async def test_records_tell_the_time_of_that_clock(queuert: Harness) -> None:
    engine = Engine("postgresql://")
    clock = VirtualClock(engine)

    @engine.job_type
    async def note(job: Job[Number]) -> None: ...

    async with queuert(engine):
        at = datetime(2100, 1, 1, 12, tzinfo=UTC)
        assert at <= await clock.advance_to(at) < at + HOUR
        sequence = await engine.start_sequence(note, Number(n=1), at=at + HOUR)
        assert at <= (await engine.get_sequence(sequence.id)).created_at < at + HOUR
        await drain(engine, through=2 * HOUR)
        finished = (await engine.get_sequence(sequence.id)).finished_at
        assert finished is not None
        assert at + HOUR <= finished < at + 2 * HOUR


@pytest.mark.parametrize("number", range(2))
async def test_every_test_begins_at_the_present(queuert: Harness, number: int) -> None:
    engine = Engine("postgresql://")
    clock = VirtualClock(engine)
    async with queuert(engine):
        assert abs(await clock.now() - datetime.now(UTC)) < HOUR
        await clock.advance(48 * HOUR)


async def test_it_goes_forward_only(queuert: Harness) -> None:
    engine = Engine("postgresql://")
    async with queuert(engine):
        with pytest.raises(UsageError, match="not negative"):
            await VirtualClock(engine).advance(-1)
        before = await VirtualClock(engine).now()
        assert await VirtualClock(engine).advance_to(before - HOUR) >= before


async def test_a_database_without_a_clock_of_its_own_says_so(engine: Engine) -> None:
    for move in (VirtualClock(engine).now(), VirtualClock(engine).advance(1)):
        with pytest.raises(UsageError, match="has no clock that can be moved"):
            await move


def test_production_reads_the_servers_clock_and_nothing_else() -> None:
    assert "virtual_now" not in script("queuert")
    assert not [name for name, text in statements("queuert").items() if b"virtual_now" in text]


def test_every_statement_and_default_of_a_test_reads_the_virtual_one() -> None:
    assert not [name for name, text in statements("queuert", virtual=True).items() if b"clock_timestamp()" in text]
    made = script("queuert", virtual=True).split("create function", 1)[1].split("$$;", 1)[1]
    assert "clock_timestamp()" not in made
