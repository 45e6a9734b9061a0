"""What happens to jobs, as values: for `@engine.on(…)` in this process and `engine.watch(…)` across processes.

| event | when | on | watch |
|---|---|---|---|
| SequenceStarted | a start of this engine has committed (not one inside a caller's transaction) | yes | |
| JobStarted | an attempt begins | yes | |
| JobProgress | a handler has told how far it is | yes | the latest |
| JobCompleted | the last job of a sequence has returned its output | yes | yes |
| JobContinued | a job has handed its sequence to the next | yes | yes |
| JobRetrying | an attempt did not succeed, another follows (error, timeout, lost) | yes | yes |
| JobSnoozed | an attempt asked for a later one, uncharged | yes | yes |
| JobReleased | an attempt was given back as its worker stopped | yes | yes |
| JobSuspended | a job sleeps, or waits for an event or for sequences | yes | |
| JobFailed | a job, and so its sequence, has failed for good | yes | yes |
| JobCancelled | a sequence was cancelled | here | yes |
| JobExpired | a sequence was not started in time | yes | yes |
| JobRevived | a failed sequence runs again | here | yes |

`on` tells of what the workers and calls of this very engine have committed ("here": by a call of this engine), `watch` of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from typing_extensions import TypeVar

__all__ = [
    "Event",
    "JobCancelled",
    "JobCompleted",
    "JobContinued",
    "JobEnded",
    "JobEvent",
    "JobExpired",
    "JobFailed",
    "JobProgress",
    "JobReleased",
    "JobRetrying",
    "JobRevived",
    "JobSnoozed",
    "JobStarted",
    "JobSuspended",
    "SequenceStarted",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Any event. type: of the job. at: when, by the database's clock, where that is known (always in `watch`)."""

    sequence_id: UUID
    type: str
    queue: str | None = None
    tags: Sequence[str] = ()
    correlation_id: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceStarted(Event):
    """A sequence was started (not: found by its key)."""

    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobEvent(Event):
    """Anything that happens to a job. position: in its sequence, from 0. attempt: from 1. worker: the one that had it."""

    job_id: UUID | None = None
    position: int = 0
    attempt: int = 0
    worker: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobStarted(JobEvent):
    """An attempt begins."""


@dataclass(frozen=True, kw_only=True)
class JobProgress(JobEvent):
    """A handler has told how far it is: the latest is given, earlier ones may be left out."""

    percent: float | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobContinued(JobEvent):
    """A job has handed its sequence to the next. next_type: of the next job, where that is known (`on`)."""

    next_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRetrying(JobEvent):
    """An attempt did not succeed, and another follows. outcome: error, timeout, or lost (its worker died). error: as stored."""

    outcome: str = "error"
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class JobSnoozed(JobEvent):
    """An attempt asked for a later one (`Snooze`); it is not charged."""

    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class JobReleased(JobEvent):
    """An attempt was given back, uncharged, because its worker stopped."""


@dataclass(frozen=True, kw_only=True)
class JobSuspended(JobEvent):
    """A job sleeps, or waits for an event or for other sequences; `engine.why` says for which."""


@dataclass(frozen=True, kw_only=True)
class JobRevived(JobEvent):
    """A failed sequence runs again from the job that failed."""


@dataclass(frozen=True, kw_only=True)
class JobEnded(JobEvent):
    """The end of a sequence, of any kind."""


@dataclass(frozen=True, kw_only=True)
class JobCompleted(JobEnded):
    """A sequence has completed. output: as JSON; read it as its model with `engine.sequence(type, event.sequence_id).result()`."""

    output: str | None = None
    output_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobFailed(JobEnded):
    """A job has failed for good. reason: see `queuert_py.values.Reason`. error: type, message, traceback, attrs."""

    reason: str = "error"
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class JobCancelled(JobEnded):
    """A sequence was cancelled."""


@dataclass(frozen=True, kw_only=True)
class JobExpired(JobEnded):
    """A sequence was not started by its `expires`."""


E = TypeVar("E", bound=Event, default=Event)
E_co = TypeVar("E_co", bound=Event, default=Event, covariant=True)
E_contra = TypeVar("E_contra", bound=Event, default=Event, contravariant=True)
