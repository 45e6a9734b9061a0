"""What a batch does with starts that meet each other in it, and how it is cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Dedup, Engine, Job, JobType
from queuert_py.errors import DuplicateIdError, DuplicateKeyError, UsageError
from queuert_py.postgres import starts
from queuert_py.postgres.calls import Call
from queuert_py.postgres.store import Store
from queuert_py.values import StartOptions


class Note(BaseModel):
    text: str


@pytest.fixture
def note(engine: Engine) -> JobType[Note, None]:
    @engine.job_type("note")
    async def note(job: Job[Note]) -> None: ...

    return note


# --- one id twice


async def test_one_id_with_another_input_is_refused_before_anything_is_written(engine: Engine, note: JobType[Note, None]) -> None:
    id = uuid4()
    async with engine:
        with pytest.raises(DuplicateIdError, match=r"\(requests 1 and 2\)"):
            await engine.start_sequences([note(Note(text="0")), note(Note(text="1"), id=id), note(Note(text="2"), id=id)])
        assert await engine.list_sequences() == []


async def test_one_id_with_another_type_is_refused(engine: Engine, note: JobType[Note, None]) -> None:
    @engine.job_type
    async def memo(job: Job[Note]) -> None: ...

    id = uuid4()
    async with engine:
        with pytest.raises(DuplicateIdError):
            await engine.start_sequences((note(Note(text="0"), id=id), memo(Note(text="0"), id=id)))


async def test_one_id_with_the_same_input_is_a_repeat(engine: Engine, note: JobType[Note, None]) -> None:
    id = uuid4()
    async with engine:
        first, again = await engine.start_sequences([note(Note(text="0"), id=id), note(Note(text="0"), id=id)])
    assert (first.id, first.deduplicated) == (id, False)
    assert (again.id, again.deduplicated) == (id, True)


# --- one key twice


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Dedup("k", scope="all"), Dedup("k")),
        (Dedup("k", scope="all"), Dedup.throttle("k", 60)),
        (Dedup("k", on_match="raise"), Dedup("k", on_match="replace")),
        (Dedup.debounce("k", 60), Dedup("k")),
    ],
)
async def test_one_key_of_two_meanings_is_refused(engine: Engine, note: JobType[Note, None], one: Dedup, other: Dedup) -> None:
    async with engine:
        with pytest.raises(UsageError, match=r"another scope, window or on_match \(requests 0 and 1\)") as refused:
            await engine.start_sequences([note(Note(text="0"), dedup=one), note(Note(text="1"), dedup=other)])
        assert not isinstance(refused.value, DuplicateKeyError)
        assert await engine.list_sequences() == []


async def test_one_key_by_either_of_its_names_is_one_sequence(engine: Engine, note: JobType[Note, None]) -> None:
    async with engine:
        first, again = await engine.start_sequences([note(Note(text="0"), key="k"), note(Note(text="1"), dedup=Dedup("k"))])
    assert first.id == again.id


async def test_the_last_debounce_of_a_batch_decides_how_long(
    engine: Engine, note: JobType[Note, None], db: psycopg.AsyncConnection[Any]
) -> None:
    async with engine:
        await engine.start_sequences([note(Note(text=f"{delay}"), dedup=Dedup.debounce("k", delay)) for delay in (10, 3600)])
    row = await (await db.execute("select input ->> 'text', run_at - created_at > interval '50 minutes' from queuert.live_job")).fetchone()
    assert row == ("3600", True)


# --- how much at once


@pytest.mark.parametrize("how", ["plain", "tx", "keys", "ids"])
async def test_large_inputs_go_in_by_parts(
    engine: Engine, note: JobType[Note, None], db: psycopg.AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One statement has room for 256 MB of JSON: a batch is cut by bytes, too."""
    parts: list[int] = []

    def insert(store: Store, rows: Iterable[str], inner: Any = Store.insert_sequences) -> Call[str]:
        given = list(rows)
        parts.append(len(given))
        call: Call[str] = inner(store, given)
        return call

    monkeypatch.setattr(starts, "BYTES", 250)
    monkeypatch.setattr(Store, "insert_sequences", insert)
    options: list[StartOptions] = [{} for _ in range(5)]
    if how == "keys":
        options = [{"key": f"{number}"} for number in range(5)]
    elif how == "ids":
        options = [{"id": uuid4()} for _ in range(5)]
    requests = [note(Note(text="x" * 100), **each) for each in options]
    async with engine, db.transaction():
        await engine.start_sequences(requests, tx=db if how == "tx" else None)
    assert parts == [2, 2, 1]
    assert len(await engine.list_sequences()) == 5
