"""Starting: by type, by name, many at once, in a transaction; the options; handles and what they give."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow
from pydantic import BaseModel
from typing_extensions import assert_type

from queuert_py import Continuation, Engine, InternalJobType, JobSequence, JobType, Request, continue_with


class Photo(BaseModel):
    file: str


class Portrait(Photo):
    who: str = ""


class Thumbnail(BaseModel):
    width: int


class Caption(BaseModel):
    text: str


class Blurred(BaseModel):
    why: str


engine = Engine("postgresql://")
shrink = JobType[Photo, Thumbnail]("shrink")
describe = JobType[Photo, Caption]("describe")
look = JobType[Photo, Thumbnail | Blurred]("look")
drop = JobType[Photo, None]("drop")
touch_up = InternalJobType[Photo, Thumbnail]("touch_up")
photo = Photo(file="a.jpg")


async def by_type() -> None:
    started = await engine.start_sequence(shrink, photo)
    assert_type(started, JobSequence[Thumbnail])
    assert_type(started.id, UUID)
    assert_type(started.deduplicated, bool)
    assert_type(await started.result(), Thumbnail)
    assert_type(await started.result(timeout=3), Thumbnail)
    assert_type(await started.result(timeout=timedelta(seconds=3)), Thumbnail)
    assert_type(await engine.start_sequence(look, photo), JobSequence[Thumbnail | Blurred])
    assert_type(await engine.start_sequence(drop, input=photo), JobSequence[None])
    assert_type(await engine.start_sequence(look(photo, key="a")), JobSequence[Thumbnail | Blurred])
    await engine.start_sequence(look(photo), photo)  # E
    await engine.start_sequence(look(photo), key="a")  # E
    await engine.start_sequence(look)  # E
    await engine.start_sequence(shrink, Portrait(file="b.jpg"))
    wider: JobSequence[Thumbnail | Blurred] = started
    print(wider)

    await engine.start_sequence(touch_up, photo)  # E
    await engine.start_sequence(shrink, Caption(text=""))  # E
    await engine.start_sequence(shrink, {"file": "a.jpg"})  # E
    await engine.start_sequence(shrink, "a.jpg")  # E
    await engine.start_sequence(shrink)  # E
    await engine.start_sequence(shrink, photo, photo)  # E
    await engine.start_sequence(shrink, photo, output=Thumbnail)  # E
    await started.result(3)  # E
    await started.result(timeout="3 s")  # E
    await started.result().width  # E
    narrower: JobSequence[Caption] = await engine.start_sequence(look, photo)  # E
    print(narrower)


async def by_name() -> None:
    typed = await engine.start_sequence("look", {"file": "a.jpg"}, output=Thumbnail)
    assert_type(typed, JobSequence[Thumbnail])
    untyped = await engine.start_sequence("look", {"file": "a.jpg"})
    assert_type(untyped, JobSequence[Any])
    await engine.start_sequence("look", photo, key="a.jpg")
    await engine.start_sequence("look", input=photo, output=Blurred, priority=3)

    await engine.start_sequence("look", "a.jpg")  # E
    await engine.start_sequence("look", ["a.jpg"])  # E
    await engine.start_sequence("look")  # E
    await engine.start_sequence("look", photo, output=int)  # E
    await engine.start_sequence("look", photo, output="Thumbnail")  # E
    await engine.start_sequence("look", photo, named=True)  # E


async def with_options(tx: AsyncConnection[Any], at: datetime, id: UUID) -> None:
    await engine.start_sequence(shrink, photo, key="a", delay=3, expires=60.0, priority=1, queue="slow", max_attempts=None)
    await engine.start_sequence(shrink, photo, at=at, expires=datetime.now(UTC), timeout=timedelta(seconds=1), id=id)
    await engine.start_sequence(shrink, photo, tags=["holiday", "2026"], correlation_id="request 7", tx=tx)
    await engine.start_sequence(shrink, photo, tx=None, key=None, delay=None)

    await engine.start_sequence(shrink, photo, keys="a")  # E
    await engine.start_sequence(shrink, photo, key=7)  # E
    await engine.start_sequence(shrink, photo, delay="3 s")  # E
    await engine.start_sequence(shrink, photo, at=3.0)  # E
    await engine.start_sequence(shrink, photo, priority="high")  # E
    await engine.start_sequence(shrink, photo, id="0199")  # E
    await engine.start_sequence(shrink, photo, max_attempts="ever")  # E
    await engine.start_sequence(shrink, photo, tags=7)  # E
    await engine.start_sequence(shrink, photo, retries=3)  # E
    await engine.start_sequence(shrink, photo, conn=tx)  # E


async def in_a_transaction(tx: AsyncConnection[Any], rows: AsyncConnection[DictRow], sync: Connection[Any]) -> None:
    await engine.start_sequence(shrink, photo, tx=tx)
    await engine.start_sequence(shrink, photo, tx=rows)
    await engine.start_sequence("shrink", photo, tx=tx)
    await engine.start_sequences([shrink(photo)], tx=tx)

    await engine.start_sequence(shrink, photo, tx=sync)  # E
    await engine.start_sequence("shrink", photo, tx=sync)  # E
    await engine.start_sequence(shrink, photo, tx=True)  # E
    await engine.start_sequences([shrink(photo)], tx=sync)  # E
    await engine.start_sequences((shrink(photo), look(photo)), tx=sync)  # E


async def many() -> None:
    assert_type(shrink(photo), Request[Thumbnail])
    assert_type(shrink(photo, key="k", delay=timedelta(seconds=1), tags=["t"]), Request[Thumbnail])
    assert_type(await engine.start_sequences([shrink(photo), shrink(photo)]), list[JobSequence[Thumbnail]])
    assert_type(await engine.start_sequences(shrink(photo) for _ in range(3)), list[JobSequence[Thumbnail]])
    assert_type(await engine.start_sequences({shrink(photo)}), list[JobSequence[Thumbnail]])
    mixed: list[Request[Thumbnail | Caption]] = [shrink(photo), describe(photo)]
    assert_type(await engine.start_sequences(mixed), list[JobSequence[Thumbnail | Caption]])
    two = await engine.start_sequences((shrink(photo), describe(photo)))
    assert_type(two, tuple[JobSequence[Thumbnail], JobSequence[Caption]])
    three = await engine.start_sequences((shrink(photo), describe(photo), drop(photo)))
    assert_type(three, tuple[JobSequence[Thumbnail], JobSequence[Caption], JobSequence[None]])
    _, _, _, fourth = await engine.start_sequences((drop(photo), drop(photo), drop(photo), look(photo)))
    assert_type(fourth, JobSequence[Thumbnail | Blurred])
    assert_type(await engine.start_sequences(tuple([shrink(photo)])), tuple[JobSequence[Thumbnail], ...])
    five = await engine.start_sequences((drop(photo), drop(photo), drop(photo), drop(photo), describe(photo)))
    assert_type(five[4], JobSequence[Caption])

    shrink(Caption(text=""))  # E
    shrink(file="a.jpg")  # E
    shrink(photo, ky="k")  # E
    shrink(photo, tx=None)  # E
    touch_up(photo)  # E
    await engine.start_sequences(shrink(photo))  # E
    await engine.start_sequences([shrink])  # E
    await engine.start_sequences([photo])  # E
    await engine.start_sequences([continue_with(shrink, photo)])  # E
    await engine.start_sequences((shrink(photo), continue_with(shrink, photo)))  # E
    await engine.start_sequences([shrink(photo)], key="k")  # E
    narrow: list[Request[Thumbnail]] = [shrink(photo), describe(photo)]  # E
    print(narrow)


async def handles(id: UUID, text: str) -> None:
    assert_type(engine.sequence(look, id), JobSequence[Thumbnail | Blurred])
    assert_type(engine.sequence("look", id, output=Blurred), JobSequence[Blurred])

    engine.sequence(touch_up, id)  # E
    engine.sequence("look", id)  # E
    engine.sequence(look, text)  # E
    engine.sequence("look", id, output=str)  # E
    engine.sequence(look, id, output=Blurred)  # E
    engine.sequence(id)  # E
    engine.sequence(look, id).result(timeout=1).width  # E


def continuations(next: Continuation[Caption]) -> None:
    assert_type(continue_with(touch_up, photo), Continuation[Thumbnail])
    assert_type(continue_with(look, photo, delay=2.5, priority=3), Continuation[Thumbnail | Blurred])
    assert_type(continue_with(drop, Portrait(file=""), at=datetime.now(UTC)), Continuation[None])
    wide: Continuation[Caption | None] = next
    print(wide)

    continue_with(touch_up, Caption(text=""))  # E
    continue_with(touch_up)  # E
    continue_with("touch_up", photo)  # E
    continue_with(shrink(photo))  # E
    continue_with(touch_up, photo, key="k")  # E
    continue_with(touch_up, photo, delay="soon")  # E
    continue_with(touch_up, photo, queue="slow")  # E
    less: Continuation[Thumbnail] = continue_with(look, photo)  # E
    print(less)
