"""Claiming: costs what it takes, delivers once, and what is run here is nobody else's for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from psycopg import AsyncClientCursor, AsyncConnection

from queuert_py import Engine, Job
from queuert_py.postgres.database import Database
from queuert_py.postgres.store import Store
from tests.defects.kit import TIMEOUT, Connection, Number, held, one, until_blocked
from tests.store.samples import claim

BACKLOG = 50_000
FILL = """
    insert into queuert.live_job (sequence_id, job_id, root_id, sequence_type, type, queue, priority, run_at, input)
    select id, id, id, 't', 't', 'q' || n %% 5, n %% 3, clock_timestamp() - n * interval '1 second', '{}'
    from generate_series(1, %s) n, lateral (select md5(n::text)::uuid as id) made
"""
SCANS = [f'{{"lane":0,"queue":"q{queue}","priority":{priority},"since":"-infinity"}}' for queue in range(5) for priority in (2, 1, 0)]
STORE = Store("queuert")


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in cast("Sequence[Mapping[str, Any]]", plan.get("Plans", ())):
        yield from nodes(child)


async def test_claiming_does_not_sort_the_whole_backlog(db: Connection, dsn: str) -> None:
    """Queuert: each claim read and sorted all that was pending, 9-40 ms at 50,000 jobs.

    Here the rows are counted that a claim of ten reads from a backlog of 50,000 in five queues of three priorities.
    """
    await db.execute(FILL.encode(), [BACKLOG])
    await db.execute("analyze queuert.live_job")
    connection = await Database(dsn).connect("claim")
    async with connection, connection.transaction(force_rollback=True), AsyncClientCursor(connection) as cursor:
        call = claim(STORE, SCANS, limit=10)
        await cursor.execute(b"explain (analyze, format json) " + call.sql, call.parameters)
        row = await cursor.fetchone()
    assert row is not None
    plan = list(nodes(row[0][0]["Plan"]))
    touched = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in plan
        if node.get("Relation Name") == "live_job" and "Scan" in node["Node Type"]
    )
    assert touched <= 2 * 10, "ten by the ready index, in its order, and the same ten by their key"
    assert not [node for node in plan if node["Node Type"] == "Sort"]


async def test_a_job_that_is_being_claimed_is_not_delivered_twice(db: Connection, dsn: str) -> None:
    """gravito: what to reserve was read outside of the transaction that reserved it, so two consumers could have the same job.

    Here the second claim comes while the first one has not committed.
    """
    await db.execute(FILL.encode(), [1])
    async with await AsyncConnection.connect(dsn) as first, await AsyncConnection.connect(dsn, autocommit=True) as second:
        delivered = await claim(STORE, SCANS).on(first)
        claiming = asyncio.create_task(claim(STORE, SCANS).on(second))
        await until_blocked(db, unless=claiming)
        await first.commit()
        delivered += await claiming
    assert len(delivered) == 1, "delivered once"
    assert await one(db, "select attempt from queuert.live_job") == 1


async def test_what_is_run_here_is_never_pending_for_a_worker_to_claim(engine: Engine, db: Connection, dsn: str) -> None:
    """tetrastack: `now()` inserted a pending row, then ran it: a worker that looked in between ran it as well.

    Here `run` has inserted its row and is held before it has its lease: nobody sees the row. (Against a busy worker elsewhere:
    tests/engine/test_run_here.py.)
    """
    ran: list[int] = []

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        ran.append(job.input.n)
        return job.input

    async with engine:
        await engine.run(note, Number(n=0))
        async with held(dsn, "lock table queuert.queue in access exclusive mode"):
            running = asyncio.create_task(engine.run(note, Number(n=1)))
            await until_blocked(db)
            claimable = await one(db, "select count(*) from queuert.live_job where leased_by is null")
        async with asyncio.timeout(TIMEOUT):
            await running
    assert claimable == 0, "between its insertion and its lease no worker sees it"
    assert ran == [0, 1]
