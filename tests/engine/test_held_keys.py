"""Keys that somebody's open transaction holds: a start waits for it, but not for ever, and then nothing is started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Engine, Job, JobType
from queuert_py.errors import SequenceBusyError
from queuert_py.postgres import starts
from tests.engine.kit import until_blocked

WAITING = "select count(*) from pg_stat_activity where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0"


class Note(BaseModel):
    text: str = ""


@pytest.fixture
def note(engine: Engine) -> JobType[Note, Note]:
    @engine.job_type("note")
    async def note(job: Job[Note]) -> Note:
        return job.input

    return note


@pytest.mark.parametrize("how", ["start", "batch", "run"])
async def test_a_key_that_stays_held_is_an_error_and_nothing_is_started(
    engine: Engine, note: JobType[Note, Note], dsn: str, db: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(starts, "DEADLINE", 0.05)
    health: list[object] = []
    async with engine, await AsyncConnection.connect(dsn) as holder:
        engine.health.on_change(health.append)
        await engine.start_sequence(note, Note(), key="k", tx=holder)
        start: dict[str, Callable[[], Awaitable[object]]] = {
            "start": lambda: engine.start_sequence(note, Note(), key="k"),
            "batch": lambda: engine.start_sequences([note(Note(), key="a"), note(Note(), key="k")]),
            "run": lambda: engine.run(note, Note(), key="k"),
        }
        with pytest.raises(SequenceBusyError, match=r"keys? .*'k' is being started, .*: commit it or roll it back"):
            await start[how]()
        assert await (await db.execute(WAITING)).fetchone() == (0,), "nobody is left behind to start it later"
        await holder.rollback()
        assert await engine.list_sequences() == []
        assert not (await engine.start_sequence(note, Note(), key="k")).deduplicated
    assert health == [], "the database is well"


async def test_a_key_that_is_let_go_in_time_is_started(
    engine: Engine, note: JobType[Note, Note], dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "DEADLINE", 0.05)
    async with engine, await AsyncConnection.connect(dsn) as holder:
        await engine.start_sequence(note, Note(), key="k", tx=holder)
        starting = asyncio.create_task(engine.start_sequence(note, Note(), key="k"))
        await until_blocked(engine)
        await holder.rollback()
        assert not (await starting).deduplicated


async def test_retries_and_starts_meet_keys_in_one_order(engine: Engine, dsn: str) -> None:
    """A retry of two waits for the first of their keys without holding the second, though it belongs to the older sequence."""
    fails = [True]

    @engine.job_type(max_attempts=1)
    async def note(job: Job[Note]) -> None:
        if fails:
            raise LookupError

    async with engine, await AsyncConnection.connect(dsn) as other:
        failed = [await engine.start_sequence(note, Note(), key=key) for key in "ba"]
        async with engine.worker(drain=True):
            pass
        await engine.start_sequence(note, Note(), key="a", tx=other)
        retrying = asyncio.create_task(engine.retry_sequences([each.id for each in failed]))
        await until_blocked(engine)
        await other.execute("set local lock_timeout = '200ms'")
        await engine.start_sequence(note, Note(), key="b", tx=other)
        await other.commit()
        assert set((await retrying).values()) == {"key_taken"}
