"""The plain values that every layer shares. Nothing here does anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeAlias, TypedDict
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import TypeVar

from queuert_py.errors import UsageError

if TYPE_CHECKING:
    from queuert_py.job_types import InternalJobType

Out_co = TypeVar("Out_co", bound=BaseModel | None, covariant=True)

Duration: TypeAlias = timedelta | float
"""A span of time: a timedelta, or seconds."""

Status: TypeAlias = Literal["blocked", "scheduled", "pending", "running", "completed", "continued", "failed", "cancelled", "expired"]
"""Where a job stands; derived from its row, never stored (see `queuert_py.decisions.status`)."""

Reason: TypeAlias = Literal["error", "timeout", "validation", "crashed", "poison", "max_steps", "fail", "blocker_failed"]
"""Why a job failed for good: its handler's error, its timeout or its sequence's deadline, a stored input that its model refuses, workers
that died with it until its attempts were used up, workers that died with it alone, a sequence over its `max_steps`, `Fail`, or a blocker
that failed (`on_blocker_failure="fail"`)."""

Abort: TypeAlias = Literal["lease_lost", "deleted", "cancelled", "completed_elsewhere", "timeout", "shutdown"]
"""Why a running handler is cancelled."""

Backoff: TypeAlias = Duration | Callable[[int], Duration]
"""The wait before the next attempt: fixed, or computed from the number of the attempt that failed (1 for the first)."""


BlockerPolicy: TypeAlias = Literal["hold", "fail", "ignore"]
"""What a job does when a sequence that it waits for ends without an output: goes on waiting (the blocker can be retried), fails with
the reason `blocker_failed`, or counts it as done (the Blocker's `outcome` tells)."""


@dataclass(frozen=True, slots=True)
class Dedup:
    """At most one sequence of a job type has this key: a start that meets it is answered by `on_match`.

    scope: "incomplete" looks at unfinished sequences only, "all" at finished ones as well. window (with "all"): only at finished ones
    that were started no longer ago than this; an unfinished one always counts.
    on_match: "return" the one that is there (its handle has `deduplicated`), "raise" DuplicateKeyError, or "replace" the input and the
    options of the one that is there as long as it waits to begin for the first time (else it is returned).
    """

    key: str
    scope: Literal["incomplete", "all"] = "incomplete"
    window: Duration | None = None
    on_match: Literal["return", "raise", "replace"] = "return"
    delay: Duration | None = None

    @classmethod
    def throttle(cls, key: str, window: Duration) -> Dedup:
        """At most one start in `window`: further ones return the first. UsageError without a window."""
        _given(window, "window")
        return cls(key, scope="all", window=window)

    @classmethod
    def debounce(cls, key: str, delay: Duration) -> Dedup:
        """Run once things have been quiet for `delay`: each start replaces the input of the one that waits, and puts it off again.
        UsageError without a delay."""
        _given(delay, "delay")
        return cls(key, on_match="replace", delay=delay)


def _given(span: object, name: str) -> None:
    if span is None:
        raise UsageError(f"{name}=None: a timedelta or seconds is needed.")


class StartOptions(TypedDict, total=False):
    """The options of one start. All optional.

    key: at most one unfinished sequence of this job type has this key; a second start returns the first (up to 512 bytes).
    dedup: a Dedup, where `key` alone does not say enough. Not both.
    delay, at: not before this long from now, or this instant (aware). Not both.
    deadline: the whole sequence has failed (reason `timeout`) if it has not ended by then (from now, or an instant).
    expires: not started by then (from now, or an instant; one that is past: at once): the sequence ends as `expired`.
    priority: higher runs first; inherited by continuations (-32767 to 32767).
    queue: where workers look for it (up to 40 bytes).
    max_attempts: None for ever. backoff: a fixed wait before each further attempt of the first job (10 s: see JobOptions).
    timeout: of each attempt at the first job; None: without one, whatever its job type says.
    tags: words to find it by; [] in a handler: without those of its job. correlation_id: the caller's own id, to find it by.
    id: the sequence's id, by the caller; starting it again with the same type and input is a repeat and changes nothing.
    """

    key: str | None
    dedup: Dedup | None
    delay: Duration | None
    at: datetime | None
    expires: Duration | datetime | None
    deadline: Duration | datetime | None
    priority: int
    queue: str
    max_attempts: int | None
    backoff: Duration
    timeout: Duration | None
    tags: Sequence[str]
    correlation_id: str | None
    id: UUID | None


class ContinueOptions(TypedDict, total=False):
    """The options of a continuation: when it may run, and its priority (inherited by default)."""

    delay: Duration | None
    at: datetime | None
    priority: int


@dataclass(frozen=True, slots=True)
class Request(Generic[Out_co]):
    """A sequence to be started: a value, made by calling a job type: for `start_sequences`, and for `start_sequence` by itself."""

    job_type: InternalJobType[Any, Out_co]
    input: BaseModel
    options: StartOptions = field(default_factory=StartOptions)


@dataclass(frozen=True, slots=True)
class Continuation(Generic[Out_co]):
    """The next job of a sequence: a value that a handler returns. Nothing happens until the engine writes it."""

    job_type: InternalJobType[Any, Out_co]
    input: BaseModel
    options: ContinueOptions = field(default_factory=ContinueOptions)


def _span(duration: Duration) -> timedelta:
    try:
        return duration if isinstance(duration, timedelta) else timedelta(seconds=duration)
    except (TypeError, ValueError, OverflowError):
        return timedelta(-1)


EARLIEST, LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
"""The instants that are stored: a day from what Python can hold, so that they can be read in every time zone."""


def storable(at: datetime) -> bool:
    """Is it an aware datetime that can be stored and read back?"""
    return at.tzinfo is not None and EARLIEST <= at <= LATEST


class Retry(Exception):  # noqa: N818 - a signal, not an error
    """Raised by a handler: try again after a span, or at an instant. The attempt is charged; beyond max_attempts the job fails."""

    def __init__(self, message: str = "", /, *, after: Duration | None = None, at: datetime | None = None) -> None:
        super().__init__(message)
        if at is not None and (after is not None or not storable(at)):
            raise UsageError(f"{type(self).__name__}(at={at!r}): an aware datetime before {LATEST:%Y-%m-%d}, and no after=.")
        if after is not None and not timedelta(0) <= _span(after) <= timedelta(days=36_500):
            raise UsageError(f"{type(self).__name__}(after={after!r}): a timedelta or seconds, not negative.")
        self.after, self.at = after, at


class Snooze(Retry):
    """Raised by a handler: not now. As Retry, but the attempt is not charged."""


class Fail(Exception):  # noqa: N818 - a signal, not an error
    """Raised by a handler: the job fails now, whatever attempts are left."""


class Suspended(BaseException):
    """Ends the run of a handler that sleeps or waits; what it waits for is known to its attempt. No Exception: `except Exception` lets
    it pass, and a handler that stops it all the same changes nothing."""


class LiveJob(NamedTuple):
    """A claimed job: what its attempt needs to know. The fields stand in the order in which `claim_jobs` returns them.

    Ids are texts here: they travel as such, and become UUIDs where a user asks for one.
    """

    lane: int
    sequence_id: str
    position: int
    epoch: int
    type: str
    input: str
    attempt: int
    crash_count: int
    begun: bool
    watched: bool
    blocker_count: int
    queue: str
    priority: int
    run_at: datetime
    expired: bool
    max_attempts: int | None
    timeout: timedelta | None
    job_id: str | None
    root_id: str | None
    origin_id: str | None
    correlation_id: str | None
    tags: Sequence[str] | None
    doom: str | None
    deadline: float | None
    memo: str | None
    backoff: float | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends for good: a completed one with its output as JSON, any other with the reason and the error as JSON.

    charged: whether the attempt counts. dead_letter: the row of the sequence that is started with the failure.
    """

    outcome: Literal["completed", "failed", "expired", "cancelled"]
    output: str | None = None
    output_type: str | None = None
    reason: Reason | None = None
    error: str | None = None
    charged: bool = True
    dead_letter: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The next job of a sequence, checked and dumped. failure: how the job has failed that it compensates."""

    job_id: str
    type: str
    queue: str | None
    input: str
    delay: timedelta | None
    at: datetime | None
    priority: int | None
    max_attempts: int | None
    timeout: timedelta | None
    blockers: Sequence[str] = ()
    on_blocker_failure: BlockerPolicy = "hold"
    failure: Ending | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Wait for these sequences, then run again from the first line: `job.wait_for`, under the name by which the handler finds them."""

    blockers: Sequence[str]
    name: str
    on_blocker_failure: BlockerPolicy = "hold"


@dataclass(frozen=True, slots=True)
class Delay:
    """Back to waiting: after a span or at an instant; `charged`: the attempt counts. With the error as JSON, if there was one."""

    after: timedelta | None
    at: datetime | None = None
    charged: bool = True
    outcome: str = "error"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Suspend:
    """Sleep, or wait for an event, then run again from the first line; the attempt is not charged, nothing is logged.

    name: of the sleep, or (`event`) of the event. after, at: when to wake at the latest; neither: only the event wakes it.
    """

    name: str
    event: bool = False
    after: timedelta | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Doom:
    """A failure that is not written here, because something has to be done with it: a worker that knows the job's type claims the job
    once more, to bury it. crash: whether a worker died with it."""

    ending: Ending
    crash: bool = False


Verdict: TypeAlias = Ending | Step | Delay | Block | Suspend
"""What is to be written for an attempt: made by `decisions.judge`, carried out by the finisher or in the attempt's transaction."""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt that did not succeed, as logged. `error` holds type, message, traceback and attrs."""

    attempt: int
    outcome: str
    error: Mapping[str, Any] | None
    started_at: datetime | None
    finished_at: datetime
    worker: str | None
    position: int
    type: str


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job of a sequence, as the view `job` shows it.

    started_at, worker: of the attempt that runs, or that ended it. progress: `percent` and `message`, as its handler last told.
    origin_id: the job that created it; root_id: the first sequence of its tree. attempts: those that did not succeed, if asked for.
    """

    sequence_id: UUID
    position: int
    job_id: UUID
    type: str
    status: Status
    reason: str | None
    queue: str
    priority: int
    attempt: int
    crash_count: int
    input: Any
    output: Any
    error: Mapping[str, Any] | None
    run_at: datetime
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker: str | None
    progress: Mapping[str, Any] | None
    root_id: UUID
    origin_id: UUID | None
    open_blockers: int
    correlation_id: str | None
    tags: Sequence[str]
    attempts: Sequence[AttemptRecord] = ()


@dataclass(frozen=True, slots=True)
class SequenceRecord:
    """One sequence, as the view `sequence` shows it: the input of its first job, status, output and error of its current or last."""

    id: UUID
    type: str
    status: Status
    reason: str | None
    key: str | None
    correlation_id: str | None
    tags: Sequence[str]
    steps: int
    current_type: str
    attempt: int
    input: Any
    output: Any
    error: Mapping[str, Any] | None
    created_at: datetime
    finished_at: datetime | None
    root_id: UUID
    queue: str
    priority: int
    run_at: datetime
    started_at: datetime | None
    worker: str | None
    progress: Mapping[str, Any] | None
    open_blockers: int


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """One end of a link between sequences: a blocker of a job, or a job that waits (or waited) for a sequence.

    id: the sequence at that end; `type`, `status` and what follows are None when it was deleted. position: of the job that waits, in its
    own sequence. settled: nothing more is waited for here; an open link to a failed blocker waits for its retry.
    """

    id: UUID
    position: int
    settled: bool
    type: str | None
    status: Status | None
    reason: str | None
    current_type: str | None
    error: Mapping[str, Any] | None
    created_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt that `run_once` or a test's `drain` has run, and what became of it.

    outcome: completed, continued, failed, cancelled or expired; retried (error, timeout), snoozed, released (given back), suspended (it
    sleeps or waits), lost (no longer this process's). error: that of an attempt which did not succeed, as stored.
    """

    sequence_id: UUID
    type: str
    attempt: int
    outcome: str
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What `run_once` has done. claimed: jobs taken; reaped: jobs taken back from workers that are gone; available: jobs that are ready
    still, for whoever decides when to run next (counted up to 10,000); ran: every attempt, in the order in which they ended."""

    claimed: int
    reaped: int
    available: int
    ran: Sequence[Ran]

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How many attempts ended how."""
        return dict(Counter(each.outcome for each in self.ran))
