"""What the callbacks of control are given: the job that is completed from outside, the job that failed for good."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeAlias, TypedDict, cast
from uuid import UUID

from pydantic import BaseModel, JsonValue
from typing_extensions import TypeVar

from queuert_py.values import Continuation, Reason

In_co = TypeVar("In_co", bound=BaseModel, covariant=True)

Cancelled: TypeAlias = Literal["cancelled", "completed", "failed", "expired", "not_found", "busy"]
"""How a sequence stands after `cancel_sequences`: cancelled (now or before), or how else it had ended. busy: its handler's open
transaction held it for longer than the wait; nothing has changed for it."""

Retried: TypeAlias = Literal["retried", "key_taken", "blocker_cycle", "blocker_gone", "not_failed", "not_found"]
"""What `retry_sequences` did with a sequence. Left as they are: key_taken: an unfinished sequence has its key; blocker_cycle: it would wait
for itself, by way of what has come to wait for it since it failed; blocker_gone: what it still waits for was deleted."""

Cleared: TypeAlias = Literal["deleted", "has_dependents"]
"""What `clear_failed` did with a sequence. has_dependents: an unfinished job waits for it, so it was left as it is."""


@dataclass(frozen=True, slots=True)
class Declined:
    """Returned by the function of `complete_sequence` that leaves the job as it is: made by `OpenJob.decline`."""


@dataclass(frozen=True, slots=True)
class OpenJob(Generic[In_co]):
    """The current job of an unfinished sequence, held while the function of `complete_sequence` looks at it.

    attempt: the one that runs, or has run last (0: none). running: a worker runs it now; it is aborted if you complete the job.
    """

    sequence_id: UUID
    job_id: UUID
    type: str
    position: int
    attempt: int
    running: bool
    created_at: datetime
    _read: Callable[[], BaseModel] = field(repr=False, compare=False)

    @property
    def input(self) -> In_co:
        """The input, as the job's model reads it (without the outputs of its blockers). pydantic's ValidationError if it refuses it."""
        return cast("In_co", self._read())

    def decline(self) -> Declined:
        """Return this to leave the job as it is: whoever runs it goes on."""
        return Declined()


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that has failed for good. `input` as stored (plain JSON values), `error` with type, message, traceback and attrs."""

    sequence_id: UUID
    job_id: UUID
    type: str
    position: int
    reason: Reason
    error: Mapping[str, Any]
    attempt: int
    input: Any


class DeadLetter(BaseModel):
    """The input of a `dead_letter` job type: a Failure, as a model. One sequence of that type is started for each job that failed."""

    sequence_id: UUID
    job_id: UUID
    type: str
    position: int
    reason: str
    error: dict[str, JsonValue]
    attempt: int
    input: JsonValue


Compensation: TypeAlias = Continuation[Any] | None
OnFailed: TypeAlias = Callable[[Failure], Compensation | Awaitable[Compensation]]
"""`on_failed=`: a Continuation makes the sequence go on with that job instead of failing; None lets it fail."""


class FailedFilter(TypedDict, total=False):
    """Which failed sequences: all conditions must hold.

    type: they started with this job type (its name). reason: why (see Reason).
    after, before: they failed at or after, and before, these instants (aware). oldest: only so many, those that failed first.
    """

    type: str
    reason: Reason
    after: datetime
    before: datetime
    oldest: int


NewInput: TypeAlias = BaseModel | Mapping[str, object] | Callable[[Failure], BaseModel | Mapping[str, object]]
"""The input with which failed jobs run again: one for all, or made for each from what failed."""
