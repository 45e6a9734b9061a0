"""The six reasons for which a running handler is aborted, and that one which ignores it can write nothing any more."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection

from queuert_py import Engine, Job, SyncJob
from tests.engine.kit import Number, Runs

Db = AsyncConnection[tuple[Any, ...]]
REASONS = ("lease_lost", "deleted", "cancelled", "completed_elsewhere", "timeout", "shutdown")


async def bring_about(reason: str, engine: Engine, db: Db, id: UUID) -> None:
    """What makes the worker abort the handler for this reason, if its own timeout does not."""
    match reason:
        case "lease_lost":
            await db.execute("update queuert.live_job set epoch = epoch + 1, leased_by = null, leased_until = null")
        case "deleted":
            await engine.delete_sequences([id])
        case "cancelled":
            await engine.cancel_sequences([id])
        case "completed_elsewhere":
            await engine.complete_sequence(id, Number(n=7))
        case _:
            return


LEASES = {"lease_lost": 1.0}
"""Only a renewal finds that; whatever else happens is told. Elsewhere no machine is so busy that a lease is lost."""
STANDS = {
    "lease_lost": ["pending"],
    "deleted": [],
    "cancelled": ["cancelled"],
    "completed_elsewhere": ["completed"],
    "timeout": ["failed"],
    "shutdown": ["pending"],
}


@pytest.mark.parametrize("reason", REASONS)
async def test_a_handler_is_cancelled_with_the_reason(engine: Engine, db: Db, runs: Runs, reason: str) -> None:
    @engine.job_type(max_attempts=1, timeout=0.05 if reason == "timeout" else None)
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    worker = await engine.worker(lease=LEASES.get(reason, 30.0), shutdown_timeout=0, types=["hold"]).start()
    await runs.begun.wait()
    await db.execute("insert into queuert.queue values ('default', true)")  # given back, it waits
    await bring_about(reason, engine, db, sequence.id)
    if reason == "shutdown":
        await worker.stop()
    async with asyncio.timeout(20):
        await runs.ended.wait()
    await worker.stop()
    assert runs.reasons == [reason]
    assert [each.status for each in await engine.list_sequences()] == STANDS[reason]


@pytest.mark.parametrize("reason", REASONS)
async def test_a_handler_that_ignores_it_is_left_behind_and_its_writes_do_not_commit(
    engine: Engine, db: Db, runs: Runs, reason: str
) -> None:
    await db.execute("create table effect (n int)")

    @engine.job_type(max_attempts=1, timeout=0.05 if reason == "timeout" else None)
    async def stubborn(job: Job[Number]) -> Number:
        runs.begun.set()
        while not runs.go_on.is_set():
            try:
                await runs.go_on.wait()
            except asyncio.CancelledError:
                runs.reasons.append(job.abort_reason)
        try:
            async with job.finalize() as tx:
                await tx.execute("insert into effect values (1)")
            return job.input
        except BaseException as error:
            runs.errors.append(error)
            raise
        finally:
            runs.ended.set()

    sequence = await engine.start_sequence(stubborn, Number(n=1))
    worker = await engine.worker(lease=LEASES.get(reason, 30.0), shutdown_timeout=0, grace=0.2).start()
    await runs.begun.wait()
    await db.execute("insert into queuert.queue values ('default', true)")
    await bring_about(reason, engine, db, sequence.id)
    async with asyncio.timeout(20):
        if reason != "shutdown":
            await worker.drained()  # its slot is free although it goes on
        await worker.stop()
        runs.go_on.set()
        await runs.ended.wait()
    assert set(runs.reasons) == {reason}
    assert len(runs.errors) == 1
    assert await (await db.execute("select count(*) from effect")).fetchone() == (0,)
    assert [each.status for each in await engine.list_sequences()] == STANDS[reason]


@pytest.mark.parametrize("reason", REASONS)
async def test_a_thread_sees_the_flag_and_its_writes_commit_only_on_a_shutdown(engine: Engine, db: Db, reason: str) -> None:
    await db.execute("create table effect (n int)")
    begun, ended = threading.Event(), threading.Event()
    reasons: list[object] = []

    @engine.job_type(max_attempts=1, timeout=0.05 if reason == "timeout" else None)
    def look(job: SyncJob[Number]) -> Number:
        begun.set()
        while not job.aborted:
            ended.wait(0.005)
        reasons.append(job.abort_reason)
        try:
            with job.finalize() as tx:
                tx.execute("insert into effect values (1)")
            return job.input
        finally:
            ended.set()

    sequence = await engine.start_sequence(look, Number(n=1))
    worker = await engine.worker(lease=LEASES.get(reason, 30.0), shutdown_timeout=0, grace=20.0).start()
    assert await asyncio.to_thread(begun.wait, 10)
    await db.execute("insert into queuert.queue values ('default', true)")
    await bring_about(reason, engine, db, sequence.id)
    if reason == "shutdown":
        await worker.stop()
    assert await asyncio.to_thread(ended.wait, 20)
    await worker.stop()
    assert reasons == [reason]
    completes = reason == "shutdown"  # the job is still its own: what it completes within its grace counts
    assert await (await db.execute("select count(*) from effect")).fetchone() == (int(completes),)
    assert [each.status for each in await engine.list_sequences()] == (["completed"] if completes else STANDS[reason])
