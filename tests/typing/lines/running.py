"""Running here and testing: run, map, run_once, drain, the virtual clock, handlers without a database, the fixture."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel
from typing_extensions import assert_type

from queuert_py import Blocker, Continuation, Engine, InternalJobType, JobType, JobTypes
from queuert_py.errors import MapStoppedError, QueuertError
from queuert_py.job import Connection
from queuert_py.testing import Harness, Ran, Summary, VirtualClock, drain, failed, finished, run_handler


class Photo(BaseModel):
    file: str


class Thumbnail(BaseModel):
    width: int


class Caption(BaseModel):
    text: str


class Album(BaseModel):
    cover: Blocker[Thumbnail]


engine = Engine("postgresql://")
shrink = JobType[Photo, Thumbnail]("shrink")
look = JobType[Photo, Thumbnail | Caption]("look")
drop = JobType[Photo, None]("drop")
touch_up = InternalJobType[Photo, Thumbnail]("touch_up")
bind = JobType[Album, Caption]("bind")
photo = Photo(file="a.jpg")


async def run() -> None:
    assert_type(await engine.run(shrink, photo), Thumbnail)
    assert_type(await engine.run(look, photo, key="a", priority=3), Thumbnail | Caption)
    assert_type(await engine.run(drop, input=photo), None)
    assert_type(await engine.run("shrink", {"file": "a.jpg"}, output=Thumbnail), Thumbnail)
    assert_type(await engine.run("shrink", photo), Any)

    await engine.run(touch_up, photo)  # E
    await engine.run(shrink, Caption(text="a"))  # E
    await engine.run(shrink)  # E
    await engine.run(shrink, photo, retries=3)  # E
    await engine.run(shrink, {"file": "a.jpg"})  # E
    await engine.run("shrink", {"file": "a.jpg"}, output=int)  # E
    wrong: Caption = await engine.run(shrink, photo)  # E
    print(wrong)


async def map() -> None:
    assert_type(await engine.map(shrink, [photo]), list[Thumbnail | QueuertError])
    assert_type(await engine.map(shrink, (photo for _ in range(3)), concurrency=5), list[Thumbnail | QueuertError])
    assert_type(await engine.map(look, [photo], stop_on_error=True), list[Thumbnail | Caption])
    try:
        await engine.map(drop, [photo], stop_on_error=True, queue="side")
    except MapStoppedError as error:
        assert_type(list(error.not_started), list[int])
        assert_type(error.errors[0], QueuertError)

    await engine.map(touch_up, [photo])  # E
    await engine.map(shrink, [Caption(text="a")])  # E
    await engine.map(shrink, photo)  # E
    await engine.map(shrink, [photo], concurrency="3")  # E
    await engine.map("shrink", [photo])  # E
    widths = await engine.map(shrink, [photo])
    print(widths[0].width)  # E


async def once() -> None:
    done = await engine.run_once(limit=10, budget=timedelta(seconds=5), grace=0.5)
    assert_type(done, Summary)
    assert_type(done.claimed, int)
    assert_type(done.available, int)
    assert_type(done.outcomes["completed"], int)
    assert_type(done.ran[0], Ran)

    await engine.run_once(10)  # E
    await engine.run_once(limit="10")  # E
    await engine.run_once(queues="default", typo=1)  # E
    done.claimed = 3  # E


async def testing(queuert: Harness, jobs: JobTypes) -> None:
    async with queuert(engine) as bound:
        assert_type(bound, Engine[Connection])
    async with queuert(jobs) as made:
        assert_type(await made.run(shrink, photo), Thumbnail)
    with queuert(engine) as sync:
        assert_type(queuert.run(sync.run(shrink, photo)), Thumbnail)
        assert_type(queuert.run(drain(sync)), Summary)
    clock = VirtualClock(engine)
    assert_type(await clock.advance(timedelta(days=1)), datetime)
    assert_type(await clock.now(), datetime)
    assert_type(await clock.advance_to(datetime.now(UTC)), datetime)
    assert_type(await drain(engine, through=3600), Summary)

    queuert("postgresql://")  # E
    await drain(jobs)  # E
    await clock.advance("1 day")  # E
    VirtualClock(jobs)  # E


async def alone() -> None:
    assert_type(await run_handler(shrink, photo), Thumbnail | Continuation[Thumbnail])
    assert_type(await run_handler(touch_up, photo, attempt=2, events={"a": photo}), Thumbnail | Continuation[Thumbnail])
    assert_type(finished(Thumbnail(width=1)), Blocker[Thumbnail])
    await run_handler(bind, Album(cover=finished(Thumbnail(width=1))))
    await run_handler(bind, Album(cover=failed("no ink")))

    await run_handler(shrink, Caption(text="a"))  # E
    await run_handler("shrink", photo)  # E
    Album(cover=finished(Caption(text="a")))  # E
    finished("text")  # E
