"""Every error of the package, by who is at fault. All derive from QueuertError; each message names the thing and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast
from uuid import UUID

if TYPE_CHECKING:
    from queuert_py.values import AttemptRecord


class QueuertError(Exception):
    """The base of all errors of this package.

    `code` is a stable word for programs, `details` the facts behind the message (ids are UUIDs).
    """

    code = "error"

    def __init__(self, message: str, /, **details: object) -> None:
        super().__init__(message)
        self.details: Mapping[str, object] = {name: _ids(value) if name in _IDS else value for name, value in details.items()}


_IDS = frozenset({"id", "ids", "sequence_id", "sequence_ids"})


def _ids(value: object) -> object:
    """Ids travel as texts; where a user sees one it is a UUID."""
    if isinstance(value, list):
        return list(map(_ids, cast("list[object]", value)))
    return UUID(value) if isinstance(value, str) else value


# --- the caller's


class UsageError(QueuertError, ValueError):
    """A call that was refused as it was made: nothing was written. Most cannot be right, whatever the database holds; DuplicateIdError,
    DuplicateKeyError and BlockerError tell of what it holds."""

    code = "usage"


class DeclarationError(UsageError):
    """A job type or handler that is declared in a way the engine cannot use."""

    code = "declaration"


class DuplicateJobTypeError(DeclarationError):
    """Two job types of one name."""

    code = "duplicate_job_type"


class InvalidInputError(UsageError):
    """An input that its job type refuses, or that PostgreSQL could not give back as it is. `details["path"]` names the field."""

    code = "invalid_input"


class InvalidContinuationError(InvalidInputError):
    """The input of a continuation that its job type refuses. `details["type"]` names the type, `details["path"]` the field."""

    code = "invalid_continuation"


class UnknownJobTypeError(UsageError, LookupError):
    """A job type that no registry of this engine declares."""

    code = "unknown_job_type"


class NotStartableError(UsageError):
    """A job type that only `continue_with` may reach."""

    code = "not_startable"


class DuplicateIdError(UsageError):
    """A sequence with this id exists, with another type or input."""

    code = "duplicate_id"


class DuplicateKeyError(UsageError):
    """A sequence of this job type holds the key (`on_match="raise"`). `details["id"]` is its id."""

    code = "duplicate_key"


class BlockerError(UsageError):
    """Blockers that a job cannot have: too many, or such as have changed since the caller's snapshot was taken."""

    code = "invalid_blockers"


class BlockerCycleError(BlockerError):
    """A sequence would wait for itself, by way of others."""

    code = "blocker_cycle"


class SequenceNotFoundError(QueuertError, LookupError):
    """No sequence has this id (any more)."""

    code = "sequence_not_found"


class SequenceEndedError(QueuertError):
    """The sequence has ended already. `status` says how."""

    code = "sequence_ended"

    def __init__(self, message: str, /, *, status: str, **details: object) -> None:
        super().__init__(message, status=status, **details)
        self.status = status


class SequenceMovedError(QueuertError):
    """The sequence has gone on to another job than the one that was meant: look at it again."""

    code = "sequence_moved"


class SequenceRunningError(QueuertError):
    """Sequences that run cannot be given another time. `ids` are those; nothing was changed."""

    code = "sequence_running"

    def __init__(self, message: str, /, *, ids: Sequence[UUID]) -> None:
        super().__init__(message, ids=ids)
        self.ids = ids


class SequenceHasDependentsError(QueuertError):
    """Unfinished sequences have these as blockers. `dependents` maps each to those that need it; nothing was changed."""

    code = "sequence_has_dependents"

    def __init__(self, message: str, /, *, dependents: Mapping[UUID, Sequence[UUID]]) -> None:
        super().__init__(message, dependents=dependents)
        self.dependents = dependents


class SequenceBusyError(QueuertError):
    """A sequence, or a key, was held for too long by an open transaction (a handler's, or a caller's). Nothing was changed: try again."""

    code = "sequence_busy"


class JobNotFoundError(QueuertError, LookupError):
    """No job has this id (any more)."""

    code = "job_not_found"


class ConfigurationError(QueuertError):
    """The engine or its environment is set up in a way that cannot work."""

    code = "configuration"


class EmbeddedError(ConfigurationError):
    """The embedded PostgreSQL cannot be had on this machine."""

    code = "embedded"


class SchemaError(ConfigurationError):
    """The database's schema is missing, older or newer than this package needs."""

    code = "schema"


# --- the handler's


class PhaseError(QueuertError):
    """A phase (`prepare`, `finalize`, `atomic`) or its transaction used where it may not be."""

    code = "phase"


class TransactionAbortedError(QueuertError):
    """A statement of the phase failed and was caught; PostgreSQL would roll the whole transaction back at COMMIT."""

    code = "transaction_aborted"


class TransactionEscapedError(QueuertError):
    """The handler ended the engine's transaction by itself (COMMIT or ROLLBACK on the given connection)."""

    code = "transaction_escaped"


class ProcessDiedError(QueuertError):
    """The process in which a handler with `isolation="process"` ran has died before the handler's end."""

    code = "process_died"


class InvalidOutputError(QueuertError):
    """A handler returned what its annotations do not declare, or what PostgreSQL cannot store; or a sequence, what its handle excludes."""

    code = "invalid_output"


class InvalidStepError(InvalidOutputError):
    """What a step returned cannot be kept: read back, it would not be equal. The step has run; the job fails and is not tried again."""

    code = "invalid_step"


class InvalidEventError(QueuertError):
    """The payload of an event is not what the handler waits for. The first event of a name stays: the job fails and is not tried again."""

    code = "invalid_event"


class EventTimeoutError(QueuertError, TimeoutError):
    """The event has not come within `timeout`. That stays so in every later attempt: a job that does not catch it fails."""

    code = "event_timeout"


class NotRepeatableError(QueuertError):
    """A handler that ran again did not do what it had done before, so that what it kept cannot be matched. The job fails."""

    code = "not_repeatable"


# --- the job's


class SequenceFailedError(QueuertError):
    """The sequence whose result was awaited has failed. `error` is the last error as stored, `attempts` the attempt log."""

    code = "sequence_failed"

    def __init__(
        self, message: str, /, *, sequence_id: UUID, reason: str, error: Mapping[str, object], attempts: Sequence[AttemptRecord]
    ) -> None:
        super().__init__(message, sequence_id=sequence_id, reason=reason, error=error)
        self.sequence_id = sequence_id
        self.reason = reason
        self.error = error
        self.attempts = attempts


class SequenceCancelledError(QueuertError):
    """The sequence whose result was awaited was cancelled."""

    code = "sequence_cancelled"


class SequenceExpiredError(QueuertError):
    """The sequence whose result was awaited had not started by its `expires`."""

    code = "sequence_expired"


class ResultTimeoutError(QueuertError, TimeoutError):
    """The result was not there within `timeout`. The sequence goes on."""

    code = "result_timeout"


class BlockerFailedError(QueuertError):
    """The output was asked of a blocker that did not complete (`on_blocker_failure="ignore"`). `error` is its error as stored."""

    code = "blocker_failed"


class MapStoppedError(QueuertError):
    """`engine.map(…, stop_on_error=True)` has stopped at an error, its cause.

    By position of the inputs: `results` and `errors` of what has run, and in `not_started` what was left.
    """

    code = "map_stopped"

    def __init__(
        self, message: str, /, *, results: Mapping[int, object], errors: Mapping[int, QueuertError], not_started: Sequence[int]
    ) -> None:
        super().__init__(message, not_started=not_started)
        self.results = results
        self.errors = errors
        self.not_started = not_started


# --- ownership


class LeaseLostError(QueuertError):
    """This attempt no longer owns its job: whatever it writes is rolled back."""

    code = "lease_lost"


class JobDeletedError(LeaseLostError):
    """The job was deleted while it ran."""

    code = "job_deleted"


# --- the database's


class DatabaseUnavailableError(QueuertError):
    """PostgreSQL could not be reached, or not for as long as the retries last. Nothing is known to have been written."""

    code = "database_unavailable"
