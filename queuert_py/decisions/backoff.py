"""How long to wait before the next attempt."""

from __future__ import annotations

from datetime import timedelta

from queuert_py.values import Backoff, Duration


def seconds(duration: Duration) -> float:
    """A duration as seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def exponential(first: Duration = 10.0, cap: Duration = 300.0, *, factor: float = 2.0) -> Backoff:
    """A backoff that grows: `first` after the first failure, times `factor` after each further one, at most `cap`."""

    def wait(attempt: int) -> float:
        try:
            return min(seconds(cap), seconds(first) * factor ** (attempt - 1))
        except OverflowError:
            return seconds(cap)

    return wait


DEFAULT = exponential()


def next_wait(backoff: Backoff | None, attempt: int, random: float) -> timedelta:
    """The wait after failed attempt number `attempt` (from 1): the policy's, less up to a quarter of it as jitter (`random` in [0, 1)).

    A fixed wait of 0 stays 0. Jitter keeps a crowd that failed together from coming back together.
    """
    planned = _planned(DEFAULT if backoff is None else backoff, attempt)
    if planned is None:
        planned = _planned(DEFAULT, attempt) or 0.0
    return timedelta(seconds=planned * (1 - random / 4))


def _planned(policy: Backoff, attempt: int) -> float | None:
    """What the policy says, at most ten years; None where it fails or says no number: then the default counts."""
    try:
        planned = seconds(policy(attempt) if callable(policy) else policy)
    except Exception:
        return None
    return min(max(0.0, planned), 315_576_000.0) if planned == planned else None  # noqa: PLR0124 - NaN
