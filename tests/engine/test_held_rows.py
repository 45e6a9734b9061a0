"""While a row stands in somebody's open transaction: what needs it waits, fails for no other reason, and holds up nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Job, continue_with
from queuert_py.errors import SequenceBusyError, SequenceFailedError
from queuert_py.postgres import blocking
from queuert_py.postgres.database import Link, sever
from tests.engine.kit import Number


class Needs(BaseModel):
    on: Blocker[Number]


@asynccontextmanager
async def held(db: psycopg.AsyncConnection[Any], id: UUID) -> AsyncGenerator[None]:
    """As by a handler's long transaction, or a caller's."""
    async with db.transaction():
        await db.execute("select from queuert.live_job where sequence_id = %s for no key update", [id])
        yield


class Family:
    """Job types that wait for others in the ways there are."""

    def __init__(self, engine: Engine) -> None:
        @engine.job_type(queue="later")
        async def child(job: Job[Number]) -> Number:
            return job.input

        @engine.job_type
        async def quick(job: Job[Number]) -> Number:
            return job.input

        @engine.job_type
        async def last(job: Job[Needs]) -> Number:
            return job.input.on.output

        @engine.job_type
        async def waits(job: Job[Number]) -> Number:
            self.asked.set()
            return (await job.wait_for([engine.sequence(child, self.child)]))[0].output

        @engine.job_type
        async def goes_on(job: Job[Number]) -> Continuation[Number]:
            self.asked.set()
            return continue_with(last, Needs(on=Blocker(self.child)))

        @engine.job_type
        async def finalizes(job: Job[Number]) -> Continuation[Number]:
            async with job.finalize():
                self.asked.set()
                self.runs += 1
                return continue_with(last, Needs(on=Blocker(self.child)))

        @engine.job_type
        async def beside(job: Job[Number]) -> Number:
            one = await job.step("start", lambda: engine.start_sequence(quick, Number(n=7)))
            return (await job.wait_for([one]))[0].output

        self.parts = child, last, beside
        self.ways = {"waits": waits, "goes on": goes_on, "finalizes": finalizes}
        self.asked = asyncio.Event()
        self.runs = 0
        self.child: UUID


@pytest.mark.parametrize("way", ["waits", "goes on", "finalizes"])
async def test_a_blocker_that_is_held_fails_nothing_and_holds_up_no_other(
    engine: Engine, db: psycopg.AsyncConnection[Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "PATIENCE_INSIDE", 0.1)
    family = Family(engine)
    child, _, beside = family.parts
    family.child = (await engine.start_sequence(child, Number(n=5))).id
    async with engine.worker(poll_interval=60):
        async with held(db, family.child):
            waiting = await engine.start_sequence(family.ways[way], Number(n=1))
            await family.asked.wait()
            other = await engine.start_sequence(beside, Number(n=1))
            assert (await other.result(timeout=10)).n == 7
            assert (await engine.get_sequence(waiting.id)).status not in ("failed", "blocked")
        async with engine.worker(queues=["later"]):
            assert (await waiting.result(timeout=20)).n == 5
    assert {job.attempt for job in await engine.list_jobs(waiting.id)} == {1}
    given_back = [(each.outcome, (each.error or {}).get("type")) for each in await engine.list_attempts(waiting.id)]
    assert set(given_back) <= {("released", "SequenceBusyError")}, "and it says why"


async def test_who_waits_for_a_blocker_that_is_held_is_cancelled_like_any_other(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    family = Family(engine)
    child, _, _ = family.parts
    family.child = (await engine.start_sequence(child, Number(n=5))).id
    async with engine.worker(poll_interval=60) as worker, held(db, family.child):
        waiting = await engine.start_sequence(family.ways["goes on"], Number(n=1))
        await family.asked.wait()
        assert await engine.cancel_sequences([waiting.id]) == {waiting.id: "cancelled"}
        await worker.drained()  # its slot is free, although the blocker is not


async def test_a_caller_waits_for_a_blocker_that_is_held_for_a_short_time_only(
    engine: Engine, db: psycopg.AsyncConnection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "PATIENCE_INSIDE", 0.1)
    family = Family(engine)
    child, last, _ = family.parts
    family.child = (await engine.start_sequence(child, Number(n=5))).id
    async with held(db, family.child), await psycopg.AsyncConnection.connect(dsn) as connection:
        with pytest.raises(SequenceBusyError, match="held by another transaction"):
            await engine.start_sequence(last, Needs(on=Blocker(family.child)), tx=connection)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        started = await engine.start_sequence(last, Needs(on=Blocker(family.child)), tx=connection)
    assert (await engine.get_sequence(started.id)).status == "blocked"


# --- connections


WAITS = b"select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


async def test_a_client_that_is_gone_waits_for_nothing_any_more(engine: Engine, db: psycopg.AsyncConnection[Any], dsn: str) -> None:
    """Neither on the engine's own connections nor on the pool's: they would add up, and do in the end what nobody expects any more."""
    await engine.open()
    async with db.transaction(), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as look:
        await db.execute("select pg_advisory_xact_lock(7)")

        async def wait(connection: psycopg.AsyncConnection[Any]) -> None:
            await connection.execute("set lock_timeout = 0")
            await connection.execute("select pg_advisory_xact_lock(7)")

        async with await engine.database.connect("test") as own:
            async with engine.database.connection() as pooled:
                tasks = [asyncio.create_task(wait(each)) for each in (own, pooled)]
                while len(await (await look.execute(WAITS)).fetchall()) < 2:
                    await asyncio.sleep(0)
                sever(own)
                sever(pooled)
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(each) for each in ended] == [psycopg.OperationalError] * 2
        async with asyncio.timeout(20):
            while await (await look.execute(WAITS)).fetchall():
                await asyncio.sleep(0)


async def test_a_lane_that_meets_a_lock_keeps_its_connection(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    await engine.open()
    before = engine.health.report.state
    link = Link(engine.database, "test")
    async with db.transaction():
        await db.execute("select pg_advisory_xact_lock(7)")
        pid = (await link.connection()).info.backend_pid
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await link.use(lambda connection: connection.execute("select pg_advisory_xact_lock(7)"))
    assert (await link.connection()).info.backend_pid == pid
    assert engine.health.report.state == before
    await link.close()


async def test_a_connection_that_was_cut_while_idle_fails_no_start(engine: Engine, db: psycopg.AsyncConnection[Any], dsn: str) -> None:
    family = Family(engine)
    child, last, _ = family.parts
    for _ in range(2):
        blocker = await engine.start_sequence(child, Number(n=5))
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await engine.start_sequence(last, Needs(on=blocker), tx=connection)
        cut = b"select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = current_database()"
        assert await (await db.execute(cut + b" and application_name like '%:aside'")).fetchall()
    assert {job.status for job in await engine.list_jobs(type="last")} == {"blocked"}


async def test_handlers_that_look_inside_a_phase_wait_for_no_second_connection(dsn: str) -> None:
    both = asyncio.Barrier(2)
    async with Engine(dsn, pool_size=2) as engine:

        @engine.job_type
        async def looks(job: Job[Number]) -> Number:
            async with job.finalize():
                await both.wait()  # each has a connection, and there is no third
                found = await engine.get_sequence(job.sequence_id)
                await engine.list_jobs(limit=1)
                await engine.why(job.sequence_id)
                return Number(n=found.attempt)

        sequences = await engine.start_sequences([looks(Number(n=n)) for n in range(2)])
        async with engine.worker(concurrency=2):
            assert [(await each.result(timeout=20)).n for each in sequences] == [1, 1]
        assert [await engine.list_attempts(each.id) for each in sequences] == [[], []]


# --- a dependent that is held


async def test_what_ends_while_a_dependent_is_held_holds_up_no_other_ending(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    _, last, _ = Family(engine).parts
    ended = asyncio.Event()

    @engine.job_type(max_attempts=1)
    async def fails(job: Job[Number]) -> Number:
        raise ValueError

    @engine.job_type
    async def ends(job: Job[Number]) -> Number:
        ended.set()
        return job.input

    blocker = await engine.start_sequence(ends, Number(n=5), delay=3600)
    waiting = await engine.start_sequence(last, Needs(on=blocker))
    async with engine.worker(poll_interval=60):
        async with held(db, waiting.id):
            await engine.trigger([blocker.id])
            await ended.wait()
            for other in await engine.start_sequences([fails(Number(n=n)) for n in range(3)]):
                with pytest.raises(SequenceFailedError):
                    await other.result(timeout=20)
            assert (await engine.get_sequence(blocker.id)).status == "running", "it ends together with what it frees"
        assert (await waiting.result(timeout=20)).n == 5
