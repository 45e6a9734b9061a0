"""A claim takes its rows, in order, and locks no other, whatever the planner prefers."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from queuert_py.postgres.database import Database
from queuert_py.postgres.store import Store
from tests.store.samples import ID, claim

FILL = """
    insert into queuert.live_job (sequence_id, job_id, root_id, sequence_type, type, queue, priority, run_at, input, attempt)
    select id, id, id, 't', case when n %% 5 = 0 then 'other' else 't' end, case when n %% 2 = 0 then 'a' else 'b' end, n %% 3,
        clock_timestamp() - n * interval '1 second', '{}', 0
    from generate_series(1, %(rows)s) n, lateral (select md5(n::text)::uuid as id) made
"""
SCANS = [f'{{"lane":0,"queue":"{queue}","priority":{priority},"since":"-infinity"}}' for queue in "ab" for priority in (2, 1, 0)]
STORE = Store("queuert")
Connection = psycopg.AsyncConnection[Any]


async def fill(db: Connection, rows: int = 300) -> None:
    await db.execute(FILL, {"rows": rows})


async def lockable(db: Connection) -> int:
    """How many rows nobody holds."""
    cursor = await db.execute("select count(*) from (select from queuert.live_job for no key update skip locked) free")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    "toggles",
    [
        (),
        ("enable_seqscan",),
        ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"),
        ("enable_indexscan", "enable_indexonlyscan"),
        ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan"),
        ("enable_bitmapscan",),
        ("enable_nestloop",),
        ("enable_material", "enable_memoize"),
        ("enable_sort", "enable_incremental_sort"),
        ("enable_hashjoin", "enable_nestloop"),
    ],
    ids=lambda toggles: " ".join(toggles) or "defaults",
)
@pytest.mark.parametrize("limit", [1, 7, 60])
async def test_a_claim_locks_no_more_rows_than_its_limit(db: Connection, dsn: str, toggles: tuple[str, ...], limit: int) -> None:
    await fill(db)
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        for toggle in toggles:
            await other.execute(f"set {toggle} = off".encode())
        claimed = await claim(STORE, SCANS, limit=limit).on(other)
        assert len(claimed) == limit
        assert await lockable(db) == 300 - limit


async def test_two_claims_at_once_take_different_rows_and_wait_for_nothing(db: Connection, dsn: str) -> None:
    await fill(db)
    async with await psycopg.AsyncConnection.connect(dsn) as one, await psycopg.AsyncConnection.connect(dsn) as two:
        await two.execute("set lock_timeout = '2s'")
        first = await claim(STORE, SCANS, limit=20).on(one)
        second = await claim(STORE, SCANS, limit=20).on(two)
        assert len({row.sequence_id for row in [*first, *second]}) == 40


async def test_jobs_come_by_the_order_of_the_scans_then_by_run_at(db: Connection, dsn: str) -> None:
    await fill(db)
    async with await Database(dsn).connect("claim") as own:
        claimed = await claim(STORE, SCANS, limit=30).on(own)
    assert {row.queue for row in claimed} == {"a"}, "the first queue had enough"
    assert {row.priority for row in claimed} == {2}, "and its highest priority"
    latest = max(row.run_at for row in claimed)
    cursor = await db.execute(
        "select min(run_at) from queuert.live_job where leased_by is null and queue = 'a' and priority = 2 and type = 't'"
    )
    row = await cursor.fetchone()
    assert row is not None
    assert latest < row[0], "the longest waiting first"


async def test_only_what_is_ready_and_of_a_type_the_worker_has_is_claimed(db: Connection) -> None:
    await fill(db, rows=60)
    await db.execute("update queuert.live_job set open_blockers = 1 where queue = 'a' and priority = 1")
    await db.execute("update queuert.live_job set run_at = clock_timestamp() + interval '1 hour' where queue = 'b' and priority = 2")
    await db.execute("update queuert.live_job set leased_by = 'x', leased_until = clock_timestamp() where queue = 'b' and priority = 0")
    claimed = await claim(STORE, SCANS, limit=1000).on(db)
    assert {(row.queue, row.priority) for row in claimed} == {("a", 2), ("a", 0), ("b", 1)}
    assert {row.type for row in claimed} == {"t"}
    assert await claim(STORE, SCANS, limit=1000).on(db) == []


async def test_a_paused_queue_is_passed_by(db: Connection) -> None:
    await fill(db, rows=60)
    await db.execute("insert into queuert.queue (name, paused) values ('a', true)")
    assert {row.queue for row in await claim(STORE, SCANS, limit=1000).on(db)} == {"b"}


async def test_a_claim_counts_an_attempt_and_only_what_fits_in_the_slots_has_begun(db: Connection) -> None:
    await fill(db, rows=60)
    claimed = await claim(STORE, SCANS, limit=10, slots=4).on(db)
    assert {row.attempt for row in claimed} == {1}
    assert sum(row.begun for row in claimed) == 4
    cursor = await db.execute("select count(*), min(leased_until) > clock_timestamp() from queuert.live_job where leased_by = 'w'")
    assert await cursor.fetchone() == (10, True)


async def test_a_suspect_does_not_begin_before_it_is_marked(db: Connection) -> None:
    await fill(db, rows=6)
    await db.execute("update queuert.live_job set crash_count = 2")
    assert not any(row.begun for row in await claim(STORE, SCANS, limit=10).on(db))


async def test_a_claim_given_back_is_as_it_was(db: Connection) -> None:
    await fill(db, rows=60)
    before = await (await db.execute("select sequence_id, attempt, run_at, leased_by from queuert.live_job order by 1")).fetchall()
    claimed = await claim(STORE, SCANS, limit=10).on(db)
    assert await STORE.release_claim("w", UUID(int=0)).on(db) == [], "another claim's token"
    released = await STORE.release_claim("w", ID).on(db)
    assert len(released) == len(claimed)
    after = await (await db.execute("select sequence_id, attempt, run_at, leased_by from queuert.live_job order by 1")).fetchall()
    assert after == before
