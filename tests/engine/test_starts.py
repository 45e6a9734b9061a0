"""What a start promises: exactly one sequence, or a clear error and nothing written."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Engine, Job, JobType, Request
from queuert_py.errors import (
    DuplicateIdError,
    InvalidInputError,
    NotStartableError,
    ResultTimeoutError,
    SequenceExpiredError,
    SequenceNotFoundError,
    UnknownJobTypeError,
    UsageError,
)
from queuert_py.values import StartOptions


class Note(BaseModel):
    text: str = ""
    number: float | None = None


class Other(BaseModel):
    text: str


class Done(BaseModel):
    text: str


type_ = JobType[Note, Done]("note")


@pytest.fixture
def notes(engine: Engine) -> JobType[Note, Done]:
    @engine.job_type("note")
    async def note(job: Job[Note]) -> Done:
        return Done(text=job.input.text)

    @engine.job_type("inner", internal=True)
    async def inner(job: Job[Note]) -> None: ...

    return note


async def rows(engine: Engine) -> int:
    return len(await engine.list_sequences(limit=100_000))


async def test_a_request_is_started_by_itself_with_its_options(
    engine: Engine, notes: JobType[Note, Done], db: psycopg.AsyncConnection[Any]
) -> None:
    sequence = await engine.start_sequence(notes(Note(text="a"), key="k", tags=["b"]))
    assert (await engine.get_sequence(sequence)).tags == ["b"]
    async with db.transaction():
        again = await engine.start_sequence(notes(Note(text="c"), key="k"), tx=db)
    assert (again.id, again.deduplicated) == (sequence.id, True)


@pytest.mark.parametrize(
    ("job_type", "given", "error", "says"),
    [
        ("note", Note(number=math.nan), InvalidInputError, "input.number: nan cannot be stored"),
        ("note", Note(text="a\0b"), InvalidInputError, "input.text: a NUL character"),
        ("note", Note(text="a\ud800"), InvalidInputError, "input.text: a lone surrogate"),
        ("note", Note(text="a" * 1_100_000), InvalidInputError, "the limit is 1,048,576"),
        ("note", Note.model_construct(text=3), InvalidInputError, "input.text: Input should be a valid string"),
        ("note", {"text": 3}, InvalidInputError, "input.text: Input should be a valid string"),
        ("note", Other(text="a"), InvalidInputError, "Other given, 'note' takes Note"),
        ("note", None, InvalidInputError, "NoneType given, 'note' takes Note"),
        ("nope", Note(), UnknownJobTypeError, "known: inner, note"),
        ("inner", Note(), NotStartableError, "only continue_with reaches it"),
    ],
)
async def test_a_wrong_start_names_the_field_and_writes_nothing(
    engine: Engine, notes: JobType[Note, Done], job_type: str, given: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await engine.start_sequence(job_type, given)
    assert await rows(engine) == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"at": datetime(2030, 1, 1)}, "at=.*aware datetime"),
        ({"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 3}, "delay= and at= are both given"),
        ({"delay": -1}, "delay=-1"),
        ({"key": "k" * 513}, "key: 513 bytes, the limit is 512"),
        ({"queue": ""}, "queue"),
        ({"priority": 40_000}, "priority=40000"),
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"id": uuid4(), "key": "a"}, "id= and key= are both given"),
        ({"tx": object()}, "tx=object"),
    ],
)
async def test_a_wrong_option_is_named_and_writes_nothing(engine: Engine, notes: JobType[Note, Done], how: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await engine.start_sequence(notes, Note(), **how)
    assert await rows(engine) == 0


@pytest.mark.parametrize("before", [2, 1999])
async def test_one_wrong_request_of_a_batch_stops_all_and_is_numbered(engine: Engine, notes: JobType[Note, Done], before: int) -> None:
    with pytest.raises(InvalidInputError, match=f"request {before}"):
        await engine.start_sequences([notes(Note()) for _ in range(before)] + [notes(Note(number=math.inf))])
    assert await rows(engine) == 0


@pytest.mark.parametrize("count", [0, 1, 2, 499, 500, 1001, 3000])
async def test_a_batch_of_any_size_starts_all_in_order(engine: Engine, notes: JobType[Note, Done], count: int) -> None:
    started = await engine.start_sequences([notes(Note(text=str(n))) for n in range(count)])
    found = {each.id: each.input["text"] for each in await engine.list_sequences(limit=10_000)}
    assert [found[each.id] for each in started] == [str(n) for n in range(count)]


async def test_texts_that_copy_could_trip_over_arrive_as_they_are(engine: Engine, notes: JobType[Note, Done]) -> None:
    texts = ["\t", "\n", "\r\n", "\\", "\\N", "\\.", '"', "ü€𝄞", "\u2028", "\x7f"]
    started = await engine.start_sequences([notes(Note(text=text), correlation_id=text) for text in texts * 60])
    found = {each.id: (each.input["text"], each.correlation_id) for each in await engine.list_sequences(limit=10_000)}
    assert [found[each.id] for each in started] == [(text, text) for text in texts * 60]


async def test_a_key_has_one_unfinished_sequence(engine: Engine, notes: JobType[Note, Done]) -> None:
    first = await engine.start_sequence(notes, Note(text="1"), key="k")
    second = await engine.start_sequence(notes, Note(text="2"), key="k")
    assert (first.deduplicated, second.deduplicated, second.id) == (False, True, first.id)
    async with engine.worker():
        assert await second.result(timeout=10) == Done(text="1")
        third = await engine.start_sequence(notes, Note(text="3"), key="k")
        assert (third.deduplicated, await third.result(timeout=10)) == (False, Done(text="3"))


async def test_inside_a_batch_the_first_of_a_key_wins(engine: Engine, notes: JobType[Note, Done]) -> None:
    a, b, c = await engine.start_sequences((notes(Note(), key="x"), notes(Note(), key="y"), notes(Note(), key="x")))
    assert (a.id == c.id, a.id == b.id) == (True, False)
    assert [each.deduplicated for each in (a, b, c)] == [False, False, True]


async def test_concurrent_starts_of_one_key_make_one(engine: Engine, notes: JobType[Note, Done]) -> None:
    started = await asyncio.gather(*(engine.start_sequence(notes, Note(), key="k") for _ in range(32)))
    assert len({each.id for each in started}) == 1
    assert sum(not each.deduplicated for each in started) == 1


async def test_an_id_of_the_caller_is_a_repeat_or_an_error(engine: Engine, notes: JobType[Note, Done]) -> None:
    id = uuid4()
    first = await engine.start_sequence(notes, Note(text="1"), id=id)
    again = await engine.start_sequence(notes, Note(text="1"), id=id)
    assert (first.id, again.id, again.deduplicated) == (id, id, True)
    with pytest.raises(DuplicateIdError):
        await engine.start_sequence(notes, Note(text="2"), id=id)
    async with engine.worker():
        await first.result(timeout=10)
    finished = await engine.start_sequence(notes, Note(text="1"), id=id)
    assert finished.deduplicated
    assert [each.status for each in await engine.list_sequences()] == ["completed"]


@pytest.mark.parametrize("commit", [True, False])
async def test_a_start_in_the_callers_transaction_shares_its_fate(
    engine: Engine, notes: JobType[Note, Done], db: psycopg.AsyncConnection[Any], *, commit: bool
) -> None:
    async with db.transaction(force_rollback=not commit):
        await engine.start_sequences([notes(Note()), notes(Note(), key="k")], tx=db)
        assert await rows(engine) == 0
    assert await rows(engine) == (2 if commit else 0)


async def test_a_worker_hears_of_a_start_in_the_callers_transaction(
    engine: Engine, notes: JobType[Note, Done], db: psycopg.AsyncConnection[Any]
) -> None:
    async with engine.worker(poll_interval=60):
        async with db.transaction():
            sequence = await engine.start_sequence(notes, Note(text="heard"), tx=db)
        assert await sequence.result(timeout=10) == Done(text="heard")


async def test_tx_without_a_transaction_is_refused(engine: Engine, notes: JobType[Note, Done], db: psycopg.AsyncConnection[Any]) -> None:
    with pytest.raises(UsageError, match="no open transaction"):
        await engine.start_sequence(notes, Note(), tx=db)


async def test_an_own_id_in_a_stricter_transaction_is_refused(
    engine: Engine, notes: JobType[Note, Done], db: psycopg.AsyncConnection[Any]
) -> None:
    await db.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    with pytest.raises(UsageError, match="repeatable read"):
        async with db.transaction():
            await engine.start_sequence(notes, Note(), id=uuid4(), tx=db)


async def test_options_are_stored(engine: Engine, notes: JobType[Note, Done]) -> None:
    how = StartOptions(priority=7, queue="slow", tags=["a", "b"], correlation_id="c-1", delay=timedelta(hours=1), max_attempts=3)
    sequence = await engine.start_sequence(notes, Note(), **how)
    record, (job,) = await engine.get_sequence(sequence.id), await engine.list_jobs(sequence.id)
    assert (record.status, list(record.tags), record.correlation_id) == ("scheduled", ["a", "b"], "c-1")
    assert (job.priority, job.queue, job.run_at > datetime.now(UTC) + timedelta(minutes=50)) == (7, "slow", True)


async def test_expired_before_it_started(engine: Engine, notes: JobType[Note, Done], db: psycopg.AsyncConnection[Any]) -> None:
    sequence = await engine.start_sequence(notes, Note(), expires=datetime(2020, 1, 1, tzinfo=UTC))
    async with engine.worker():
        with pytest.raises(SequenceExpiredError):
            await sequence.result(timeout=10)


async def test_the_result_of_what_does_not_exist(engine: Engine, notes: JobType[Note, Done]) -> None:
    with pytest.raises(SequenceNotFoundError):
        await engine.sequence(notes, UUID(int=0)).result(timeout=10)


async def test_a_result_that_does_not_come_in_time(engine: Engine, notes: JobType[Note, Done]) -> None:
    sequence = await engine.start_sequence(notes, Note())
    with pytest.raises(ResultTimeoutError, match="it goes on"):
        await sequence.result(timeout=0.01)
    async with engine.worker():
        assert await sequence.result(timeout=10) == Done(text="")


async def test_many_wait_for_one_and_one_for_many(engine: Engine, notes: JobType[Note, Done]) -> None:
    started = await engine.start_sequences([notes(Note(text=str(n))) for n in range(300)])
    waiting = [asyncio.create_task(each.result(timeout=20)) for each in [*started, started[0]]]
    async with engine.worker():
        done = await asyncio.gather(*waiting)
    assert [each.text for each in done] == [*(str(n) for n in range(300)), "0"]


async def test_another_engine_awaits_and_another_one_works(dsn: str, engine: Engine, notes: JobType[Note, Done]) -> None:
    async with Engine(dsn, engine) as elsewhere, elsewhere.worker():
        sequence = await engine.start_sequence("note", {"text": "far"}, output=Done)
        assert await sequence.result(timeout=10) == Done(text="far")


@pytest.mark.parametrize("lanes", [2, 16, 256])
async def test_with_lanes_nothing_shows(server: str, lanes: int, fresh_database: Callable[[], str]) -> None:
    engine = Engine(fresh_database())

    @engine.job_type("note")
    async def note(job: Job[Note]) -> Done:
        return Done(text=job.input.text)

    try:
        await engine.migrate(lanes=lanes)
        requests: list[Request[Done]] = [note(Note(text=str(n))) for n in range(600)]
        requests += [note(Note(text=f"k{n % 5}"), key=f"k{n % 5}") for n in range(20)]
        async with engine.worker():
            results = [await each.result(timeout=20) for each in await engine.start_sequences(requests)]
        assert [each.text for each in results] == [*(str(n) for n in range(600)), *(f"k{n % 5}" for n in range(20))]
    finally:
        await engine.close()
