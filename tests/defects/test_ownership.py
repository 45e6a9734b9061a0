"""Who owns an attempt: its epoch alone, for as long as its own lease; one renewal that fails takes nothing away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from queuert_py import Engine, Job
from queuert_py.runtime.leases import Heartbeat
from tests.defects.kit import TIMEOUT, Connection, Number, one
from tests.faults.kit import until

TAKEN_BACK = (
    "update queuert.live_job set epoch = epoch + 1, leased_by = null, leased_until = null, claim_token = null, begun = false,"
    " run_at = clock_timestamp()"
)
REFUSALS = """
create sequence public.renewals;
create function public.refuse() returns trigger language plpgsql as $$
begin
    if current_setting('application_name') like '%:heartbeat' and nextval('public.renewals') <= 2 then
        raise exception 'made up' using errcode = '53200';
    end if;
    return new;
end $$;
create trigger refuse before update on queuert.live_job for each row execute function public.refuse();
"""
"""The first two renewals fail. It is gone with the schema public after the test."""


@pytest.mark.parametrize("how", ["plain", "finalize"])
async def test_a_stale_attempt_of_the_same_worker_writes_nothing(engine: Engine, db: Connection, how: str) -> None:
    """Queuert: the worker's name was all that a write was matched by, so an attempt that had lost its job could end the next one's.

    Here the job was taken back, and the same worker has claimed it again, when the first attempt comes to its end.
    """
    begun = {1: asyncio.Event(), 2: asyncio.Event()}
    go_on = {1: asyncio.Event(), 2: asyncio.Event()}
    tasks: dict[int, asyncio.Task[Any] | None] = {}
    await db.execute("create table public.effect (attempt integer)")

    @engine.job_type(backoff=0)
    async def work(job: Job[Number]) -> Number:
        tasks[job.attempt] = asyncio.current_task()
        begun[job.attempt].set()
        await go_on[job.attempt].wait()
        if how == "finalize":
            async with job.finalize() as tx:
                await tx.execute("insert into public.effect values (%s)", [job.attempt])
                return Number(n=job.attempt)
        return Number(n=job.attempt)

    async with engine.worker(shutdown_timeout=0) as worker, asyncio.timeout(TIMEOUT):
        sequence = await engine.start_sequence(work, Number())
        await begun[1].wait()
        await db.execute(TAKEN_BACK)
        worker.look()
        await begun[2].wait()
        assert await one(db, "select leased_by from queuert.live_job") == worker.id
        go_on[1].set()
        assert tasks[1] is not None
        await asyncio.wait([tasks[1]])
        await until(lambda: asyncio.sleep(0, worker._finisher.idle), "what the first attempt wanted to write to be settled")
        assert (await engine.get_sequence(sequence.id)).status == "running", "the second attempt has it"
        go_on[2].set()
        assert (await sequence.result()).n == 2
    written = [row[0] for row in await (await db.execute("select attempt from public.effect")).fetchall()]
    assert written == ([2] if how == "finalize" else [])


async def test_one_failed_renewal_does_not_kill_the_attempt(engine: Engine, db: Connection) -> None:
    """Queuert: whatever a renewal failed with, the attempt was given up."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    reasons: list[object] = []

    @engine.job_type
    async def work(job: Job[Number]) -> Number:
        begun.set()
        try:
            await go_on.wait()
        finally:
            reasons.append(job.abort_reason)
        return Number(n=job.attempt)

    async with engine.worker(lease=4.5, shutdown_timeout=0):
        sequence = await engine.start_sequence(work, Number())
        await begun.wait()
        await db.execute(REFUSALS.encode())
        await until(lambda: one(db, "select last_value > 2 from public.renewals"), "two renewals to fail and the third to succeed")
        go_on.set()
        assert (await sequence.result(timeout=TIMEOUT)).n == 1, "the first attempt goes on to its end"
    assert reasons == [None]
    assert await engine.list_attempts(sequence.id) == []


async def test_a_renewal_that_finds_the_row_locked_does_not_kill_the_attempt(
    engine: Engine, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queuert: as above. Here the handler's own finalize holds the row, so that the renewal passes it by."""
    begun, looked, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    reasons: list[object] = []
    loop, look = asyncio.get_running_loop(), Heartbeat._look

    def look_and_tell(heartbeat: Heartbeat, missing: list[tuple[Any, Any]]) -> None:
        look(heartbeat, missing)
        loop.call_soon_threadsafe(looked.set)

    monkeypatch.setattr(Heartbeat, "_look", look_and_tell)

    @engine.job_type
    async def work(job: Job[Number]) -> Number:
        async with job.finalize():
            begun.set()
            try:
                await go_on.wait()
            finally:
                reasons.append(job.abort_reason)
            return Number(n=job.attempt)

    async with engine.worker(lease=3.0, shutdown_timeout=0), asyncio.timeout(TIMEOUT):
        sequence = await engine.start_sequence(work, Number())
        await begun.wait()
        await looked.wait()
        go_on.set()
        assert (await sequence.result()).n == 1
    assert reasons == [None]


async def test_a_retry_has_a_lease_of_its_own_however_long_ago_the_first_attempt_began(engine: Engine, db: Connection) -> None:
    """steve: the reaper measured from the first attempt, so that a retry of an old job had expired as soon as it began.

    Here the job is a day old when its second attempt begins, and a reaper comes by at once.
    """
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type(backoff=0)
    async def work(job: Job[Number]) -> Number:
        if job.attempt == 1:
            await db.execute(
                "update queuert.live_job set leased_at = leased_at - interval '1 day', created_at = created_at - interval '1 day',"
                " sequence_created_at = sequence_created_at - interval '1 day', run_at = run_at - interval '1 day'"
            )
            raise ValueError("again")
        begun.set()
        await go_on.wait()
        return Number(n=job.attempt)

    async with engine.worker(shutdown_timeout=0) as worker:
        sequence = await engine.start_sequence(work, Number())
        async with asyncio.timeout(TIMEOUT):
            await begun.wait()
        reaper = worker._reaper
        reaper._quiet_until = reaper._sweep_at = 0.0
        taken = await reaper.once()
        assert taken == 0, "its lease began with its own attempt"
        go_on.set()
        assert (await sequence.result(timeout=TIMEOUT)).n == 2
    assert [each.outcome for each in await engine.list_attempts(sequence.id)] == ["error"]
