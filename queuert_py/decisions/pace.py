"""When to look for work, and how much to take."""

from __future__ import annotations

from queuert_py.values import Step

MAX_HANDOFFS = 100
"""Continuations that one slot runs in a row before the queue gets its turn."""


SPAN = 0.1
"""Seconds in which attempts are counted that end."""


class Pace:
    """How many attempts end in SPAN seconds: so many jobs may be claimed ahead of their slots, since they will not wait for long."""

    __slots__ = ("_before", "_now", "_since")

    def __init__(self) -> None:
        self._before = self._now = 0
        self._since = float("-inf")

    def count(self) -> None:
        """One has ended."""
        self._now += 1

    def ended(self, now: float) -> int:
        """How many of late: in this span or in the one before it."""
        passed = now - self._since
        if passed >= SPAN:
            self._before, self._now, self._since = (self._now if passed < 2 * SPAN else 0), 0, now
        return max(self._before, self._now)


def claim_size(*, free: int, waiting: int, prefetch: int, batch: int) -> int:
    """How many jobs to claim: the free slots and a small prefetch, less what is claimed and waiting; at most `batch`."""
    return max(0, min(free + prefetch - waiting, batch))


def poll_after(*, idle: int, busiest: float, calmest: float, deaf: bool, random: float) -> float:
    """Seconds until the fallback poll after `idle` empty polls: doubling from `busiest` to `calmest`, to 5 s at most while hints do not
    arrive, less up to a tenth as jitter."""
    cap = min(calmest, 5.0) if deaf else calmest
    return max(busiest, min(cap, busiest * 2.0 ** min(idle, 16))) * (1 - random / 10)


def hands_off(step: Step, *, serves: bool, stopping: bool, in_a_row: int) -> bool:
    """May the next job of a sequence be born leased to the worker that ran the last one?"""
    return serves and not stopping and not step.blockers and step.delay is None and step.at is None and in_a_row < MAX_HANDOFFS
