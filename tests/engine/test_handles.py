"""What names a sequence: its handle, a Blocker or its id, in every verb; and in the details of errors always a UUID."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Dedup, Engine, Fail, InternalJobType, Job, JobSequence, JobType, continue_with
from queuert_py.control import Failure
from queuert_py.errors import (
    DuplicateIdError,
    DuplicateKeyError,
    QueuertError,
    ResultTimeoutError,
    SequenceEndedError,
    SequenceFailedError,
    SequenceNotFoundError,
)
from queuert_py.sequence import SequenceRef


class Number(BaseModel):
    n: int = 0


class Parts(BaseModel):
    parts: list[Blocker[Number]]


wait = JobType[Number, Number]("wait")
gather = InternalJobType[Parts, Number]("gather")
Verb = Callable[[Engine, SequenceRef], Awaitable[object]]
LOOKS: dict[str, Verb] = {
    "get_sequence": lambda engine, sequence: engine.get_sequence(sequence),
    "list_jobs": lambda engine, sequence: engine.list_jobs(sequence),
    "list_attempts": lambda engine, sequence: engine.list_attempts(sequence),
    "list_blockers": lambda engine, sequence: engine.list_blockers(sequence),
    "list_dependents": lambda engine, sequence: engine.list_dependents(sequence),
    "why": lambda engine, sequence: engine.why(sequence),
    "root_id of sequences": lambda engine, sequence: engine.list_sequences(root_id=sequence),
    "root_id of jobs": lambda engine, sequence: engine.list_jobs(root_id=sequence),
}
CHANGES: dict[str, Verb] = {
    "cancel": lambda engine, sequence: engine.cancel_sequences([sequence]),
    "delete": lambda engine, sequence: engine.delete_sequences([sequence]),
    "trigger": lambda engine, sequence: engine.trigger([sequence]),
    "reschedule": lambda engine, sequence: engine.reschedule([sequence], delay=60),
    "complete": lambda engine, sequence: engine.complete_sequence(sequence, Number(n=1)),
    "retry": lambda engine, sequence: engine.retry_sequences([sequence]),
    "send": lambda engine, sequence: engine.send_event(sequence, "paid"),
}


@pytest.fixture
def waiting(engine: Engine) -> Engine:
    engine.add(wait, gather)
    return engine


@pytest.mark.parametrize("verb", LOOKS.values(), ids=LOOKS)
async def test_looking_takes_a_handle_for_its_id(waiting: Engine, verb: Verb) -> None:
    part = await waiting.start_sequence(wait, Number(), delay=60)
    await waiting.start_sequence(wait, Number())
    assert await verb(waiting, part) == await verb(waiting, part.id) == await verb(waiting, Blocker(part.id))


@pytest.mark.parametrize("verb", CHANGES.values(), ids=CHANGES)
async def test_changing_takes_a_handle_for_its_id(waiting: Engine, verb: Verb) -> None:
    async def answer(name: Callable[[JobSequence[Any]], SequenceRef]) -> str:
        sequence = await waiting.start_sequence(wait, Number(), delay=60)
        return str(await verb(waiting, name(sequence))).replace(str(sequence.id), "it")

    assert await answer(lambda sequence: sequence) == await answer(lambda sequence: sequence.id)


async def test_a_handle_and_its_id_are_one_of_several(waiting: Engine) -> None:
    sequence = await waiting.start_sequence(wait, Number())
    assert await waiting.cancel_sequences([sequence, sequence.id, Blocker(sequence.id)]) == {sequence.id: "cancelled"}


async def test_a_blocker_can_be_awaited_by_way_of_a_handle(waiting: Engine) -> None:
    sequence = await waiting.start_sequence(wait, Number())
    await waiting.complete_sequence(sequence, Number(n=7))
    assert (await waiting.sequence(wait, Blocker(sequence.id)).result()).n == 7


async def test_a_watch_of_one_sequence_takes_its_handle(waiting: Engine) -> None:
    await waiting.start_sequence(wait, Number())
    sequence = await waiting.start_sequence(wait, Number())
    async with waiting.watch(id=sequence) as watch:
        await waiting.cancel_sequences([each.id for each in await waiting.list_sequences()])
        assert (await anext(watch)).sequence_id == sequence.id


async def test_ids_in_the_details_of_errors_are_uuids(waiting: Engine) -> None:
    @waiting.job_type
    async def fail(job: Job[Number]) -> Number:
        raise Fail("never")

    async def told(call: Awaitable[object], kind: type[QueuertError], name: str) -> object:
        with pytest.raises(kind) as refused:
            await call
        return refused.value.details[name]

    held = await waiting.start_sequence(wait, Number(), key="k")
    missing = uuid4()
    again = waiting.start_sequence(wait, Number(), dedup=Dedup("k", on_match="raise"))
    assert await told(again, DuplicateKeyError, "id") == held.id
    own = await waiting.start_sequence(wait, Number(), id=missing)
    assert await told(waiting.start_sequence(wait, Number(n=2), id=missing), DuplicateIdError, "id") == own.id
    assert await told(held.result(timeout=0), ResultTimeoutError, "sequence_id") == held.id
    assert await told(waiting.wait_all([held, own], timeout=0), ResultTimeoutError, "sequence_ids") == [held.id, own.id]
    gone = uuid4()
    assert await told(waiting.get_sequence(gone), SequenceNotFoundError, "id") == gone
    assert await told(waiting.trigger([gone, held]), SequenceNotFoundError, "ids") == [gone]
    assert await told(waiting.send_event(gone, "paid"), SequenceNotFoundError, "id") == gone
    await waiting.cancel_sequences([held])
    assert await told(waiting.trigger([held]), SequenceEndedError, "ids") == [held.id]
    async with waiting.worker():
        failed = await waiting.start_sequence(fail, Number())
        assert await told(failed.result(timeout=20), SequenceFailedError, "sequence_id") == failed.id


async def test_what_an_error_names_can_be_looked_at(waiting: Engine) -> None:
    await waiting.start_sequence(wait, Number(), key="k")
    with pytest.raises(DuplicateKeyError) as refused:
        await waiting.start_sequence(wait, Number(), dedup=Dedup("k", on_match="raise"))
    id = refused.value.details["id"]
    assert isinstance(id, UUID)
    assert (await waiting.get_sequence(id)).key == "k"


async def test_a_compensation_gets_the_blockers_back_from_the_failures_input(engine: Engine) -> None:
    @engine.job_type
    async def fail(job: Job[Number]) -> Number:
        raise Fail("never")

    @engine.job_type(internal=True, on_blocker_failure="ignore")
    async def undo(job: Job[Parts]) -> Number:
        return Number(n=sum(part.outcome == "failed" for part in job.input.parts))

    def answer(failure: Failure) -> Continuation[Number]:
        return continue_with(undo, Parts.model_validate(failure.input))

    @engine.job_type(on_blocker_failure="fail", on_failed=answer)
    async def book(job: Job[Parts]) -> Number:
        raise AssertionError("a blocker has failed")

    async with engine.worker():
        part = await engine.start_sequence(fail, Number())
        booked = await engine.start_sequence(book, Parts(parts=[part]))
        assert (await booked.result(timeout=20)).n == 1
