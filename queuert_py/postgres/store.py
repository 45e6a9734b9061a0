"""One method per statement of sql/. A method makes a Call, a value; whoever waits for it runs it (async, sync, in a pipeline)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar
from uuid import UUID

from queuert_py.errors import ConfigurationError
from queuert_py.payload import PLAIN, Wire
from queuert_py.postgres.calls import Call
from queuert_py.values import AttemptRecord, BlockerPolicy, JobRecord, LinkRecord, LiveJob, SequenceRecord
from queuert_py.why import Standing

Row = TypeVar("Row")
T = TypeVar("T")
MARKER = "/* schema */"
CLOCK = "clock_timestamp()"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}")


def quoted(schema: str) -> str:
    """The schema as a quoted identifier. ConfigurationError for a name that is not plain lower case (a-z, 0-9, _; 41 at most)."""
    if not _NAME.fullmatch(schema):
        raise ConfigurationError(f"schema {schema!r}: use lower-case letters, digits and _, at most 41, not starting with a digit.")
    return f'"{schema}"'


def fill(sql: str, schema: str, *, virtual: bool = False) -> str:
    """A statement with every marker replaced by the quoted schema; virtual: with the schema's own clock (`queuert_py.testing`)."""
    if virtual:
        sql = sql.replace(CLOCK, f"{MARKER}virtual_now()")
    return sql.replace(MARKER, quoted(schema) + ".")


@cache
def statements(schema: str, *, virtual: bool = False) -> Mapping[str, bytes]:
    """All statements by file name, filled in, without comments and indentation (psycopg caches what is under 4,096 bytes)."""
    found: dict[str, bytes] = {}
    for file in files("queuert_py.postgres").joinpath("sql").iterdir():
        text = fill(re.sub(r"--[^\n]*", "", file.read_text("utf-8")), schema, virtual=virtual)
        found[file.name.removesuffix(".sql")] = " ".join(text.split()).encode()
    return found


def _first(row: tuple[Any, ...]) -> Any:
    return row[0]


def rows(parts: Iterable[str]) -> str:
    """JSON objects as one JSON array: the rows of a batch travel as one parameter (measured faster than parallel arrays)."""
    return f"[{','.join(parts)}]"


def _job(row: tuple[Any, ...]) -> JobRecord:
    return JobRecord(*row)


def _sequence(row: tuple[Any, ...]) -> SequenceRecord:
    return SequenceRecord(*row)


_INPUT = LiveJob._fields.index("input")
_JOB_PAYLOADS, _SEQUENCE_PAYLOADS = (
    [number for number, each in enumerate(fields(kind)) if each.name in ("input", "output")] for kind in (JobRecord, SequenceRecord)
)


class Store:
    """The statements, for one schema. `lanes`: how many the schema was made with; `virtual`: whether it has a clock of its own; `wire`:
    opens the payloads that are read."""

    def __init__(self, schema: str, lanes: int = 1, *, virtual: bool = False, wire: Wire = PLAIN) -> None:
        self.schema = schema
        self.lanes = lanes
        self.wire = wire
        self._sql = statements(schema, virtual=virtual)

    @property
    def all_lanes(self) -> list[int]:
        return list(range(self.lanes))

    def _opening(self, make: Callable[[tuple[Any, ...]], Row], *columns: int) -> Callable[[tuple[Any, ...]], Row]:
        """`make`, of rows whose payloads (their columns: as JSON text, or parsed) are opened first."""
        if self.wire.codec is None:
            return make

        def opened(row: tuple[Any, ...]) -> Row:
            values = list(row)
            for column in columns:
                values[column] = self.wire.opened(values[column])
            return make(tuple(values))

        return opened

    def _rows(self, name: str, parts: Iterable[str], make: Callable[[tuple[Any, ...]], Row], **more: object) -> Call[Row]:
        return Call(self._sql[name], {"rows": rows(parts), **more}, make)

    # --- starting

    def insert_sequences(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("insert_sequences", parts, _first)

    def insert_or_join(self, parts: Iterable[str]) -> Call[tuple[str, str]]:
        return self._rows("insert_or_join", parts, tuple)

    def set_waits(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("set_waits", parts, lambda _: None)

    def find_keys(self, parts: Iterable[str]) -> Call[tuple[int, str]]:
        return self._rows("find_keys", parts, tuple)

    def find_repeats(self, parts: Iterable[str]) -> Call[tuple[str, bool]]:
        return self._rows("find_repeats", parts, tuple)

    def undo_starts(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("undo_starts", parts, _first)

    def find_holders(self, parts: Iterable[str]) -> Call[tuple[int, str]]:
        return self._rows("find_holders", parts, tuple)

    def undo_keyed(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("undo_keyed", parts, lambda _: None)

    def replace_waiting(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("replace_waiting", parts, _first)

    def release_key(self, job: LiveJob, parts: Iterable[str]) -> Call[tuple[str, str]]:
        return self._rows("release_key", parts, tuple, lane=job.lane, sequence_id=job.sequence_id, epoch=job.epoch)

    def restore_key(self, job: LiveJob, key: str) -> Call[None]:
        values = {"lane": job.lane, "sequence_id": job.sequence_id, "epoch": job.epoch, "key": key}
        return Call(self._sql["restore_key"], values, lambda _: None)

    # --- blockers

    def lock_blockers(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("lock_blockers", parts, _first)

    def read_blockers(self, parts: Iterable[str]) -> Call[tuple[Any, ...]]:
        return self._rows("read_blockers", parts, tuple)

    def insert_blockers(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("insert_blockers", parts, lambda _: None)

    def delete_blockers(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("delete_blockers", parts, lambda _: None)

    def lock_edges(self, lock: int) -> Call[bool]:
        return Call(self._sql["lock_edges"], {"lock": lock}, _first)

    def find_cycle(self, parts: Iterable[str], lane: int, sequence_id: str) -> Call[bool]:
        return self._rows("find_cycle", parts, _first, lane=lane, sequence_id=sequence_id)

    def block_job(self, parts: Iterable[str]) -> Call[tuple[int, str, int, str, bool]]:
        return self._rows("block_job", parts, tuple)

    def watch_self(self, job: LiveJob) -> Call[None]:
        return Call(self._sql["watch_self"], {"lane": job.lane, "sequence_id": job.sequence_id, "epoch": job.epoch}, lambda _: None)

    def read_edges(self, parts: Iterable[str]) -> Call[tuple[str, str, BlockerPolicy | None]]:
        return self._rows("read_edges", parts, tuple)

    def find_edged(self, parts: Iterable[str]) -> Call[bool]:
        return self._rows("find_edged", parts, _first)

    def settle_edges(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("settle_edges", parts, lambda _: None)

    def read_outputs(self, parts: Iterable[str]) -> Call[tuple[Any, ...]]:
        return self._rows("read_outputs", parts, self._opening(tuple, 3))

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
        return Call(self._sql["claim_jobs"], values, self._opening(LiveJob._make, _INPUT))

    def claim_started(
        self, parts: Iterable[str], types: Sequence[str], *, worker: str, token: UUID, lease: timedelta, suspect: int
    ) -> Call[LiveJob]:
        return self._rows(
            "claim_started",
            parts,
            self._opening(LiveJob._make, _INPUT),
            types=types,
            worker=worker,
            token=token,
            lease=lease,
            suspect=suspect,
        )

    def list_due(self, parts: Iterable[str]) -> Call[float]:
        return self._rows("list_due", parts, _first)

    def count_ready(self, queues: Sequence[str], types: Sequence[str], most: int) -> Call[int]:
        return Call(self._sql["count_ready"], {"lanes": self.all_lanes, "queues": queues, "types": types, "most": most}, _first)

    def list_ready(self, queues: Iterable[str]) -> Call[tuple[int, str, int, float, float | None]]:
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

    # --- what a job keeps across its attempts

    def suspend_jobs(self, parts: Iterable[str]) -> Call[tuple[str, int, str, int, str, float]]:
        return self._rows("suspend_jobs", parts, tuple)

    def save_memo(self, job: LiveJob, section: str, name: str, value: str) -> Call[bool]:
        place = {"lane": job.lane, "sequence_id": job.sequence_id, "epoch": job.epoch}
        values: dict[str, object] = {"section": section, "name": name, "value": value, **place}
        return Call(self._sql["save_memo"], values, _first)

    def save_progress(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("save_progress", parts, _first)

    def send_event(self, lane: int, sequence_id: str, name: str, event: str) -> Call[tuple[int, str, int, str, bool]]:
        return Call(self._sql["send_event"], {"lane": lane, "sequence_id": sequence_id, "name": name, "event": event}, tuple)

    def read_event(self, lane: int, sequence_id: str, name: str) -> Call[tuple[int, str | None, str | None]]:
        return Call(self._sql["read_event"], {"lane": lane, "sequence_id": sequence_id, "name": name}, tuple)

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

    def lock_free(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("lock_free", parts, _first)

    def lock_limited(self, mute: Sequence[str], limit: int) -> Call[tuple[Any, ...]]:
        return Call(self._sql["lock_limited"], {"lanes": self.all_lanes, "mute": mute, "limit": limit}, tuple)

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
        return self._one("list_jobs", lane, sequence_id, self._opening(_job, *_JOB_PAYLOADS))

    def read_sequence(self, lane: int, sequence_id: UUID) -> Call[SequenceRecord]:
        return self._one("read_sequence", lane, sequence_id, self._opening(_sequence, *_SEQUENCE_PAYLOADS))

    def list_sequences(self, filters: Mapping[str, object], *, limit: int, after: UUID | None) -> Call[SequenceRecord]:
        values = {"lanes": self.all_lanes, "limit": limit, "after": after, **filters}
        return Call(self._sql["list_sequences"], values, self._opening(_sequence, *_SEQUENCE_PAYLOADS), prepared=False)

    def find_jobs(self, filters: Mapping[str, object], *, limit: int, after: UUID | None, position: int | None) -> Call[JobRecord]:
        values = {"lanes": self.all_lanes, "limit": limit, "after": after, "position": position, **filters}
        return Call(self._sql["find_jobs"], values, self._opening(_job, *_JOB_PAYLOADS), prepared=False)

    def read_job(self, lane: int, job_id: UUID) -> Call[JobRecord]:
        return Call(self._sql["read_job"], {"lane": lane, "lanes": self.all_lanes, "job_id": job_id}, self._opening(_job, *_JOB_PAYLOADS))

    def list_blockers(self, lane: int, sequence_id: UUID, *, limit: int, after: UUID | None, position: int | None) -> Call[LinkRecord]:
        return self._links("list_blockers", lane=lane, sequence_id=sequence_id, limit=limit, after=after, position=position)

    def list_dependents(self, lane: int, sequence_id: UUID, *, limit: int, after: UUID | None, position: int | None) -> Call[LinkRecord]:
        return self._links("list_dependents", lane=lane, sequence_id=sequence_id, limit=limit, after=after, position=position)

    def list_open_links(self, parts: Iterable[str], limit: int) -> Call[tuple[str, str]]:
        return self._rows("list_open_links", parts, tuple, limit=limit)

    def read_standings(self, parts: Iterable[str]) -> Call[Standing]:
        return self._rows("read_standings", parts, Standing._make)

    def read_horizon(self) -> Call[tuple[datetime, list[str]]]:
        return Call(self._sql["read_horizon"], {}, tuple)

    def oldest_writer(self) -> Call[datetime | None]:
        return Call(self._sql["oldest_writer"], {}, _first)

    def list_news(
        self, filters: Mapping[str, object], *, place: tuple[datetime, UUID, int, str], until: datetime | None, limit: int
    ) -> Call[tuple[Any, ...]]:
        behind = dict(zip(("at", "id", "position", "kind"), place, strict=True))
        return Call(self._sql["list_news"], {**filters, **behind, "until": until, "limit": limit}, self._opening(tuple, 11), prepared=False)

    def read_progress(self, parts: Iterable[str], filters: Mapping[str, object]) -> Call[tuple[Any, ...]]:
        return self._rows("read_progress", parts, tuple, **filters)

    def _links(self, name: str, **values: object) -> Call[LinkRecord]:
        return Call(self._sql[name], values, lambda row: LinkRecord(*row), prepared=False)

    def count_live(self) -> Call[tuple[str, str, str, int, float | None]]:
        return Call(self._sql["count_live"], {}, tuple)

    def count_finished(self, span: timedelta) -> Call[tuple[str, str, int, float | None]]:
        return Call(self._sql["count_finished"], {"span": span}, tuple)

    def count_failed(self, **which: object) -> Call[tuple[str, int, datetime]]:
        everything = dict.fromkeys(("type", "job_type", "reason", "after", "before"))
        return Call(self._sql["count_failed"], {**everything, **which}, tuple)

    def list_workers(self) -> Call[tuple[Any, ...]]:
        return Call(self._sql["list_workers"], {"lanes": self.all_lanes}, tuple)

    def revive_failed(self, parts: Iterable[str]) -> Call[tuple[int, str, str, int, str]]:
        return self._rows("revive_failed", parts, tuple)

    def move_failed(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("move_failed", parts, lambda _: None)

    # --- control

    def limit_wait(self, limit: timedelta) -> Call[str]:
        return Call(self._sql["limit_wait"], {"milliseconds": str(int(limit.total_seconds() * 1000))}, _first)

    def pin_plans(self) -> Call[None]:
        return Call(self._sql["pin_plans"], {}, lambda _: None)

    def lock_live(self, parts: Iterable[str]) -> Call[tuple[Any, ...]]:
        return self._rows("lock_live", parts, self._opening(tuple, 5))

    def read_position(self, lane: int, sequence_id: str) -> Call[int]:
        return Call(self._sql["read_position"], {"lane": lane, "sequence_id": sequence_id}, _first)

    def raise_epochs(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("raise_epochs", parts, lambda _: None)

    def reschedule_jobs(
        self, parts: Iterable[str], delay: timedelta | None, at: datetime | None
    ) -> Call[tuple[int, str, int, str, float, bool]]:
        return self._rows("reschedule_jobs", parts, tuple, delay=delay, at=at)

    def find_edges(self, parts: Iterable[str]) -> Call[tuple[str, str]]:
        return self._rows("find_edges", parts, tuple)

    def find_started(self, parts: Iterable[str]) -> Call[tuple[int, str]]:
        return self._rows("find_started", parts, tuple, lanes=self.all_lanes)

    def lock_to_delete(self, parts: Iterable[str]) -> Call[tuple[int, str, bool]]:
        return self._rows("lock_to_delete", parts, tuple)

    def lock_finished(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("lock_finished", parts, _first)

    def find_dependents(self, parts: Iterable[str]) -> Call[tuple[str, str]]:
        return self._rows("find_dependents", parts, tuple)

    def find_upstream(self, parts: Iterable[str]) -> Call[tuple[int, str]]:
        return self._rows("find_upstream", parts, tuple)

    def delete_sequences(self, parts: Iterable[str]) -> Call[str]:
        return self._rows("delete_sequences", parts, _first)

    def find_failed(self, **which: object) -> Call[tuple[int, str]]:
        return Call(self._sql["find_failed"], {"lanes": self.all_lanes, **which}, tuple)

    def lock_failed(self, parts: Iterable[str]) -> Call[tuple[Any, ...]]:
        return self._rows("lock_failed", parts, self._opening(tuple, 5))

    def find_invalid(self, parts: Iterable[str]) -> Call[tuple[int, str]]:
        return self._rows("find_invalid", parts, tuple, lanes=self.all_lanes)

    def doom_jobs(self, parts: Iterable[str]) -> Call[tuple[int, str, int, str]]:
        return self._rows("doom_jobs", parts, tuple)

    def log_failures(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("log_failures", parts, lambda _: None)

    def start_dead_letters(self, parts: Iterable[str]) -> Call[tuple[int, str, int, str]]:
        return self._rows("start_dead_letters", parts, tuple)

    # --- waiting and hints

    def mark_watched(self, parts: Iterable[str]) -> Call[None]:
        return self._rows("mark_watched", parts, lambda _: None)

    def read_results(self, parts: Iterable[str]) -> Call[tuple[Any, ...]]:
        return self._rows("read_results", parts, self._opening(tuple, 4))

    def notify(self, channel: str, hints: Sequence[str]) -> Call[None]:
        return Call(self._sql["notify"], {"channel": channel, "hints": hints}, lambda _: None)
