"""What a worker logs of attempts that did not succeed: each once, as a warning, with the error and where it came from."""

from __future__ import annotations

import logging

from pydantic_core import from_json

from queuert_py.runtime.attempt import Attempt
from queuert_py.values import Delay, Ending

logger = logging.getLogger("queuert_py.worker")


def log_failed(attempt: Attempt, ending: Ending) -> None:
    """It was the last one."""
    _warn(attempt, f"failed for good ({ending.reason})", ending.error)


def log_delayed(attempt: Attempt, delay: Delay) -> None:
    """Another attempt follows. What was given back without an error, or snoozed, is no failure."""
    if delay.outcome in ("error", "timeout"):
        _warn(attempt, f"failed, the next one {_when(delay)}", delay.error)
    elif delay.outcome == "released" and delay.error is not None:
        _warn(attempt, f"could write nothing and is not charged, the next one {_when(delay)}", delay.error)


def _warn(attempt: Attempt, what: str, error: str | None) -> None:
    known = from_json(error or "{}")
    why = f"{known.get('type', 'no error')}: {known.get('message', '')}"
    row, failure = attempt.row, attempt.failure
    logger.warning("sequence %s (%s): attempt %d %s: %s", row.sequence_id, row.type, row.attempt, what, why, exc_info=failure)


def _when(delay: Delay) -> str:
    if delay.at is not None:
        return f"at {delay.at:%Y-%m-%d %H:%M:%S%z}"
    return "at once" if not delay.after else f"in {delay.after.total_seconds():.1f} s"
