"""Waiting for results: one listening connection and one batched look per wake-up serve any number of waiters."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psycopg

from queuert_py.errors import ConfigurationError, DatabaseUnavailableError, SequenceBusyError
from queuert_py.ids import lane_of
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database
from queuert_py.postgres.listener import Listener

logger = logging.getLogger("queuert_py.waiters")
AGAIN, AGAIN_MOST = 0.001, 0.1
SOON = 0.02
"""Seconds in which a sequence may end in this process before it is marked as watched for the others."""
LAST = 1.0
"""Seconds: whoever waits for less is told only what one look of its own has seen."""
POLL = 5.0
DEAF_POLL = 1.0
MARKED = 1000
"""Sequences that one statement marks: locks are short. What is looked at is read by a single statement, however many woke up."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a sequence ended; outcome None: there is no such sequence."""

    outcome: str | None
    reason: str | None
    output: str | None
    output_type: str | None
    error: Any
    type: str | None


class Waiters:
    """Futures by sequence id. Subscribe, check, wait: marked as watched first, looked at in a second statement, told by hints, and
    polled for what hints may have lost. A worker in this process delivers what it ends itself: while there is one (`local`), a sequence
    is looked at first and marked only when it has not ended soon."""

    def __init__(self, database: Database, listener: Callable[[], Listener], local: Callable[[], bool]) -> None:
        self._database = database
        self._listener = listener
        self._local = local
        self._waiting: dict[str, list[asyncio.Future[Ended]]] = {}
        self._look_at: dict[str, bool] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._leave: Callable[[], None] | None = None
        self._unsure = 0

    async def wait(self, sequence_id: str) -> Ended:
        """How the sequence ended, once it has. Cancel it to give up. ConfigurationError when the engine is closed meanwhile."""
        future = self.subscribe(sequence_id)
        try:
            return await future
        finally:
            self.leave(sequence_id, future)

    def subscribe(self, sequence_id: str) -> asyncio.Future[Ended]:
        """A future of how the sequence ended: at once if it has. `leave` it when it is no longer wanted."""
        if self._leave is None:
            self._leave = self._listener().subscribe(self._hint, self._look_at_all)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="queuert waiters")
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sequence_id, []).append(future)
        self._look_at[sequence_id] = self._local()
        self._wake.set()
        return future

    def leave(self, sequence_id: str, future: asyncio.Future[Ended]) -> None:
        """Nobody waits for this future any more."""
        left = self._waiting.get(sequence_id, [])
        if future in left:
            left.remove(future)
        if not left:
            self._waiting.pop(sequence_id, None)

    def awaits(self, sequence_id: str) -> bool:
        return sequence_id in self._waiting

    def deliver(self, sequence_id: str, ended: Ended) -> None:
        """A worker of this process has committed an ending."""
        for future in self._waiting.get(sequence_id, ()):
            if not future.done():
                future.set_result(ended)

    def ended(self, ids: Iterable[str]) -> None:
        """Told by a hint: these have ended. They are looked at without being marked first."""
        for id in ids:
            if id in self._waiting:
                self._look_at.setdefault(id, True)
                self._wake.set()

    async def last_look(self, ids: Iterable[str], seconds: float) -> dict[str, Ended]:
        """How those of these that have ended did, for whoever's time is up. Nothing when it was long enough for a look of its own, nor when
        there is no answer within LAST seconds."""
        if seconds < LAST:
            with contextlib.suppress(TimeoutError, psycopg.Error, OSError, DatabaseUnavailableError):
                async with asyncio.timeout(LAST):
                    standing = await self._standing([rows.sequence_row(id, lane_of(id, self._database.store.lanes)) for id in ids])
                    return {id: ended for id, ended in standing.items() if isinstance(ended, Ended)}
        return {}

    async def stop(self) -> None:
        if self._leave is not None:
            self._leave()
            self._leave = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])  # what it may have died of is no reason not to close
            self._task = None
        for future in [each for several in self._waiting.values() for each in several if not each.done()]:
            future.set_exception(ConfigurationError("the engine was closed while somebody waited for a result; the sequence goes on."))
            future.exception()
        self._waiting.clear()

    def _hint(self, hint: str) -> None:
        if hint.startswith("d:"):
            self.ended([hint[2:]])

    def _look_at_all(self) -> None:
        self._look_at.update(dict.fromkeys(self._waiting, False))
        self._wake.set()

    async def _run(self) -> None:
        polled = time.monotonic()
        while self._waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DEAF_POLL if self._listener().deaf else POLL):
                    await self._wake.wait()
            self._wake.clear()
            if time.monotonic() - polled > (DEAF_POLL if self._listener().deaf else POLL) * 0.9:
                polled = time.monotonic()
                self._look_at.update(dict.fromkeys(self._waiting, False))
            look_at, self._look_at = self._look_at, {}
            for told in (True, False):
                wanted = [id for id, ended in look_at.items() if ended is told and id in self._waiting]
                if wanted:
                    await self._try(wanted, mark=not told)

    async def _try(self, ids: list[str], *, mark: bool) -> None:
        try:
            await self._look(ids, mark=mark)
        except (psycopg.Error, OSError, DatabaseUnavailableError, SequenceBusyError) as error:
            logger.debug("waiters look again: %s", error)
            self._later(ids)
        except Exception:
            logger.exception("looking at how sequences have ended failed; it is tried again")
            self._later(ids)

    async def _look(self, ids: list[str], *, mark: bool) -> None:
        lanes = self._database.store.lanes
        parts = [rows.sequence_row(id, lane_of(id, lanes)) for id in ids]
        for first in range(0, len(parts) if mark else 0, MARKED):
            await self._database.run(self._database.store.mark_watched(parts[first : first + MARKED]))
        unsure: list[str] = []
        for id, stands in (await self._standing(parts)).items():
            if isinstance(stands, Ended):
                self.deliver(id, stands)
            elif not stands:
                unsure.append(id)
        self._unsure = self._unsure + 1 if unsure and mark else 0
        if unsure:
            self._later(unsure, AGAIN * 2 ** min(self._unsure, 7) if mark else SOON)

    async def _standing(self, parts: list[str]) -> dict[str, Ended | bool]:
        """How sequences ended; of those that have not, whether they are watched."""
        read = await self._database.run(self._database.store.read_results(parts))
        return {id: watched if ended[0] is None and watched is not None else Ended(*ended) for id, watched, *ended in read}

    def _later(self, ids: Iterable[str], seconds: float = AGAIN_MOST) -> None:
        """Neither marked nor finished (its row is locked), or not looked at: again shortly, to be marked."""
        again = dict.fromkeys(ids, False)

        def look() -> None:
            self._look_at.update(again)
            self._wake.set()

        asyncio.get_running_loop().call_later(seconds, look)
