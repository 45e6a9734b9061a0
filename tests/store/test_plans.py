"""The plans of the hot statements, pinned: with the engine's own session settings, over 20,000 live and 20,000 finished rows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from hashlib import md5
from typing import Any, TypeAlias, cast

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection

from queuert_py.postgres import rows
from queuert_py.postgres.calls import Call
from queuert_py.postgres.database import Database
from queuert_py.postgres.store import Store
from queuert_py.values import Ending, Step, Suspend
from tests.store.samples import ID, LEASE, claim, live_job

ROWS = 20_000
FILL = """
    insert into queuert.live_job (lane, sequence_id, job_id, root_id, sequence_type, type, queue, priority, run_at, input,
        leased_by, leased_at, leased_until, open_blockers, key)
    select 0, id, id, id, 't', 't', case when n %% 4 = 0 then 'tomorrow' when n %% 3 = 0 then 'other' else 'default' end, n %% 2,
        clock_timestamp() + case n %% 4 when 0 then interval '1 day' else interval '-1 hour' end, '{}',
        w, case when w is not null then clock_timestamp() end, case when w is not null then clock_timestamp() + interval '1 hour' end,
        case n %% 50 when 1 then 1 else 0 end, case n %% 10 when 2 then n::text end
    from generate_series(1, %(rows)s) n, lateral (select md5(n::text)::uuid as id, case n %% 40 when 3 then 'w' || n %% 7 end as w) made
"""
FINISHED = """
    insert into queuert.finished_job (lane, sequence_id, position, job_id, root_id, sequence_type, type, queue, priority, run_at, input,
        outcome, attempt, crash_count, epoch, blocker_count, created_at, sequence_created_at, finished_at)
    select 0, id, 0, id, id, 't', 't', 'default', 0, clock_timestamp(), '{}', 'completed', 1, 0, 1, 0, clock_timestamp(), clock_timestamp(),
        clock_timestamp()
    from generate_series(1, %(rows)s) n, lateral (select md5('finished' || n)::uuid as id) made
"""
EDGES = """
    insert into queuert.job_blocker (blocker_lane, blocker_id, lane, sequence_id, position, ordinal)
    select 0, gen_random_uuid(), 0, gen_random_uuid(), 0, 0 from generate_series(1, %(rows)s)
"""
SCANS = ['{"lane":0,"queue":"default","priority":1,"since":"-infinity"}', '{"lane":0,"queue":"default","priority":0,"since":"-infinity"}']
JOB = live_job()
STEP = Step(str(ID), "t", None, "{}", None, None, None, None, None)


@pytest.fixture(scope="module", params=[True, False], ids=["analyzed", "fresh"])
def filled(request: pytest.FixtureRequest, database: str) -> Iterator[str]:
    """The database with rows in it, made for this module; `fresh`: without statistics, as after a bulk load into a new table."""

    tables = ("live_job", "finished_job", "job_blocker")
    with psycopg.connect(database, autocommit=True) as connection:
        for table in tables:
            connection.execute(f"alter table queuert.{table} set (autovacuum_enabled = off)".encode())
        try:
            for statement in (FILL, FINISHED, EDGES):
                connection.execute(statement.encode(), {"rows": ROWS})
            if request.param:
                connection.execute("analyze queuert.live_job, queuert.finished_job, queuert.job_blocker")
            yield database
        finally:
            for table in tables:
                connection.execute(f"truncate queuert.{table}".encode())
                connection.execute(f"alter table queuert.{table} reset (autovacuum_enabled)".encode())
                connection.execute(f"vacuum analyze queuert.{table}".encode())


@pytest.fixture
async def connection(filled: str) -> AsyncIterator[AsyncConnection[Any]]:
    """As the engine makes its own connections."""
    connection = await Database(filled).connect("plans")
    try:
        yield connection
    finally:
        await connection.close()


STORE = Store("queuert")
Scans: TypeAlias = set[tuple[str, str | None]]
BY_KEY: Scans = {("Index Scan", "live_job_pkey")}
BY_POSITION: Scans = {("Index Scan", "finished_job_pkey")}
NONE: Scans = set()


async def plan_of(connection: AsyncConnection[Any], call: Call[Any]) -> list[Mapping[str, Any]]:
    """The nodes of the plan that the connection uses for a prepared statement."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", call.sql.decode())))
    text = re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", call.sql.decode())
    await connection.execute(f"prepare pinned as {text}".encode())
    try:
        async with AsyncClientCursor(connection) as cursor:
            marks = ", ".join(f"%({name})s" for name in names)
            await cursor.execute(f"explain (format json, verbose) execute pinned ({marks})".encode(), call.parameters)
            row = await cursor.fetchone()
    finally:
        await connection.execute("deallocate pinned")
    assert row is not None
    return list(nodes(row[0][0]["Plan"]))


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in cast("Sequence[Mapping[str, Any]]", plan.get("Plans", ())):
        yield from nodes(child)


def kinds(plan: Sequence[Mapping[str, Any]], relation: str) -> Scans:
    """How a table is read: the kind of scan and the index. By an index is by an index, through a bitmap or not."""
    found: Scans = set()
    for node in plan:
        if node.get("Relation Name") != relation or "Scan" not in node["Node Type"]:
            continue
        if node["Node Type"] == "Bitmap Heap Scan":
            found |= {("Index Scan", each["Index Name"]) for each in nodes(node) if each["Node Type"] == "Bitmap Index Scan"}
        else:
            found.add((node["Node Type"].replace("Index Only", "Index"), node.get("Index Name")))
    return found


# Name: the statement, and how it reads live_job and finished_job.
TABLE: Sequence[tuple[str, Call[Any], Scans, Scans]] = [
    ("claim_jobs", claim(STORE, SCANS), {("Index Scan", "live_job_ready"), ("Index Scan", "live_job_pkey")}, NONE),
    ("list_ready", STORE.list_ready(['{"lane":0,"queue":"default"}']), {("Index Scan", "live_job_ready")}, NONE),
    ("finish_jobs", STORE.finish_jobs([rows.finish_row(JOB, "{}", "A")]), BY_KEY, NONE),
    ("end_jobs", STORE.end_jobs([rows.end_row(JOB, Ending("completed"))]), BY_KEY, NONE),
    ("finish_steps", STORE.finish_steps([rows.step_row(JOB, STEP, handoff=False)]), BY_KEY, NONE),
    (
        "advance_jobs",
        STORE.advance_jobs([rows.step_row(JOB, STEP, handoff=False)], LEASE),
        BY_KEY,
        BY_POSITION,
    ),
    ("renew_leases", STORE.renew_leases([rows.held_row(JOB, True)], LEASE), BY_KEY, NONE),
    ("suspend_jobs", STORE.suspend_jobs([rows.suspend_row(JOB, Suspend("e", event=True))]), BY_KEY, NONE),
    ("save_memo", STORE.save_memo(JOB, "steps", "s", "{}"), BY_KEY, NONE),
    ("save_progress", STORE.save_progress([rows.progress_row(JOB, "{}")]), BY_KEY, NONE),
    ("send_event", STORE.send_event(0, str(ID), "e", "{}"), BY_KEY, NONE),
    ("read_event", STORE.read_event(0, str(ID), "e"), BY_KEY, NONE),
    ("lock_lost", STORE.lock_lost(["w1"], 100), {("Index Scan", "live_job_leased"), *BY_KEY}, NONE),
    ("mark_watched", STORE.mark_watched([rows.sequence_row(str(ID), 0)]), BY_KEY, NONE),
    ("lock_jobs", STORE.lock_jobs([rows.sequence_row(str(ID), 0)]), BY_KEY, NONE),
    ("lock_free", STORE.lock_free([rows.sequence_row(str(ID), 0)]), BY_KEY, NONE),
    ("fence_job", STORE.fence_job(JOB), BY_KEY, NONE),
    ("assert_written", STORE.assert_written(JOB, "1"), NONE, BY_POSITION),
    ("unblock_jobs", STORE.unblock_jobs([rows.epoch_row(JOB)]), {("Index Scan", "live_job_blocked"), *BY_KEY}, BY_POSITION),
    (
        "read_results",
        STORE.read_results([rows.sequence_row(str(ID), 0)]),
        BY_KEY,
        BY_POSITION,
    ),
    ("read_fates", STORE.read_fates([rows.epoch_row(JOB)]), BY_KEY, BY_POSITION),
    ("undo_starts", STORE.undo_starts([rows.sequence_row(str(ID), 0)]), BY_KEY, BY_POSITION),
    ("find_keys", STORE.find_keys(['{"ordinal":0,"lane":0,"type":"t","key":"2"}']), {("Index Scan", "live_job_key")}, NONE),
]
HOT = {name: (call, live, finished) for name, call, live, finished in TABLE}


@pytest.mark.parametrize("name", HOT)
async def test_a_hot_statement_reads_by_its_indexes(connection: AsyncConnection[Any], name: str) -> None:
    call, live, finished = HOT[name]
    plan = await plan_of(connection, call)
    assert "Seq Scan" not in {
        node["Node Type"] for node in plan if node.get("Relation Name") in ("live_job", "finished_job", "job_blocker")
    }
    assert kinds(plan, "live_job") == live
    assert kinds(plan, "finished_job") == finished


async def test_the_claim_reads_the_ready_index_in_order_and_stops_at_its_limit(connection: AsyncConnection[Any]) -> None:
    plan = await plan_of(connection, claim(Store("queuert"), SCANS))
    assert "Sort" not in {node["Node Type"] for node in plan}
    scan = next(node for node in plan if node.get("Index Name") == "live_job_ready")
    for column in ("lane", "queue", "priority", "run_at >=", "run_at <="):
        assert column in scan["Index Cond"], "the clock and the hint are bounds of the index, not filters"
    assert "run_at" not in scan.get("Filter", "")
    locking = next(node for node in plan if node["Node Type"] == "LockRows")
    assert [child["Node Type"] for child in locking["Plans"]] == ["Index Scan"], "rows are locked as they are read"
    limits = [node for node in plan if node["Node Type"] == "Limit" and locking in node["Plans"]]
    assert len(limits) == 1, "and no more of them than the limit takes"


async def test_an_empty_claim_over_jobs_of_tomorrow_reads_nothing(connection: AsyncConnection[Any]) -> None:
    call = claim(Store("queuert"), ['{"lane":0,"queue":"tomorrow","priority":0,"since":"-infinity"}'])
    async with AsyncClientCursor(connection) as cursor:
        await cursor.execute(b"explain (analyze, buffers, format json) " + call.sql, call.parameters)
        row = await cursor.fetchone()
    assert row is not None
    scan = next(node for node in nodes(row[0][0]["Plan"]) if node.get("Index Name") == "live_job_ready")
    assert scan["Actual Rows"] == 0
    assert scan.get("Rows Removed by Filter", 0) == 0
    assert scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] < 20


async def test_looking_for_ready_work_probes_once_a_priority(connection: AsyncConnection[Any]) -> None:
    call = Store("queuert").list_ready(['{"lane":0,"queue":"default"}'])
    async with AsyncClientCursor(connection) as cursor:
        await cursor.execute(b"explain (analyze, format json) " + call.sql, call.parameters)
        row = await cursor.fetchone()
    assert row is not None
    read = sum(
        node["Actual Rows"] * node["Actual Loops"] for node in nodes(row[0][0]["Plan"]) if node.get("Index Name") == "live_job_ready"
    )
    assert read <= 2 * 2 + 1


FAN = """
    with dependent as (
        insert into queuert.live_job (lane, sequence_id, job_id, root_id, sequence_type, type, input, open_blockers)
        select 0, id, id, id, 't', 't', '{}', 1 from generate_series(1, %(many)s) n, lateral (select md5('fan' || n)::uuid as id) made
        returning sequence_id
    )
    insert into queuert.job_blocker (blocker_lane, blocker_id, lane, sequence_id, position, ordinal)
    select 0, md5('finished1')::uuid, 0, sequence_id, 0, 0 from dependent
"""


async def test_the_dependents_of_one_blocker_cost_the_same_each(connection: AsyncConnection[Any], request: pytest.FixtureRequest) -> None:
    if "fresh" in request.node.name:
        pytest.skip("without statistics the planner takes the index of what is blocked for a short one")
    many = 1000
    call = STORE.unblock_jobs([f'{{"lane":0,"sequence_id":"{md5(b"finished1").hexdigest()}"}}'])
    async with connection.transaction(force_rollback=True), AsyncClientCursor(connection) as cursor:
        await cursor.execute(FAN.encode(), {"many": many})
        await cursor.execute(b"explain (analyze, format json) " + call.sql, call.parameters)
        row = await cursor.fetchone()
    assert row is not None
    plan = list(nodes(row[0][0]["Plan"]))
    assert plan[0]["Node Type"] == "ModifyTable"
    assert sum(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"] for node in plan) <= many
    assert max(node["Actual Rows"] * node["Actual Loops"] for node in plan) <= 3 * many


@pytest.mark.parametrize("name", ["fence_job", "end_jobs", "finish_steps", "advance_jobs", "unblock_jobs", "assert_written"])
async def test_what_runs_in_a_handlers_transaction_needs_no_settings(
    connection: AsyncConnection[Any], name: str, request: pytest.FixtureRequest
) -> None:
    """The pool's connections are the users': their planner is left alone."""
    if "fresh" in request.node.name:
        pytest.skip("without statistics the planner guesses a small table; autovacuum tells it within a minute")
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "plan_cache_mode", "jit"):
        await connection.execute(f"reset {setting}".encode())
    call, _, _ = HOT[name]
    plan = await plan_of(connection, call)
    assert "Seq Scan" not in {node["Node Type"] for node in plan if node.get("Relation Name") in ("live_job", "finished_job")}
