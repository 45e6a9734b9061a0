"""Decides when to claim, and claims: when there is a reason (a hint, a due time, a freed slot while there is more, the fallback poll), as
much as there are free slots; never again on an empty answer before the next reason."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID, uuid4

from queuert_py.decisions import leases
from queuert_py.decisions.pace import Pace, claim_size, poll_after
from queuert_py.postgres import rows
from queuert_py.postgres.calls import Call
from queuert_py.postgres.database import Database, Link
from queuert_py.runtime.scans import Scans
from queuert_py.runtime.settings import Settings
from queuert_py.sequence import BlockerEnding
from queuert_py.values import LiveJob

FULL_SCAN = 1.0
"""Seconds after which a claim scans its queues from the beginning, for rows that became ready out of order."""

LOOKS_AGAIN = 7
"""How often rows that were due but locked are looked at again, after 1, 2, 4 … ms."""

CALM = 0.01
"""Seconds without a hint after which a claimer learns what comes later."""

GATHER = 0.001
"""Seconds in which a busy worker lets freed slots gather: they are freed by batches."""


class Slots(Protocol):
    """The worker, as the claimer sees it."""

    id: str
    shutting_down: bool

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def suspects(self) -> int: ...
    @property
    def deaf(self) -> bool: ...
    def take(self, row: LiveJob, trusted: float, endings: Mapping[str, BlockerEnding]) -> None: ...
    def rest(self) -> None: ...


class Claimer:
    """One per worker, on a connection of its own. `run_alone` runs the worker's first suspect when nothing else runs."""

    def __init__(
        self,
        slots: Slots,
        database: Database,
        link: Link,
        settings: Settings,
        scope: tuple[Sequence[str], Sequence[str]],
        run_alone: Callable[[], Awaitable[None]],
    ) -> None:
        queues, self._types = scope
        self._slots = slots
        self._database = database
        self._link = link
        self._settings = settings
        self._run_alone = run_alone
        self._scans = Scans(queues, database.store.all_lanes)
        self._wake = asyncio.Event()
        self._more = True
        self._sated = False
        self._unlisted = False
        self._due_at = float("inf")
        self._empty_polls = 0
        self._passed_over = 0
        self._lost_claims: list[UUID] = []
        self._pace = Pace()

    # --- reasons

    def told(self, lane: int, queue: str, priority: int, due: float) -> None:
        """There is, or will be in `due` seconds, a job in this queue."""
        self._passed_over = 0
        if due > 0:
            self._due_at = min(self._due_at, time.monotonic() + due)
        else:
            self._more = True
            self._sated = False
            self._scans.hinted(lane, queue, priority)
        self._wake.set()

    def look(self) -> None:
        """Something may have been missed: claim, from the start of the queues."""
        self._scans.from_the_start()
        self._more = True
        self._sated = False
        self._wake.set()

    def freed(self) -> None:
        """A slot is free; a reason only while there is more."""
        self._pace.count()
        if self._more or self._slots.suspects or not self._slots.running:
            self._wake.set()

    def stop(self) -> None:
        self._wake.set()

    @property
    def sated(self) -> bool:
        """The last claim found nothing more, and none is under way."""
        return self._sated

    async def slot_change(self) -> None:
        """Wait until a slot is freed, or anything else happens."""
        self._wake.clear()
        await self._wake.wait()

    # --- the loop

    async def run(self) -> None:
        """Until the worker stops."""
        while not self._slots.shutting_down:
            self._sated = False
            self._wake.clear()
            if self._slots.suspects and not self._slots.running:
                await self._run_alone()
                continue
            size = 0 if self._slots.suspects else self._size()
            if not self._more or size == 0:
                await self._reason()
                continue
            if self._slots.running and size < min(self._settings.batch, self._settings.concurrency) // 2 and not self._empty_polls:
                await asyncio.sleep(GATHER)
                size = self._size()
            if size:
                await self._claim_and_learn(size)

    def _size(self) -> int:
        concurrency = self._settings.concurrency
        free = concurrency - self._slots.running
        prefetch = min(concurrency // 2, self._pace.ended(time.monotonic()))
        return claim_size(free=free, waiting=self._slots.waiting, prefetch=prefetch, batch=self._settings.batch)

    async def _claim_and_learn(self, size: int) -> None:
        self._more = False  # a hint that comes while the claim is under way sets it again
        try:
            claimed = await self._claim(size)
            if len(claimed) == size:
                self._more = True
            elif claimed:
                self._unlisted = True
            else:
                self._more = await self._relist(short=True) or self._more
        except BaseException:
            self._more = True
            raise

    async def _reason(self) -> None:
        """Sleep until something is worth a claim."""
        if self._unlisted and not self._more:
            self._unlisted = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALM):
                    await self._wake.wait()
            if not self._more:
                self._more = await self._relist(short=True) or self._more
            return
        if self._more:  # no free slot: only a slot is a reason
            await self._wake.wait()
            return
        self._sated = self._passed_over == 0 or self._passed_over > LOOKS_AGAIN
        self._slots.rest()
        busiest, calmest = self._settings.poll_interval
        poll = poll_after(idle=self._empty_polls, busiest=busiest, calmest=calmest, deaf=self._slots.deaf, random=random.random())
        wait = min(poll, self._due_at - time.monotonic())
        try:
            async with asyncio.timeout(max(GATHER, wait)):
                await self._wake.wait()
        except TimeoutError:
            self._empty_polls += wait >= poll
            self._due_at = float("inf")
            self._scans.from_the_start()
            self._more = True

    # --- statements

    async def _claim(self, size: int) -> list[LiveJob]:
        await self.release_lost()
        if self._scans.age() > FULL_SCAN:
            await self._relist()

        def call(token: UUID) -> Call[LiveJob]:
            slots = self._settings.concurrency - self._slots.running - self._slots.waiting
            return self._database.store.claim_jobs(self._scans.parts(), self._types, limit=size, slots=slots, **self._terms(token))

        claimed = await self._lease(uuid4(), lambda token: self._link.run(call(token)))
        self._scans.learn(claimed, full=len(claimed) == size)
        return claimed

    def _terms(self, token: UUID) -> dict[str, Any]:
        """In whose name a claim is made, and for how long."""
        return {"worker": self._slots.id, "token": token, "lease": self._settings.lease, "suspect": leases.SUSPECT}

    async def release_lost(self) -> None:
        """Give back what was claimed without our knowing it, uncharged."""
        while self._lost_claims:
            await self._link.run(self._database.store.release_claim(self._slots.id, self._lost_claims[0]))
            self._lost_claims.pop(0)

    async def _lease(self, token: UUID, claim: Callable[[UUID], Awaitable[list[LiveJob]]]) -> list[LiveJob]:
        """Claim, and take what was claimed. What was claimed for nothing, or perhaps, is released before the next claim."""
        trusted = leases.trusted_until(time.monotonic(), self._settings.lease.total_seconds())
        try:
            claimed = await claim(token)
            endings = await self._read_endings(claimed)
        except BaseException:
            self._lost_claims.append(token)
            raise
        for row in claimed:
            self._slots.take(row, trusted, endings.get(row.sequence_id, {}))
        if claimed:
            self._empty_polls = 0
        return claimed

    async def _read_endings(self, claimed: Sequence[LiveJob]) -> Mapping[str, Mapping[str, BlockerEnding]]:
        """How the blockers of claimed jobs ended, by sequence and blocker."""
        parts = [rows.epoch_row(row) for row in claimed if row.blocker_count]
        endings: dict[str, dict[str, BlockerEnding]] = {}
        for sequence_id, blocker_id, *ended in await self._link.run(self._database.store.read_outputs(parts)) if parts else ():
            endings.setdefault(sequence_id, {})[blocker_id] = BlockerEnding(*ended)
        return endings

    async def _relist(self, *, short: bool = False) -> bool:
        """Learn the priorities in use and when the next job is due; was one due under a priority that was not scanned?

        short: the claim did not fill its limit. If something is due all the same, its row was locked for a moment (somebody marked it as
        watched): look again in 1, 2, 4 … ms, a few times only, since it may as well be of a type that is not served here.
        """
        self._due_at = float("inf")
        listed = await self._link.run(self._database.store.list_ready(self._scans.queues()))
        self._learn_due([due for *_, now, ahead in listed for due in (now, ahead) if due is not None], short=short)
        return self._scans.relist(listed)

    def _learn_due(self, dues: Sequence[float], *, short: bool) -> None:
        due = min((each for each in dues if each > 0), default=float("inf"))
        locked = short and any(each <= 0 for each in dues)
        self._passed_over = self._passed_over + 1 if locked else 0
        if 0 < self._passed_over <= LOOKS_AGAIN:
            due = min(due, 0.001 * 2 ** (self._passed_over - 1))
        self._due_at = min(self._due_at, time.monotonic() + due)
