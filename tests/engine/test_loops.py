"""An engine is open on one event loop at a time: elsewhere it says so, and after that loop it can be opened anew."""

from __future__ import annotations

import asyncio
import threading

import pytest
from pydantic import BaseModel

from queuert_py import Engine, Job, JobType
from queuert_py.errors import UsageError
from queuert_py.postgres.database import Database


class Number(BaseModel):
    n: int = 0


def engine_on(dsn: str) -> tuple[Engine, JobType[Number, Number]]:
    engine = Engine(dsn)

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    return engine, echo


def test_an_engine_works_in_one_loop_after_another(dsn: str) -> None:
    engine, echo = engine_on(dsn)

    async def work() -> None:
        async with engine:
            inputs = [Number(n=n) for n in range(6)]
            assert await engine.map(echo, inputs, concurrency=5) == inputs

    for _ in range(2):
        asyncio.run(work())


def test_another_loop_is_told_where_the_engine_is_open(dsn: str) -> None:
    engine, echo = engine_on(dsn)
    opened, done = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with engine:
            opened.set()
            await asyncio.to_thread(done.wait)

    async def here() -> None:
        for verb in (engine.start_sequence(echo, Number()), engine.list_sequences(), engine.run(echo, Number()), engine.close()):
            with pytest.raises(UsageError, match="open on another event loop"):
                await verb

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    try:
        assert opened.wait(30)
        asyncio.run(here())
    finally:
        done.set()
        thread.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_was_left_open_is_closed_after_its_loop(dsn: str) -> None:
    engine, echo = engine_on(dsn)

    async def leave() -> None:
        await engine.start_sequence(echo, Number())

    async def go_on() -> None:
        with pytest.raises(UsageError, match="left open on an event loop that has ended"):
            await engine.start_sequence(echo, Number())
        await engine.close()
        async with engine:
            assert len(await engine.list_sequences()) == 1

    asyncio.run(leave())
    asyncio.run(go_on())


async def test_who_opens_it_while_it_is_being_closed_opens_it_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, echo = engine_on(dsn)
    opened: list[Database] = []
    open_ = Database.open

    async def counted(database: Database) -> None:
        opened.append(database)
        await open_(database)

    monkeypatch.setattr(Database, "open", counted)
    await engine.open()
    closing = asyncio.create_task(engine.close())
    while engine._opening is None or not engine._opening.locked():
        await asyncio.sleep(0)
    early = asyncio.create_task(engine.open())
    await closing
    await asyncio.gather(early, *(engine.start_sequence(echo, Number()) for _ in range(3)))
    await engine.close()
    assert len(opened) == 2, "once before, once after"
