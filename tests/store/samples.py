"""One call of every method of the Store, with parameters of the types that the engine passes, and rows that meet nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from queuert_py.postgres.store import Call, Store
from queuert_py.values import LiveJob

ID = UUID("01999999-9999-7999-8999-999999999999")
LEASE = timedelta(seconds=30)


def live_job(**known: Any) -> LiveJob:
    """A row as a claim gives it; only what is named matters."""
    blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
    base: dict[str, Any] = {
        "lane": 0,
        "sequence_id": str(ID),
        "position": 0,
        "epoch": 1,
        "type": "t",
        "run_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return LiveJob(**{**blank, **base, **known})


def claim(store: Store, scans: list[str], *, limit: int = 10, slots: int = 100, types: list[str] | None = None) -> Call[LiveJob]:
    return store.claim_jobs(scans, types or ["t"], limit=limit, slots=slots, worker="w", token=ID, lease=LEASE, suspect=2)


SAMPLES: Mapping[str, Callable[[Store], Call[Any]]] = {
    "insert_sequences": lambda store: store.insert_sequences([]),
    "insert_or_join": lambda store: store.insert_or_join(
        f'{{"lane":0,"sequence_id":"{ID}","type":"t","queue":"q","priority":0,"input":{{}}}}'
    ),
    "find_keys": lambda store: store.find_keys([]),
    "find_repeats": lambda store: store.find_repeats([]),
    "undo_starts": lambda store: store.undo_starts([]),
    "claim_jobs": lambda store: claim(store, []),
    "list_ready": lambda store: store.list_ready([]),
    "release_claim": lambda store: store.release_claim("w", ID),
    "finish_jobs": lambda store: store.finish_jobs([]),
    "end_jobs": lambda store: store.end_jobs([]),
    "unblock_jobs": lambda store: store.unblock_jobs([]),
    "finish_steps": lambda store: store.finish_steps([]),
    "advance_jobs": lambda store: store.advance_jobs([], LEASE),
    "delay_jobs": lambda store: store.delay_jobs([]),
    "fence_job": lambda store: store.fence_job(live_job()),
    "limit_idle": lambda store: store.limit_idle(LEASE),
    "assert_written": lambda store: store.assert_written(live_job(), "1"),
    "renew_leases": lambda store: store.renew_leases([], LEASE),
    "mark_begun": lambda store: store.mark_begun(live_job(), LEASE),
    "read_fates": lambda store: store.read_fates([]),
    "lock_jobs": lambda store: store.lock_jobs([]),
    "lock_lost": lambda store: store.lock_lost(["w"], 10),
    "put_worker": lambda store: store.put_worker(
        id="w", presence=1, name="w", host="h", pid=1, version="1", queues=["q"], types=["t"], concurrency=1, running=0
    ),
    "hold_presence": lambda store: store.hold_presence(1, 2),
    "find_absent": lambda store: store.find_absent(1),
    "remove_workers": lambda store: store.remove_workers(["w"]),
    "postmaster_age": lambda store: store.postmaster_age(),
    "list_attempts": lambda store: store.list_attempts(0, ID),
    "list_jobs": lambda store: store.list_jobs(0, ID),
    "read_sequence": lambda store: store.read_sequence(0, ID),
    "list_sequences": lambda store: store.list_sequences(status=None, type=None, key=None, limit=10),
    "count_live": lambda store: store.count_live(),
    "count_finished": lambda store: store.count_finished(LEASE),
    "count_failed": lambda store: store.count_failed(),
    "list_failed": lambda store: store.list_failed(type=None, key=None, limit=10),
    "list_workers": lambda store: store.list_workers(),
    "revive_failed": lambda store: store.revive_failed([]),
    "move_failed": lambda store: store.move_failed([]),
    "mark_watched": lambda store: store.mark_watched([]),
    "read_results": lambda store: store.read_results([]),
    "notify": lambda store: store.notify("channel", ["hint"]),
}
