"""delete_sequences: everything of a sequence goes, unless somebody unfinished needs it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Job, JobSequence, JobType, continue_with
from queuert_py.errors import JobDeletedError, SequenceHasDependentsError, SequenceNotFoundError, UsageError
from tests.engine.kit import LONG, Number, Runs, until_blocked

Db = AsyncConnection[tuple[Any, ...]]


class Needs(BaseModel):
    number: Blocker[Number]


class Types:
    """A type that can be waited for, and one that waits."""

    def __init__(self, engine: Engine) -> None:
        @engine.job_type
        async def note(job: Job[Number]) -> Number:
            return job.input

        @engine.job_type
        async def wait(job: Job[Needs]) -> Number:
            return job.input.number.output

        @engine.job_type
        async def chain(job: Job[Needs]) -> Continuation[Number]:
            return continue_with(note, job.input.number.output, delay=3600)

        self.note: JobType[Number, Number] = note
        self.wait: JobType[Needs, Number] = wait
        self.chain: JobType[Needs, Number] = chain


@pytest.fixture
def types(engine: Engine) -> Types:
    return Types(engine)


async def rows_of(db: Db, *ids: UUID) -> int:
    """How many rows anything has of these."""
    total = 0
    for table in ("live_job", "finished_job", "attempt_log", "job_blocker"):
        cursor = await db.execute(f"select count(*) from queuert.{table} where sequence_id = any(%s)", [list(ids)])
        row = await cursor.fetchone()
        total += row[0] if row else 0
    return total


async def test_nothing_is_left_of_it_and_missing_ones_are_skipped(engine: Engine, db: Db) -> None:
    tried = 0

    @engine.job_type(backoff=0)
    async def second_time(job: Job[Number]) -> Number:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise ValueError
        return job.input

    done = await engine.start_sequence(second_time, Number(n=1))
    async with engine.worker():
        await done.result(timeout=10)
    waiting = await engine.start_sequence(second_time, Number(n=2), delay=3600)
    assert len(await engine.list_attempts(done.id)) == 1
    assert await engine.delete_sequences([waiting.id, uuid4(), done.id]) == [waiting.id, done.id]
    assert await rows_of(db, done.id, waiting.id) == 0
    with pytest.raises(SequenceNotFoundError):
        await engine.get_sequence(done.id)
    assert await engine.delete_sequences([done.id]) == []


async def test_whoever_waits_for_the_result_is_told_that_it_is_gone(engine: Engine, types: Types) -> None:
    sequence = await engine.start_sequence(types.note, Number(n=1), delay=3600)
    waiting = asyncio.create_task(sequence.result(timeout=60))
    while not engine.waiters.awaits(str(sequence.id)):
        await asyncio.sleep(0)
    await engine.delete_sequences([sequence.id])
    with pytest.raises(SequenceNotFoundError, match="deleted"):
        await waiting


async def test_a_running_handler_is_aborted_as_deleted(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(lease=LONG) as worker:
        await runs.begun.wait()
        assert await engine.delete_sequences([sequence.id]) == [sequence.id]
        async with asyncio.timeout(30):
            await runs.ended.wait()
            await worker.drained()
    assert runs.reasons == ["deleted"]


async def test_a_phase_of_a_deleted_job_says_so(engine: Engine, db: Db, runs: Runs) -> None:
    await db.execute("create table effect (n int)")

    @engine.job_type
    async def stubborn(job: Job[Number]) -> Number:
        runs.begun.set()
        try:
            await runs.go_on.wait()
        except asyncio.CancelledError:
            runs.reasons.append(job.abort_reason)
        try:
            async with job.finalize() as tx:
                await tx.execute("insert into effect values (1)")
        except JobDeletedError as error:
            runs.errors.append(error)
            raise
        return job.input

    sequence = await engine.start_sequence(stubborn, Number(n=1))
    async with engine.worker(lease=LONG) as worker:
        await runs.begun.wait()
        await engine.delete_sequences([sequence.id])
        async with asyncio.timeout(30):
            await worker.drained()
    assert runs.reasons == ["deleted"]
    assert "no longer this attempt's: deleted" in str(runs.errors[0])
    assert await (await db.execute("select count(*) from effect")).fetchone() == (0,)


async def test_what_an_unfinished_sequence_needs_is_not_deleted_and_the_error_lists_who(engine: Engine, types: Types, db: Db) -> None:
    blocker = await engine.start_sequence(types.note, Number(n=1))
    other = await engine.start_sequence(types.note, Number(n=2))
    first, second = [await engine.start_sequence(types.wait, Needs(number=blocker)) for _ in range(2)]
    with pytest.raises(SequenceHasDependentsError, match="nothing was changed") as refused:
        await engine.delete_sequences([other.id, blocker.id, first.id])
    assert refused.value.dependents == {blocker.id: [second.id]}
    assert await rows_of(db, other.id, blocker.id, first.id) == 4
    assert await engine.delete_sequences([blocker.id, first.id, second.id]) == [blocker.id, first.id, second.id]


async def test_a_completed_blocker_is_needed_until_its_dependent_has_ended(engine: Engine, types: Types) -> None:
    blocker = await engine.start_sequence(types.note, Number(n=1))
    async with engine.worker():
        await blocker.result(timeout=10)
    dependent = await engine.start_sequence(types.wait, Needs(number=blocker), delay=3600)
    with pytest.raises(SequenceHasDependentsError):
        await engine.delete_sequences([blocker.id])
    await engine.trigger([dependent.id])
    async with engine.worker():
        await dependent.result(timeout=10)
    assert await engine.delete_sequences([blocker.id]) == [blocker.id]
    assert (await engine.get_sequence(dependent.id)).status == "completed"


async def test_cascade_takes_the_blockers_of_every_step_but_none_that_others_need(engine: Engine, types: Types) -> None:
    deep = await engine.start_sequence(types.note, Number(n=1))
    middle = await engine.start_sequence(types.wait, Needs(number=deep))
    top = await engine.start_sequence(types.chain, Needs(number=middle))
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(top.id)).status == "scheduled", "its second step waits, only its first had blockers"
    shared = await engine.start_sequence(types.wait, Needs(number=deep), delay=3600)
    assert await engine.delete_sequences([top.id], cascade=True) == [top.id, middle.id]
    assert (await engine.get_sequence(deep.id)).status == "completed"
    assert await engine.delete_sequences([shared.id], cascade=True) == [shared.id, deep.id]


async def test_a_blocker_of_an_earlier_step_is_not_needed_any_more(engine: Engine, types: Types) -> None:
    blocker = await engine.start_sequence(types.note, Number(n=1))
    top = await engine.start_sequence(types.chain, Needs(number=blocker))
    with pytest.raises(SequenceHasDependentsError):
        await engine.delete_sequences([blocker.id])
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(top.id)).status == "scheduled"
    assert await engine.delete_sequences([blocker.id]) == [blocker.id]


async def test_cascade_takes_a_blocker_that_only_what_it_takes_needs(engine: Engine, types: Types) -> None:
    deep = await engine.start_sequence(types.note, Number(n=1), delay=3600)
    sides: list[JobSequence[Number]] = [await engine.start_sequence(types.wait, Needs(number=deep)) for _ in range(2)]

    class Both(BaseModel):
        sides: list[Blocker[Number]]

    @engine.job_type
    async def join(job: Job[Both]) -> Number:
        return Number(n=sum(each.output.n for each in job.input.sides))

    top = await engine.start_sequence(join, Both(sides=list(sides)))
    assert set(await engine.delete_sequences([top.id], cascade=True)) == {top.id, deep.id, *(each.id for each in sides)}


async def test_an_edge_that_comes_while_a_deletion_holds_the_row_waits_and_then_finds_nothing(engine: Engine, types: Types, db: Db) -> None:
    blocker = await engine.start_sequence(types.note, Number(n=1), delay=3600)
    async with db.transaction():
        await engine.delete_sequences([blocker.id], tx=db)
        starting = asyncio.create_task(engine.start_sequence(types.wait, Needs(number=blocker)))
        await asyncio.wait([starting], timeout=0.2)
        assert not starting.done(), "nobody knows yet whether the blocker is gone"
    with pytest.raises(SequenceNotFoundError):
        await starting


async def test_a_deletion_that_comes_while_an_edge_is_added_waits_and_then_refuses(engine: Engine, types: Types, db: Db) -> None:
    blocker = await engine.start_sequence(types.note, Number(n=1), delay=3600)
    async with db.transaction():
        dependent = await engine.start_sequence(types.wait, Needs(number=blocker), tx=db)
        deleting = asyncio.create_task(engine.delete_sequences([blocker.id]))
        await until_blocked(engine)
    with pytest.raises(SequenceHasDependentsError) as refused:
        await deleting
    assert refused.value.dependents == {blocker.id: [dependent.id]}


async def test_a_deletion_that_is_rolled_back_has_not_been(engine: Engine, types: Types, db: Db) -> None:
    sequence = await engine.start_sequence(types.note, Number(n=1))
    async with db.transaction(force_rollback=True):
        assert await engine.delete_sequences([sequence.id], tx=db) == [sequence.id]
    assert (await engine.get_sequence(sequence.id)).status == "pending"


async def test_wrong_ids_are_named(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"sequence\.id"):
        await engine.delete_sequences([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
