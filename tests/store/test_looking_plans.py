"""Every filter of the lists reads by an index that is made for it, with the planner as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncClientCursor

from queuert_py.looking import JobFilters, SequenceFilters, checked
from queuert_py.postgres.calls import Call
from queuert_py.postgres.store import Store
from tests.store.test_plans import kinds, nodes

Connection = psycopg.AsyncConnection[Any]
ID = UUID(int=1)
OLD = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = """lane, sequence_id, job_id, root_id, sequence_type, type, queue, priority, run_at, input, attempt, crash_count, epoch, key,
    correlation_id, tags, blocker_count, created_at, sequence_created_at"""
VALUES = """0, id, id, case when n %% 1000 = 7 then '00000000-0000-0000-0000-000000000001'::uuid else id end,
    case when n between 100 and 110 then 'rare' else 'common' end, case when n between 100 and 110 then 'rare' else 'common' end,
    case when n between 100 and 110 then 'rare' else 'default' end, 0,
    '2026-01-01Z'::timestamptz + n * interval '1 s', repeat('{', 0)::text || '{}', 1, 0, 1,
    case when n %% 100 = 1 then n::text end, case when n %% 1000 = 2 then n::text end,
    case when n %% 1000 = 3 then array['t' || n] end, 0,
    '2026-01-01Z'::timestamptz + n * interval '1 s', '2026-01-01Z'::timestamptz + n * interval '1 s'"""
MADE = "generate_series(1, %(rows)s) n, lateral (select (lpad(to_hex(n), 8, '0') || right(md5(n || %(salt)s), 24))::uuid as id) made"
LIVE = f"""
    insert into queuert.live_job ({COLUMNS}, open_blockers, leased_by, leased_until)
    select {VALUES.replace("repeat('{', 0)::text || '{}'", "'{}'::jsonb")}, case when n %% 500 = 4 then 1 else 0 end,
        case when n %% 500 = 5 then 'w' end, case when n %% 500 = 5 then clock_timestamp() end from {MADE}
"""
FINISHED = f"""
    insert into queuert.finished_job ({COLUMNS}, finished_by, outcome, finished_at, position)
    select {VALUES.replace("repeat('{', 0)::text || '{}'", "'{}'::jsonb")}, 'w' || n / 200,
        case n %% 1000 when 11 then 'failed' when 12 then 'cancelled' when 13 then 'expired' else 'completed' end,
        '2026-01-01Z'::timestamptz + n * interval '1 s', 0 from {MADE}
"""


@pytest.fixture(scope="module")
def filled(database: str) -> Iterator[str]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(LIVE.encode(), {"rows": 20_000, "salt": "live"})
        connection.execute(FINISHED.encode(), {"rows": 40_000, "salt": "finished"})
        connection.execute("vacuum analyze queuert.live_job")
        connection.execute("vacuum analyze queuert.finished_job")
        try:
            yield database
        finally:
            for table in ("live_job", "finished_job"):
                connection.execute(f"truncate queuert.{table}".encode())
                connection.execute(f"vacuum analyze queuert.{table}".encode())


@pytest.fixture
async def connection(filled: str) -> AsyncIterator[Connection]:
    """As a user's pool has them."""
    async with await psycopg.AsyncConnection.connect(filled, autocommit=True) as connection:
        yield connection


async def plan(connection: Connection, call: Call[Any], how: str = "") -> list[Any]:
    """The plan for the very values of the call."""
    assert not call.prepared
    async with AsyncClientCursor(connection) as cursor:
        await cursor.execute(f"explain ({how}format json) ".encode() + call.sql, call.parameters)
        row = await cursor.fetchone()
    assert row is not None
    return list(nodes(row[0][0]["Plan"]))


def sequences(**filters: Any) -> Call[Any]:
    return Store("queuert").list_sequences(checked(filters, SequenceFilters), limit=101, after=None)


def jobs(**filters: Any) -> Call[Any]:
    return Store("queuert").find_jobs(checked(filters, JobFilters), limit=101, after=None, position=None)


KEY, PAST = "live_job_pkey", "finished_job_pkey"
# What is asked for, and the indexes by which live and finished jobs are found (None: that table is not looked at).
TABLE: list[tuple[dict[str, Any], str | None, str | None]] = [
    ({}, KEY, PAST),
    ({"status": "running"}, "live_job_leased", None),
    ({"status": "blocked"}, "live_job_blocked", None),
    ({"status": "failed"}, None, "finished_job_failed"),
    ({"reason": "timeout"}, None, "finished_job_failed"),
    ({"status": "cancelled"}, None, "finished_job_stopped"),
    ({"status": "expired"}, None, "finished_job_stopped"),
    ({"status": "completed"}, None, PAST),
    ({"key": "101"}, "live_job_key", "finished_job_key"),
    ({"key": "101", "type": "common"}, "live_job_key", "finished_job_key"),
    ({"correlation_id": "1002"}, "live_job_correlation", "finished_job_correlation"),
    ({"tag": "t1003"}, "live_job_tags", "finished_job_tags"),
    ({"root_id": ID}, "live_job_tree", "finished_job_tree"),
    ({"type": "rare", "status": "completed"}, None, "finished_job_kind"),
    ({"queue": "rare", "status": "completed"}, None, "finished_job_kind"),
    ({"created_after": OLD, "created_before": OLD + timedelta(minutes=10), "status": "completed"}, None, "finished_job_kind"),
    ({"finished_after": OLD, "finished_before": OLD + timedelta(minutes=10)}, None, "finished_job_time"),
    ({"worker": "w7", "status": "completed"}, None, "finished_job_kind"),
    ({"worker": "none"}, "live_job_leased", "finished_job_kind"),
    ({"queue": "rare", "status": "pending"}, "live_job_ready", None),
]


def name_of(value: object) -> str | None:
    return "+".join(cast("dict[str, Any]", value)) if isinstance(value, dict) else None


@pytest.mark.parametrize(("filters", "live", "finished"), TABLE, ids=name_of)
@pytest.mark.parametrize("make", [sequences, jobs])
async def test_a_filter_is_read_by_its_index(
    connection: Connection, make: Any, filters: dict[str, Any], live: str | None, finished: str | None
) -> None:
    if "key" in filters if make is jobs else "worker" in filters:
        pytest.skip("jobs are not found by key, nor sequences by worker")
    found = await plan(connection, make(**filters))
    scans = {kind for table in ("live_job", "finished_job") for kind, _ in kinds(found, table)}
    assert scans <= {"Index Scan"}, scans
    assert {index for _, index in kinds(found, "live_job")} == {KEY, *([live] if live else [])}
    assert {index for _, index in kinds(found, "finished_job")} >= {PAST, *([finished] if finished else [])}


async def test_a_page_is_read_in_order_and_ends_at_its_limit(connection: Connection) -> None:
    found = await plan(connection, sequences(), "analyze, ")
    walked = {node["Index Name"]: node["Actual Rows"] for node in found if node.get("Scan Direction") == "Backward"}
    assert walked == {KEY: 101, PAST: 101}


async def test_a_later_page_costs_no_more_than_the_first(connection: Connection) -> None:
    async def read(after: UUID | None) -> int:
        call = Store("queuert").list_sequences(checked({}, SequenceFilters), limit=101, after=after)
        top = (await plan(connection, call, "analyze, buffers, "))[0]
        return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])

    first = await read(None)
    assert await read(UUID("00001000-0000-0000-0000-000000000000")) <= first * 1.5


async def test_watchers_read_by_the_time_only_what_is_new(connection: Connection) -> None:
    filters = dict.fromkeys(("sequence_id", "type", "queue", "tag", "correlation_id"))
    place = (datetime(2026, 1, 1, 11, tzinfo=UTC), UUID(int=0), -1, "")
    call = Store("queuert").list_news({**filters, "kinds": ["completed"], "lane": 0}, place=place, until=None, limit=1000)
    found = await plan(connection, call)
    assert {index for _, index in kinds(found, "finished_job")} >= {"finished_job_time"}
    assert "Seq Scan" not in {kind for kind, _ in kinds(found, "finished_job")}


async def test_a_page_of_a_long_past_does_not_read_what_follows_it(connection: Connection) -> None:
    filters = dict.fromkeys(("sequence_id", "type", "queue", "tag", "correlation_id"))
    place = (datetime(2026, 1, 1, 1, tzinfo=UTC), UUID(int=0), -1, "")
    until = place[0] + timedelta(minutes=20)
    call = Store("queuert").list_news({**filters, "kinds": ["completed"], "lane": 0}, place=place, until=until, limit=1000)
    heap = next(node for node in await plan(connection, call, "analyze, ") if node["Node Type"] == "Bitmap Heap Scan")
    assert heap["Actual Rows"] + heap.get("Rows Removed by Index Recheck", 0) < 20_000, "of 40,000"
