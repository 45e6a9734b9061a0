"""Looking, waiting for several, and being told: records and pages, why, events in this process and across processes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from pydantic import BaseModel
from typing_extensions import assert_type

from queuert_py import Engine, JobSequence, JobType
from queuert_py.errors import QueuertError
from queuert_py.events import (
    Event,
    JobCancelled,
    JobCompleted,
    JobEnded,
    JobExpired,
    JobFailed,
    JobProgress,
    JobRetrying,
    JobSnoozed,
)
from queuert_py.looking import Page
from queuert_py.runtime.watching import Watch
from queuert_py.values import AttemptRecord, JobRecord, LinkRecord, SequenceRecord
from queuert_py.why import Why


class Photo(BaseModel):
    file: str


class Thumbnail(BaseModel):
    width: int


class Caption(BaseModel):
    text: str


engine = Engine("postgresql://")
shrink = JobType[Photo, Thumbnail]("shrink")
describe = JobType[Photo, Caption]("describe")
photo = Photo(file="a.jpg")
id = uuid4()


async def lists() -> None:
    found = await engine.list_sequences(status="failed", type="shrink", tag="a", created_after=datetime.now(UTC), limit=10)
    assert_type(found, Page[SequenceRecord])
    assert_type(found.next, str | None)
    assert_type(found[0], SequenceRecord)
    assert_type(await engine.list_sequences(after=found.next, root_id=id), Page[SequenceRecord])
    assert_type(await engine.list_jobs(id), list[JobRecord])
    handle = engine.sequence(shrink, id)
    assert_type(await engine.list_jobs(handle), list[JobRecord])
    assert_type(await engine.get_sequence(handle), SequenceRecord)
    assert_type(engine.sequence(shrink, handle), JobSequence[Thumbnail])
    assert_type(await engine.list_sequences(root_id=handle), Page[SequenceRecord])
    await engine.get_job(handle)  # E
    await engine.list_attempts(handle.type)  # E
    assert_type(await engine.list_jobs(status="running", worker="w"), Page[JobRecord])
    assert_type(await engine.get_sequence(id), SequenceRecord)
    assert_type(await engine.get_job(id, attempts=True), JobRecord)
    assert_type(await engine.list_attempts(id), list[AttemptRecord])
    assert_type(await engine.list_blockers(id), Page[LinkRecord])
    assert_type(await engine.list_dependents(id, limit=5), Page[LinkRecord])
    why = await engine.why(id)
    assert_type(why, Why)
    assert_type(why.sentence, str)

    await engine.list_sequences(status="done")  # E
    await engine.list_sequences(colour="red")  # E
    await engine.list_sequences(created_after="yesterday")  # E
    await engine.list_jobs(id, status="running")  # E
    await engine.list_jobs(key="k")  # E
    await engine.get_sequence("x")  # E
    await engine.why("x")  # E
    await engine.list_blockers()  # E
    await engine.list_dependents(id, after=3)  # E
    await engine.get_job(id, True)  # E


async def several(flag: bool) -> None:
    one = await engine.start_sequence(shrink, photo)
    two = await engine.start_sequence(describe, photo)
    assert_type(await engine.wait_all((one, two)), tuple[Thumbnail, Caption])
    assert_type(await engine.wait_all((one, two, one), timeout=timedelta(seconds=3)), tuple[Thumbnail, Caption, Thumbnail])
    assert_type(await engine.wait_all([one, one]), list[Thumbnail])
    assert_type(await engine.wait_all([one], return_exceptions=True), list[Thumbnail | QueuertError])
    assert_type(await engine.wait_all((one, one), return_exceptions=True), list[Thumbnail | QueuertError])
    assert_type(await engine.wait_all([one], return_exceptions=flag), Sequence[Thumbnail | QueuertError])
    assert_type(await engine.wait_all((one, two), return_exceptions=False), tuple[Thumbnail, Caption])
    assert_type(await engine.wait_all(tuple([one, one])), tuple[Thumbnail, ...])
    assert_type(await engine.wait_all((one, one, one, one, one, one)), tuple[Thumbnail, ...])
    (await engine.wait_all(tuple([one, one]))).append(3)  # E
    mixed: list[JobSequence[Thumbnail | Caption]] = [one, two]
    assert_type(await engine.wait_all(mixed), list[Thumbnail | Caption])
    async for sequence in engine.as_completed([one, one], timeout=3):
        assert_type(sequence, JobSequence[Thumbnail])
        assert_type(await sequence.result(), Thumbnail)

    await engine.wait_all(one)  # E
    await engine.wait_all([id])  # E
    await engine.wait_all([one], 3)  # E
    async for _ in engine.as_completed([photo]):  # E
        pass


async def callbacks() -> None:
    one = await engine.start_sequence(shrink, photo)

    async def note(sequence: JobSequence[Thumbnail]) -> None:
        assert_type(await sequence.result(), Thumbnail)

    def other(sequence: JobSequence[Caption]) -> None: ...

    take_back = one.add_done_callback(note)
    assert_type(take_back(), None)

    one.add_done_callback(other)  # E
    one.add_done_callback(3)  # E


@engine.on(JobFailed)
def failed(event: JobFailed) -> None:
    assert_type(event.reason, str)
    assert_type(event.sequence_id, UUID)


@engine.on(JobEnded)
async def ended(event: Event) -> None: ...


@engine.on(JobCompleted, JobFailed)
async def either(event: JobCompleted | JobFailed) -> None: ...


@engine.on(JobCompleted, JobFailed, JobCancelled, JobExpired)
def one_of_four(event: JobCompleted | JobFailed | JobCancelled | JobExpired) -> None: ...


@engine.on(JobCompleted, JobFailed, JobCancelled, JobExpired, JobRetrying, JobSnoozed)
def any_kind(event: Event) -> None: ...


@engine.on(JobCompleted, JobFailed)  # E
def too_narrow(event: JobFailed) -> None: ...


@engine.on()  # E
def of_nothing(event: Event) -> None: ...


@engine.on(JobFailed)  # E
def wrong(event: JobCompleted) -> None: ...


engine.on(int)  # E


async def watching() -> None:
    async for event in engine.watch():
        assert_type(event, Event)
    async for failure in engine.watch(JobFailed, type="shrink", tag="a", id=id):
        assert_type(failure, JobFailed)
        assert_type(failure.reason, str)
    async with engine.watch(JobProgress, since=datetime.now(UTC)) as watch:
        assert_type(watch, Watch[JobProgress])
        assert_type(watch.cursor, datetime | None)
        assert_type((await anext(watch)).percent, float | None)
    wider: Watch[Event] = engine.watch(JobFailed)
    print(wider)

    engine.watch(3)  # E
    engine.watch(JobFailed, since="yesterday")  # E
    engine.watch(JobFailed, colour="red")  # E
