"""Changing what was started, as plans: lock first, decide in the next statement, write, and say what others are to be told of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from queuert_py.decisions.graph import deletable, levels
from queuert_py.errors import (
    BlockerCycleError,
    SequenceEndedError,
    SequenceHasDependentsError,
    SequenceMovedError,
    SequenceNotFoundError,
    SequenceRunningError,
    UsageError,
)
from queuert_py.ids import lane_of
from queuert_py.postgres import blocking, rows
from queuert_py.postgres.calls import RELEASE, SAVEPOINT, UNDO, Call
from queuert_py.postgres.listener import hint
from queuert_py.postgres.plans import Plan, T
from queuert_py.postgres.store import Store
from queuert_py.values import Ending, LiveJob, Step

ITSELF = "a handler cannot change its own sequence in its own transaction: return, or raise Fail or Retry."

Ready = tuple[int, str, int, str, float]
"""Where there is work: lane, queue, priority, job type, seconds until it is due."""


class Held(NamedTuple):
    """A live row that this transaction has locked, as lock_live gives it."""

    lane: int
    sequence_id: str
    position: int
    epoch: int
    type: str
    input: str
    attempt: int
    watched: bool
    queue: str
    priority: int
    blocker_count: int
    running: bool
    job_id: str
    root_id: str
    correlation_id: str | None
    tags: Sequence[str] | None
    sequence_type: str
    created_at: datetime

    def job(self, *, raised: bool = True) -> LiveJob:
        """For the statements that end a job or carry it on: under the epoch that fences out whoever ran it."""
        blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
        known: dict[str, Any] = {name: value for name, value in self._asdict().items() if name in blank}
        known["epoch"] = self.epoch + raised
        return LiveJob(**{**blank, **known})


class Failed(NamedTuple):
    """The job that failed, as lock_failed gives it."""

    lane: int
    sequence_id: str
    position: int
    job_id: str
    type: str
    input: str
    reason: str
    error: str | None
    attempt: int

    def job(self) -> LiveJob:
        """For what is told of it."""
        blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
        known: dict[str, Any] = {name: value for name, value in self._asdict().items() if name in blank}
        return LiveJob(**{**blank, **known})


@dataclass(slots=True)
class Changes:
    """What others are to be told after the commit: sequences that have ended, handlers that lost their job, work that is there; and what
    was done to each job (None: it had failed, and runs again)."""

    ended: list[str] = field(default_factory=list[str])
    aborted: list[str] = field(default_factory=list[str])
    ready: list[Ready] = field(default_factory=list[Ready])
    done: list[tuple[LiveJob, Ending | Step | None]] = field(default_factory=list[tuple[LiveJob, Ending | Step | None]])

    @property
    def hints(self) -> list[str]:
        places = dict.fromkeys(hint(lane, queue, priority) for lane, queue, priority, _, _ in self.ready)
        return [*(f"a:{id}" for id in self.aborted), *(f"d:{id}" for id in self.ended), *places]


def in_callers_transaction(plan: Plan[tuple[T, Changes]], store: Store, channel: str) -> Plan[tuple[T, Changes]]:
    """A plan in a transaction of the caller's: READ COMMITTED only, and the hints are part of it."""
    yield from check_isolation()
    outcome, changes = yield from plan
    if changes.hints:
        yield store.notify(channel, changes.hints)
    return outcome, changes


def check_isolation() -> Plan[None]:
    """Locks are taken before what they guard is read: only READ COMMITTED reads it as it is then. UsageError."""
    level = (yield Call(b"show transaction_isolation", {}, lambda row: str(row[0])))[0]
    if level != "read committed":
        raise UsageError(f"what this call decides on may be invisible in a {level} transaction: use READ COMMITTED.")


# --- cancel, trigger, reschedule


def started(store: Store, ids: Iterable[str]) -> Call[tuple[int, str]]:
    """What these have started, and what that has, as far as it is unfinished: lane and id."""
    return store.find_started(_parts(store, ids))


def cancel(store: Store, ids: Sequence[str], *, cascade: bool, own: str | None = None) -> Plan[tuple[dict[str, str], Changes]]:
    """End what has not ended. Answers how each stands; with what they started, if that is cancelled too. UsageError when `own` is of it."""
    standing: dict[str, str] = {}
    changes = Changes()
    wave = list(ids)
    if cascade:  # all that is there, at once: who waits for what it has started is locked after that
        wave = list(dict.fromkeys([*wave, *(id for _, id in (yield started(store, wave)))]))
    while wave:
        if own in wave:
            raise UsageError(ITSELF)
        held = yield from _hold(store, wave, last=ids if cascade else (), ending=True)
        yield from _end(store, list(held.values()), Ending("cancelled"), changes)
        standing.update(dict.fromkeys(held, "cancelled"))
        left = [id for id in wave if id not in held]
        outcomes = yield from _outcomes(store, left)
        standing.update({id: outcomes[id] or "not_found" for id in left if outcomes[id] != "live"})
        wave = [id for id in left if outcomes[id] == "live"]  # retried between the two statements
        if cascade and not wave:  # started between the two
            wave = [id for _, id in (yield started(store, standing))]
    return standing, changes


def reschedule(store: Store, ids: Sequence[str], delay: timedelta | None, at: datetime | None) -> Plan[tuple[None, Changes]]:
    """Another time for what waits: all, or an error and none."""
    held = yield from _hold(store, ids)
    left = [id for id in ids if id not in held]
    outcomes = yield from _outcomes(store, left)
    missing = [id for id in left if outcomes[id] is None]
    if missing:
        raise SequenceNotFoundError(f"no sequence {', '.join(missing)}: nothing was changed.", ids=missing)
    if left:
        ended = ", ".join(f"{id} ({outcomes[id]})" for id in left)
        raise SequenceEndedError(f"{ended}: ended, nothing was changed. Give those that wait.", status=str(outcomes[left[0]]), ids=left)
    running = [id for id in ids if held[id].running]
    if running:
        message = f"{', '.join(running)}: running, nothing was changed. Wait for them, or cancel them."
        raise SequenceRunningError(message, ids=list(map(UUID, running)))
    parts = [rows.place_row(id, held[id].lane, number) for number, id in enumerate(ids)]
    ready = yield store.reschedule_jobs(parts, delay, at)
    return None, Changes(ready=[(lane, queue, priority, type_, due) for lane, queue, priority, type_, due, free in ready if free])


# --- complete


def look(store: Store, id: str) -> Plan[int]:
    """The position of the current job. SequenceNotFoundError, SequenceEndedError."""
    found = yield store.read_position(lane_of(id, store.lanes), id)
    if not found:
        yield from _refuse(store, id)
    return int(found[0])


def hold(store: Store, id: str, position: int) -> Plan[Held]:
    """Lock the current job if it is still the one that was seen, as it is now. Also raises SequenceMovedError."""
    found = yield store.lock_live(_parts(store, [id]))
    if not found:
        yield from _refuse(store, id)
    held = Held(*found[0])
    if held.position != position:
        raise SequenceMovedError(
            f"sequence {id} has gone on to job {held.position} ({held.type!r}), job {position} was meant: look at it again.",
            position=held.position,
            type=held.type,
        )
    return held


def complete(store: Store, held: Held, verdict: Ending | Step) -> Plan[Changes]:
    """Write the outcome of a job that this transaction holds."""
    changes = Changes()
    if isinstance(verdict, Ending):
        yield store.lock_to_delete(_parts(store, [held.sequence_id]))  # waits for those who are about to wait for it
        yield from _end(store, [held], verdict, changes)
        return changes
    if verdict.blockers:  # before its row is written: who has this lock, and starts with its key, waits for that
        yield from blocking.alone(store)
    yield store.raise_epochs([rows.epoch_row(held.job(raised=False))])
    job = held.job()
    if verdict.blockers:
        advanced = (yield from blocking.advance(store, job, verdict))[1]
    else:
        part = rows.step_row(job, verdict, handoff=False)
        yield store.finish_steps([part])
        advanced = yield store.advance_jobs([part], timedelta(0))
    if held.running:
        changes.aborted.append(held.sequence_id)
    queue, priority, due = advanced[0][3:6]
    changes.ready.append((held.lane, queue, priority, verdict.type, due))
    changes.done.append((job, verdict))
    return changes


def written(store: Store, held: Held) -> Plan[bool]:
    """Has an earlier try, whose COMMIT was not answered, completed this job? Waits for whoever holds it."""
    yield store.lock_jobs(_parts(store, [held.sequence_id]))
    fates = yield store.read_fates([rows.epoch_row(held.job())])
    return bool(fates[0][2] == "written")


# --- delete


def upstream(store: Store, ids: Iterable[str]) -> Call[tuple[int, str]]:
    """What these have waited for, and what that has: lane and id."""
    return store.find_upstream(_parts(store, ids))


def delete(store: Store, ids: Sequence[str], *, cascade: bool, own: str | None = None) -> Plan[tuple[list[str], Changes]]:
    """Remove them, and with cascade what nobody else needs of all that they have waited for. SequenceHasDependentsError; UsageError when
    `own` is of it."""
    everything = list(dict.fromkeys([*ids, *(id for _, id in ((yield upstream(store, ids)) if cascade else ()))]))
    edges = (yield store.find_edges(_parts(store, everything))) if len(everything) > 1 else []
    running: dict[str, bool] = {}
    yield store.lock_finished(_parts(store, everything))
    for layer in levels(everything, edges):
        running.update({id: leased for _, id, leased in (yield store.lock_to_delete(_parts(store, layer)))})
    yield store.lock_finished(_parts(store, everything))
    if len(running) < len(everything):  # a failed one may have been retried between the two
        running.update({id: leased for _, id, leased in (yield store.lock_to_delete(_parts(store, everything)))})
    chosen, refused = deletable(ids, everything, (yield store.find_dependents(_parts(store, everything))))
    if refused:
        raise _needed(refused)
    if own in chosen:
        raise UsageError(ITSELF)
    deleted: list[str] = yield store.delete_sequences(_parts(store, chosen))
    order = {id: number for number, id in enumerate(everything)}
    deleted.sort(key=order.__getitem__)
    return deleted, Changes(ended=deleted, aborted=[id for id in deleted if running.get(id)])


def _needed(refused: Sequence[tuple[str, str]]) -> SequenceHasDependentsError:
    dependents: dict[UUID, list[UUID]] = {}
    for blocker, dependent in refused:
        dependents.setdefault(UUID(blocker), []).append(UUID(dependent))
    names = "; ".join(f"{blocker} by {', '.join(map(str, those))}" for blocker, those in dependents.items())
    message = f"unfinished sequences need what is to be deleted ({names}): nothing was changed. Delete those too, or cancel them first."
    return SequenceHasDependentsError(message, dependents=dependents)


# --- dead letters


Which = Mapping[str, object]
"""The conditions of find_failed."""


class NewInput(NamedTuple):
    """With which a failed job runs again: JSON, and the blockers that are in it."""

    input: str
    blockers: Sequence[str]


def retry(
    store: Store,
    ids: Sequence[str] | None,
    which: Which,
    inputs: Callable[[Sequence[Failed]], Mapping[str, NewInput]],
    *,
    reset_attempts: bool,
) -> Plan[tuple[dict[str, str], Changes]]:
    """Run failed sequences again from the job that failed. `inputs` gives new inputs by id, or raises before anything is written."""
    wanted: list[str] = [id for _, id in (yield store.find_failed(**which))] if ids is None else list(ids)
    if wanted and (yield store.find_edged(_parts(store, wanted)))[0]:
        yield from blocking.alone(store)
    failed = [Failed(*row) for row in (yield store.lock_failed(_parts(store, wanted)))]
    revived, result = yield from _revive(store, failed, inputs(failed), reset_attempts=reset_attempts)
    rest = [id for id in wanted if id not in result]
    outcomes = yield from _outcomes(store, rest)
    result.update({id: "not_found" if outcomes[id] is None else "not_failed" for id in rest})
    ready = [(lane, queue, priority, type_, 0.0) for lane, _, queue, priority, type_ in revived]
    again = [(each.job(), None) for each in failed if result[each.sequence_id] == "retried"]
    return {id: result[id] for id in wanted}, Changes(ready=ready, done=[*again])


Revived = tuple[int, str, str, int, str]
"""One that lives again, as revive_failed gives it: lane, id, queue, priority, job type."""


def _revive(
    store: Store, failed: Sequence[Failed], new: Mapping[str, NewInput], *, reset_attempts: bool
) -> Plan[tuple[list[Revived], dict[str, str]]]:
    """Make them live again, but for those that cannot be had; what was done with each, by id.

    What one waits for is counted among those that do live again: so when one falls out, again without it.
    """
    left = {each.sequence_id: each for each in failed}
    result: dict[str, str] = {}
    yield SAVEPOINT
    while True:
        revived: list[Revived] = []
        why: Mapping[str, str] = {}
        try:
            revived, entangled = yield from _revive_together(store, left, new, reset_attempts=reset_attempts)
            why = dict.fromkeys(left.keys() - {row[1] for row in revived}, "key_taken")
        except blocking.NotRevivable as found:
            why, entangled = found.why, True
        except BlockerCycleError as error:
            why, entangled = {str(error.details["id"]): "blocker_cycle"}, True
        except blocking.NotWatched:
            yield UNDO
            raise
        result.update(why)
        if not (why and entangled):
            yield RELEASE
            return revived, {**result, **{row[1]: "retried" for row in revived}}
        yield UNDO
        for id in why:
            del left[id]


def _revive_together(
    store: Store, failed: Mapping[str, Failed], new: Mapping[str, NewInput], *, reset_attempts: bool
) -> Plan[tuple[list[Revived], bool]]:
    """Those that live again; and whether it matters to them which the others are. BlockerCycleError; as `blocking.recount`."""
    kept = {id: new[id].blockers for id in failed if id in new}
    blockers, waits = yield from blocking.recount(store, {id: (each.lane, each.position) for id, each in failed.items()}, kept)
    dropped = [rows.job_row(failed[id].lane, id, failed[id].position, kept=ids) for id, ids in kept.items()]
    if dropped:
        yield store.delete_blockers(dropped)
    parts = [
        rows.revive_row(id, each.lane, new[id].input if id in new else None, 0 if reset_attempts else each.attempt, waits.get(id))
        for id, each in failed.items()
    ]
    revived: list[Revived] = (yield store.revive_failed(parts)) if parts else []
    if revived:
        yield store.move_failed(_parts(store, [row[1] for row in revived]))
    for id in [row[1] for row in revived if row[1] in blockers]:
        yield from blocking.refuse_ring(store, id, blockers[id], f"retry of {id}")
    return revived, bool(blockers or dropped)


def revive_invalid(store: Store, parts: Sequence[str]) -> Plan[tuple[dict[str, str], Changes]]:
    """As `retry`, for what other models than these refused (`parts`: schema_row)."""
    found = [id for _, id in (yield store.find_invalid(parts))]
    return (yield from retry(store, found, {}, lambda _: {}, reset_attempts=True))


def clear(store: Store, ids: Sequence[str] | None, which: Which) -> Plan[tuple[dict[str, str], Changes]]:
    """Remove failed sequences that no unfinished job waits for. `ids`: those, if they still are."""
    wanted: list[str] = [id for _, id in (yield store.find_failed(**which))] if ids is None else list(ids)
    failed = [Failed(*row).sequence_id for row in (yield store.lock_failed(_parts(store, wanted)))]
    chosen, _ = deletable([], failed, (yield store.find_dependents(_parts(store, failed))))
    deleted = set((yield store.delete_sequences(_parts(store, chosen))))
    return {id: "deleted" if id in deleted else "has_dependents" for id in failed}, Changes(ended=[*deleted])


# --- shared


def _parts(store: Store, ids: Iterable[str]) -> list[str]:
    return [rows.sequence_row(id, lane_of(id, store.lanes)) for id in ids]


def _hold(store: Store, ids: Sequence[str], last: Collection[str] = (), *, ending: bool = False) -> Plan[dict[str, Held]]:
    """Lock the live rows of these, blockers before dependents. last: those that may be about to wait for others of them. ending: at
    once as hard as it takes to end them: whoever is about to wait for one may want another next."""
    edges = (yield store.find_edges(_parts(store, ids))) if len(ids) > 1 else []
    held: dict[str, Held] = {}
    late = set(last)
    for layer in levels(ids, edges):
        for part in ([id for id in layer if id not in late], [id for id in layer if id in late]):
            if ending and part:
                yield store.lock_to_delete(_parts(store, part))
            held.update({row[1]: Held(*row) for row in (yield store.lock_live(_parts(store, part)))} if part else {})
    return held


def _end(store: Store, held: Sequence[Held], ending: Ending, changes: Changes) -> Plan[None]:
    if not held:
        return
    yield store.raise_epochs([rows.epoch_row(each.job(raised=False)) for each in held])
    jobs = [each.job() for each in held]
    yield store.end_jobs([rows.end_row(job, ending) for job in jobs])
    freed = yield store.unblock_jobs([rows.epoch_row(job) for job in jobs])
    changes.ended += [each.sequence_id for each in held]
    changes.done += [(job, ending) for job in jobs]
    changes.aborted += [each.sequence_id for each in held if each.running]
    changes.ready += [(lane, queue, priority, type_, 0.0) for lane, queue, priority, type_, free in freed if free]


def _outcomes(store: Store, ids: Sequence[str]) -> Plan[dict[str, str | None]]:
    """How those ended for which there was no live row: None: not at all there; "live": there is one now."""
    if not ids:
        return {}
    found = yield store.read_results(_parts(store, ids))
    return {row[0]: row[2] if row[2] is not None else None if row[1] is None else "live" for row in found}


def _refuse(store: Store, id: str) -> Plan[None]:
    """Why a sequence cannot be completed."""
    status = (yield from _outcomes(store, [id]))[id]
    if status is None:
        raise SequenceNotFoundError(f"sequence {id} does not exist.")
    if status == "live":
        raise SequenceMovedError(f"sequence {id} was retried just now: look at it again.")
    raise SequenceEndedError(f"sequence {id} has ended already: it is {status}.", status=status)
