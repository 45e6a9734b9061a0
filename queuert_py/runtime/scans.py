"""What a claim scans: for each lane and queue the priorities in use and, for each, where to begin (the low-water hint).

Under a long snapshot held elsewhere dead index entries pile up at the head of the ready index; beginning at the lowest run_at of the
last claim passes them by. Once a second, and when a claim comes back short, it begins at the start again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from queuert_py.postgres.rows import quote
from queuert_py.values import LiveJob

SLACK = timedelta(milliseconds=100)
_START = '"-infinity"'


class Scans:
    """The scan list of one worker; the queues take turns in being first."""

    def __init__(self, queues: Sequence[str], lanes: Sequence[int]) -> None:
        self._levels: dict[tuple[int, str], dict[int, str]] = {(lane, queue): {0: _START} for queue in queues for lane in lanes}
        self._order = list(self._levels)
        self._full_at = float("-inf")

    def parts(self) -> list[str]:
        """The rows for claim_jobs, in the order in which they are scanned."""
        self._order.append(self._order.pop(0))
        return [
            f'{{"lane":{lane},"queue":{quote(queue)},"priority":{priority},"since":{since}}}'
            for lane, queue in self._order
            for priority, since in sorted(self._levels[lane, queue].items(), reverse=True)
        ]

    def queues(self) -> list[str]:
        """The rows for list_ready."""
        return [f'{{"lane":{lane},"queue":{quote(queue)}}}' for lane, queue in self._order]

    def age(self) -> float:
        """Seconds since the scans last began at the start."""
        return time.monotonic() - self._full_at

    def from_the_start(self) -> None:
        for levels in self._levels.values():
            for priority in levels:
                levels[priority] = _START

    def hinted(self, lane: int, queue: str, priority: int) -> None:
        """A job may have come here: perhaps of a priority that was not in use."""
        levels = self._levels.get((lane, queue))
        if levels is not None:
            levels.setdefault(priority, _START)

    def learn(self, claimed: Iterable[LiveJob], *, full: bool) -> None:
        """Remember where the next claim may begin: a little before the lowest run_at of this one, if it was full."""
        if not full:
            self.from_the_start()
            return
        lowest: dict[tuple[int, str, int], datetime] = {}
        for row in claimed:
            place = (row.lane, row.queue, row.priority)
            known = lowest.get(place)
            if known is None or row.run_at < known:
                lowest[place] = row.run_at
        for (lane, queue, priority), run_at in lowest.items():
            self._levels[lane, queue][priority] = f'"{(run_at - SLACK).isoformat()}"'

    def relist(self, listed: Iterable[tuple[Any, ...]]) -> bool:
        """Take over what list_ready found; is something due under a priority that was not scanned?"""
        self._full_at = time.monotonic()
        found: dict[tuple[int, str], dict[int, float]] = {}
        for lane, queue, priority, due, _ in listed:
            found.setdefault((lane, queue), {})[priority] = due
        missed = False
        for place, levels in self._levels.items():
            now = found.get(place, {})
            missed = missed or any(due <= 0 and priority not in levels for priority, due in now.items())
            self._levels[place] = dict.fromkeys([0, *now], _START)
        return missed
