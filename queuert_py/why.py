"""Why a sequence stands where it stands: from the facts to a code and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from queuert_py.decisions.leases import SUSPECT
from queuert_py.values import Status

Code: TypeAlias = Literal[
    "completed",
    "failed",
    "cancelled",
    "expired",
    "running",
    "lost",
    "claimed",
    "blocked",
    "scheduled",
    "retrying",
    "sleeping",
    "waiting_for_event",
    "doomed",
    "paused",
    "no_worker",
    "unserved_queue",
    "unserved_type",
    "unknown_type",
    "busy",
    "ready",
]
"""How it ended; running, with a worker that is silent (lost), or that has not begun with it (claimed); blocked by sequences;
scheduled by its start; waiting for its next attempt (retrying), for the end of a sleep, for an event; about to fail, or too late and about
to end (doomed); its queue is paused; no worker at all, none of its queue, none with a handler of its type, a type that this engine does not
know either; all its workers are full (busy); ready to be taken."""


SAYS = 300
"""The most characters of an error in a sentence."""


@dataclass(frozen=True, slots=True)
class Why:
    """What a sequence waits for, or how it ended.

    sentence: for people. facts: what it says, by name. causes: why the sequences wait that block it (ten at most; `facts["blockers"]` has
    their number). roots: at the bottom of all that blocks it, those that are not blocked themselves.
    """

    code: Code
    sentence: str
    sequence_id: UUID
    type: str
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    causes: Sequence[Why] = ()
    roots: Sequence[Why] = ()

    def __str__(self) -> str:
        return self.sentence


class Standing(NamedTuple):
    """The facts of a sequence, in the order in which `read_standings` gives them."""

    sequence_id: UUID
    type: str
    current_type: str
    status: Status
    reason: str | None
    queue: str
    attempt: int
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker: str | None
    error: Mapping[str, Any] | None
    open_blockers: int
    progress: Mapping[str, Any] | None
    paused: bool
    waiting: str | None
    sleeping: str | None
    doom: str | None
    lease_ended: bool
    expires_at: datetime | None
    deadline_at: datetime | None
    limit_at: datetime | None
    too_late: bool
    begun: bool
    crashes: int


class Serving(NamedTuple):
    """A worker that is there."""

    id: str
    queues: Sequence[str]
    types: Sequence[str]
    concurrency: int
    running: int


def explain(standing: Standing, workers: Sequence[Serving], known: Sequence[str]) -> Why:
    """Why it stands so; without what is behind a block. known: the job types of the engine that looks, [] when it has none."""
    code, sentence, facts = (
        _ended(standing) or _running(standing) or _late(standing) or _waiting(standing) or _ready(standing, workers, known)
    )
    if code in ("scheduled", "retrying", "sleeping") and standing.limit_at is not None and standing.limit_at < standing.run_at:
        sentence += f" It will not come to that: {_limit(standing)} is before."
    for name in ("expires_at", "deadline_at"):
        if standing.finished_at is None and getattr(standing, name) is not None:
            facts[name] = getattr(standing, name)
    return Why(code, sentence, standing.sequence_id, standing.current_type, facts)


Said: TypeAlias = tuple[Code, str, dict[str, Any]]


def _ended(at: Standing) -> Said | None:
    if at.finished_at is None:
        return None
    facts: dict[str, Any] = {"at": at.finished_at, "reason": at.reason, "attempt": at.attempt, "worker": at.worker, "error": at.error}
    facts = {name: value for name, value in facts.items() if value is not None}
    when = f"at {at.finished_at:%Y-%m-%d %H:%M:%S %Z}"
    match at.status:
        case "completed":
            return "completed", f"it completed {when}.", facts
        case "failed":
            return "failed", f"it failed in {at.current_type!r} ({at.reason}) {when}: {_says(at.error)}", facts
        case "cancelled":
            return "cancelled", f"it was cancelled {when}.", facts
        case _:
            return "expired", f"it expired {when}: it was not started in time.", facts


def _running(at: Standing) -> Said | None:
    if at.status != "running":
        return None
    facts: dict[str, Any] = {"worker": at.worker, "since": at.started_at, "attempt": at.attempt, "progress": at.progress}
    since = f"since {at.started_at:%Y-%m-%d %H:%M:%S %Z}" if at.started_at else ""
    if at.lease_ended:
        return "lost", f"its lease has ended: {at.worker} is silent {since}; the next worker that looks takes it back.", facts
    if not at.begun:
        waits = "for a slot there"
        if at.crashes >= SUSPECT:
            waits = f"to run alone there, since workers have died {at.crashes} times while it ran"
        return "claimed", f"{at.worker} has taken it {since}; it waits {waits}.", {**facts, "crashes": at.crashes}
    done = f" ({at.progress.get('percent')} % done)" if at.progress else ""
    return "running", f"{at.current_type!r} runs on {at.worker} {since}, attempt {at.attempt}{done}.", facts


def _limit(at: Standing) -> str:
    return f"its {'deadline' if at.limit_at == at.deadline_at else 'expiry'} ({at.limit_at:%Y-%m-%d %H:%M:%S %Z})"


def _late(at: Standing) -> Said | None:
    if not at.too_late or at.doom is not None:
        return None
    return "doomed", f"it is too late: {_limit(at)} has passed; the next worker that looks ends it.", {"limit": at.limit_at}


def _waiting(at: Standing) -> Said | None:
    until = f"{at.run_at:%Y-%m-%d %H:%M:%S %Z}"
    if at.status == "blocked":
        return "blocked", f"it waits for {at.open_blockers} other sequence(s).", {"blockers": at.open_blockers}
    if at.status != "scheduled":
        return None
    facts: dict[str, Any] = {"until": at.run_at}
    if at.waiting is not None:
        for_ever = at.run_at.year >= 9999
        facts = {"event": at.waiting, "until": None if for_ever else at.run_at}
        how_long = "" if for_ever else f", until {until} at the latest"
        return "waiting_for_event", f"{at.current_type!r} waits for the event {at.waiting!r}{how_long}: engine.send_event sends it.", facts
    if at.sleeping is not None:
        return "sleeping", f"{at.current_type!r} sleeps until {until} ({at.sleeping}).", {"sleep": at.sleeping, **facts}
    if at.error is not None:
        facts |= {"attempt": at.attempt, "error": at.error}
        return "retrying", f"attempt {at.attempt} did not succeed ({_says(at.error)}); the next begins at {until}.", facts
    return "scheduled", f"its time has not come: it is scheduled for {until}.", facts


def _ready(at: Standing, workers: Sequence[Serving], known: Sequence[str]) -> Said:
    facts: dict[str, Any] = {"queue": at.queue, "since": at.run_at}
    if at.doom is not None:
        return "doomed", f"it fails as soon as a worker takes it: {_cut(at.doom)}.", {**facts, "doom": at.doom}
    if at.paused:
        return "paused", f"its queue {at.queue!r} is paused.", facts
    if not workers:
        return "no_worker", "no worker is running: `queuert worker module:engine` starts one.", facts
    in_queue = [each for each in workers if at.queue in each.queues]
    able = [each for each in in_queue if at.current_type in each.types]
    facts["workers"] = [each.id for each in able or in_queue]
    if not in_queue and any(at.current_type in each.types for each in workers):
        return "unserved_queue", f"no worker serves its queue {at.queue!r}: start one with --queues {at.queue}.", facts
    if not able and known and at.current_type not in known:
        return "unknown_type", f"no worker has a handler of {at.current_type!r}, and this app does not declare it either.", facts
    if not able:
        return "unserved_type", f"no worker of queue {at.queue!r} has a handler of {at.current_type!r}: start one that imports it.", facts
    if all(each.running >= each.concurrency for each in able):
        running = sum(each.running for each in able)
        return "busy", f"every worker that serves it is full ({running} job(s) on {len(able)} worker(s)).", {**facts, "running": running}
    return "ready", f"nothing holds it: {len(able)} worker(s) serve it, the next free one takes it.", facts


def blocked(why: Why, causes: Sequence[Why], roots: Sequence[Why]) -> Why:
    """A blocked sequence's Why, with what blocks it."""
    said = "; ".join(f"{each.sequence_id} ({each.type}): {each.sentence.rstrip('.')}" for each in causes[:3])
    more = f"; and {why.facts['blockers'] - 3} more" if why.facts["blockers"] > 3 else ""
    deeper = [each for each in roots if each.sequence_id not in {cause.sequence_id for cause in causes}]
    root = f" At the root: {deeper[0].sequence_id} ({deeper[0].type}): {deeper[0].sentence}" if deeper else ""
    stuck = any(each.code in ("cancelled", "expired") for each in (*causes, *roots))
    way_out = " What was cancelled or has expired never runs again: cancel or complete the sequence that waits for it." if stuck else ""
    failed = next((each for each in (*roots, *causes) if each.code == "failed"), None)
    if failed is not None:
        way_out += f" `queuert retry {failed.sequence_id}` runs what has failed again."
    sentence = f"{why.sentence.rstrip('.')}: {said}{more}.{root}{way_out}" if said else why.sentence
    return Why(why.code, sentence, why.sequence_id, why.type, why.facts, tuple(causes), tuple(roots))


def _says(error: Mapping[str, Any] | None) -> str:
    return _cut(f"{error.get('type', 'error')}: {error.get('message', '')}".strip()) if error else "no error is stored"


def _cut(text: str) -> str:
    """As much as a sentence bears; the whole of it is in the facts."""
    return text if len(text) <= SAYS else f"{text[: SAYS - 1]}…"
