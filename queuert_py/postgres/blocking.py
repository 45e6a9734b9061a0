"""The one procedure that adds blockers, for starts, continuations, waiting handlers and retries (docs/design.md has the races).

Blockers are marked as watched first, apart and committed; then, in the transaction that adds the edges, locked against their finish and
looked at in the next statement. Nothing is written before that, so that whoever finds one not marked can mark it and begin again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast
from zlib import crc32

from pydantic_core import from_json

from queuert_py.errors import BlockerCycleError, BlockerError, SequenceBusyError, SequenceNotFoundError
from queuert_py.ids import lane_of
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database
from queuert_py.postgres.plans import Plan
from queuert_py.postgres.store import Store
from queuert_py.values import Block, BlockerPolicy, LiveJob, Step

T = TypeVar("T")
LIMIT = 1000
"""The most blockers of one job."""
PATIENCE, PATIENCE_INSIDE = 30.0, 5.0
"""Seconds in which a blocker that somebody's transaction holds is marked again and again; in a transaction that may hold rows itself, for
which that one may wait: PostgreSQL does not see such a ring."""


class Ended(NamedTuple):
    """How a blocker has ended. error: JSON, without what is long in it."""

    outcome: str
    type: str
    error: str | None


Standing = Mapping[str, Ended | None]
"""How blockers stand, by id: None while unfinished."""


class NotWatched(Exception):  # noqa: N818 - a signal: mark these, and begin again
    """Blockers that are not marked as watched yet, or whatever else cannot be had just now."""

    def __init__(self, parts: Sequence[str]) -> None:
        super().__init__(f"{len(parts)} sequence(s) cannot be had yet")
        self.parts = parts


class NotRevivable(Exception):  # noqa: N818 - a signal: begin again without these
    """Failed sequences that cannot live again now, and why, by id."""

    def __init__(self, why: Mapping[str, str]) -> None:
        super().__init__(f"{len(why)} sequence(s) cannot run again")
        self.why = why


async def marking(database: Database, work: Callable[[], Awaitable[T]], first: Iterable[str] = (), *, patience: float = PATIENCE) -> T:
    """Do `work`; as often as it meets blockers that are not marked, mark them and do it again. `first`: ids to be marked before.

    SequenceBusyError when one stays locked by a transaction of somebody else's for `patience` seconds (0: one try more).
    """
    tried, until = 0, time.monotonic() + patience
    parts = [rows.sequence_row(id, lane_of(id, database.store.lanes)) for id in first]
    while True:
        if parts:
            await database.aside.retrying(database.store.mark_watched(parts))
        try:
            return await work()
        except NotWatched as found:
            parts = list(found.parts)
        tried += 1
        if tried > 1:
            if time.monotonic() >= until:
                raise SequenceBusyError(f"{len(parts)} sequence(s) have been held by another transaction for {patience:.0f} s: try again.")
            await asyncio.sleep(min(0.1, 0.001 * 2**tried))


def stand(store: Store, ids: Iterable[str]) -> Plan[Standing]:
    """Lock blockers against their finish, and how they stand. SequenceNotFoundError; NotWatched."""
    placed = sorted((lane_of(id, store.lanes), id) for id in set(ids))
    parts = {id: rows.sequence_row(id, lane) for lane, id in placed}
    locked: list[str] = yield store.lock_blockers(parts.values())
    standing: dict[str, Ended | None] = dict.fromkeys(locked)
    rest = [id for id in parts if id not in standing]
    missing: list[str] = []
    unwatched: list[str] = []
    for id, live, outcome, type_, error, ended in (yield store.read_blockers([parts[id] for id in rest])) if rest else ():
        if live or outcome == "continued" or (ended and outcome is None):  # the last: somebody retries or deletes it just now
            unwatched.append(parts[id])
        elif outcome is None:
            missing.append(id)
        else:
            standing[id] = Ended(outcome, type_, error)
    if missing:
        raise SequenceNotFoundError(f"blocker {', '.join(missing)} does not exist: was its start committed?", ids=missing)
    if unwatched:
        raise NotWatched(unwatched)
    return standing


def counts(standing: Standing, blockers: Sequence[str], policy: BlockerPolicy) -> dict[str, Any]:
    """The columns of a job that waits for these."""
    distinct = dict.fromkeys(blockers)
    spoiled = {id: ended for id in distinct if (ended := standing[id]) is not None and ended.outcome != "completed"}
    open_ = [id for id in distinct if standing[id] is None]
    fields: dict[str, Any] = {"blocker_count": len(distinct), "on_blocker_failure": None if policy == "hold" else policy}
    if spoiled and policy == "fail":
        id, ended = next(iter(spoiled.items()))
        message = f"blocker {id} ({ended.type}): {ended.outcome}"
        attrs = {"id": id, "type": ended.type, "outcome": ended.outcome, "error": from_json(ended.error or "null")}
        return {**fields, "open_blockers": 0, "doom": {"type": "BlockerFailed", "message": message, "traceback": "", "attrs": attrs}}
    return {**fields, "open_blockers": len(open_) + (len(spoiled) if policy == "hold" else 0)}


def edges(store: Store, standing: Standing, job: tuple[int, str, int], blockers: Sequence[str], policy: BlockerPolicy) -> list[str]:
    """The rows for insert_blockers. `job`: lane, sequence id, position."""
    lane, sequence_id, position = job
    return [
        rows.edge_row(
            lane_of(id, store.lanes),
            id,
            lane,
            sequence_id,
            position,
            ordinal,
            counted=(ended := standing[id]) is not None and (ended.outcome == "completed" or policy == "ignore"),
        )
        for ordinal, id in enumerate(dict.fromkeys(blockers))
    ]


def check(blockers: Sequence[str], own: str | None, which: str) -> None:
    """What can be said without looking: too many, or the sequence itself. BlockerError."""
    if len(set(blockers)) > LIMIT:
        raise BlockerError(f"{which}: {len(set(blockers)):,} blockers, the limit is {LIMIT:,}: join them in steps.")
    if own is not None and own in blockers:
        raise BlockerCycleError(f"{which}: sequence {own} would wait for itself.", id=own)


def _of_existing(store: Store, job: LiveJob, blockers: Sequence[str], which: str) -> Plan[Standing | None]:
    """As `stand`, for new edges of a running job: one at a time, so that no two close a ring together. None: somebody has the job's row.

    That row is held before its blockers' are: nobody who ends one of them wants it yet, and who ends both would have it first. But it
    is not waited for: who has it (`complete_sequence`) may wait for the lock of `alone`.
    """
    check(blockers, job.sequence_id, which)
    yield from alone(store)
    if not (yield store.lock_free([rows.epoch_row(job)])):
        return None
    standing = yield from stand(store, blockers)
    yield from refuse_ring(store, job.sequence_id, blockers, which)
    return standing


def alone(store: Store) -> Plan[None]:
    """One at a time: whoever adds edges to a sequence that exists looks for a ring in a later statement of the same transaction."""
    yield store.lock_edges(crc32(f"queuert edges {store.schema}".encode()))


def refuse_ring(store: Store, id: str, blockers: Iterable[str], which: str) -> Plan[None]:
    """BlockerCycleError when one of its blockers waits, by way of whatever else, for the sequence itself."""
    parts = [rows.sequence_row(blocker, lane_of(blocker, store.lanes)) for blocker in dict.fromkeys(blockers)]
    if (yield store.find_cycle(parts, lane_of(id, store.lanes), id)):
        raise BlockerCycleError(f"{which}: one of its blockers waits for sequence {id} itself.", id=id)


def advance(store: Store, job: LiveJob, step: Step) -> Plan[list[list[Any]]]:
    """A continuation that waits for blockers; the answers of finish_steps and advance_jobs, empty when the row is not to be had now."""
    standing = yield from _of_existing(store, job, step.blockers, f"continuation with {step.type!r}")
    if standing is None:
        return [[], []]
    part = rows.step_row(job, step, handoff=False, more=counts(standing, step.blockers, step.on_blocker_failure))
    written = yield store.finish_steps([part])
    if step.failure is not None:
        yield store.log_failures([rows.failure_row(job, step.failure)])
    advanced = yield store.advance_jobs([part], timedelta(0))
    if advanced:
        place = (job.lane, job.sequence_id, job.position + 1)
        yield store.insert_blockers(edges(store, standing, place, step.blockers, step.on_blocker_failure))
    return [written, advanced]


def block(store: Store, job: LiveJob, wait: Block) -> Plan[list[tuple[Any, ...]]]:
    """A running job that waits for blockers; the answer of block_job, empty when the job is no longer this attempt's, or held just now."""
    standing = yield from _of_existing(store, job, wait.blockers, f"wait_for {wait.name!r}")
    if standing is None:
        return []
    fields = counts(standing, wait.blockers, wait.on_blocker_failure)
    blocked: list[tuple[Any, ...]] = yield store.block_job([rows.block_row(job, wait, fields)])
    if blocked:
        place = (job.lane, job.sequence_id, job.position)
        yield store.insert_blockers(edges(store, standing, place, wait.blockers, wait.on_blocker_failure))
    return blocked


def recount(
    store: Store, jobs: Mapping[str, tuple[int, int]], kept: Mapping[str, Collection[str]]
) -> Plan[tuple[dict[str, list[str]], dict[str, dict[str, Any]]]]:
    """What failed jobs (by id: lane, position) that become live again have still to wait for: the blockers and the columns, by id.

    kept: of those that get another input, which blockers are still in that. Those that become live together are unfinished for each
    other. Once they live, `refuse_ring` has to look at each. NotRevivable: a blocker does not exist any more; NotWatched.
    """
    parts = [rows.job_row(lane, id, position) for id, (lane, position) in jobs.items()]
    waits: dict[str, list[str]] = {}
    policies: dict[str, BlockerPolicy] = {}
    for id, blocker, policy in (yield store.read_edges(parts)) if parts else ():
        if id not in kept or blocker in kept[id]:
            waits.setdefault(id, []).append(blocker)
            policies[id] = policy or "hold"
    if not waits:
        return {}, {}
    yield from alone(store)
    outside = {blocker for blockers in waits.values() for blocker in blockers} - jobs.keys()
    try:
        standing = {**dict.fromkeys(jobs), **((yield from stand(store, outside)) if outside else {})}
    except SequenceNotFoundError as error:
        gone = set(map(str, cast("list[object]", error.details["ids"])))
        raise NotRevivable({id: "blocker_gone" for id, blockers in waits.items() if gone & set(blockers)}) from error
    places = {id: (jobs[id][0], id, jobs[id][1]) for id in waits}
    yield store.settle_edges([part for id in waits for part in edges(store, standing, places[id], waits[id], policies[id])])
    return waits, {id: counts(standing, blockers, policies[id]) for id, blockers in waits.items()}
