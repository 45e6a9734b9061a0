"""Hints across processes. One channel a schema; a hint says only where to look, and losing one costs time, never work.

Texts of at most 63 bytes: `q:lane:priority:queue` there may be work, `d:id` a sequence has ended, `a:id` look after a running job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import AsyncConnection, Notify, sql

from queuert_py.postgres.database import Database, Link, deadline, fault_of

logger = logging.getLogger("queuert_py.listener")
PROBE, CALM_PROBE, PROBE_TIMEOUT = 10.0, 60.0, 5.0
COALESCE = 0.01


def hint(lane: int, queue: str, priority: int) -> str:
    """There may be work here."""
    return f"q:{lane}:{priority}:{queue}"


class Listener:
    """Receives hints on a connection of its own; remade when it breaks or when a loopback probe finds it deaf."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._receivers: list[Callable[[str], None]] = []
        self._ready: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._echoed = False
        self._token = uuid4().hex[:12]
        self.deaf = True

    def subscribe(self, receive: Callable[[str], None], ready: Callable[[], None]) -> Callable[[], None]:
        """Call `receive` with each hint, and `ready` whenever listening has (again) begun: then look for what was missed."""
        self._receivers.append(receive)
        self._ready.append(ready)
        if self._task is None and not self._database.pooler:
            self._task = asyncio.create_task(self._run(), name="queuert listener")

        def leave() -> None:
            self._receivers.remove(receive)
            self._ready.remove(ready)

        return leave

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        tried = 0
        while True:
            connection: AsyncConnection[Any] | None = None
            try:
                await self._database.health.usable()
                connection = await self._database.connect("listen")
                await connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._database.channel)))
                tried = 0
                for ready in list(self._ready):
                    ready()
                await self._listen(connection)
            except (psycopg.Error, OSError) as error:
                if fault_of(error, connection) is None:
                    raise
                self._database.health.failed(error)
            finally:
                self.deaf = True
                if connection is not None:
                    await connection.close()
            tried += 1
            await asyncio.sleep(min(5.0, 0.05 * 2 ** min(tried, 10)) * random.random())

    async def _listen(self, connection: AsyncConnection[Any]) -> None:
        interval = PROBE
        while True:
            self._echoed = False
            with deadline(connection, PROBE_TIMEOUT):
                await connection.execute("select pg_notify(%s, %s)", [self._database.channel, f"p:{self._token}"])
                async for notify in connection.notifies(timeout=PROBE_TIMEOUT / 2):
                    self._heard(notify)
                    if self._echoed:
                        break
            if not self._echoed:
                logger.warning("notifications do not arrive (a transaction pooler?): polling instead")
                return
            self.deaf = False
            async for notify in connection.notifies(timeout=interval * (0.9 + random.random() / 5)):
                self._heard(notify)
            interval = min(CALM_PROBE, interval * 2)

    def _heard(self, notify: Notify) -> None:
        if notify.payload == f"p:{self._token}":
            self._echoed = True
            return
        for receive in list(self._receivers):
            receive(notify.payload)


class Notifier:
    """Sends hints after the engine's own commits: the first at once, then what has gathered, at most one statement in 10 ms."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._link = Link(database, "notify")
        self._pending: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def send(self, hints: Iterable[str]) -> None:
        """Queue hints; never waits, never fails: a lost hint costs a poll."""
        self._pending.update(dict.fromkeys(hints))
        if self._pending and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._flush(), name="queuert notifier")

    async def _flush(self) -> None:
        while self._pending:
            hints = list(self._pending)
            self._pending.clear()
            try:
                await self._link.run(self._database.store.notify(self._database.channel, hints))
            except (psycopg.Error, OSError) as error:
                logger.debug("hints not sent: %s", error)
            await asyncio.sleep(COALESCE)

    async def stop(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task], timeout=1)
            self._task.cancel()
        await self._link.close()
