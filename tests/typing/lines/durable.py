"""What outlasts an attempt: the types of steps, sleeps, events, waits, progress and callbacks."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import assert_type

from queuert_py import Blocker, Engine, Job, JobSequence, SyncJob


class Order(BaseModel):
    number: int


class Parcel(BaseModel):
    weight: float


class Receipt(BaseModel):
    total: float


class Refusal(BaseModel):
    why: str


engine = Engine("postgresql://")


@engine.job_type
async def pack(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@engine.job_type
async def bill(job: Job[Order]) -> Receipt | Refusal:
    return Refusal(why="closed")


async def fetch() -> Parcel:
    return Parcel(weight=2)


def weigh() -> float:
    return 2.0


def later() -> Awaitable[int]:
    raise NotImplementedError


def of(order: Order) -> Parcel:
    return Parcel(weight=order.number)


async def steps(job: Job[Order]) -> None:
    assert_type(await job.step("fetch", fetch), Parcel)
    assert_type(await job.step("weigh", weigh), float)
    assert_type(await job.step("later", later), int)
    assert_type(await job.step(fetch), Parcel)
    assert_type(await job.step(weigh), float)
    assert_type(await job.step("of", lambda: of(job.input)), Parcel)
    assert_type(await job.step("result", fetch, result=Parcel), Parcel)
    assert_type(await job.step("start", lambda: engine.start_sequence(pack, Order(number=1))), JobSequence[Parcel])
    assert_type(await job.step("start all", lambda: engine.start_sequences([pack(Order(number=1))])), list[JobSequence[Parcel]])
    await job.step("fetch", of)  # E
    await job.step(of)  # E
    await job.step(1, fetch)  # E
    await job.step("fetch")  # E
    await job.step("fetch", fetch())  # E
    await job.step("fetch", fetch, of)  # E
    await job.step("fetch", fetch, name="fetch")  # E
    weight: int = await job.step("weigh", weigh)  # E
    parcel: Receipt = await job.step("fetch", fetch)  # E
    _ = weight, parcel


async def sleeps(job: Job[Order]) -> None:
    await job.sleep(3)
    await job.sleep(timedelta(days=1), name="a day")
    await job.sleep(until=datetime.now(UTC))
    await job.sleep("3")  # E
    await job.sleep(datetime.now(UTC))  # E
    await job.sleep(until=3)  # E
    await job.sleep(3, "name")  # E


async def events(job: Job[Order]) -> None:
    assert_type(await job.wait_for_event("paid", type=Receipt), Receipt)
    assert_type(await job.wait_for_event("paid", type=int, timeout=3), int)
    assert_type(await job.wait_for_event("paid", type=list[Receipt]), list[Receipt])
    assert_type(await job.wait_for_event("paid"), Any)
    await job.wait_for_event("paid", timeout=timedelta(days=1))
    await job.wait_for_event()  # E
    await job.wait_for_event(Receipt)  # E
    await job.wait_for_event("paid", Receipt)  # E
    await job.wait_for_event("paid", timeout="3")  # E
    await job.wait_for_event("paid", type=Receipt(total=1))  # E
    wrong: Parcel = await job.wait_for_event("paid", type=Receipt)  # E
    _ = wrong


async def sending(sequence: JobSequence[Parcel], id: UUID) -> None:
    assert_type(await engine.send_event(sequence, "paid", Receipt(total=1)), bool)
    assert_type(await engine.send_event(id, "paid"), bool)
    await engine.send_event(id, "paid", {"total": 1})
    await engine.send_event("id", "paid")  # E
    await engine.send_event(id)  # E
    await engine.send_event(id, 3)  # E
    await engine.send_event(id, "paid", None, True)  # E
    await engine.send_event(id, "paid", tx="tx")  # E


async def waits(job: Job[Order], parcel: JobSequence[Parcel], receipt: JobSequence[Receipt | Refusal], cover: Blocker[Parcel]) -> None:
    assert_type(await job.wait_for([parcel]), list[Blocker[Parcel]])
    assert_type(await job.wait_for([receipt], name="bill"), list[Blocker[Receipt | Refusal]])
    assert_type(await job.wait_for([cover, cover]), list[Blocker[Parcel]])
    mixed: list[Blocker[Parcel | Receipt | Refusal]] = [parcel, receipt]
    assert_type(await job.wait_for(mixed), list[Blocker[Parcel | Receipt | Refusal]])
    (done,) = await job.wait_for([parcel])
    assert_type(done.output, Parcel)
    done.output.total  # E
    await job.wait_for(parcel)  # E
    await job.wait_for([parcel.id])  # E
    await job.wait_for([parcel], "name")  # E


async def telling(job: Job[Order]) -> None:
    await job.progress(50)
    await job.progress(99.9, "almost")
    await job.progress("50")  # E
    await job.progress()  # E
    await job.progress(50, 60)  # E
    job.on_commit(weigh)
    job.on_commit(fetch)
    job.on_commit(lambda: print("committed"))
    job.on_commit(of)  # E
    job.on_commit(fetch())  # E
    assert_type(job.state, dict[str, Any])
    job.state = {}  # E


def in_a_thread(job: SyncJob[Order], parcel: JobSequence[Parcel]) -> None:
    assert_type(job.step("weigh", weigh), float)
    assert_type(job.step(weigh), float)
    assert_type(job.wait_for_event("paid", type=Receipt), Receipt)
    assert_type(job.wait_for([parcel]), list[Blocker[Parcel]])
    job.sleep(3)
    job.progress(3, "x")
    job.step("of", of)  # E
    job.sleep("3")  # E
    job.wait_for(parcel)  # E
