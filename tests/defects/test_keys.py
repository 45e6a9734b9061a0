"""Keys: one unfinished sequence of a key, however starts overlap. (Sequences of several jobs: tests/engine/test_dedup.py.)"""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg import AsyncConnection

from queuert_py import Engine, Job
from tests.defects.kit import Connection, Number, one, until_blocked


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_two_concurrent_starts_with_one_key_do_not_insert_two(engine: Engine, db: Connection, dsn: str, end: str) -> None:
    """Queuert: each looked for the key, neither saw the other's row, and both inserted.

    Here the first has inserted and not committed while the second one starts: it has to wait for the fate of the first.
    """

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    await engine.open()
    async with await AsyncConnection.connect(dsn, autocommit=True) as caller:
        async with caller.transaction() as transaction:
            first = await engine.start_sequence(note, Number(n=1), key="k", tx=caller)
            starting = asyncio.create_task(engine.start_sequence(note, Number(n=2), key="k"))
            await until_blocked(db, unless=starting)
            if end == "rollback":
                raise psycopg.Rollback(transaction)
        second = await starting
    assert await one(db, "select count(*) from queuert.live_job where key = 'k'") == 1
    assert (second.id == first.id, second.deduplicated) == ((True, True) if end == "commit" else (False, False))
