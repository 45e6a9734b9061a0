"""complete_sequence: from outside, exactly once, whatever the job is doing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import AsyncConnection, OperationalError
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Job, JobType, continue_with
from queuert_py.control import Declined, OpenJob
from queuert_py.engine import controls
from queuert_py.errors import (
    SequenceBusyError,
    SequenceEndedError,
    SequenceMovedError,
    SequenceNotFoundError,
    UnknownJobTypeError,
    UsageError,
)
from tests.engine.kit import LONG, Number, Runs, until_blocked

Db = AsyncConnection[tuple[Any, ...]]


class Order(BaseModel):
    amount: int


class Approved(BaseModel):
    by: str


class Rejected(BaseModel):
    why: str


class Shipped(BaseModel):
    amount: int


class Types:
    """An approval that nobody here decides, and what may follow it."""

    def __init__(self, engine: Engine) -> None:
        @engine.job_type(internal=True)
        async def ship(job: Job[Order]) -> Shipped:
            return Shipped(amount=job.input.amount)

        self.ship = ship
        self.approval = JobType[Order, Approved | Rejected | Shipped]("approval")
        engine.add(self.approval)


@pytest.fixture
def types(engine: Engine) -> Types:
    return Types(engine)


async def test_an_output_completes_it_and_its_waiter_has_the_model(engine: Engine, types: Types) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=5))
    waiting = asyncio.create_task(sequence.result(timeout=60))
    while not engine.waiters.awaits(str(sequence.id)):
        await asyncio.sleep(0)
    assert await engine.complete_sequence(sequence.id, Rejected(why="too much"))
    assert await waiting == Rejected(why="too much")


async def test_a_continuation_goes_on_with_its_job(engine: Engine, types: Types) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=5), delay=3600)
    async with engine.worker(poll_interval=60):
        await engine.complete_sequence(sequence.id, continue_with(types.ship, Order(amount=4)))
        assert await sequence.result(timeout=10) == Shipped(amount=4)
    assert [(job.type, job.status) for job in await engine.list_jobs(sequence.id)] == [("approval", "continued"), ("ship", "completed")]


async def test_a_function_decides_on_the_input_and_may_write_in_the_transaction(engine: Engine, types: Types, db: Db) -> None:
    await db.execute("create table approvals (amount int)")

    async def decide(job: OpenJob[Order], tx: AsyncConnection[Any]) -> Approved | Continuation[Shipped] | Declined:
        if job.input.amount > 100:
            return job.decline()
        await tx.execute("insert into approvals values (%s)", [job.input.amount])
        return Approved(by="me") if job.input.amount < 10 else continue_with(types.ship, job.input)

    small, middle, large = [await engine.start_sequence(types.approval, Order(amount=amount)) for amount in (1, 50, 500)]
    answers = [await engine.complete_sequence(each.id, decide, job_type=types.approval) for each in (small, middle, large)]
    assert answers == [True, True, False]
    assert await small.result(timeout=20) == Approved(by="me")
    assert [(await engine.get_sequence(each.id)).current_type for each in (middle, large)] == ["ship", "approval"]
    assert await (await db.execute("select amount from approvals order by 1")).fetchall() == [(1,), (50,)]


async def test_a_plain_def_may_decide_too(engine: Engine, types: Types) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    seen: list[OpenJob[Any]] = []

    def decide(job: OpenJob[Any]) -> Approved:
        seen.append(job)
        return Approved(by=f"{job.input.amount}")

    await engine.complete_sequence(sequence.id, decide)
    assert (seen[0].sequence_id, seen[0].type, seen[0].position, seen[0].running) == (sequence.id, "approval", 0, False)
    assert await sequence.result(timeout=20) == Approved(by="1")


async def test_what_the_function_raises_is_raised_and_nothing_is_written(engine: Engine, types: Types, db: Db) -> None:
    await db.execute("create table approvals (amount int)")
    sequence = await engine.start_sequence(types.approval, Order(amount=1))

    async def decide(job: OpenJob[Order], tx: AsyncConnection[Any]) -> Approved:
        await tx.execute("insert into approvals values (1)")
        raise LookupError("no such approver")

    with pytest.raises(LookupError, match="no such approver"):
        await engine.complete_sequence(sequence.id, decide, job_type=types.approval)
    assert (await engine.get_sequence(sequence.id)).status == "pending"
    assert await (await db.execute("select count(*) from approvals")).fetchone() == (0,)


async def test_a_running_handler_is_aborted_and_what_it_returns_does_not_count(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(lease=LONG) as worker:
        await runs.begun.wait()
        await engine.complete_sequence(sequence.id, Number(n=7))
        assert (await sequence.result(timeout=10)).n == 7
        async with asyncio.timeout(30):
            await worker.drained()
    assert runs.reasons == ["completed_elsewhere"]


async def test_declining_leaves_a_running_handler_alone(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker():
        await runs.begun.wait()
        assert not await engine.complete_sequence(sequence.id, lambda job: job.decline() if job.running else Number(n=0), job_type=hold)
        runs.go_on.set()
        assert (await sequence.result(timeout=10)).n == 1
    assert runs.reasons == []


async def test_a_handler_that_swallows_its_cancellation_cannot_complete_it_again(engine: Engine, db: Db, runs: Runs) -> None:
    await db.execute("create table effect (n int)")

    @engine.job_type
    async def stubborn(job: Job[Number]) -> Number:
        runs.begun.set()
        try:
            await runs.go_on.wait()
        except asyncio.CancelledError:
            runs.reasons.append(job.abort_reason)
        async with job.finalize() as tx:
            await tx.execute("insert into effect values (1)")
            return job.input

    sequence = await engine.start_sequence(stubborn, Number(n=1))
    async with engine.worker(lease=LONG) as worker:
        await runs.begun.wait()
        await engine.complete_sequence(sequence.id, Number(n=7))
        async with asyncio.timeout(30):
            await worker.drained()
    assert (runs.reasons, (await sequence.result(timeout=20)).n) == (["completed_elsewhere"], 7)
    assert await (await db.execute("select count(*) from effect")).fetchone() == (0,)


class Needs(BaseModel):
    number: Blocker[Number]


async def test_a_blocked_one_is_completed_and_its_own_dependents_go_on(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def wait(job: Job[Needs]) -> Number:
        return job.input.number.output

    blocker = await engine.start_sequence(note, Number(n=1), delay=3600)
    blocked = await engine.start_sequence(wait, Needs(number=blocker))
    last = await engine.start_sequence(wait, Needs(number=blocked))
    async with engine.worker(poll_interval=60):
        await engine.complete_sequence(blocked.id, Number(n=3))
        assert (await last.result(timeout=10)).n == 3


async def test_a_continuation_may_wait_for_blockers(engine: Engine, types: Types) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type(internal=True)
    async def follow(job: Job[Needs]) -> Shipped:
        return Shipped(amount=job.input.number.output.n)

    blocker = await engine.start_sequence(note, Number(n=1), delay=3600)
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    await engine.complete_sequence(sequence.id, continue_with(follow, Needs(number=blocker)))
    assert (await engine.get_sequence(sequence.id)).status == "blocked"
    async with engine.worker(poll_interval=60):
        await engine.trigger([blocker.id])
        await blocker.result(timeout=10)
        async with asyncio.timeout(10):
            while (await engine.get_sequence(sequence.id)).status != "completed":
                await asyncio.sleep(0)


async def test_what_has_ended_or_is_not_there_says_so(engine: Engine, types: Types) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    await engine.cancel_sequences([sequence.id])
    with pytest.raises(SequenceEndedError, match="it is cancelled") as ended:
        await engine.complete_sequence(sequence.id, Approved(by="me"))
    assert ended.value.status == "cancelled"
    with pytest.raises(SequenceNotFoundError):
        await engine.complete_sequence(uuid4(), Approved(by="me"))


async def test_a_second_click_finds_that_the_sequence_has_gone_on(engine: Engine, types: Types, dsn: str) -> None:
    """Also in a process that does not know the type to which it has."""
    sequence = await engine.start_sequence(types.approval, Order(amount=1))

    def decide(job: OpenJob[Order]) -> Continuation[Shipped]:
        return continue_with(types.ship, Order(amount=job.input.amount))

    assert await engine.complete_sequence(sequence.id, decide, job_type=types.approval)
    async with Engine(dsn) as web:
        web.add(types.approval)
        for each in (engine, web):
            with pytest.raises(SequenceMovedError, match="is a 'ship', not a 'approval'") as moved:
                await each.complete_sequence(sequence.id, decide, job_type=types.approval)
            assert moved.value.details["type"] == "ship"


async def test_a_wrong_output_type_or_position_is_refused_before_anything_is_written(engine: Engine, types: Types) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    outcomes: list[Any] = [Number(n=1), None, lambda _: None]  # pyright: ignore[reportUnknownLambdaType]
    for wrong in outcomes:
        with pytest.raises(UsageError, match=r"(Number|NoneType) given: an output of 'approval' \(.*Approved.*\), .* or job.decline\(\)"):
            await engine.complete_sequence(sequence.id, wrong)
    with pytest.raises(SequenceMovedError, match="'approval', not a 'ship'"):
        await engine.complete_sequence(sequence.id, Approved(by="me"), job_type=types.ship)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(SequenceMovedError, match="job 1 was meant"):
        await engine.complete_sequence(sequence.id, Approved(by="me"), position=1)
    assert (await engine.get_sequence(sequence.id)).status == "pending"


async def test_an_engine_without_the_type_says_so(engine: Engine, types: Types, dsn: str) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    async with Engine(dsn) as other:
        with pytest.raises(UnknownJobTypeError, match="approval"):
            await other.complete_sequence(sequence.id, Approved(by="me"))


async def test_a_chain_that_moves_on_meanwhile_is_not_completed_at_its_next_job(engine: Engine, runs: Runs) -> None:
    @engine.job_type("loop")
    async def loop(job: Job[Number]) -> Number | Continuation[Number]:
        if job.input.n:
            await asyncio.Event().wait()
        async with job.finalize():
            await runs.hold(job)
            return continue_with(engine.get("loop"), Number(n=1))

    sequence = await engine.start_sequence(loop, Number(n=0))
    async with engine.worker(shutdown_timeout=0):
        await runs.begun.wait()
        completing = asyncio.create_task(engine.complete_sequence(sequence.id, Number(n=9)))
        await until_blocked(engine)
        runs.go_on.set()
        with pytest.raises(SequenceMovedError, match="gone on to job 1"):
            await completing
    assert (await engine.get_sequence(sequence.id)).steps == 2


async def test_two_who_complete_it_at_once_are_told_apart(engine: Engine, types: Types) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    answers = await asyncio.gather(*(engine.complete_sequence(sequence.id, Approved(by=str(n))) for n in range(8)), return_exceptions=True)
    assert sum(answer is True for answer in answers) == 1
    assert sum(isinstance(answer, SequenceEndedError) for answer in answers) == 7


async def test_a_commit_whose_answer_is_lost_is_not_done_twice(engine: Engine, types: Types, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    asked: list[int] = []
    lost: list[bool] = []
    real = AsyncConnection.transaction

    def losing(self_: Any, *arguments: Any, **more: Any) -> Any:
        transaction = real(self_, *arguments, **more)

        class Losing:
            async def __aenter__(self) -> Any:
                return await transaction.__aenter__()

            async def __aexit__(self, *raised: Any) -> Any:
                answer = await transaction.__aexit__(*raised)
                if not lost:
                    lost.append(True)
                    await self_.close()
                    raise OperationalError("the connection is gone")
                return answer

        return Losing()

    def decide(job: OpenJob[Any]) -> Continuation[Shipped]:
        asked.append(job.position)
        return continue_with(types.ship, job.input)

    await engine.open()
    monkeypatch.setattr(AsyncConnection, "transaction", losing)
    assert await engine.complete_sequence(sequence.id, decide)
    assert asked == [0]
    assert (await engine.get_sequence(sequence.id)).steps == 2


async def test_in_the_callers_transaction(engine: Engine, types: Types, db: Db) -> None:
    sequence = await engine.start_sequence(types.approval, Order(amount=1))
    async with db.transaction(force_rollback=True):
        assert await engine.complete_sequence(sequence.id, Approved(by="me"), tx=db)
    assert (await engine.get_sequence(sequence.id)).status == "pending"
    async with db.transaction(), db.transaction():
        assert await engine.complete_sequence(sequence.id, Approved(by="me"), tx=db)
    assert await sequence.result(timeout=20) == Approved(by="me")


async def test_a_handlers_open_transaction_is_waited_for_but_not_for_ever(
    engine: Engine, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "WAIT", timedelta(milliseconds=50))

    @engine.job_type
    async def atomic(job: Job[Number]) -> Number:
        async with job.atomic():
            await runs.hold(job)
            return job.input

    sequence = await engine.start_sequence(atomic, Number(n=1))
    async with engine.worker():
        await runs.begun.wait()
        with pytest.raises(SequenceBusyError, match="open transaction"):
            await engine.complete_sequence(sequence.id, Number(n=2))
        runs.go_on.set()
        assert (await sequence.result(timeout=10)).n == 1
