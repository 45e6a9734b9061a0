"""Control: cancel, delete, reschedule, complete from outside, retry with new inputs, answers to failure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, assert_type
from uuid import UUID

from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, InternalJobType, Job, JobSequence, JobType, continue_with
from queuert_py.control import DeadLetter, Declined, Failure, OpenJob
from queuert_py.errors import SequenceEndedError, SequenceHasDependentsError, SequenceRunningError
from queuert_py.job import Connection


class Order(BaseModel):
    amount: int


class Parcel(BaseModel):
    weight: int


class Approved(BaseModel):
    by: str


class Shipped(BaseModel):
    number: str


engine = Engine("postgresql://")
approval = JobType[Order, Approved | Shipped]("approval")
ship = InternalJobType[Parcel, Shipped]("ship")
pack = InternalJobType[Order, Parcel]("pack")
note = JobType[Order, None]("note")
letters = JobType[DeadLetter, None]("letters")


# --- by ids


async def by_ids(
    sequence: JobSequence[Approved], blocker: Blocker[Shipped], ids: Sequence[UUID], when: datetime, tx: Connection, other: object
) -> None:
    assert_type(
        await engine.cancel_sequences([sequence.id], cascade=True),
        dict[UUID, Literal["cancelled", "completed", "failed", "expired", "not_found", "busy"]],
    )
    await engine.cancel_sequences(ids, tx=tx)
    assert_type(await engine.delete_sequences([sequence, sequence.id, blocker]), list[UUID])
    await engine.cancel_sequences([sequence])
    await engine.trigger((sequence,))
    await engine.reschedule([sequence], delay=1)
    await engine.retry_sequences([sequence])
    await engine.cancel_sequences(sequence)  # E
    await engine.cancel_sequences([str(sequence.id)])  # E
    await engine.cancel_sequences(sequence.id)  # E
    await engine.cancel_sequences(ids, True)  # E
    await engine.cancel_sequences(ids, tx=other)  # E
    assert_type(await engine.delete_sequences(ids, cascade=True), list[UUID])
    await engine.delete_sequences(["x"])  # E
    await engine.delete_sequences(ids, force=True)  # E
    assert_type(await engine.trigger(ids), None)
    await engine.trigger(ids, delay=1)  # E
    await engine.reschedule(ids, delay=timedelta(minutes=5))
    await engine.reschedule(ids, delay=1.5, tx=tx)
    await engine.reschedule(ids, at=when)
    await engine.reschedule(ids, at="noon")  # E
    await engine.reschedule(ids, when)  # E


# --- completing from outside


async def decide(job: OpenJob[Order]) -> Approved | Continuation[Shipped] | Declined:
    assert_type(job.input, Order)
    assert_type(job.input.amount, int)
    assert_type(job.running, bool)
    if job.input.amount > 100:
        return job.decline()
    return continue_with(ship, Parcel(weight=job.input.amount)) if job.input.amount else Approved(by="me")


def decide_now(job: OpenJob[Order], tx: Connection) -> Approved:
    return Approved(by=str(job.input.weight))  # E


async def decide_on_another(job: OpenJob[Order]) -> Parcel | Declined:
    return Parcel(weight=job.input.amount)


async def decide_on_parcels(job: OpenJob[Parcel]) -> Shipped:
    return Shipped(number=str(job.input.weight))


async def decide_wrongly(job: OpenJob[Order]) -> str:
    return "yes"


async def by_hand(sequence: JobSequence[Approved | Shipped], tx: Connection) -> None:
    assert_type(await engine.complete_sequence(sequence.id, Approved(by="me")), bool)
    assert_type(await engine.complete_sequence(sequence.id, continue_with(ship, Parcel(weight=1)), position=0), bool)
    assert_type(await engine.complete_sequence(sequence.id, None, tx=tx), bool)
    assert_type(await engine.complete_sequence(sequence.id, decide, job_type=approval), bool)
    await engine.complete_sequence(sequence.id, decide_now, job_type=approval)
    await engine.complete_sequence(sequence.id, decide)
    await engine.complete_sequence(sequence.id, lambda job: job.decline(), job_type=approval)
    await engine.complete_sequence(sequence.id, lambda job: Approved(by=str(job.input.amount)), job_type=approval)
    await engine.complete_sequence(sequence.id, Approved(by="me"), job_type=approval)
    await engine.complete_sequence(sequence.id, continue_with(ship, Parcel(weight=1)), job_type=approval, position=1)
    await engine.complete_sequence(sequence.id, None, job_type=note)
    await engine.complete_sequence(sequence.id, Parcel(weight=1), job_type=approval)  # E
    await engine.complete_sequence(sequence.id, None, job_type=approval)  # E
    await engine.complete_sequence(sequence.id, continue_with(pack, Order(amount=1)), job_type=approval)  # E
    await engine.complete_sequence(sequence.id, lambda job: Parcel(weight=1), job_type=approval)  # E
    await engine.complete_sequence(sequence.id, decide_on_another, job_type=approval)  # E
    await engine.complete_sequence(sequence.id, decide_on_parcels, job_type=approval)  # E
    await engine.complete_sequence(sequence.id, decide_wrongly, job_type=approval)  # E
    await engine.complete_sequence(sequence.id, "yes")  # E
    assert_type(await engine.complete_sequence(sequence, Approved(by="me")), bool)
    assert_type(await engine.complete_sequence(sequence, decide, job_type=approval), bool)
    await engine.complete_sequence(str(sequence.id), Approved(by="me"))  # E
    await engine.complete_sequence(sequence.id)  # E
    await engine.complete_sequence(sequence.id, Approved(by="me"), position="0")  # E


# --- the failed ones


def repair(failure: Failure) -> Order:
    assert_type(failure.input, Any)
    assert_type(failure.sequence_id, UUID)
    return Order(amount=failure.input["amount"])


def repair_parcel(failure: Failure) -> Parcel:
    return Parcel(weight=failure.weight)  # E


async def dead_letters(ids: Sequence[UUID], when: datetime) -> None:
    assert_type(await engine.retry_sequences(ids), dict[UUID, Literal["retried", "key_taken", "blocker_cycle", "blocker_gone", "not_failed", "not_found"]])
    await engine.retry_sequences(ids, new_input=Order(amount=1), reset_attempts=False)
    await engine.retry_sequences(ids, new_input={"amount": 1})
    await engine.retry_sequences(ids, new_input=repair)
    await engine.retry_sequences(job_type=approval, new_input=repair, oldest=10, after=when)
    await engine.retry_sequences(job_type=approval, new_input=Order(amount=1))
    await engine.retry_sequences(job_type="approval", new_input=repair_parcel, reason="timeout")
    await engine.retry_sequences(type="approval", before=when)
    await engine.retry_sequences(job_type=approval, new_input=repair_parcel)  # E
    await engine.retry_sequences(job_type=approval, new_input=Parcel(weight=1))  # E
    await engine.retry_sequences(ids, new_input=3)  # E
    await engine.retry_sequences(ids, type="approval")  # E
    await engine.retry_sequences(reason="bad luck")  # E
    await engine.retry_sequences(oldest="10")  # E
    assert_type(await engine.clear_failed(type="approval", oldest=10), dict[UUID, Literal["deleted", "has_dependents"]])
    await engine.clear_failed(ids)  # E
    assert_type(await engine.count_failed(job_type=approval, reason="poison"), int)
    await engine.count_failed(status="failed")  # E


def caught(ended: SequenceEndedError, running: SequenceRunningError, needed: SequenceHasDependentsError) -> None:
    assert_type(ended.status, str)
    assert_type(running.ids, Sequence[UUID])
    for blocker, dependents in needed.dependents.items():
        assert_type(blocker, UUID)
        assert_type(dependents, Sequence[UUID])


# --- answers to failure


async def undo(failure: Failure) -> Continuation[Shipped] | None:
    return continue_with(ship, Parcel(weight=failure.attempt))


def undo_now(failure: Failure) -> Continuation[Shipped]:
    return continue_with(ship, Parcel(weight=failure.attempt))


async def undo_nothing(job: Job[Order]) -> None: ...


async def undo_oddly(failure: Failure) -> str:
    return failure.reason


@engine.job_type("one", on_failed=undo, dead_letter=letters)
async def one(job: Job[Order]) -> Approved | Continuation[Shipped]:
    return Approved(by="one")


@engine.job_type("two", on_failed=undo_now)
async def two(job: Job[Order]) -> Approved:
    return Approved(by="two")


JobType[Order, Approved]("three", on_failed=undo_nothing)  # E
JobType[Order, Approved]("four", on_failed=undo_oddly)  # E
JobType[Order, Approved]("five", dead_letter=approval)  # E
JobType[Order, Approved]("six", dead_letter="letters")  # E
assert_type(one, JobType[Order, Approved | Shipped])
assert_type(two, JobType[Order, Approved])


@engine.job_type
async def bury(job: Job[DeadLetter]) -> None:
    assert_type(job.input.sequence_id, UUID)
    job.input.inputs  # E


async def with_a_wait(connection: AsyncConnection[Any]) -> None:
    await engine.start_sequence(two, Order(amount=1), backoff=5)
    await engine.start_sequence(two, Order(amount=1), backoff=lambda attempt: attempt)  # E
