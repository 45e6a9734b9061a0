"""`job.on_commit`: callbacks after the commit they belong to, and none after a rollback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, continue_with


class Number(BaseModel):
    n: int


async def stored(dsn: str) -> int:
    """How many rows another connection sees."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
        row = await (await other.execute("select count(*) from note")).fetchone()
        return int(row[0]) if row else 0


@pytest.fixture
async def note(db: psycopg.AsyncConnection[Any]) -> None:
    await db.execute("create table note (n int)")


@pytest.mark.usefixtures("note")
async def test_a_callback_of_prepare_runs_after_its_commit_and_before_the_handler_goes_on(engine: Engine, dsn: str) -> None:
    seen: list[object] = []

    @engine.job_type
    async def write(job: Job[Number]) -> None:
        async def after() -> None:
            seen.append(await stored(dsn))

        async with job.prepare() as tx:
            job.on_commit(after)
            await tx.execute("insert into note values (1)")
            seen.append("in the block")
        seen.append("behind the block")

    async with engine.worker():
        await (await engine.start_sequence(write, Number(n=1))).result(timeout=10)
    assert seen == ["in the block", 1, "behind the block"]


@pytest.mark.usefixtures("note")
@pytest.mark.parametrize("phase", ["finalize", "atomic", "plain", "continue", "continue in finalize"])
async def test_a_callback_runs_after_the_commit_of_the_job(engine: Engine, dsn: str, phase: str) -> None:
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def after() -> None:
        seen.append("async")
        done.set_result(await stored(dsn))

    @engine.job_type
    async def end(job: Job[Number]) -> None: ...

    @engine.job_type
    async def write(job: Job[Number]) -> Continuation[None] | None:
        job.on_commit(lambda: seen.append("def"))
        job.on_commit(after)
        if phase in ("finalize", "atomic", "continue in finalize"):
            async with job.atomic() if phase == "atomic" else job.finalize() as tx:
                await tx.execute("insert into note values (1)")
        seen.append("returns")
        return continue_with(end, job.input) if phase.startswith("continue") else None

    async with engine.worker():
        await (await engine.start_sequence(write, Number(n=1))).result(timeout=10)
        async with asyncio.timeout(10):
            written = await done
    assert written == (0 if phase in ("plain", "continue") else 1)
    assert seen == ["returns", "def", "async"]


async def test_callbacks_of_what_is_rolled_back_are_forgotten(engine: Engine) -> None:
    seen: list[str] = []

    @engine.job_type(backoff=0)
    async def write(job: Job[Number]) -> None:
        job.on_commit(lambda: seen.append(f"attempt {job.attempt}"))
        for phase in (job.prepare, job.finalize):
            with contextlib.suppress(ZeroDivisionError):
                async with phase():
                    job.on_commit(lambda: seen.append("rolled back"))
                    raise ZeroDivisionError
        if job.attempt == 1:
            raise ValueError("again")
        async with job.finalize():
            job.on_commit(lambda: seen.append("finalize"))

    async with engine.worker():
        await (await engine.start_sequence(write, Number(n=1))).result(timeout=10)
    assert seen == ["attempt 2", "finalize"]


async def test_callbacks_of_a_run_that_a_conflict_repeats_are_called_once(engine: Engine) -> None:
    seen: list[int] = []
    runs: list[int] = []

    @engine.job_type
    async def write(job: Job[Number]) -> None:
        runs.append(1)
        job.on_commit(lambda: seen.append(len(runs)))
        async with job.finalize():
            if len(runs) == 1:
                raise psycopg.errors.SerializationFailure("could not serialize access")

    async with engine.worker():
        await (await engine.start_sequence(write, Number(n=1))).result(timeout=10)
    assert (runs, seen) == ([1, 1], [2])


async def test_callbacks_of_a_run_that_ends_in_a_sleep_or_a_failure_are_forgotten(engine: Engine) -> None:
    seen: list[str] = []

    @engine.job_type
    async def nap(job: Job[Number]) -> None:
        job.on_commit(lambda: seen.append("nap"))
        await job.sleep(0.01)

    @engine.job_type(max_attempts=1)
    async def fail(job: Job[Number]) -> None:
        job.on_commit(lambda: seen.append("fail"))
        raise ValueError("no")

    async with engine.worker(poll_interval=60):
        slept = await engine.start_sequence(nap, Number(n=1))
        await engine.start_sequence(fail, Number(n=1))
        await slept.result(timeout=10)
    assert seen == ["nap"]


async def test_what_a_callback_raises_is_logged_and_changes_nothing(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def broken() -> None:
        raise RuntimeError("no mail")

    @engine.job_type
    async def write(job: Job[Number]) -> Number:
        async with job.prepare():
            job.on_commit(broken)
        job.on_commit(broken)
        job.on_commit(lambda: seen.append("the next one"))
        return job.input

    with caplog.at_level(logging.ERROR):
        async with engine.worker():
            assert (await (await engine.start_sequence(write, Number(n=3))).result(timeout=10)).n == 3
    assert [record.exc_info is not None for record in caplog.records if "on_commit" in record.message] == [True, True]
    assert seen == ["the next one"]


async def test_a_stopping_worker_lets_callbacks_end(engine: Engine) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        ended.set()

    @engine.job_type
    async def write(job: Job[Number]) -> None:
        job.on_commit(slow)

    async with engine.worker():
        await engine.start_sequence(write, Number(n=1))
        await begun.wait()
    assert ended.is_set()


async def test_a_callback_may_start_and_await_what_a_handler_may_not(engine: Engine) -> None:
    got: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def write(job: Job[Number]) -> Number:
        async def after() -> None:
            got.set_result((await (await engine.start_sequence(echo, Number(n=8))).result(timeout=10)).n)

        async with job.finalize():
            job.on_commit(after)
        return job.input

    async with engine.worker():
        await engine.start_sequence(write, Number(n=1))
        async with asyncio.timeout(10):
            assert await got == 8
