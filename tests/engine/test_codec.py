"""A codec: what is stored of inputs, outputs and memoised values cannot be read in the database, and everything works as without."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel, RootModel

from queuert_py import Blocker, Continuation, Engine, Fail, Job, continue_with
from queuert_py.errors import InvalidOutputError, SequenceFailedError

TIMEOUT = 20


class Masked:
    """Stands for an encryption: another text each time, and nothing of the plain one in it."""

    key = 0x5A

    def encode(self, data: bytes, /) -> bytes:
        return uuid4().bytes + bytes(each ^ self.key for each in zlib.compress(data))

    def decode(self, data: bytes, /) -> bytes:
        return zlib.decompress(bytes(each ^ self.key for each in data[16:]))


class Secret(BaseModel):
    text: str


class Open(BaseModel):
    text: str | None = None


class After(BaseModel):
    first: Blocker[Secret]


@pytest.fixture
async def sealed(dsn: str) -> AsyncIterator[Engine]:
    engine = Engine(dsn, codec=Masked())
    yield engine
    await engine.close()


async def stored(db: psycopg.AsyncConnection[Any]) -> str:
    """All that the tables hold, as text."""
    texts: list[str] = []
    for table in ("live_job", "finished_job", "attempt_log"):
        cursor = await db.execute(f"select coalesce(string_agg(t::text, ' '), '') from queuert.{table} t".encode())
        row = await cursor.fetchone()
        texts.append(str(row[0]) if row else "")
    return " ".join(texts)


async def test_payloads_are_stored_sealed_and_seen_plain_everywhere(sealed: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    async def memoised() -> Secret:
        return Secret(text="squirrel")

    @sealed.job_type(internal=True)
    async def second(job: Job[Secret]) -> Secret:
        kept = await job.step("kept", memoised)
        event = await job.wait_for_event("go", type=Secret)
        return Secret(text=f"{job.input.text} {kept.text} {event.text}")

    @sealed.job_type
    async def first(job: Job[Secret]) -> Continuation[Secret]:
        return continue_with(second, Secret(text=job.input.text + " squirrel"))

    @sealed.job_type
    async def after(job: Job[After]) -> Secret:
        return Secret(text="after " + job.input.first.output.text)

    sequence = await sealed.start_sequence(first, Secret(text="squirrel"))
    last = await sealed.start_sequence(after, After(first=sequence))
    await sealed.send_event(sequence, "go", Secret(text="squirrel"))
    assert "squirrel" not in await stored(db)
    async with sealed.worker():
        assert (await last.result(timeout=TIMEOUT)).text == "after squirrel squirrel squirrel squirrel"
    assert (await sealed.sequence(first, sequence.id).result(timeout=TIMEOUT)).text == "squirrel squirrel squirrel squirrel"
    assert "squirrel" not in await stored(db)
    record = await sealed.get_sequence(sequence.id)
    assert record.input == {"text": "squirrel"}
    assert record.output == {"text": "squirrel squirrel squirrel squirrel"}
    assert [job.input["text"] for job in await sealed.list_jobs(sequence.id)] == ["squirrel", "squirrel squirrel"]


async def test_a_retry_and_a_completion_from_outside_see_the_plain_input(sealed: Engine) -> None:
    broken = True

    @sealed.job_type
    async def work(job: Job[Secret]) -> Secret:
        if broken:
            raise Fail("not yet")
        return job.input

    async with sealed.worker():
        sequence = await sealed.start_sequence(work, Secret(text="x"))
        with pytest.raises(SequenceFailedError):
            await sequence.result(timeout=TIMEOUT)
        broken = False
        await sealed.retry_sequences([sequence.id])
        assert (await sequence.result(timeout=TIMEOUT)).text == "x"
    waiting = await sealed.start_sequence(work, Secret(text="y"), delay=3600)
    await sealed.complete_sequence(waiting.id, lambda job: Secret(text=job.input.text + "!"))
    assert (await waiting.result(timeout=TIMEOUT)).text == "y!"


async def test_a_repeated_start_with_an_id_is_recognised_though_the_sealed_text_differs(sealed: Engine) -> None:
    @sealed.job_type
    async def work(job: Job[Secret]) -> Secret:
        return job.input

    id = uuid4()
    first = await sealed.start_sequence(work, Secret(text="x"), id=id)
    again = await sealed.start_sequence(work, Secret(text="x"), id=id)
    assert (first.id, again.id, again.deduplicated) == (id, id, True)


async def test_what_was_stored_before_there_was_a_codec_is_read_as_it_is(engine: Engine, sealed: Engine) -> None:
    for each in (engine, sealed):

        @each.job_type("work")
        async def work(job: Job[Secret]) -> Secret:
            return job.input

    before = await engine.start_sequence("work", {"text": "plain"}, output=Secret)
    async with sealed.worker():
        assert (await sealed.sequence("work", before.id, output=Secret).result(timeout=TIMEOUT)).text == "plain"


async def test_an_engine_without_the_codec_says_that_it_cannot_read(engine: Engine, sealed: Engine) -> None:
    for each in (engine, sealed):

        @each.job_type("work")
        async def work(job: Job[Secret]) -> Secret:
            return job.input

    sequence = await sealed.start_sequence("work", {"text": "plain"}, output=Secret)
    async with engine.worker():
        with pytest.raises(SequenceFailedError) as failed:
            await engine.sequence("work", sequence.id, output=Secret).result(timeout=TIMEOUT)
    assert failed.value.reason == "validation"


class Changed(Masked):
    """Another key."""

    key = 0x3C


class Text(RootModel[str]):
    """Whose input may be any text, also one that stands for a sealed payload."""


async def test_a_payload_that_cannot_be_opened_fails_alone_until_a_worker_has_the_key(engine: Engine, sealed: Engine, dsn: str) -> None:
    """Whatever is claimed, listed or awaited together with it goes on."""
    async with Engine(dsn, codec=Changed()) as other:
        for each in (engine, sealed, other):

            @each.job_type("work")
            async def work(job: Job[Text]) -> Text:
                return job.input

        unread = await sealed.start_sequence("work", Text("one"), output=Text)
        ended = await sealed.start_sequence("work", Text("two"), output=Text)
        await sealed.complete_sequence(ended.id, Text("2"))
        plain = [await engine.start_sequence("work", Text("three"), output=Text) for _ in range(2)]
        async with other.worker():
            for sequence in plain:
                assert (await other.sequence("work", sequence.id, output=Text).result(timeout=TIMEOUT)).root == "three"
            with pytest.raises(SequenceFailedError, match="sealed") as failed:
                await other.sequence("work", unread.id, output=Text).result(timeout=TIMEOUT)
            with pytest.raises(InvalidOutputError, match="sealed"):
                await other.sequence("work", ended.id, output=Text).result(timeout=TIMEOUT)
        assert failed.value.reason == "validation"
        assert len(await other.list_sequences()) == 4
    async with sealed.worker():
        assert (await unread.result(timeout=TIMEOUT)).root == "one"
