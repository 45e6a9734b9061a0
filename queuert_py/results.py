"""What a waiter is given: the output read back as the model that was returned, or the error that says how the sequence ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

from queuert_py.errors import (
    InvalidOutputError,
    QueuertError,
    SequenceCancelledError,
    SequenceExpiredError,
    SequenceFailedError,
    SequenceNotFoundError,
)
from queuert_py.payload import Sealed, refuse_sealed
from queuert_py.runtime.waiters import Ended
from queuert_py.sequence import JobSequence, model_named
from queuert_py.values import AttemptRecord

_UNCOUNTED = ("retried", "snoozed", "released", "validation")


def output_of(sequence: JobSequence[Any], ended: Ended, model_of: Callable[[str, str], type[BaseModel] | None]) -> Any:
    """The output of a completed sequence. `model_of(type, name)`: the output model of the last job's own type.

    InvalidOutputError for one that the handle's type excludes, and for one that cannot be read.
    """
    contract = sequence._contract
    model = None if ended.output_type is None else model_named(contract, ended.output_type, lambda name: model_of(ended.type or "", name))
    if contract is not None and (model is None if ended.output_type is not None else not contract.none):
        raise InvalidOutputError(
            f"sequence {sequence.id} returned {ended.output_type} (in {ended.type!r}); of {sequence.type!r} {contract} was expected."
        )
    if ended.output_type is None:
        return None
    try:
        output = refuse_sealed(ended.output or "null")
    except Sealed as error:
        raise InvalidOutputError(f"sequence {sequence.id} completed, but its output cannot be read: {error}") from error
    if model is None:  # started without its models: as it is stored
        return from_json(output)
    return model.__pydantic_validator__.validate_json(output)


def error_of(sequence: JobSequence[Any], ended: Ended, attempts: Sequence[AttemptRecord]) -> QueuertError:
    """The error for a sequence that did not complete."""
    name = f"sequence {sequence.id} ({sequence.type})"
    match ended.outcome:
        case "cancelled":
            return SequenceCancelledError(f"{name} was cancelled.")
        case "expired":
            return SequenceExpiredError(f"{name} was not started before it expired.")
        case None:
            return SequenceNotFoundError(f"{name} does not exist: it was deleted, or its start was not committed.")
        case _:
            error: Mapping[str, Any] = ended.error or {}
            what = f"{error.get('type', 'error')}: {error.get('message', '')}".strip()
            return SequenceFailedError(
                f"{name} failed in {ended.type!r} ({ended.reason}) after {_tried(attempts, ended.reason)} attempt(s): {what}\n"
                f"`queuert show {sequence.id}` shows it, `queuert retry {sequence.id}` runs it again.",
                sequence_id=sequence.id,
                reason=ended.reason or "error",
                error=error,
                attempts=attempts,
            )


def _tried(attempts: Sequence[AttemptRecord], reason: str | None) -> int:
    """How many attempts its last job has had: the log also tells of what was not charged, of retries, and of endings without a run."""
    tried: set[tuple[int, int]] = set()
    retries = 0
    for each in attempts[:-1] if reason == "blocker_failed" else attempts:
        retries += each.outcome == "retried"  # which may count from 1 again
        if each.position == attempts[-1].position and each.attempt and each.outcome not in _UNCOUNTED:
            tried.add((retries, each.attempt))
    return len(tried)
