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
from queuert_py.values import LiveJob

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
        self._stopped = False

    def told(self, ids: Iterable[str]) -> None:
        """Somebody has changed these. Never waits."""
        self._told.update(ids)
        if self._told and not self._stopped and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._look(), name="queuert fates")

    def hint(self, hint: str) -> None:
        """From the listener."""
        if hint.startswith("a:"):
            self.told([hint[2:]])

    async def of(self, job: LiveJob) -> str:
        """What became of an attempt: waits for whoever holds its row, then looks; as often as it takes."""
        part = rows.epoch_row(job)
        tried = 0
        while True:
            try:
                answers = await self._link.transact(self._store.lock_jobs([part]), self._store.read_fates([part]))
                return str(answers[1][0][2])
            except (psycopg.Error, OSError) as error:
                tried += 1
                logger.debug("fate of %s not known yet: %s", job.sequence_id, error)
                await asyncio.sleep(min(1.0, 0.05 * tried))

    async def stop(self) -> None:
        self._stopped = True
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
