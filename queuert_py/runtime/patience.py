"""How long a claimed job waits in a worker before it is given back: another worker may have a slot for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from queuert_py.runtime.attempt import Attempt

PREFETCHED = 1.0
"""Seconds that a job waits for a slot. Claiming ahead is for jobs that end sooner than a claim is answered."""
SUSPECT = 5.0
"""Seconds that a suspect waits at first for the worker to be empty, which claims nothing meanwhile; each time it is given back for twice
as long as it has waited, and the next time it may wait twice as long: so it runs in the end, and never stops a worker for long at once."""


class Patience:
    """Looks after what a worker holds and does not run. `busy`: does the worker run anything? `give_back(attempt, rest)`: uncharged, to be
    taken again at once (None) or after a rest."""

    def __init__(
        self,
        waiting: deque[Attempt],
        suspects: deque[Attempt],
        busy: Callable[[], bool],
        give_back: Callable[[Attempt, timedelta | None], None],
    ) -> None:
        self._waiting = waiting
        self._suspects = suspects
        self._busy = busy
        self._give_back = give_back
        self._given_back: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Something may wait from now on."""
        if self._timer is None and (self._waiting or self._suspects):
            self._timer = asyncio.get_running_loop().call_later(PREFETCHED, self._look)

    def end(self) -> None:
        """The worker stops, and gives everything back."""
        if self._timer is not None:
            self._timer.cancel()

    def ran(self, sequence_id: str) -> None:
        """A suspect has got its turn."""
        self._given_back.pop(sequence_id, None)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for attempt in [each for each in self._waiting if now - each.taken >= PREFETCHED]:
            self._waiting.remove(attempt)
            self._give_back(attempt, None)
        for attempt in [*self._suspects] if self._busy() else ():
            id = attempt.row.sequence_id
            patience = SUSPECT * 2 ** self._given_back.get(id, 0)
            if now - attempt.taken >= patience:
                self._suspects.remove(attempt)
                self._given_back[id] = self._given_back.get(id, 0) + 1
                self._give_back(attempt, timedelta(seconds=2 * patience))
        self.begin()
