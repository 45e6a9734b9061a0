"""The plain values that every layer shares. Nothing here does anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
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

Reason: TypeAlias = Literal["error", "timeout", "validation", "crashed", "poison", "max_steps", "fail"]
"""Why a job failed for good: its handler's error, its timeout, a stored input that its model refuses, workers that died with it
until its attempts were used up, workers that died with it alone, a sequence over its `max_steps`, or `Fail`."""

Abort: TypeAlias = Literal["lease_lost", "deleted", "cancelled", "completed_elsewhere", "timeout", "shutdown"]
"""Why a running handler is cancelled."""

Backoff: TypeAlias = Duration | Callable[[int], Duration]
"""The wait before the next attempt: fixed, or computed from the number of the attempt that failed (1 for the first)."""


class StartOptions(TypedDict, total=False):
    """The options of one start. All optional.

    key: at most one unfinished sequence of this job type has this key; a second start returns the first (up to 512 bytes).
    delay, at: not before this long from now, or this instant (aware). Not both.
    expires: not started by then (from now, or an instant): the sequence ends as `expired`.
    priority: higher runs first; inherited by continuations (-32768 to 32767).
    queue: where workers look for it (up to 40 bytes).
    max_attempts: None for ever.
    timeout: of each attempt.
    tags: words to find it by. correlation_id: the caller's own id, to find it by.
    id: the sequence's id, by the caller; starting it again with the same type and input is a repeat and changes nothing.
    """

    key: str | None
    delay: Duration | None
    at: datetime | None
    expires: Duration | datetime | None
    priority: int
    queue: str
    max_attempts: int | None
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
    """A sequence to be started: a value, made by calling a job type. The one currency of `start_sequences`, schedules and tests."""

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


class Retry(Exception):  # noqa: N818 - a signal, not an error
    """Raised by a handler: try again after a span, or at an instant. The attempt is charged; beyond max_attempts the job fails."""

    def __init__(self, message: str = "", /, *, after: Duration | None = None, at: datetime | None = None) -> None:
        super().__init__(message)
        if at is not None and (after is not None or at.tzinfo is None):
            raise UsageError(f"{type(self).__name__}(at={at!r}): an aware datetime, and no after=.")
        if after is not None and not timedelta(0) <= _span(after) <= timedelta(days=36_500):
            raise UsageError(f"{type(self).__name__}(after={after!r}): a timedelta or seconds, not negative.")
        self.after, self.at = after, at


class Snooze(Retry):
    """Raised by a handler: not now. As Retry, but the attempt is not charged."""


class Fail(Exception):  # noqa: N818 - a signal, not an error
    """Raised by a handler: the job fails now, whatever attempts are left."""


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


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends for good: a completed one with its output as JSON, any other with the reason and the error as JSON."""

    outcome: Literal["completed", "failed", "expired", "cancelled"]
    output: str | None = None
    output_type: str | None = None
    reason: Reason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """The next job of a sequence, checked and dumped."""

    job_id: str
    type: str
    queue: str | None
    input: str
    delay: timedelta | None
    at: datetime | None
    priority: int | None
    max_attempts: int | None
    timeout: timedelta | None


@dataclass(frozen=True, slots=True)
class Delay:
    """Back to waiting: after a span or at an instant; `charged`: the attempt counts. With the error as JSON, if there was one."""

    after: timedelta | None
    at: datetime | None = None
    charged: bool = True
    outcome: str = "error"
    error: str | None = None


Verdict: TypeAlias = Ending | Step | Delay
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
    """One job of a sequence, as the view `job` shows it."""

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
