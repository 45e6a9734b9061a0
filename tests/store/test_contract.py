"""Every statement is prepared on the real server, through psycopg, as the Store calls it; its types are what the code relies on."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import tuple_row

from queuert_py.postgres.calls import Call
from queuert_py.postgres.store import Store, statements
from queuert_py.runtime.watching import Row
from queuert_py.values import AttemptRecord, JobRecord, LiveJob, SequenceRecord
from queuert_py.why import Standing
from tests.store.samples import SAMPLES

# Name: the parameters in the order of their first use, and the columns of the answer, each with its PostgreSQL type.
# An integer without a cast travels as the smallest type that holds it: "int" stands for all of them.
CONTRACT: Mapping[str, tuple[str, str]] = {
    "insert_sequences": ("rows jsonb", "sequence_id text"),
    "insert_or_join": ("rows jsonb", "sequence_id text, key text"),
    "set_waits": ("rows jsonb", ""),
    "find_keys": ("rows jsonb", "ordinal int4, sequence_id text"),
    "find_repeats": ("rows jsonb", "sequence_id text, ?column? bool"),
    "undo_starts": ("rows jsonb", "sequence_id text"),
    "find_holders": ("rows jsonb", "ordinal int4, sequence_id text"),
    "undo_keyed": ("rows jsonb", ""),
    "replace_waiting": ("rows jsonb", "sequence_id text"),
    "restore_key": ("key text, lane smallint, sequence_id uuid, epoch bigint", ""),
    "release_key": ("rows jsonb, lane smallint, sequence_id uuid, epoch bigint", "sequence_type text, key text"),
    "lock_blockers": ("rows jsonb", "sequence_id text"),
    "read_blockers": ("rows jsonb", "sequence_id text, ?column? bool, outcome text, sequence_type text, text text, exists bool"),
    "insert_blockers": ("rows jsonb", ""),
    "delete_blockers": ("rows jsonb", ""),
    "lock_edges": ("lock bigint", "?column? bool"),
    "find_cycle": ("rows jsonb, lane smallint, sequence_id uuid", "?column? bool"),
    "block_job": ("rows jsonb", "lane int2, queue text, priority int2, type text, ?column? bool"),
    "watch_self": ("lane smallint, sequence_id uuid, epoch bigint", ""),
    "read_edges": ("rows jsonb", "sequence_id text, blocker_id text, on_blocker_failure text"),
    "find_edged": ("rows jsonb", "exists bool"),
    "settle_edges": ("rows jsonb", ""),
    "read_outputs": (
        "rows jsonb",
        "sequence_id text, blocker_id text, outcome text, output text, output_type text, last_error text",
    ),
    "lock_limited": (
        "lanes smallint[], mute text[], limit bigint",
        "lane int2, sequence_id text, position int4, epoch int8, type text, attempt int4, coalesce bool, doom text",
    ),
    "claim_jobs": (
        ("scans jsonb, types text[], limit int, worker text, lease interval, token uuid, slots int, suspect int"),
        (
            "lane int2, sequence_id text, position int4, epoch int8, type text, input text, attempt int4, crash_count "
            "int4, begun bool, watched bool, blocker_count int4, queue text, priority int2, run_at timestamptz, "
            "?column? bool, max_attempts int4, timeout interval, case text, nullif text, origin_id text, "
            "correlation_id text, tags text, doom text, extract float8, memo text, backoff float8"
        ),
    ),
    "claim_started": (
        "rows jsonb, types text[], worker text, token uuid, lease interval, suspect int",
        (
            "lane int2, sequence_id text, position int4, epoch int8, type text, input text, attempt int4, crash_count "
            "int4, begun bool, watched bool, blocker_count int4, queue text, priority int2, run_at timestamptz, "
            "?column? bool, max_attempts int4, timeout interval, case text, nullif text, origin_id text, "
            "correlation_id text, tags text, doom text, extract float8, memo text, backoff float8"
        ),
    ),
    "list_due": ("rows jsonb", "extract float8"),
    "count_ready": ("lanes smallint[], queues text[], types text[], most int", "count int4"),
    "list_ready": ("queues jsonb", "lane int2, queue text, priority int2, due float8, ahead float8"),
    "release_claim": ("lanes smallint[], worker text, token uuid", "sequence_id uuid"),
    "finish_jobs": ("rows jsonb", "sequence_id text"),
    "end_jobs": ("rows jsonb", "sequence_id text, watched bool"),
    "unblock_jobs": ("rows jsonb", "lane int2, queue text, priority int2, type text, ?column? bool"),
    "finish_steps": ("rows jsonb", ""),
    "advance_jobs": ("lease interval, rows jsonb", "sequence_id text, begun bool, watched bool, queue text, priority int2, extract float8"),
    "delay_jobs": ("rows jsonb", "sequence_id text, lane int2, queue text, priority int2, type text, extract float8"),
    "suspend_jobs": ("rows jsonb", "sequence_id text, lane int2, queue text, priority int2, type text, extract float8"),
    "save_memo": ("section text, name text, value jsonb, lane smallint, sequence_id uuid, epoch int", "?column? bool"),
    "save_progress": ("rows jsonb", "sequence_id text"),
    "send_event": (
        "name text, event jsonb, lane smallint, sequence_id uuid",
        "lane int2, queue text, priority int2, type text, ?column? bool",
    ),
    "read_event": ("name text, lane smallint, sequence_id uuid", "epoch int8, ?column? text, text text"),
    "fence_job": ("lane smallint, sequence_id uuid, epoch int", "watched bool, pg_current_xact_id text"),
    "limit_idle": ("milliseconds text", "set_config text"),
    "renew_leases": ("rows jsonb, lease interval", "sequence_id text, epoch int8"),
    "mark_begun": ("lease interval, lane smallint, sequence_id uuid, epoch int", "sequence_id text"),
    "read_fates": ("rows jsonb", "sequence_id text, epoch int8, case text"),
    "lock_jobs": ("rows jsonb", "sequence_id text"),
    "lock_free": ("rows jsonb", "sequence_id text"),
    "lock_lost": (
        "lanes smallint[], gone text[], limit int",
        (
            "lane int2, sequence_id text, position int4, epoch int8, type text, attempt int4, crash_count int4, begun "
            "bool, max_attempts int4, backoff float8, leased_by text"
        ),
    ),
    "put_worker": (
        ("id text, presence int, name text, host text, pid int, version text, queues text[], types text[], concurrency int, running int"),
        "",
    ),
    "hold_presence": ("class int, presence int", "pg_try_advisory_lock bool"),
    "find_absent": ("class int", "id text, pg_try_advisory_xact_lock_shared bool"),
    "remove_workers": ("ids text[], lanes smallint[]", ""),
    "postmaster_age": ("", "case float8"),
    "list_attempts": (
        "lane smallint, sequence_id uuid",
        ("attempt int4, outcome text, error jsonb, started_at timestamptz, finished_at timestamptz, worker text, position int4, type text"),
    ),
    "list_jobs": (
        "lane int, sequence_id uuid",
        (
            "sequence_id uuid, position int4, job_id uuid, type text, status text, reason text, queue text, priority int2, "
            "attempt int4, crash_count int4, input jsonb, output jsonb, last_error jsonb, run_at timestamptz, created_at "
            "timestamptz, started_at timestamptz, finished_at timestamptz, worker text, progress jsonb, root_id uuid, "
            "origin_id uuid, open_blockers int4, correlation_id text, coalesce text"
        ),
    ),
    "read_sequence": (
        "lane int, sequence_id uuid",
        (
            "sequence_id uuid, type text, status text, reason text, key text, correlation_id text, coalesce text, steps "
            "int4, current_type text, attempt int4, input jsonb, output jsonb, last_error jsonb, created_at timestamptz, "
            "finished_at timestamptz, root_id uuid, queue text, priority int2, run_at timestamptz, started_at timestamptz, "
            "worker text, progress jsonb, open_blockers int4"
        ),
    ),
    "list_sequences": (
        (
            "lanes smallint[], live boolean, after uuid, live_status text, type text, queue text, key text, tag text, "
            "correlation_id text, root_id uuid, since timestamp with time zone, until timestamp with time zone, limit int, "
            "finished boolean, outcome text, reason text, ended_since timestamp with time zone, ended_until timestamp with time "
            "zone, by_time boolean"
        ),
        (
            "sequence_id uuid, type text, status text, reason text, key text, correlation_id text, coalesce text, steps "
            "int4, current_type text, attempt int4, input jsonb, output jsonb, last_error jsonb, created_at timestamptz, "
            "finished_at timestamptz, root_id uuid, queue text, priority int2, run_at timestamptz, started_at timestamptz, "
            "worker text, progress jsonb, open_blockers int4"
        ),
    ),
    "find_jobs": (
        (
            "lanes smallint[], live boolean, after uuid, position int, live_status text, type text, queue text, worker text, "
            "tag text, correlation_id text, root_id uuid, since timestamp with time zone, until timestamp with time zone, "
            "limit int, finished boolean, outcome text, reason text, ended_since timestamp with time zone, ended_until timestamp "
            "with time zone, by_time boolean"
        ),
        (
            "sequence_id uuid, position int4, job_id uuid, type text, status text, reason text, queue text, priority int2, "
            "attempt int4, crash_count int4, input jsonb, output jsonb, last_error jsonb, run_at timestamptz, created_at "
            "timestamptz, started_at timestamptz, finished_at timestamptz, worker text, progress jsonb, root_id uuid, "
            "origin_id uuid, open_blockers int4, correlation_id text, coalesce text"
        ),
    ),
    "read_job": (
        "lane int, job_id uuid, lanes smallint[]",
        (
            "sequence_id uuid, position int4, job_id uuid, type text, status text, reason text, queue text, priority int2, "
            "attempt int4, crash_count int4, input jsonb, output jsonb, last_error jsonb, run_at timestamptz, created_at "
            "timestamptz, started_at timestamptz, finished_at timestamptz, worker text, progress jsonb, root_id uuid, "
            "origin_id uuid, open_blockers int4, correlation_id text, coalesce text"
        ),
    ),
    "list_blockers": (
        "lane int, sequence_id uuid, after uuid, position int, limit int",
        (
            "blocker_id uuid, position int4, ?column? bool, type text, status text, reason text, current_type text, "
            "last_error jsonb, created_at timestamptz, finished_at timestamptz"
        ),
    ),
    "list_dependents": (
        "lane int, sequence_id uuid, after uuid, position int, limit int",
        (
            "sequence_id uuid, position int4, ?column? bool, type text, status text, reason text, current_type text, "
            "last_error jsonb, created_at timestamptz, finished_at timestamptz"
        ),
    ),
    "list_open_links": (
        "rows jsonb, limit int",
        "sequence_id text, blocker_id text",
    ),
    "read_standings": (
        "rows jsonb",
        (
            "sequence_id uuid, type text, current_type text, status text, reason text, queue text, attempt int4, run_at "
            "timestamptz, started_at timestamptz, finished_at timestamptz, worker text, last_error jsonb, open_blockers "
            "int4, progress jsonb, coalesce bool, ?column? text, ?column? text, ?column? text, coalesce bool, expires_at "
            "timestamptz, deadline_at timestamptz, limit_at timestamptz, coalesce bool, coalesce bool, coalesce int4"
        ),
    ),
    "read_horizon": (
        "",
        "at timestamptz, array text",
    ),
    "oldest_writer": ("", "min timestamptz"),
    "list_news": (
        (
            "at timestamp with time zone, until timestamp with time zone, id uuid, position int, kind text, kinds text[], "
            "sequence_id uuid, lane int, type text, queue text, tag text, correlation_id text, limit int"
        ),
        (
            "at timestamptz, sequence_id uuid, position int4, outcome text, type text, queue text, coalesce text, "
            "correlation_id text, job_id uuid, attempt int4, worker text, output text, output_type text, reason text, "
            "last_error jsonb"
        ),
    ),
    "read_progress": (
        "rows jsonb, type text, queue text, tag text, correlation_id text",
        (
            "clock_timestamp timestamptz, sequence_id uuid, position int4, type text, queue text, coalesce text, "
            "correlation_id text, job_id uuid, attempt int4, leased_by text, progress jsonb"
        ),
    ),
    "count_live": ("", "queue text, type text, status text, count int4, max float8"),
    "count_finished": ("span interval", "type text, outcome text, count int4, avg float8"),
    "count_failed": (
        "type text, job_type text, reason text, after timestamp with time zone, before timestamp with time zone",
        "sequence_type text, count int4, max timestamptz",
    ),
    "list_workers": (
        "lanes smallint[]",
        ("id text, host text, pid int4, version text, queues text, types text, concurrency int4, started_at timestamptz, count int4"),
    ),
    "revive_failed": ("rows jsonb", "lane int2, sequence_id text, queue text, priority int2, type text"),
    "move_failed": ("rows jsonb", ""),
    "mark_watched": ("rows jsonb", ""),
    "read_results": (
        "rows jsonb",
        ("sequence_id text, watched bool, outcome text, reason text, output text, output_type text, last_error jsonb, type text"),
    ),
    "limit_wait": ("milliseconds text", "set_config text"),
    "pin_plans": ("", "set_config text, set_config text, set_config text, set_config text"),
    "lock_live": (
        "rows jsonb",
        (
            "lane int2, sequence_id text, position int4, epoch int8, type text, input text, attempt int4, watched bool, "
            "queue text, priority int2, blocker_count int4, ?column? bool, job_id text, root_id text, correlation_id text, "
            "tags text, sequence_type text, created_at timestamptz"
        ),
    ),
    "read_position": ("lane smallint, sequence_id uuid", "position int4"),
    "raise_epochs": ("rows jsonb", ""),
    "reschedule_jobs": (
        "at timestamp with time zone, delay interval, rows jsonb",
        "lane int2, queue text, priority int2, type text, extract float8, ?column? bool",
    ),
    "find_edges": ("rows jsonb", "blocker_id text, sequence_id text"),
    "find_started": ("rows jsonb, lanes smallint[]", "lane int2, sequence_id text"),
    "lock_to_delete": ("rows jsonb", "lane int2, sequence_id text, ?column? bool"),
    "lock_finished": ("rows jsonb", "sequence_id text"),
    "find_dependents": ("rows jsonb", "blocker_id text, sequence_id text"),
    "find_upstream": ("rows jsonb", "lane int2, sequence_id text"),
    "delete_sequences": ("rows jsonb", "sequence_id text"),
    "find_failed": (
        "lanes smallint[], type text, job_type text, reason text, after timestamp with time zone, "
        "before timestamp with time zone, limit bigint",
        "lane int2, sequence_id text",
    ),
    "lock_failed": (
        "rows jsonb",
        ("lane int2, sequence_id text, position int4, job_id text, type text, input text, reason text, last_error text, attempt int4"),
    ),
    "find_invalid": ("rows jsonb, lanes smallint[]", "lane int2, sequence_id text"),
    "doom_jobs": ("rows jsonb", "lane int2, queue text, priority int2, type text"),
    "log_failures": ("rows jsonb", ""),
    "start_dead_letters": ("rows jsonb", "lane int2, queue text, priority int2, type text"),
    "notify": ("channel text, hints text[]", "pg_notify 2278"),
    "assert_written": ("xid xid8, lane smallint, sequence_id uuid, position int, epoch int", "error 22012"),
}
NAMES = sorted(file.name.removesuffix(".sql") for file in files("queuert_py.postgres").joinpath("sql").iterdir())


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


def methods() -> list[str]:
    """The methods of the Store that make a Call."""
    return sorted(name for name, _ in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_"))


def test_every_file_has_a_method_of_its_name_and_every_method_a_file() -> None:
    assert methods() == NAMES


def test_every_statement_has_a_sample_and_a_contract() -> None:
    assert sorted(SAMPLES) == NAMES
    assert sorted(CONTRACT) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_method_makes_a_call_of_its_own_statement(name: str) -> None:
    call = SAMPLES[name](Store("some_schema"))
    assert call.sql == statements("some_schema")[name]
    assert set(parameters(call)) == set(call.parameters), "all that is passed is used, all that is used is passed"


@pytest.mark.parametrize("name", NAMES)
async def test_a_statement_can_be_prepared_and_has_the_types_of_its_contract(connection: AsyncConnection[Any], name: str) -> None:
    call = SAMPLES[name](Store("queuert"))
    try:
        async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(call.sql, call.parameters, prepare=True, binary=True)
            columns = ", ".join(f"{column.name} {type_name(connection, column.type_code)}" for column in cursor.description or [])
    except psycopg.errors.DivisionByZero as error:
        columns = f"error {error.sqlstate}"
    answer = await connection.execute(
        "select parameter_types::text[] from pg_prepared_statements order by prepare_time desc limit 1", prepare=False
    )
    row = await answer.fetchone()
    types: list[str] = row[0] if row is not None else []
    found = ", ".join(f"{parameter} {type_}" for parameter, type_ in zip(parameters(call), types, strict=True))
    assert (loosened(found), columns) == (loosened(CONTRACT[name][0]), CONTRACT[name][1])


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_is_short_enough_for_psycopg_to_remember(name: str) -> None:
    assert len(statements("a" * 41)[name]) < 4096


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("claim_jobs", LiveJob._fields),
        ("claim_started", LiveJob._fields),
        ("list_jobs", tuple(JobRecord.__dataclass_fields__)[:-1]),
        ("find_jobs", tuple(JobRecord.__dataclass_fields__)[:-1]),
        ("read_job", tuple(JobRecord.__dataclass_fields__)[:-1]),
        ("read_standings", Standing._fields),
        ("list_news", Row._fields),
        ("list_attempts", tuple(AttemptRecord.__dataclass_fields__)),
        ("read_sequence", tuple(SequenceRecord.__dataclass_fields__)),
        ("list_sequences", tuple(SequenceRecord.__dataclass_fields__)),
    ],
)
def test_columns_stand_in_the_order_of_the_fields_they_fill(name: str, fields: tuple[str, ...]) -> None:
    same = {"last_error": "error"}
    columns = [column.split()[0] for column in CONTRACT[name][1].split(", ")]
    assert len(columns) == len(fields)
    for column, field in zip(columns, fields, strict=True):
        named = same.get(column, column)
        assert named in (field, "?column?", "case", "nullif", "coalesce", "extract") or field in ("id",), (column, field)


def parameters(call: Call[Any]) -> list[str]:
    return list(dict.fromkeys(re.findall(r"%\((\w+)\)s", call.sql.decode())))


def loosened(types: str) -> str:
    return re.sub(r" (smallint|integer|bigint|int)\b(?!\[)", " int", types)


def type_name(connection: AsyncConnection[Any], oid: int) -> str:
    known = connection.adapters.types.get(oid)
    return known.name if known is not None else str(oid)


def test_both_ways_to_claim_return_the_same() -> None:
    found = statements("s")
    assert found["claim_started"].partition(b"returning ")[2] == found["claim_jobs"].partition(b"returning ")[2]
