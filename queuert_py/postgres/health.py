"""Whether the database is there, as far as is known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from queuert_py.decisions import health as states

if TYPE_CHECKING:
    from queuert_py.postgres.database import Database

logger = logging.getLogger("queuert_py.postgres")


@dataclass(frozen=True, slots=True)
class Report:
    """What the health monitor knows: the state, the last probe's latency in seconds, the last error, the server's version."""

    state: states.State
    latency: float | None
    error: str | None
    server_version: int | None
    since: float


class Health:
    """Whether the database is there: told by every statement's fate and by a probe. Callbacks run on transitions only."""

    def __init__(self, database: Database, interval: float) -> None:
        self._database = database
        self._interval = interval
        self._state: states.State = "healthy"
        self._since = time.monotonic()
        self._latency: float | None = None
        self._error: str | None = None
        self._version: int | None = None
        self._failures = 0
        self._usable = asyncio.Event()
        self._usable.set()
        self._look = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._callbacks: list[Callable[[Report], object]] = []

    @property
    def report(self) -> Report:
        return Report(self._state, self._latency, self._error, self._version, time.monotonic() - self._since)

    def on_change(self, callback: Callable[[Report], object]) -> Callable[[], None]:
        """Call it with the report after each change of state, in the event loop; its exceptions are logged. Returns what ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name="queuert health")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def usable(self) -> None:
        """Wait until the database is not known to be down."""
        await self._usable.wait()

    def failed(self, error: BaseException) -> None:
        """A connection has failed: doubt, and probe now."""
        self._error = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if self._state in ("healthy", "recovering"):
            self._move(answered=False)
        self._look.set()

    async def check(self) -> Report:
        """Probe now: connect, one round trip, disconnect."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(5):
                connection = await self._database.connect("health")
            try:
                self._version = connection.info.server_version
            finally:
                await connection.close()
        except (psycopg.Error, OSError, TimeoutError) as error:
            self._failures += 1
            self._error = str(error).strip() or type(error).__name__
            self._move(answered=False)
        else:
            self._failures, self._error = 0, None
            self._latency = time.monotonic() - begun
            self._move(answered=True)
        return self.report

    async def _watch(self) -> None:
        while True:
            wait = states.probe_after(self._state, self._failures, self._interval, random.random())
            if wait:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._look.wait()
            if self._state == "down":
                await asyncio.sleep(wait / 4)  # `failed` may ring often while down: never a hot loop
            self._look.clear()
            await self.check()

    def _move(self, *, answered: bool) -> None:
        before, self._state = self._state, states.after(self._state, answered)
        if before == self._state:
            return
        self._since = time.monotonic()
        level = logging.WARNING if self._state == "down" else logging.INFO
        logger.log(level, "database %s (was %s)%s", self._state, before, f": {self._error}" if self._error else "")
        if self._state == "recovering":
            self._database.renew_pool()
        if states.claims(self._state):
            self._usable.set()
        else:
            self._usable.clear()
        for callback in self._callbacks:
            try:
                callback(self.report)
            except (Exception, asyncio.CancelledError):  # a future's result() may raise it: it must not end the monitor
                logger.exception("a health callback failed")
