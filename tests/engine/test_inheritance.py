"""What is handed on: from a job to the next one of its sequence, and to the sequences that its handler starts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from queuert_py import Continuation, Engine, InternalJobType, Job, JobType, JobTypes, continue_with
from queuert_py.errors import InvalidContinuationError, InvalidInputError, SequenceFailedError
from queuert_py.postgres.starts import COPY_FROM
from tests.engine.kit import Number

TIMEOUT = 20
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def note(engine: Engine) -> JobType[Number, Number]:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    return note


# --- to the next job


async def test_a_continuation_keeps_priority_queue_tags_and_correlation(engine: Engine, note: JobType[Number, Number]) -> None:
    @engine.job_type(priority=1)
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(note, job.input)

    how: Any = {"priority": 3, "queue": "express", "tags": ["spring"], "correlation_id": "request 7"}
    async with engine.worker(queues=["express"]):
        sequence = await engine.start_sequence(first, Number(n=1), **how)
        await sequence.result(timeout=TIMEOUT)
    one, two = await engine.list_jobs(sequence.id)
    for each in (one, two):
        assert (each.priority, each.queue, list(each.tags), each.correlation_id) == (3, "express", ["spring"], "request 7")
        assert each.root_id == sequence.id
    assert two.origin_id == one.job_id


async def test_what_the_continuation_says_and_the_queue_of_its_type_come_first(engine: Engine) -> None:
    @engine.job_type(queue="own", priority=7)
    async def last(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(last, job.input) if job.input.n else continue_with(last, job.input, priority=9, at=PAST)

    async with engine.worker(queues=["default", "own"]):
        plain = await engine.start_sequence(first, Number(n=1), priority=3)
        said = await engine.start_sequence(first, Number(n=0), priority=3)
        await engine.wait_all([plain, said], timeout=TIMEOUT)
    found = (await engine.list_jobs(plain.id))[1]
    assert (found.queue, found.priority) == ("own", 3), "the priority of a type is for its starts"
    found = (await engine.list_jobs(said.id))[1]
    assert (found.queue, found.priority) == ("own", 9)


async def test_another_engines_worker_takes_what_this_one_has_no_handler_for(engine: Engine, dsn: str) -> None:
    after = InternalJobType[Number, Number]("after")
    engine.add(after)
    elsewhere = JobTypes()

    @elsewhere.handler(InternalJobType[Number, Number]("after"))
    async def take(job: Job[Number]) -> Number:
        return Number(n=job.input.n * 2)

    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[Number]:
        return continue_with(after, Number(n=job.input.n + 1))

    async with engine.worker() as here, Engine(dsn, elsewhere) as other, other.worker() as there:
        sequence = await engine.start_sequence(first, Number(n=20), priority=4, tags=["q"])
        assert await sequence.result(timeout=TIMEOUT) == Number(n=42)
        one, two = await engine.list_jobs(sequence.id)
    assert (one.worker, two.worker) == (here.id, there.id)
    assert (two.input, two.priority, list(two.tags)) == ({"n": 21}, 4, ["q"])


async def test_a_continuation_whose_input_is_refused_fails_the_job(engine: Engine, note: JobType[Number, Number]) -> None:
    runs: list[int] = []

    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[Number]:
        runs.append(job.attempt)
        return continue_with(note, Number.model_construct(n="many"))

    sequence = await engine.start_sequence(first, Number(n=1))
    async with engine.worker():
        with pytest.raises(SequenceFailedError, match=r"'note' refuses its input: input\.n") as failed:
            await sequence.result(timeout=TIMEOUT)
    assert (failed.value.reason, failed.value.error["type"]) == ("validation", "InvalidContinuationError")
    assert failed.value.error["attrs"]["code"] == "invalid_continuation"  # type: ignore[index]
    assert runs == [1]


async def test_so_it_is_when_a_job_is_completed_from_outside(engine: Engine, note: JobType[Number, Number]) -> None:
    sequence = await engine.start_sequence(note, Number(n=1), delay=3600)
    with pytest.raises(InvalidContinuationError, match=r"input\.n") as refused:
        await engine.complete_sequence(sequence.id, continue_with(note, Number.model_construct(n="many")))
    assert isinstance(refused.value, InvalidInputError)
    assert (refused.value.code, refused.value.details["path"]) == ("invalid_continuation", "input.n")
    assert (await engine.get_sequence(sequence.id)).status == "scheduled"


# --- to what a handler starts


@pytest.mark.parametrize("count", [1, COPY_FROM], ids=["insert", "copy"])
async def test_children_have_correlation_root_and_origin(engine: Engine, note: JobType[Number, Number], count: int) -> None:
    @engine.job_type
    async def parent(job: Job[Number]) -> Number:
        await engine.start_sequences([note(job.input) for _ in range(job.input.n)])
        return job.input

    async with engine.worker(types=["parent"]):
        sequence = await engine.start_sequence(parent, Number(n=count), correlation_id="request 7", priority=5)
        await sequence.result(timeout=TIMEOUT)
    page = await engine.list_sequences(correlation_id="request 7", type="note", limit=1000)
    assert len(page) == count
    assert {each.root_id for each in page} == {sequence.id}
    child = await engine.get_job(page[0].id)
    assert (child.origin_id, child.priority) == (sequence.id, 0), "their priority is their own"


async def test_children_have_the_tags_unless_they_are_given_others_or_none(engine: Engine, note: JobType[Number, Number]) -> None:
    @engine.job_type
    async def parent(job: Job[Number]) -> Number:
        await engine.start_sequences([note(Number(n=1)), note(Number(n=2), tags=["own"]), note(Number(n=3), tags=[])])
        return job.input

    async with engine.worker():
        sequence = await engine.start_sequence(parent, Number(n=0), tags=["spring"])
        await sequence.result(timeout=TIMEOUT)
    page = await engine.list_sequences(type="note")
    assert {each.input["n"]: list(each.tags) for each in page} == {1: ["spring"], 2: ["own"], 3: []}
    plain = await engine.start_sequence(note, Number(n=4), tags=[])
    assert list((await engine.get_sequence(plain.id)).tags) == []
