"""Events sent to a sequence: `engine.send_event` and `job.wait_for_event`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import IsolationLevel
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, JobSequence, JobTypes, Retry, continue_with
from queuert_py.errors import (
    EventTimeoutError,
    InvalidInputError,
    PhaseError,
    SequenceFailedError,
    SequenceNotFoundError,
    UsageError,
)
from queuert_py.postgres.rows import suspend_row
from queuert_py.values import ContinueOptions, Suspend
from tests.store.samples import claim


class Number(BaseModel):
    n: int


class Approval(BaseModel):
    by: str


class Said(BaseModel):
    what: Any


def approvals(engine: Engine) -> Any:
    """A job type that waits for its approval, and returns who gave it."""

    @engine.job_type
    async def approve(job: Job[Number]) -> Approval:
        return await job.wait_for_event("approved", type=Approval)

    return approve


async def test_a_waiting_job_goes_on_with_the_payload_of_its_event(engine: Engine) -> None:
    approve = approvals(engine)
    sequence = await engine.start_sequence(approve, Number(n=1))
    async with engine.worker(drain=True):
        pass
    waiting = await engine.get_sequence(sequence.id)
    assert (waiting.status, waiting.attempt) == ("scheduled", 0)
    async with engine.worker(poll_interval=60):
        assert await engine.send_event(sequence, "approved", Approval(by="Ann")) is True
        assert await sequence.result(timeout=10) == Approval(by="Ann")
    assert await engine.list_attempts(sequence.id) == []


async def test_an_event_from_another_process_wakes_the_job_at_once(engine: Engine, dsn: str) -> None:
    approve = approvals(engine)
    async with engine.worker(poll_interval=60) as worker, Engine(dsn) as producer:
        sequence = await engine.start_sequence(approve, Number(n=1))
        await worker.drained()
        await producer.send_event(sequence.id, "approved", {"by": "Bob"})
        assert (await sequence.result(timeout=10)).by == "Bob"


async def test_an_event_may_come_first(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def count(job: Job[Number]) -> Said:
        runs.append(1)
        return Said(what=await job.wait_for_event("early"))

    sequence = await engine.start_sequence(count, Number(n=1))
    await engine.send_event(sequence, "early", [1, {"a": None}])
    async with engine.worker():
        assert (await sequence.result(timeout=10)).what == [1, {"a": None}]
    assert runs == [1]


async def test_an_event_that_comes_while_the_handler_runs_needs_no_second_run(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def count(job: Job[Number]) -> Said:
        runs.append(1)
        await engine.send_event(job.sequence_id, "own", None)
        return Said(what=await job.wait_for_event("own"))

    async with engine.worker():
        assert (await (await engine.start_sequence(count, Number(n=1))).result(timeout=10)).what is None
    assert runs == [1]


async def test_the_first_event_of_a_name_stays(engine: Engine) -> None:
    approve = approvals(engine)
    sequence = await engine.start_sequence(approve, Number(n=1))
    sent = [await engine.send_event(sequence, "approved", Approval(by=name)) for name in ("Ann", "Bob")]
    assert sent == [True, False]
    assert await engine.send_event(sequence, "another", None) is True
    async with engine.worker():
        assert (await sequence.result(timeout=10)).by == "Ann"


async def test_one_of_many_senders_at_once_is_told_that_its_event_was_taken(engine: Engine) -> None:
    approve = approvals(engine)
    sequence = await engine.start_sequence(approve, Number(n=1))
    sent = await asyncio.gather(*(engine.send_event(sequence, "approved", Approval(by=str(n))) for n in range(20)))
    assert sent.count(True) == 1
    async with engine.worker():
        assert (await sequence.result(timeout=10)).by == str(sent.index(True))


async def test_a_sequence_that_has_ended_takes_no_event_and_an_unknown_one_is_an_error(engine: Engine) -> None:
    @engine.job_type
    async def quick(job: Job[Number]) -> None: ...

    async with engine.worker():
        sequence = await engine.start_sequence(quick, Number(n=1))
        await sequence.result(timeout=10)
    assert await engine.send_event(sequence, "late", None) is False
    with pytest.raises(SequenceNotFoundError):
        await engine.send_event(uuid4(), "lost", None)


@pytest.mark.parametrize("how", [{}, {"delay": 0.01}], ids=["handed off", "claimed again"])
async def test_an_event_is_kept_for_the_next_jobs_of_its_sequence(engine: Engine, how: ContinueOptions) -> None:
    @engine.job_type
    async def last(job: Job[Number]) -> Said:
        return Said(what=[await job.wait_for_event("a"), await job.wait_for_event("b")])

    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[Said]:
        await job.step("kept", lambda: 1)
        assert await job.wait_for_event("a") == {"x": None}
        await engine.send_event(job.sequence_id, "b", "B")
        return continue_with(last, job.input, **how)

    sequence = await engine.start_sequence(first, Number(n=1))
    await engine.send_event(sequence, "a", {"x": None})
    async with engine.worker():
        assert (await sequence.result(timeout=10)).what == [{"x": None}, "B"]


@pytest.mark.parametrize("event_first", [True, False])
async def test_no_wake_up_is_lost_between_the_last_look_and_the_suspension(
    engine: Engine, db: psycopg.AsyncConnection[Any], event_first: bool
) -> None:
    """The statement that suspends finds the event that came before it, and the event finds the job that was suspended before."""
    approve = approvals(engine)
    async with engine:
        store = engine.database.store
        sequence = await engine.start_sequence(approve, Number(n=1))
        (row,) = await claim(store, ['{"lane":0,"queue":"default","priority":0,"since":"-infinity"}'], types=["approve"]).on(db)
        if event_first:
            await engine.send_event(sequence, "approved")
        await store.suspend_jobs([suspend_row(row, Suspend("approved", event=True))]).on(db)
        if not event_first:
            await engine.send_event(sequence, "approved")
    found = await (await db.execute("select run_at <= clock_timestamp(), attempt, leased_by from queuert.live_job")).fetchall()
    assert found == [(True, 0, None)]


async def test_events_that_race_with_their_waiting_are_all_received(engine: Engine) -> None:
    approve = approvals(engine)
    async with engine.worker(concurrency=20, poll_interval=60):
        sequences = await engine.start_sequences([approve(Number(n=n)) for n in range(200)])
        await asyncio.gather(*(engine.send_event(each, "approved", Approval(by=str(n))) for n, each in enumerate(sequences)))
        async with asyncio.timeout(30):
            assert [(await each.result()).by for each in sequences] == [str(n) for n in range(200)]


async def test_an_event_that_does_not_come_in_time(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def ask(job: Job[Number]) -> Said:
        try:
            return Said(what=await job.wait_for_event("answer", timeout=0.1))
        except EventTimeoutError:
            return Said(what=f"no answer, attempt {job.attempt}")

    async with engine.worker(poll_interval=60):
        assert (await (await engine.start_sequence(ask, Number(n=1))).result(timeout=10)).what == "no answer, attempt 1"


async def test_an_event_in_time_beats_its_timeout(engine: Engine) -> None:
    @engine.job_type
    async def ask(job: Job[Number]) -> Said:
        return Said(what=await job.wait_for_event("answer", timeout=timedelta(days=1)))

    async with engine.worker(poll_interval=60) as worker:
        sequence = await engine.start_sequence(ask, Number(n=1))
        await worker.drained()
        await engine.send_event(sequence, "answer", 42)
        assert (await sequence.result(timeout=10)).what == 42


async def test_a_wait_that_has_timed_out_stays_so_in_later_attempts(engine: Engine) -> None:
    """What the handler did because of it must not be contradicted by an event that comes late."""
    seen: list[str] = []

    @engine.job_type(backoff=0)
    async def ask(job: Job[Number]) -> None:
        try:
            await job.wait_for_event("answer", timeout=0.05)
            seen.append("answer")
        except EventTimeoutError:
            seen.append("timeout")
        if job.attempt == 1:
            await engine.send_event(job.sequence_id, "answer", 1)
            raise ValueError("again")

    async with engine.worker(poll_interval=60):
        await (await engine.start_sequence(ask, Number(n=1))).result(timeout=10)
    assert seen == ["timeout", "timeout"]


async def test_an_event_does_not_shorten_the_backoff_of_a_job_that_no_longer_waits_for_it(
    engine: Engine, db: psycopg.AsyncConnection[Any]
) -> None:
    @engine.job_type
    async def ask(job: Job[Number]) -> None:
        try:
            await job.wait_for_event("answer", timeout=0.05)
        except EventTimeoutError:
            raise Retry(after=timedelta(days=1)) from None

    async def waits() -> bool:
        row = await (await db.execute("select run_at > clock_timestamp() + interval '1 hour' from queuert.live_job")).fetchone()
        return row == (True,)

    sequence = await engine.start_sequence(ask, Number(n=1))
    async with engine.worker(poll_interval=60) as worker:
        async with asyncio.timeout(10):
            while not await waits():
                await worker.drained()
        assert await engine.send_event(sequence, "answer", 1)
        assert await waits()


async def test_a_timeout_that_nobody_catches_fails_the_job_and_its_retry_waits_again(engine: Engine) -> None:
    @engine.job_type
    async def ask(job: Job[Number]) -> Said:
        return Said(what=await job.wait_for_event("answer", timeout=0.05))

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(ask, Number(n=1))
        with pytest.raises(SequenceFailedError, match="'answer' has not come in time") as failed:
            await sequence.result(timeout=10)
        assert failed.value.reason == "timeout"
    await engine.retry_sequences([sequence.id])
    await engine.send_event(sequence, "answer", "after all")
    async with engine.worker():
        assert (await sequence.result(timeout=10)).what == "after all"


async def test_a_payload_of_another_kind_fails_the_job_at_once(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type(backoff=0)
    async def approve(job: Job[Number]) -> Approval:
        runs.append(job.attempt)
        return await job.wait_for_event("approved", type=Approval)

    async with engine.worker():
        sequence = await engine.start_sequence(approve, Number(n=1))
        await engine.send_event(sequence, "approved", {"bye": "Ann"})
        with pytest.raises(SequenceFailedError, match=r"payload\.by: Field required") as failed:
            await sequence.result(timeout=10)
    assert failed.value.reason == "validation"
    assert set(runs) == {1}


async def test_an_event_is_sent_if_and_only_if_the_callers_transaction_commits(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    approve = approvals(engine)
    async with engine.worker(poll_interval=60) as worker:
        sequence = await engine.start_sequence(approve, Number(n=1))
        await worker.drained()
        async with db.transaction(force_rollback=True):
            assert await engine.send_event(sequence, "approved", Approval(by="nobody"), tx=db) is True
        async with db.transaction():
            assert await engine.send_event(sequence, "approved", Approval(by="Ann"), tx=db) is True
            assert await engine.send_event(sequence, "approved", Approval(by="Bob"), tx=db) is False
        assert (await sequence.result(timeout=10)).by == "Ann"


async def test_an_event_in_a_repeatable_read_transaction(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    approve = approvals(engine)
    sequence = await engine.start_sequence(approve, Number(n=1))
    await db.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    async with db.transaction():
        await engine.send_event(sequence, "approved", Approval(by="Ann"), tx=db)
    async with engine.worker():
        assert (await sequence.result(timeout=10)).by == "Ann"


async def test_a_handler_sends_an_event_in_its_phase(engine: Engine) -> None:
    approve = approvals(engine)
    waiting: JobSequence[Approval] = await engine.start_sequence(approve, Number(n=1))

    @engine.job_type
    async def sign(job: Job[Number]) -> Number:
        async with job.finalize() as tx:
            with pytest.raises(UsageError, match="pass tx=tx"):
                await engine.send_event(waiting, "approved", Approval(by="me"))
            await engine.send_event(waiting, "approved", Approval(by="me"), tx=tx)
        return job.input

    async with engine.worker(poll_interval=60):
        await (await engine.start_sequence(sign, Number(n=1))).result(timeout=10)
        assert (await waiting.result(timeout=10)).by == "me"


async def test_what_cannot_be_an_event(engine: Engine) -> None:
    approve = approvals(engine)
    sequence = await engine.start_sequence(approve, Number(n=1))
    for payload in (float("nan"), "a\x00b", object(), {"deep": [float("inf")]}):
        with pytest.raises(InvalidInputError, match="the payload of event 'approved'"):
            await engine.send_event(sequence, "approved", payload)
    with pytest.raises(UsageError, match="non-empty"):
        await engine.send_event(sequence, "", None)
    with pytest.raises(UsageError, match=r"uuid\.UUID"):
        await engine.send_event(str(sequence.id), "approved", None)  # type: ignore[arg-type]


async def test_waiting_is_refused_in_a_phase(engine: Engine) -> None:
    @engine.job_type
    async def wrong(job: Job[Number]) -> Number:
        with pytest.raises(PhaseError, match=r"wait_for_event\(\) cannot be part of a phase"):
            async with job.prepare():
                await job.wait_for_event("x")
        with pytest.raises(UsageError, match="more than 0"):
            await job.wait_for_event("x", timeout=0)
        return job.input

    async with engine.worker():
        await (await engine.start_sequence(wrong, Number(n=1))).result(timeout=10)


async def test_the_same_event_may_be_asked_for_twice(engine: Engine) -> None:
    jobs = JobTypes()

    @jobs.job_type
    async def twice(job: Job[Number]) -> Said:
        return Said(what=[await job.wait_for_event("x"), await job.wait_for_event("x")])

    engine.mount(jobs)
    sequence = await engine.start_sequence(twice, Number(n=1))
    await engine.send_event(sequence, "x", 1)
    async with engine.worker():
        assert (await sequence.result(timeout=10)).what == [1, 1]
