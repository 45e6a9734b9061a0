"""`job.progress`, `job.log`, `job.state`: what a running job tells."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, continue_with
from queuert_py.errors import UsageError
from queuert_py.postgres.database import Link
from queuert_py.postgres.rows import progress_row
from queuert_py.runtime.aside import Progress
from tests.store.samples import claim


class Number(BaseModel):
    n: int


async def heard(dsn: str, count: int, ready: asyncio.Event) -> list[str]:
    """The next hints about progress."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("listen queuert_queuert")
        ready.set()
        hints: list[str] = []
        async with asyncio.timeout(10):
            async for notify in connection.notifies():
                if notify.payload.startswith("g:"):
                    hints.append(notify.payload)
                if len(hints) == count:
                    break
        return hints


async def test_progress_can_be_read_while_the_job_runs_and_is_100_when_it_has_completed(engine: Engine, dsn: str) -> None:
    go_on = asyncio.Event()

    @engine.job_type
    async def work(job: Job[Number]) -> None:
        await job.progress(30, "a third")
        await go_on.wait()

    ready = asyncio.Event()
    hints = asyncio.create_task(heard(dsn, 1, ready))
    await ready.wait()
    async with engine.worker():
        sequence = await engine.start_sequence(work, Number(n=1))
        assert await hints == [f"g:{sequence.id}"]
        assert (await engine.get_sequence(sequence.id)).progress == {"percent": 30, "message": "a third"}
        assert [job.progress for job in await engine.list_jobs(sequence.id)] == [{"percent": 30, "message": "a third"}]
        go_on.set()
        await sequence.result(timeout=10)
    assert (await engine.get_sequence(sequence.id)).progress == {"percent": 100}


async def test_of_many_reports_the_latest_is_written(engine: Engine, dsn: str) -> None:
    """A loop that reports all the time costs one statement a second, for all jobs of the worker."""
    go_on = asyncio.Event()

    @engine.job_type
    async def work(job: Job[Number]) -> None:
        for percent in range(1000):
            await job.progress(percent / 10)
        await asyncio.sleep(0)
        await job.progress(99.95)
        await go_on.wait()

    ready = asyncio.Event()
    hints = asyncio.create_task(heard(dsn, 2, ready))
    await ready.wait()
    async with engine.worker():
        sequence = await engine.start_sequence(work, Number(n=1))
        await hints
        assert (await engine.get_sequence(sequence.id)).progress == {"percent": 99.95}
        go_on.set()
        await sequence.result(timeout=10)


async def test_what_is_beyond_0_and_100_is_cut_and_what_is_no_number_refused(engine: Engine, dsn: str) -> None:
    seen: list[Any] = []
    ready = asyncio.Event()
    hints = asyncio.create_task(heard(dsn, 1, ready))
    await ready.wait()

    @engine.job_type
    async def work(job: Job[Number]) -> None:
        for wrong in (float("nan"), "50", True):
            with pytest.raises(UsageError, match="a number from 0 to 100"):
                await job.progress(wrong)  # type: ignore[arg-type]
        await job.progress(-5)
        await job.progress(500, "x\x00" * 1000)
        await hints
        seen.append((await engine.get_sequence(job.sequence_id)).progress)

    async with engine.worker():
        await (await engine.start_sequence(work, Number(n=1))).result(timeout=10)
    assert seen[0]["percent"] == 100
    assert len(seen[0]["message"]) == 500


async def test_progress_inside_a_phase_waits_for_nothing(engine: Engine) -> None:
    """The handler's own transaction holds the row; the report is tried again beside it."""

    @engine.job_type
    async def work(job: Job[Number]) -> Number:
        async with job.finalize():
            async with asyncio.timeout(20):
                for percent in range(3):
                    await job.progress(percent)
            return job.input

    async with engine.worker():
        await (await engine.start_sequence(work, Number(n=1))).result(timeout=10)


async def test_progress_of_a_row_that_is_locked_is_written_later(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    """A handler's own transaction holds its row; what is told meanwhile is written by the next round, and no connection waits for it."""

    @engine.job_type
    async def work(job: Job[Number]) -> None: ...

    async with engine:
        store = engine.database.store
        await engine.start_sequence(work, Number(n=1))
        (row,) = await claim(store, ['{"lane":0,"queue":"default","priority":0,"since":"-infinity"}'], types=["work"]).on(db)
        rounds: asyncio.Queue[list[str]] = asyncio.Queue()
        link = Link(engine.database, "settle")
        progress = Progress(store, link, lambda job: job is row, lambda ids: rounds.put_nowait(list(ids)))
        async with asyncio.timeout(10):
            async with db.transaction():
                await db.execute("select from queuert.live_job for no key update")
                progress.put(row, '{"percent":1}')
                assert await rounds.get() == []
            assert await rounds.get() == [row.sequence_id]
        await progress.stop()
        await link.close()


async def test_the_next_job_of_a_sequence_begins_without_progress(engine: Engine, dsn: str) -> None:
    seen: list[Any] = []
    ready = asyncio.Event()
    hints = asyncio.create_task(heard(dsn, 1, ready))
    await ready.wait()

    @engine.job_type
    async def second(job: Job[Number]) -> None:
        seen.append((await engine.get_sequence(job.sequence_id)).progress)

    @engine.job_type
    async def first(job: Job[Number]) -> Continuation[None]:
        await job.progress(50)
        await hints
        seen.append((await engine.get_sequence(job.sequence_id)).progress)
        return continue_with(second, job.input)

    async with engine.worker():
        await (await engine.start_sequence(first, Number(n=1))).result(timeout=10)
    assert seen == [{"percent": 50}, None]


async def test_progress_is_written_without_touching_an_index(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    @engine.job_type
    async def work(job: Job[Number]) -> None: ...

    async with engine:
        store = engine.database.store
        await db.execute("truncate queuert.live_job")  # an empty page: room for all the versions of one transaction
        await engine.start_sequence(work, Number(n=1))
        (row,) = await claim(store, ['{"lane":0,"queue":"default","priority":0,"since":"-infinity"}'], types=["work"]).on(db)
        count = "select n_tup_upd - n_tup_hot_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relid = 'queuert.live_job'::regclass"
        async with db.transaction():
            before = await (await db.execute(count)).fetchone()
            for percent in range(5):
                assert await store.save_progress([progress_row(row, f'{{"percent":{percent}}}')]).on(db) == [row.sequence_id]
            after = await (await db.execute(count)).fetchone()
    assert before is not None
    assert after == (before[0], before[1] + 5)


async def test_a_job_logs_with_its_ids(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    @engine.job_type
    async def work(job: Job[Number]) -> None:
        job.log.info("page %d", 3, extra={"order": 5})

    with caplog.at_level(logging.INFO, "queuert_py.job"):
        async with engine.worker():
            sequence = await engine.start_sequence(work, Number(n=1))
            await sequence.result(timeout=10)
    (record,) = [each for each in caplog.records if each.name == "queuert_py.job"]
    assert record.getMessage() == "page 3"
    known = {name: getattr(record, name) for name in ("job_id", "sequence_id", "job_type", "attempt", "order")}
    assert known == {"job_id": str(sequence.id), "sequence_id": str(sequence.id), "job_type": "work", "attempt": 1, "order": 5}


async def test_each_attempt_has_a_state_of_its_own(engine: Engine) -> None:
    seen: list[dict[str, Any]] = []

    @engine.job_type(backoff=0)
    async def work(job: Job[Number]) -> None:
        seen.append(dict(job.state))
        job.state["attempt"] = job.attempt
        seen.append(job.state)
        if job.attempt == 1:
            raise ValueError("again")

    async with engine.worker():
        await (await engine.start_sequence(work, Number(n=1))).result(timeout=10)
    assert seen == [{}, {"attempt": 1}, {}, {"attempt": 2}]
