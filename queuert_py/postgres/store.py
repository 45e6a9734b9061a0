"""One method per statement of sql/. A method makes a Call, a value; whoever waits for it runs it (async, sync, in a pipeline)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import tuple_row

from queuert_py.errors import ConfigurationError
from queuert_py.values import AttemptRecord, JobRecord, LiveJob, SequenceRecord

Row = TypeVar("Row")
T = TypeVar("T")
MARKER = "/* schema */"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}")


def quoted(schema: str) -> str:
    """The schema as a quoted identifier. ConfigurationError for a name that is not plain lower case (a-z, 0-9, _; 41 at most)."""
    if not _NAME.fullmatch(schema):
        raise ConfigurationError(f"schema {schema!r}: use lower-case letters, digits and _, at most 41, not starting with a digit.")
    return f'"{schema}"'


def fill(sql: str, schema: str) -> str:
    """A statement with every marker replaced by the quoted schema."""
    return sql.replace(MARKER, quoted(schema) + ".")


@cache
def statements(schema: str) -> Mapping[str, bytes]:
    """All statements by file name, filled in, without comments and indentation (psycopg caches what is under 4,096 bytes)."""
    found: dict[str, bytes] = {}
    for file in files("queuert_py.postgres").joinpath("sql").iterdir():
        text = fill(re.sub(r"--[^\n]*", "", file.read_text("utf-8")), schema)
        found[file.name.removesuffix(".sql")] = " ".join(text.split()).encode()
    return found


@dataclass(frozen=True, slots=True)
class Call(Generic[Row]):
    """A statement with its parameters, and what makes a row of its answer."""

    sql: bytes
    parameters: Mapping[str, object]
    make: Callable[[tuple[Any, ...]], Row]

    async def on(self, connection: AsyncConnection[Any]) -> list[Row]:
        """Run it here. Prepared; binary answer; whatever the connection's own row factory."""
        async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(self.sql, self.parameters, prepare=True, binary=True)
            return [self.make(row) for row in await cursor.fetchall()] if cursor.description else []

    def on_sync(self, connection: Connection[Any]) -> list[Row]:
        """As `on`, for a sync connection."""
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(self.sql, self.parameters, prepare=True, binary=True)
            return [self.make(row) for row in cursor.fetchall()] if cursor.description else []


async def together(connection: AsyncConnection[Any], *calls: Call[Any]) -> list[list[Any]]:
    """Run several statements in one round trip; the first that fails is raised and those behind it are not executed."""
    cursors: list[AsyncCursor[tuple[Any, ...]]] = []
    async with connection.pipeline():
        for call in calls:
            cursor = AsyncCursor(connection, row_factory=tuple_row)
            cursors.append(cursor)
            await cursor.execute(call.sql, call.parameters, prepare=True, binary=True)
    answers: list[list[Any]] = []
    for call, cursor in zip(calls, cursors, strict=True):
        answers.append([call.make(row) for row in await cursor.fetchall()] if cursor.description else [])
    return answers


def plain(sql: str) -> Call[tuple[Any, ...]]:
    """A statement without parameters or tables (BEGIN, COMMIT)."""
    return Call(sql.encode(), {}, tuple)


BEGIN = plain("begin isolation level read committed")
COMMIT = plain("commit")
PING = plain("select 1")


def _first(row: tuple[Any, ...]) -> Any:
    return row[0]


def rows(parts: Iterable[str]) -> str:
    """JSON objects as one JSON array: the rows of a batch travel as one parameter (measured faster than parallel arrays)."""
    return f"[{','.join(parts)}]"


class Store:
    """The statements, for one schema. `lanes`: how many the schema was made with."""

    def __init__(self, schema: str, lanes: int = 1) -> None:
        self.schema = schema
        self.lanes = lanes
        self._sql = statements(schema)

    @property
    def all_lanes(self) -> list[int]:
        return list(range(self.lanes))

    def _rows(self, name: str, parts: Iterable[str], make: Callable[[tuple[Any, ...]], Row], **more: object) -> Call[Row]:
        return Call(self._sql[name], {"rows": rows(parts), **more}, make)

    # --- starting

    def insert_sequences(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("insert_sequences", parts, _first)

    def insert_or_join(self, part: str) -> Call[tuple[str, str]]:
        return self._rows("insert_or_join", [part], tuple)

    def find_keys(self, parts: Iterable[str]) -> Call[tuple[int, str]]:
        return self._rows("find_keys", parts, tuple)

    def find_repeats(self, parts: Iterable[str]) -> Call[tuple[str, bool]]:
        return self._rows("find_repeats", parts, tuple)

    def undo_starts(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("undo_starts", parts, _first)

    # --- claiming

    def claim_jobs(
        self,
        scans: Iterable[str],
        types: Sequence[str],
        *,
        limit: int,
        slots: int,
        worker: str,
        token: UUID,
        lease: timedelta,
        suspect: int,
    ) -> Call[LiveJob]:
        values = {
            "scans": rows(scans),
            "types": types,
            "limit": limit,
            "slots": slots,
            "worker": worker,
            "token": token,
            "lease": lease,
            "suspect": suspect,
        }
        return Call(self._sql["claim_jobs"], values, LiveJob._make)

    def list_ready(self, queues: Iterable[str]) -> Call[tuple[int, str, int, float]]:
        return Call(self._sql["list_ready"], {"queues": rows(queues)}, tuple)

    def release_claim(self, worker: str, token: UUID) -> Call[str]:
        return Call(self._sql["release_claim"], {"lanes": self.all_lanes, "worker": worker, "token": token}, _first)

    # --- writing what became of attempts

    def finish_jobs(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("finish_jobs", parts, _first)

    def end_jobs(self, parts: Iterable[str]) -> Call[tuple[str, bool]]:
        return self._rows("end_jobs", parts, tuple)

    def unblock_jobs(self, parts: Iterable[str]) -> Call[tuple[int, str, int, str, bool]]:
        return self._rows("unblock_jobs", parts, tuple)

    def finish_steps(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("finish_steps", parts, lambda _: None)

    def advance_jobs(self, parts: Iterable[str], lease: timedelta) -> Call[tuple[str, bool, bool, str, int, float]]:
        return self._rows("advance_jobs", parts, tuple, lease=lease)

    def delay_jobs(self, parts: Iterable[str]) -> Call[tuple[str, int, str, int, str, float]]:
        return self._rows("delay_jobs", parts, tuple)

    # --- an attempt's own transaction

    def fence_job(self, job: LiveJob) -> Call[tuple[bool, str]]:
        return Call(self._sql["fence_job"], {"lane": job.lane, "sequence_id": job.sequence_id, "epoch": job.epoch}, tuple)

    def limit_idle(self, limit: timedelta) -> Call[str]:
        return Call(self._sql["limit_idle"], {"milliseconds": str(max(1, int(limit.total_seconds() * 1000)))}, _first)

    def assert_written(self, job: LiveJob, xid: str) -> Call[int]:
        values = {"lane": job.lane, "sequence_id": job.sequence_id, "position": job.position, "epoch": job.epoch, "xid": xid}
        return Call(self._sql["assert_written"], values, _first)

    # --- leases and workers

    def renew_leases(self, parts: Iterable[str], lease: timedelta) -> Call[tuple[str, int]]:
        return self._rows("renew_leases", parts, tuple, lease=lease)

    def mark_begun(self, job: LiveJob, lease: timedelta) -> Call[str]:
        values = {"lane": job.lane, "sequence_id": job.sequence_id, "epoch": job.epoch, "lease": lease}
        return Call(self._sql["mark_begun"], values, _first)

    def read_fates(self, parts: Iterable[str]) -> Call[tuple[str, int, str]]:
        return self._rows("read_fates", parts, tuple)

    def lock_jobs(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("lock_jobs", parts, _first)

    def lock_lost(self, gone: Sequence[str], limit: int) -> Call[tuple[Any, ...]]:
        return Call(self._sql["lock_lost"], {"lanes": self.all_lanes, "gone": gone, "limit": limit}, tuple)

    def put_worker(self, **worker: object) -> Call[None]:
        return Call(self._sql["put_worker"], worker, lambda _: None)

    def hold_presence(self, class_: int, presence: int) -> Call[bool]:
        return Call(self._sql["hold_presence"], {"class": class_, "presence": presence}, _first)

    def find_absent(self, class_: int) -> Call[tuple[str, bool]]:
        return Call(self._sql["find_absent"], {"class": class_}, tuple)

    def remove_workers(self, ids: Sequence[str]) -> Call[None]:
        return Call(self._sql["remove_workers"], {"lanes": self.all_lanes, "ids": ids}, lambda _: None)

    def postmaster_age(self) -> Call[float]:
        return Call(self._sql["postmaster_age"], {}, _first)

    # --- looking, and operators

    def _one(self, name: str, lane: int, sequence_id: UUID, make: Callable[[tuple[Any, ...]], Row]) -> Call[Row]:
        return Call(self._sql[name], {"lane": lane, "sequence_id": str(sequence_id)}, make)

    def list_attempts(self, lane: int, sequence_id: UUID) -> Call[AttemptRecord]:
        return self._one("list_attempts", lane, sequence_id, lambda row: AttemptRecord(*row))

    def list_jobs(self, lane: int, sequence_id: UUID) -> Call[JobRecord]:
        return self._one("list_jobs", lane, sequence_id, lambda row: JobRecord(*row))

    def read_sequence(self, lane: int, sequence_id: UUID) -> Call[SequenceRecord]:
        return self._one("read_sequence", lane, sequence_id, lambda row: SequenceRecord(*row))

    def list_sequences(self, *, status: str | None, type: str | None, key: str | None, limit: int) -> Call[SequenceRecord]:
        return Call(
            self._sql["list_sequences"], {"status": status, "type": type, "key": key, "limit": limit}, lambda row: SequenceRecord(*row)
        )

    def count_live(self) -> Call[tuple[str, str, str, int, float | None]]:
        return Call(self._sql["count_live"], {}, tuple)

    def count_finished(self, span: timedelta) -> Call[tuple[str, str, int, float | None]]:
        return Call(self._sql["count_finished"], {"span": span}, tuple)

    def count_failed(self) -> Call[tuple[str, int, datetime]]:
        return Call(self._sql["count_failed"], {}, tuple)

    def list_failed(self, *, type: str | None, key: str | None, limit: int) -> Call[SequenceRecord]:
        return Call(self._sql["list_failed"], {"type": type, "key": key, "limit": limit}, lambda row: SequenceRecord(*row))

    def list_workers(self) -> Call[tuple[Any, ...]]:
        return Call(self._sql["list_workers"], {"lanes": self.all_lanes}, tuple)

    def revive_failed(self, parts: Iterable[str]) -> Call[tuple[int, str, str, int, str]]:
        return self._rows("revive_failed", parts, tuple)

    def move_failed(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("move_failed", parts, lambda _: None)

    # --- waiting and hints

    def mark_watched(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("mark_watched", parts, lambda _: None)

    def read_results(self, parts: Iterable[str]) -> Call[tuple[Any, ...]]:
        return self._rows("read_results", parts, tuple)

    def notify(self, channel: str, hints: Sequence[str]) -> Call[None]:
        return Call(self._sql["notify"], {"channel": channel, "hints": hints}, lambda _: None)
