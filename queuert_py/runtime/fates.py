"""Looks after running jobs that somebody has changed: cancelled, deleted, completed elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import psycopg

from queuert_py.postgres import rows
from queuert_py.postgres.database import Link
from queuert_py.postgres.store import Store
from queuert_py.runtime.attempt import Attempt

logger = logging.getLogger("queuert_py.worker")


class Fates:
    """Told of sequences by hints; one statement for all that have gathered. `lost(attempt, fate)` is called for what is no longer ours.

    A hint that is lost costs time only: the next renewal of the leases looks as well.
    """

    def __init__(self, store: Store, link: Link, held: Callable[[], Iterable[Attempt]], lost: Callable[[Attempt, str], None]) -> None:
        self._store = store
        self._link = link
        self._held = held
        self._lost = lost
        self._told: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def told(self, ids: Iterable[str]) -> None:
        """Somebody has changed these. Never waits."""
        self._told.update(ids)
        if self._told and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._look(), name="queuert fates")

    def hint(self, hint: str) -> None:
        """From the listener."""
        if hint.startswith("a:"):
            self.told([hint[2:]])

    async def stop(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task], timeout=1)
            self._task.cancel()

    async def _look(self) -> None:
        while self._told:
            told, self._told = self._told, set()
            held = {attempt.row.sequence_id: (attempt, attempt.row.epoch) for attempt in self._held() if attempt.row.sequence_id in told}
            if not held:
                continue
            try:
                found = await self._link.run(self._store.read_fates([rows.epoch_row(attempt.row) for attempt, _ in held.values()]))
            except (psycopg.Error, OSError) as error:
                logger.debug("fates not known yet: %s", error)
                return
            for id, epoch, fate in found:
                attempt, asked = held[id]
                if fate not in ("mine", "written") and asked == epoch == attempt.row.epoch:
                    self._lost(attempt, fate)
