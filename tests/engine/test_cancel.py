"""cancel_sequences: what waits ends at once, what runs is aborted at once, and what a handler has committed counts."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Job, JobSequence, SyncJob, continue_with
from queuert_py.engine import controls
from queuert_py.errors import SequenceCancelledError, SequenceFailedError, UsageError
from queuert_py.events import JobContinued, JobEnded, JobEvent, JobRevived
from tests.engine.kit import LONG, Number, Runs, until_blocked

Db = AsyncConnection[tuple[object, ...]]


async def test_what_waits_is_cancelled_now_and_each_id_has_its_answer(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type(max_attempts=1)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError

    done = await engine.start_sequence(note, Number(n=1))
    failed = await engine.start_sequence(fail, Number(n=1))
    async with engine.worker(drain=True):
        pass
    pending = await engine.start_sequence(note, Number(n=2))
    later = await engine.start_sequence(note, Number(n=3), delay=3600)
    missing = uuid4()
    answer = await engine.cancel_sequences([pending.id, done.id, missing, later.id, failed.id, pending.id])
    assert answer == {pending.id: "cancelled", done.id: "completed", missing: "not_found", later.id: "cancelled", failed.id: "failed"}
    assert await engine.cancel_sequences([pending.id]) == {pending.id: "cancelled"}, "a second time changes nothing"
    assert await engine.cancel_sequences([]) == {}
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(pending.id)).status == (await engine.get_sequence(later.id)).status == "cancelled"
    with pytest.raises(SequenceCancelledError):
        await pending.result(timeout=20)


async def test_whoever_waits_for_the_result_is_told_at_once(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    sequence = await engine.start_sequence(note, Number(n=1), delay=3600)
    waiting = asyncio.create_task(sequence.result(timeout=60))
    while not engine.waiters.awaits(str(sequence.id)):
        await asyncio.sleep(0)
    await engine.cancel_sequences([sequence.id])
    with pytest.raises(SequenceCancelledError, match="was cancelled"):
        await waiting


async def test_a_running_handler_is_aborted_with_the_reason_and_its_row_ends_at_once(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(lease=LONG) as worker:
        await runs.begun.wait()
        assert await engine.cancel_sequences([sequence.id]) == {sequence.id: "cancelled"}
        assert (await engine.get_sequence(sequence.id)).status == "cancelled"
        async with asyncio.timeout(30):  # long before the first renewal of the lease
            await runs.ended.wait()
            await worker.drained()
    assert runs.reasons == ["cancelled"]
    assert (await engine.list_jobs(sequence.id))[0].worker == worker.id
    assert await engine.list_attempts(sequence.id) == []


async def test_a_handler_of_another_engine_is_reached_by_a_hint(engine: Engine, dsn: str, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(lease=LONG), Engine(dsn) as other:
        await runs.begun.wait()
        assert await other.cancel_sequences([sequence.id]) == {sequence.id: "cancelled"}
        async with asyncio.timeout(30):
            await runs.ended.wait()
    assert runs.reasons == ["cancelled"]


async def test_without_any_hint_the_next_renewal_finds_it(engine: Engine, db: Db, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(lease=3.0) as worker:
        await runs.begun.wait()
        monkeypatch.setattr(worker.fates, "told", list)
        await engine.cancel_sequences([sequence.id])
        async with asyncio.timeout(10):
            await runs.ended.wait()
    assert runs.reasons == ["cancelled"]


async def test_a_handler_that_swallows_its_cancellation_is_detached_and_writes_nothing(engine: Engine, db: Db, runs: Runs) -> None:
    await db.execute("create table effect (n int)")
    late = asyncio.Event()

    @engine.job_type
    async def stubborn(job: Job[Number]) -> Number:
        runs.begun.set()
        while not late.is_set():
            try:
                await late.wait()
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
    async with engine.worker(grace=0.2) as worker:
        await runs.begun.wait()
        await engine.cancel_sequences([sequence.id])
        async with asyncio.timeout(10):
            await worker.drained()  # its slot is free although it goes on
        late.set()
        await runs.ended.wait()
    assert runs.reasons[0] == "cancelled"
    assert isinstance(runs.errors[0], Exception)
    assert await (await db.execute("select count(*) from effect")).fetchone() == (0,)
    assert (await engine.get_sequence(sequence.id)).status == "cancelled"


async def test_a_handler_that_is_just_completing_wins(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def finalize(job: Job[Number]) -> Number:
        async with job.finalize():
            await runs.hold(job)
            return job.input

    sequence = await engine.start_sequence(finalize, Number(n=1))
    async with engine.worker():
        await runs.begun.wait()
        cancelling = asyncio.create_task(engine.cancel_sequences([sequence.id]))
        await until_blocked(engine)
        runs.go_on.set()
        assert await cancelling == {sequence.id: "completed"}
    assert runs.reasons == []


async def test_what_an_open_transaction_holds_for_long_is_busy_and_the_others_are_cancelled(
    engine: Engine, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "WAIT", timedelta(milliseconds=50))

    @engine.job_type
    async def atomic(job: Job[Number]) -> Number:
        async with job.atomic():
            await runs.hold(job)
            return job.input

    held = await engine.start_sequence(atomic, Number(n=1))
    async with engine.worker(concurrency=1):
        await runs.begun.wait()
        free = await engine.start_sequence(atomic, Number(n=2))
        assert await engine.cancel_sequences([held.id, free.id]) == {held.id: "busy", free.id: "cancelled"}
        runs.go_on.set()
        assert (await held.result(timeout=10)).n == 1


class Needs(BaseModel):
    number: Blocker[Number]


async def test_a_cancelled_blocker_holds_or_fails_its_dependents_by_their_policy(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def patient(job: Job[Needs]) -> Number:
        return job.input.number.output

    @engine.job_type(on_blocker_failure="fail")
    async def strict(job: Job[Needs]) -> Number:
        return job.input.number.output

    @engine.job_type(on_blocker_failure="ignore")
    async def lenient(job: Job[Needs]) -> Number:
        return Number(n=-1 if job.input.number.outcome == "cancelled" else 0)

    blocker = await engine.start_sequence(note, Number(n=1), delay=3600)
    needs = Needs(number=blocker)
    waits, fails, runs_on = [await engine.start_sequence(each, needs) for each in (patient, strict, lenient)]
    await engine.cancel_sequences([blocker.id])
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(waits.id)).status == "blocked"
    assert (await engine.get_sequence(fails.id)).reason == "blocker_failed"
    assert (await runs_on.result(timeout=20)).n == -1


async def test_a_blocked_sequence_can_be_cancelled_with_and_without_its_blocker(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def wait(job: Job[Needs]) -> Number:
        return job.input.number.output

    blocker = await engine.start_sequence(note, Number(n=1))
    alone, together = [await engine.start_sequence(wait, Needs(number=blocker)) for _ in range(2)]
    assert await engine.cancel_sequences([alone.id]) == {alone.id: "cancelled"}
    assert await engine.cancel_sequences([together.id, blocker.id]) == {together.id: "cancelled", blocker.id: "cancelled"}


async def test_cascade_takes_what_it_started_through_finished_steps_and_children(engine: Engine) -> None:
    started: dict[str, JobSequence[Number]] = {}

    @engine.job_type("leaf")
    async def leaf(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type("second", internal=True)
    async def second(job: Job[Number]) -> Number:
        started["late"] = await engine.start_sequence(leaf, Number(n=2), delay=3600)
        return job.input

    @engine.job_type("child")
    async def child(job: Job[Number]) -> Continuation[Number]:
        started["early"] = await engine.start_sequence(leaf, Number(n=1), delay=3600)
        return continue_with(second, job.input)

    @engine.job_type("root")
    async def root(job: Job[Number]) -> Number:
        started["child"] = await engine.start_sequence(child, job.input)
        started["other"] = await engine.start_sequence(leaf, Number(n=9), delay=3600)
        return job.input

    unrelated = await engine.start_sequence(leaf, Number(n=3), delay=3600)
    top = await engine.start_sequence(root, Number(n=0))
    async with engine.worker(drain=True):
        pass
    ids = {name: sequence.id for name, sequence in started.items()}
    assert await engine.cancel_sequences([ids["child"]]) == {ids["child"]: "completed"}
    below = await engine.cancel_sequences([ids["child"]], cascade=True)
    assert below == {ids["child"]: "completed", ids["early"]: "cancelled", ids["late"]: "cancelled"}
    assert await engine.cancel_sequences([top.id], cascade=True) == {top.id: "completed", ids["other"]: "cancelled"}
    assert (await engine.get_sequence(unrelated.id)).status == "scheduled"


async def test_in_the_callers_transaction_it_is_cancelled_if_that_commits(engine: Engine, db: Db, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(lease=LONG):
        await runs.begun.wait()
        async with db.transaction(force_rollback=True):
            assert await engine.cancel_sequences([sequence.id], tx=db) == {sequence.id: "cancelled"}
        assert (await engine.get_sequence(sequence.id)).status == "running"
        async with db.transaction():
            await engine.cancel_sequences([sequence.id], tx=db)
        async with asyncio.timeout(30):
            await runs.ended.wait()
    assert runs.reasons == ["cancelled"]


async def test_a_snapshot_that_is_too_old_is_refused(engine: Engine, db: Db) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    sequence = await engine.start_sequence(note, Number(n=1))
    async with db.transaction():
        await db.execute("set transaction isolation level repeatable read")
        with pytest.raises(UsageError, match="READ COMMITTED"):
            await engine.cancel_sequences([sequence.id], tx=db)


async def test_a_handler_may_not_cancel_itself_in_its_own_transaction(engine: Engine) -> None:
    said: list[str] = []

    @engine.job_type
    async def suicidal(job: Job[Number]) -> Number:
        async with job.finalize() as tx:
            for given in (None, tx):
                try:
                    await engine.cancel_sequences([job.sequence_id], tx=given)
                except UsageError as error:
                    said.append(str(error))
            return job.input

    sequence = await engine.start_sequence(suicidal, Number(n=1))
    async with engine.worker():
        assert (await sequence.result(timeout=10)).n == 1
    assert "tx=tx" in said[0]
    assert "its own sequence" in said[1]


class Upstream(BaseModel):
    on: Blocker[Number]


@pytest.mark.parametrize("verb", ["cancel", "delete"])
async def test_nor_a_tree_that_it_is_part_of(engine: Engine, verb: str) -> None:
    """By way of what it was started by, or of what waits for it."""
    said: list[str] = []

    @engine.job_type
    async def child(job: Job[Number]) -> Number:
        async with job.finalize() as tx:
            try:
                if verb == "cancel":
                    await engine.cancel_sequences([job.root_id], cascade=True, tx=tx)
                else:
                    await engine.delete_sequences([waiter.id], cascade=True, tx=tx)
            except UsageError as error:
                said.append(str(error))
            return job.input

    @engine.job_type
    async def parent(job: Job[Number]) -> Number:
        started = await job.step("start", lambda: engine.start_sequence(child, Number(n=2)))
        return (await job.wait_for([started]))[0].output

    @engine.job_type
    async def wait(job: Job[Upstream]) -> Number:
        return job.input.on.output

    if verb == "cancel":
        waiter: JobSequence[Number] = await engine.start_sequence(parent, Number(n=1))
    else:
        waiter = await engine.start_sequence(wait, Upstream(on=await engine.start_sequence(child, Number(n=2))))
    async with engine.worker():
        assert (await waiter.result(timeout=10)).n == 2
    assert len(said) == 1
    assert "its own sequence" in said[0]


@pytest.mark.usefixtures("claims_ahead")
async def test_one_that_a_worker_has_only_prefetched_never_runs(engine: Engine, runs: Runs) -> None:
    ran: list[int] = []

    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        ran.append(job.input.n)
        await runs.go_on.wait()
        return job.input

    sequences = await engine.start_sequences([hold(Number(n=n)) for n in range(3)])
    async with engine.worker(concurrency=2) as worker:
        while not worker.waiting or len(ran) < 2:
            await asyncio.sleep(0)
        (prefetched,) = [each for each in sequences if each.id not in {sequences[n].id for n in ran}]
        assert await engine.cancel_sequences([prefetched.id]) == {prefetched.id: "cancelled"}
        while worker.waiting:
            await asyncio.sleep(0)
        runs.go_on.set()
        for each in sequences:
            if each is not prefetched:
                await each.result(timeout=10)
    assert sorted(ran) == sorted(n for n in range(3) if sequences[n] is not prefetched)


async def test_a_thread_handler_learns_of_it_by_its_flag(engine: Engine) -> None:
    begun, told = threading.Event(), threading.Event()
    reasons: list[object] = []

    @engine.job_type
    def look(job: SyncJob[Number]) -> Number:
        begun.set()
        while not job.aborted:
            told.wait(0.005)
        reasons.append(job.abort_reason)
        told.set()
        return job.input

    sequence = await engine.start_sequence(look, Number(n=1))
    async with engine.worker(lease=LONG) as worker:
        assert await asyncio.to_thread(begun.wait, 30)
        await engine.cancel_sequences([sequence.id])
        assert await asyncio.to_thread(told.wait, 30)
        async with asyncio.timeout(10):
            await worker.drained()
    assert (reasons, (await engine.get_sequence(sequence.id)).status) == (["cancelled"], "cancelled")


async def test_what_is_done_from_outside_is_an_event(engine: Engine) -> None:
    seen: list[tuple[str, int]] = []

    @engine.on(JobEnded, JobContinued, JobRevived)
    def note_it(event: JobEvent) -> None:
        seen.append((type(event).__name__, event.position))

    @engine.job_type(max_attempts=1)
    async def fail(job: Job[Number]) -> Number | Continuation[Number]:
        raise ValueError

    cancelled, completed, failed = await engine.start_sequences([fail(Number(n=n), delay=3600) for n in range(3)])
    await engine.cancel_sequences([cancelled.id])
    await engine.complete_sequence(completed.id, continue_with(fail, Number(n=3), delay=3600))
    await engine.complete_sequence(completed.id, Number(n=1))
    async with engine.worker():
        await engine.trigger([failed.id])
        with pytest.raises(SequenceFailedError):
            await failed.result(timeout=10)
    await engine.retry_sequences([failed.id])
    assert seen == [("JobCancelled", 0), ("JobContinued", 0), ("JobCompleted", 1), ("JobFailed", 0), ("JobRevived", 0)]


async def test_wrong_ids_are_named(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"sequence\.id"):
        await engine.cancel_sequences(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
