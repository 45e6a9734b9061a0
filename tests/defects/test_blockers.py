"""Blockers: nothing is stranded, nothing starts too early, no ring is closed, and a deletion sees the blockers of every job."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from queuert_py import Continuation, Engine, Job, continue_with
from queuert_py.errors import BlockerCycleError, SequenceHasDependentsError
from queuert_py.ids import uuid7
from tests.defects.kit import TIMEOUT, After, Connection, Number, Pair, closed_gate, held, until_blocked

LOOKED = "select query_start from pg_stat_activity where datname = current_database() and application_name like '%:aside'"


@pytest.mark.parametrize("how", ["plain", "finalize"])
async def test_two_blockers_that_finish_in_overlapping_transactions_do_not_strand_the_job(
    engine: Engine, db: Connection, dsn: str, how: str
) -> None:
    """Queuert: each of the two transactions found the other's blocker unfinished, and nobody ever looked again.

    Here both have ended their blocker, neither has committed, and both wait for the dependent's row, which the test holds.
    """

    @engine.job_type
    async def blocker(job: Job[Number]) -> Number:
        if how == "plain":
            return job.input
        async with job.finalize():
            return job.input

    @engine.job_type
    async def add(job: Job[Pair]) -> Number:
        return Number(n=job.input.first.output.n + job.input.second.output.n)

    first, second = await engine.start_sequences([blocker(Number(n=1)), blocker(Number(n=2))])
    dependent = await engine.start_sequence(add, Pair(first=first, second=second))
    async with held(dsn, "select from queuert.live_job where sequence_id = %s for no key update", dependent.id):
        workers = [await engine.worker(concurrency=1).start() for _ in range(2)]
        await until_blocked(db, 2)
    await first.result(timeout=TIMEOUT)
    await second.result(timeout=TIMEOUT)
    assert (await engine.get_sequence(dependent.id)).status != "blocked", "both have ended: nobody will look again"
    assert (await dependent.result(timeout=TIMEOUT)).n == 3
    for worker in workers:
        await worker.stop()


async def test_a_blocker_that_is_added_while_its_sequence_is_being_continued_is_waited_for_to_the_end(
    engine: Engine, db: Connection
) -> None:
    """Queuert: it saw that the blocker's job had ended, did not see the next one yet, and started the dependent too early.

    Here the transaction that continues stands in its COMMIT while the dependent is being started, and the next job runs afterwards.
    """
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[Number]:
        async with job.finalize() as tx:
            await tx.execute("insert into public.gate values (1)")
            return continue_with(second, job.input)

    @engine.job_type(internal=True)
    async def second(job: Job[Number]) -> Number:
        begun.set()
        await go_on.wait()
        return Number(n=job.input.n + 1)

    @engine.job_type
    async def after(job: Job[After]) -> Number:
        return job.input.number.output

    async with closed_gate(db):
        worker = await engine.worker(shutdown_timeout=0).start()
        blocker = await engine.start_sequence(first, Number(n=1))
        await until_blocked(db)
        starting = asyncio.create_task(engine.start_sequence(after, After(number=blocker)))
        looks: set[object] = set()
        async with asyncio.timeout(TIMEOUT):
            while len(looks) < 3 and not starting.done():  # it asks again and again, or has made up its mind
                looks |= {row[0] for row in await (await db.execute(LOOKED)).fetchall()}
    dependent = await starting
    async with asyncio.timeout(TIMEOUT):
        await begun.wait()
    assert (await engine.get_sequence(dependent.id)).status == "blocked", "the sequence goes on: it is not done"
    go_on.set()
    assert (await dependent.result(timeout=TIMEOUT)).n == 2
    await worker.stop()


async def test_two_sequences_that_begin_to_wait_for_each_other_at_once_do_not_close_a_ring(
    engine: Engine, db: Connection, dsn: str
) -> None:
    """Queuert: blocker cycles are accepted, and hang for ever. (One after the other: tests/engine/test_wait_for.py, test_blockers.py.)

    Here both transactions are under way: one is about to write its edge, which the test forbids, the other waits for the first one's end.
    """
    both = asyncio.Barrier(3)
    ids = {"left": UUID(uuid7()), "right": UUID(uuid7())}

    async def wait_for_the_other(job: Job[Number]) -> Number:
        name = "left" if job.sequence_id == ids["right"] else "right"
        await both.wait()
        await both.wait()
        return (await job.wait_for([engine.sequence(name, ids[name], output=Number)]))[0].output

    for name in ids:
        engine.job_type(name)(wait_for_the_other)
    async with engine:
        for name, id in ids.items():
            await engine.start_sequence(name, Number(), id=id)
        await db.execute("update queuert.live_job set watched = true")
        async with engine.worker(types=["left"]) as left, engine.worker(types=["right"]) as right, asyncio.timeout(TIMEOUT):
            await both.wait()
            async with held(dsn, "lock table queuert.job_blocker in exclusive mode"):
                await both.wait()
                await until_blocked(db, 2)
            await left.drained()
            await right.drained()
        standing = {each.status: each for each in await engine.list_sequences()}
    assert set(standing) == {"failed", "blocked"}, "one of them is refused"
    assert BlockerCycleError.__name__ in str(standing["failed"].error)


async def test_a_cascading_deletion_sees_the_blockers_of_continuations(engine: Engine) -> None:
    """Queuert: it looked at the blockers of the first job only, deleted what a continuation waited for, and left what it had waited for."""

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def wait(job: Job[After]) -> Number:
        return job.input.number.output

    @engine.job_type
    async def fan_out(job: Job[Number]) -> Continuation[Number]:
        async with job.finalize() as tx:
            blocker = await engine.start_sequence(note, Number(n=1), delay=3600, tx=tx)
            return continue_with(wait, After(number=blocker))

    top = await engine.start_sequence(fan_out, Number())
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(top.id)).status == "blocked"
    [blocker] = await engine.list_sequences(type="note")
    with pytest.raises(SequenceHasDependentsError):
        await engine.delete_sequences([blocker.id])
    assert await engine.delete_sequences([top.id], cascade=True) == [top.id, blocker.id]
    assert await engine.list_sequences() == []
