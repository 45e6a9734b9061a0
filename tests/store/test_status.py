"""The view `job` derives the same status as decisions.status, for every combination; the view `sequence` shows the current or last job."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import UUID

import psycopg
import pytest

from queuert_py.decisions.status import live_status

Connection = psycopg.AsyncConnection[Any]
LIVE = """
    insert into queuert.live_job (sequence_id, job_id, root_id, sequence_type, type, run_at, input, leased_by, leased_until,
        open_blockers, position)
    values (%(id)s, %(id)s, %(id)s, 'first', 't', clock_timestamp() + %(due)s::interval, '{"n": 2}', %(worker)s,
        case when %(worker)s::text is not null then clock_timestamp() + %(lease)s::interval end, %(blockers)s, %(position)s)
"""
FINISHED = """
    insert into queuert.finished_job (lane, sequence_id, position, job_id, root_id, sequence_type, type, queue, priority, run_at, input,
        outcome, output, attempt, crash_count, epoch, blocker_count, created_at, sequence_created_at, finished_at)
    values (0, %(id)s, %(position)s, %(id)s, %(id)s, 'first', 't', 'default', 0, clock_timestamp(), '{"n": 1}', %(outcome)s, %(output)s,
        1, 0, 1, 0, clock_timestamp(), clock_timestamp(), clock_timestamp())
"""
ID = UUID(int=7)


async def shown(db: Connection, view: str, columns: str = "status") -> list[tuple[Any, ...]]:
    cursor = await db.execute(f"select {columns} from queuert.{view} order by 1".encode())
    return await cursor.fetchall()


def live(**row: object) -> dict[str, object]:
    return {"id": ID, "due": "-1 hour", "worker": None, "lease": "1 hour", "blockers": 0, "position": 0, **row}


@pytest.mark.parametrize(
    ("worker", "lease", "blockers", "due"),
    [*itertools.product([None, "w"], ["1 hour", "-1 hour"], [0, 1, 2], ["-1 hour", "0 s", "1 hour"])],
)
async def test_a_live_rows_status(db: Connection, worker: str | None, lease: str, blockers: int, due: str) -> None:
    await db.execute(LIVE, live(worker=worker, lease=lease, blockers=blockers, due=due))
    expected = live_status(leased=worker is not None, open_blockers=blockers, due=due != "1 hour")
    assert await shown(db, "job") == [(expected,)]
    assert await shown(db, "sequence") == [(expected,)]


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled", "expired"])
async def test_a_finished_jobs_status_is_its_outcome(db: Connection, outcome: str) -> None:
    await db.execute(FINISHED, {"id": ID, "position": 0, "outcome": outcome, "output": '{"n": 3}'})
    assert await shown(db, "job") == [(outcome,)]
    assert await shown(db, "sequence", "status, steps, input, output") == [(outcome, 1, {"n": 1}, {"n": 3})]


async def test_a_sequence_shows_the_input_of_its_first_job_and_the_rest_of_its_current_one(db: Connection) -> None:
    await db.execute(FINISHED, {"id": ID, "position": 0, "outcome": "continued", "output": None})
    await db.execute(LIVE, live(position=1))
    assert await shown(db, "job", "position, status") == [(0, "continued"), (1, "pending")]
    assert await shown(db, "sequence", "status, steps, input, output, type, current_type") == [("pending", 2, {"n": 1}, None, "first", "t")]


async def test_a_sequence_that_has_ended_shows_its_last_job(db: Connection) -> None:
    for position, outcome in enumerate(["continued", "continued", "completed"]):
        await db.execute(FINISHED, {"id": ID, "position": position, "outcome": outcome, "output": f'{{"n": {position}}}'})
    assert await shown(db, "sequence", "status, steps, input, output") == [("completed", 3, {"n": 1}, {"n": 2})]


async def test_an_unknown_outcome_cannot_be_stored(db: Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await db.execute(FINISHED, {"id": ID, "position": 0, "outcome": "lost", "output": None})
