"""Running chosen sequences here (`Engine.run`): a worker that claims these and no others, by their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from queuert_py.decisions.pace import hands_off
from queuert_py.ids import lane_of
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database
from queuert_py.postgres.leased import start_leased
from queuert_py.postgres.starts import Outcome, Start
from queuert_py.runtime.attempt import Attempt
from queuert_py.runtime.claimer import Claimer
from queuert_py.runtime.services import Services
from queuert_py.runtime.settings import Settings
from queuert_py.runtime.worker import Worker
from queuert_py.values import Delay, LiveJob, Step

MOST = 10_000
SETTINGS = Settings(concurrency=MOST, queues=(), name="here", poll_interval=(1.0, 5.0), lease=timedelta(seconds=30))
"""Whoever calls `run` decides how many run at once."""


class Chosen(Claimer):
    """Claims what `wanted` gives, when it is due."""

    wanted: Callable[[], list[str]]

    async def _claim(self, size: int) -> list[LiveJob]:
        await self.release_lost()
        parts = self.wanted()
        if not parts:
            return []
        store = self._database.store
        return await self._lease(uuid4(), lambda token: self._link.run(store.claim_started(parts, self._types, **self._terms(token))))

    async def _relist(self, *, short: bool = False) -> bool:
        self._due_at = float("inf")
        parts = self.wanted()
        if parts:
            self._learn_due(await self._link.run(self._database.store.list_due(parts)), short=short)
        return False


class Here(Worker):
    """Serves no queue. It runs what is wanted here: their first jobs, born leased to it, and whatever comes after them in their
    sequences, as long as it has the handlers; a retry or a delayed continuation is claimed by whoever comes first, here or elsewhere."""

    def __init__(self, engine: Services) -> None:
        super().__init__(engine, SETTINGS)
        self._wanted: Counter[str] = Counter()

    def _new_claimer(self, scope: tuple[Sequence[str], Sequence[str]]) -> Claimer:
        claimer = Chosen(self, self.database, self._claim_link, self.settings, scope, self._run_alone)
        claimer.wanted = self._missing
        return claimer

    def _missing(self) -> list[str]:
        held = {attempt.row.sequence_id for attempt in self._held()}
        lanes = self.database.store.lanes
        return [rows.sequence_row(id, lane_of(id, lanes)) for id in self._wanted if id not in held]

    @contextmanager
    def wanting(self, sequence_id: str) -> Generator[None]:
        """Inside the block it is run here whenever nobody else does."""
        self._wanted[sequence_id] += 1
        try:
            yield
        finally:
            self._wanted[sequence_id] -= 1
            if not self._wanted[sequence_id]:
                del self._wanted[sequence_id]

    def hands_off(self, step: Step, attempt: Attempt) -> bool:
        stopping = self.shutting_down or bool(self._suspects) or attempt.detached
        return hands_off(step, serves=step.type in self._types, stopping=stopping, in_a_row=attempt.handoffs)

    def advanced(self, attempt: Attempt, step: Step, answer: tuple[Any, ...] | None) -> None:
        super().advanced(attempt, step, answer)
        if attempt.row.sequence_id not in self._running:
            self.look()

    def delayed(self, attempt: Attempt, delay: Delay, answer: tuple[Any, ...] | None) -> None:
        super().delayed(attempt, delay, answer)
        self.look()

    def lost(self, attempt: Attempt, fate: str) -> None:
        super().lost(attempt, fate)
        self.look()

    def _hint(self, hint: str) -> None:
        super()._hint(hint)
        if self._wanted and hint.startswith("q:"):
            self.look()


def unrestricted(worker: Worker, queue: str, type_: str) -> bool:
    """May a job that is wanted here, and what comes after it, be left to this worker?"""
    settings = worker.settings
    whole = type(worker) is Worker and settings.queues is None and settings.types is None
    return whole and worker.serves(queue, type_) and worker.has_room()


async def start_at(worker: Worker, database: Database, start: Start, told: Callable[[Outcome], None]) -> Outcome:
    """Start a sequence whose first job is born leased to this worker, which runs it now: nobody else can take it. `told` before it runs."""
    claimer = worker._claimer
    outcomes: list[Outcome] = []

    async def claim(token: UUID) -> list[LiveJob]:
        part = rows.sequence_row(start.id, start.lane)
        call = database.store.claim_started([part], list(worker._types), **claimer._terms(token))
        outcome, claimed = await start_leased(database, start, call)
        outcomes.append(outcome)
        told(outcome)
        return claimed

    claimed: list[LiveJob] = []
    try:
        claimed = await claimer._lease(uuid4(), claim)
    finally:
        if not claimed:  # it is another one's, or is not ready; or who knows: then it releases what may have been claimed
            claimer.look()
    return outcomes[0]


def let_go(worker: Worker, sequence_id: str) -> None:
    """Whoever wanted it here has gone: give the job back, uncharged, for any worker to take."""
    for attempt in worker._held():
        if attempt.row.sequence_id == sequence_id:
            if attempt in worker._waiting:
                worker._waiting.remove(attempt)
                worker._give_back(attempt, None)
            else:
                attempt.abort("shutdown", worker.settings.grace)
