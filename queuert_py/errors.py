"""Every error of the package, by who is at fault. All derive from QueuertError; each message names the thing and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from queuert_py.values import AttemptRecord


class QueuertError(Exception):
    """The base of all errors of this package.

    `code` is a stable word for programs, `details` the facts behind the message.
    """

    code = "error"

    def __init__(self, message: str, /, **details: object) -> None:
        super().__init__(message)
        self.details: Mapping[str, object] = details


# --- the caller's


class UsageError(QueuertError, ValueError):
    """A call that cannot be right, whatever the database holds: nothing was written."""

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


class UnknownJobTypeError(UsageError, LookupError):
    """A job type that no registry of this engine declares."""

    code = "unknown_job_type"


class NotStartableError(UsageError):
    """A job type that only `continue_with` may reach."""

    code = "not_startable"


class DuplicateIdError(UsageError):
    """A sequence with this id exists, with another type or input."""

    code = "duplicate_id"


class SequenceNotFoundError(QueuertError, LookupError):
    """No sequence has this id (any more)."""

    code = "sequence_not_found"


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


class InvalidOutputError(QueuertError):
    """A handler returned what its annotations do not declare, or what PostgreSQL cannot store."""

    code = "invalid_output"


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
