"""One call of every method of the Store, with parameters of the types that the engine passes, and rows that meet nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from queuert_py.looking import JobFilters, SequenceFilters, checked
from queuert_py.postgres import rows
from queuert_py.postgres.calls import Call
from queuert_py.postgres.store import Store
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


_ANY: Mapping[str, None] = dict.fromkeys(("type", "queue", "tag", "correlation_id"))
SAMPLES: Mapping[str, Callable[[Store], Call[Any]]] = {
    "insert_sequences": lambda store: store.insert_sequences([]),
    "insert_or_join": lambda store: store.insert_or_join([]),
    "set_waits": lambda store: store.set_waits([]),
    "find_keys": lambda store: store.find_keys([]),
    "find_repeats": lambda store: store.find_repeats([]),
    "undo_starts": lambda store: store.undo_starts([]),
    "find_holders": lambda store: store.find_holders([]),
    "undo_keyed": lambda store: store.undo_keyed([]),
    "replace_waiting": lambda store: store.replace_waiting([]),
    "restore_key": lambda store: store.restore_key(live_job(), "k"),
    "release_key": lambda store: store.release_key(live_job(), [rows.key_row(0, "t", "k", lasting=False)]),
    "lock_blockers": lambda store: store.lock_blockers([]),
    "read_blockers": lambda store: store.read_blockers([]),
    "insert_blockers": lambda store: store.insert_blockers([]),
    "delete_blockers": lambda store: store.delete_blockers([]),
    "lock_edges": lambda store: store.lock_edges(1),
    "find_cycle": lambda store: store.find_cycle([], 0, str(ID)),
    "block_job": lambda store: store.block_job([]),
    "watch_self": lambda store: store.watch_self(live_job()),
    "read_edges": lambda store: store.read_edges([]),
    "find_edged": lambda store: store.find_edged([]),
    "settle_edges": lambda store: store.settle_edges([]),
    "read_outputs": lambda store: store.read_outputs([]),
    "lock_limited": lambda store: store.lock_limited(["a"], 10),
    "claim_jobs": lambda store: claim(store, []),
    "claim_started": lambda store: store.claim_started([], ["t"], worker="w", token=ID, lease=LEASE, suspect=2),
    "list_due": lambda store: store.list_due([]),
    "count_ready": lambda store: store.count_ready(["q"], ["t"], 10),
    "list_ready": lambda store: store.list_ready([]),
    "release_claim": lambda store: store.release_claim("w", ID),
    "finish_jobs": lambda store: store.finish_jobs([]),
    "end_jobs": lambda store: store.end_jobs([]),
    "unblock_jobs": lambda store: store.unblock_jobs([]),
    "finish_steps": lambda store: store.finish_steps([]),
    "advance_jobs": lambda store: store.advance_jobs([], LEASE),
    "delay_jobs": lambda store: store.delay_jobs([]),
    "suspend_jobs": lambda store: store.suspend_jobs([]),
    "save_memo": lambda store: store.save_memo(live_job(), "steps", "n", "{}"),
    "save_progress": lambda store: store.save_progress([]),
    "send_event": lambda store: store.send_event(0, str(ID), "n", "{}"),
    "read_event": lambda store: store.read_event(0, str(ID), "n"),
    "fence_job": lambda store: store.fence_job(live_job()),
    "limit_idle": lambda store: store.limit_idle(LEASE),
    "assert_written": lambda store: store.assert_written(live_job(), "1"),
    "renew_leases": lambda store: store.renew_leases([], LEASE),
    "mark_begun": lambda store: store.mark_begun(live_job(), LEASE),
    "read_fates": lambda store: store.read_fates([]),
    "lock_jobs": lambda store: store.lock_jobs([]),
    "lock_free": lambda store: store.lock_free([]),
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
    "read_job": lambda store: store.read_job(0, ID),
    "list_sequences": lambda store: store.list_sequences(checked({}, SequenceFilters), limit=10, after=None),
    "find_jobs": lambda store: store.find_jobs(checked({}, JobFilters), limit=10, after=None, position=None),
    "list_blockers": lambda store: store.list_blockers(0, ID, limit=10, after=None, position=None),
    "list_dependents": lambda store: store.list_dependents(0, ID, limit=10, after=None, position=None),
    "list_open_links": lambda store: store.list_open_links([], 10),
    "read_horizon": lambda store: store.read_horizon(),
    "list_news": lambda store: store.list_news(
        {"kinds": ["completed"], "lane": 0, "sequence_id": None, **_ANY},
        place=(datetime(2026, 1, 1, tzinfo=UTC), ID, 0, ""),
        until=None,
        limit=10,
    ),
    "oldest_writer": lambda store: store.oldest_writer(),
    "read_progress": lambda store: store.read_progress([], _ANY),
    "read_standings": lambda store: store.read_standings([]),
    "count_live": lambda store: store.count_live(),
    "count_finished": lambda store: store.count_finished(LEASE),
    "count_failed": lambda store: store.count_failed(),
    "list_workers": lambda store: store.list_workers(),
    "revive_failed": lambda store: store.revive_failed([]),
    "move_failed": lambda store: store.move_failed([]),
    "mark_watched": lambda store: store.mark_watched([]),
    "read_results": lambda store: store.read_results([]),
    "limit_wait": lambda store: store.limit_wait(LEASE),
    "pin_plans": lambda store: store.pin_plans(),
    "lock_live": lambda store: store.lock_live([]),
    "read_position": lambda store: store.read_position(0, str(ID)),
    "raise_epochs": lambda store: store.raise_epochs([]),
    "reschedule_jobs": lambda store: store.reschedule_jobs([], LEASE, None),
    "find_edges": lambda store: store.find_edges([]),
    "find_started": lambda store: store.find_started([]),
    "lock_to_delete": lambda store: store.lock_to_delete([]),
    "lock_finished": lambda store: store.lock_finished([]),
    "find_dependents": lambda store: store.find_dependents([]),
    "find_upstream": lambda store: store.find_upstream([]),
    "delete_sequences": lambda store: store.delete_sequences([]),
    "find_failed": lambda store: store.find_failed(type=None, job_type=None, reason=None, after=None, before=None, limit=10),
    "lock_failed": lambda store: store.lock_failed([]),
    "find_invalid": lambda store: store.find_invalid([]),
    "doom_jobs": lambda store: store.doom_jobs([]),
    "log_failures": lambda store: store.log_failures([]),
    "start_dead_letters": lambda store: store.start_dead_letters([]),
    "notify": lambda store: store.notify("channel", ["hint"]),
}
