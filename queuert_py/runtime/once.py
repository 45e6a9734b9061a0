"""A worker for one round: takes back what is lost, claims, runs, leaves. It leaves nothing in a session, so a transaction pooler may be
in between: no presence lock (its jobs are missed at the end of their lease), no LISTEN; one connection, and two while leases are renewed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from queuert_py.postgres.database import Link
from queuert_py.runtime.attempt import Attempt
from queuert_py.runtime.claimer import Claimer
from queuert_py.runtime.loops import Part
from queuert_py.runtime.services import Services
from queuert_py.runtime.settings import Settings
from queuert_py.runtime.worker import Worker
from queuert_py.values import Delay, Ending, LiveJob, Ran, Step, Summary

COUNTED = 10_000
"""Where counting what is ready ends: it must not cost more than the work."""


class Limited(Claimer):
    """Claims `left` jobs at most, and only what can begin at once: what is prefetched may have to be given back."""

    left = 0
    claimed = 0

    def _size(self) -> int:
        return max(0, min(self._settings.concurrency - self._slots.running - self._slots.waiting, self._settings.batch, self.left))

    async def _claim(self, size: int) -> list[LiveJob]:
        found = await super()._claim(size)
        self.left -= len(found)
        self.claimed += len(found)
        return found

    async def _reason(self) -> None:
        if self.left <= 0:
            self._more = self._unlisted = False
        elif self._unlisted and not self._more:  # nobody sends hints here: learn at once whether something is left
            self._unlisted = False
            self._more = await self._relist(short=True) or self._more
            return
        await super()._reason()


class Once(Worker):
    """See `Engine.run_once`."""

    present = listens = False
    claim_ends = 2.0  # a budget is a budget, should the database be down

    def __init__(self, engine: Services, settings: Settings, limit: int) -> None:
        super().__init__(engine, settings)
        self._limit = limit
        self._reaped = 0
        self.ran: list[Ran] = []

    def _new_links(self) -> tuple[Link, Link, Link, Link]:
        link = Link(self.database, "once")
        return link, link, link, Link(self.database, "edges")

    def _new_claimer(self, scope: tuple[Sequence[str], Sequence[str]]) -> Claimer:
        self._limited = Limited(self, self.database, self._claim_link, self.settings, scope, self._run_alone)
        self._limited.left = self._limit
        return self._limited

    def _parts(self) -> dict[str, Part]:
        parts = super()._parts()
        del parts["reap"]
        return {**parts, "claim": self._reap_and_claim}

    async def _reap_and_claim(self) -> None:
        await self._reaper.prepare()
        self._reaped += await self._reaper.once()
        await self._claimer.run()

    async def round(self, budget: float) -> Summary:
        """Work until nothing is due, or as long as the budget lasts; then end what still runs, and leave."""
        await self.start()
        try:
            async with asyncio.timeout(budget):
                await self.drained()
        except TimeoutError:
            pass
        finally:
            await self.stop(0)
        count = self.database.store.count_ready(self._queues, list(self._types), COUNTED)
        return Summary(self._limited.claimed, self._reaped, (await self.database.run(count))[0], tuple(self.ran))

    # --- what became of attempts

    def _note(self, attempt: Attempt, outcome: str, error: str | None = None) -> None:
        row = attempt.row
        self.ran.append(Ran(UUID(row.sequence_id), row.type, row.attempt, outcome, None if error is None else from_json(error)))

    def finished(self, attempt: Attempt, ending: Ending) -> None:
        self._note(attempt, "completed")
        super().finished(attempt, ending)

    def ended(self, attempt: Attempt, ending: Ending, watched: bool) -> None:
        self._note(attempt, ending.outcome, ending.error)
        super().ended(attempt, ending, watched)

    def advanced(self, attempt: Attempt, step: Step, answer: tuple[Any, ...] | None) -> None:
        self._note(attempt, "continued")
        super().advanced(attempt, step, answer)

    def delayed(self, attempt: Attempt, delay: Delay, answer: tuple[Any, ...] | None) -> None:
        quiet = "released" if self.shutting_down or attempt.task is None else "suspended"
        outcome = {"error": "retried", "timeout": "retried", "": quiet}.get(delay.outcome, delay.outcome)
        self._note(attempt, outcome, delay.error)
        super().delayed(attempt, delay, answer)

    def lost(self, attempt: Attempt, fate: str) -> None:
        self._note(attempt, "lost")
        super().lost(attempt, fate)
