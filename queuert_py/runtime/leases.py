"""The heartbeat: one thread with a connection of its own renews all leases of a worker by one statement, holds its presence, and
watches the event loop. A handler that blocks the loop does not lose its lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from zlib import crc32

import psycopg
from psycopg import Connection

from queuert_py.decisions.leases import renew_every, trusted_until
from queuert_py.postgres import rows
from queuert_py.postgres.calls import PING
from queuert_py.postgres.database import Database, sever
from queuert_py.runtime.attempt import Attempt

logger = logging.getLogger("queuert_py.worker")
STALL_LIMIT = 10
"""Leases for which a blocked event loop is covered; after them its jobs are let go."""


def presence_class(schema: str) -> int:
    """The first half of the advisory locks of a schema's workers."""
    return crc32(f"queuert presence {schema}".encode()) - 2**31


class Heartbeat:
    """Renews what `held` returns. `lost(attempt, fate)` is called in the event loop.

    `worker` None: it shows no presence, which takes a session of its own, and connects only when something is to be renewed.
    """

    def __init__(
        self,
        database: Database,
        worker: dict[str, object] | None,
        lease: timedelta,
        held: Callable[[], Iterable[Attempt]],
        lost: Callable[[Attempt, str], None],
    ) -> None:
        self._database = database
        self._worker = worker
        self._lease = lease
        self._held = held
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._heard = time.monotonic()
        self._stalled = False
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._bell, self._clapper = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="queuert heartbeat", daemon=True)
        self._connection: Connection[Any] | None = None
        self.present = asyncio.Event()
        if worker is None:
            self.present.set()

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; its connection, and so the presence, is gone afterwards."""
        self._stop.set()
        self._clapper.send(b"x")
        await asyncio.to_thread(self._thread.join, 10)
        self._bell.close()
        self._clapper.close()

    # --- in the thread

    def _run(self) -> None:
        seconds = self._lease.total_seconds()
        tick = min(1.0, renew_every(seconds) / 2)
        renew_at, tried = 0.0 if self._worker else time.monotonic() + renew_every(seconds) / 2, 0
        while not self._stop.is_set():
            try:
                if self._worker is None and self._connection is None and time.monotonic() < renew_at:
                    self._beat = time.monotonic()
                    select.select([self._bell.fileno()], [], [], tick)
                    continue
                if self._connection is None:
                    self._connect()
                    renew_at = 0.0
                tried = 0
                self._watch_loop(seconds)
                now = self._beat = time.monotonic()
                if now >= renew_at:
                    renew_at = now + renew_every(seconds) * (0.9 + random.random() / 10)
                    self._renew(list(self._held()))
                else:
                    self._renew([attempt for attempt in self._held() if attempt.begun and not attempt.marked])
                self._wait(tick)
            except (psycopg.Error, OSError) as error:
                tried += 1
                logger.log(logging.WARNING if tried == 1 else logging.DEBUG, "heartbeat interrupted: %s", str(error).strip())
                self._close()
                self._stop.wait(min(1.0, 0.05 * 2 ** min(tried, 6)) * random.random())
            except RuntimeError:
                if not self._loop.is_closed():
                    raise
                break
        self._close()

    def _connect(self) -> None:
        connection = self._connection = self._database.connect_sync("heartbeat")
        if self._worker is None:
            return
        store, class_ = self._database.store, presence_class(self._database.schema)
        held = False
        while not held:
            presence = random.randrange(-(2**31), 2**31)
            held = store.hold_presence(class_, presence).on_sync(connection)[0]
            self._worker["presence"] = presence
        store.put_worker(**self._worker, running=len(list(self._held()))).on_sync(connection)
        self._loop.call_soon_threadsafe(self.present.set)

    def _wait(self, seconds: float) -> None:
        """Sleep, but notice at once when the connection dies: the presence is gone with it."""
        connection = self._connection
        if connection is None:
            return
        readable, _, _ = select.select([connection.fileno(), self._bell.fileno()], [], [], seconds)
        if connection.fileno() in readable:
            PING.on_sync(connection)

    def _renew(self, attempts: list[Attempt]) -> None:
        if not attempts or self._connection is None or self._stalled:
            return
        store, sent = self._database.store, time.monotonic()
        snapshot = [(attempt, attempt.row, attempt.begun) for attempt in attempts]
        parts = [rows.held_row(row, begun) for _, row, begun in snapshot]
        renewed = set(store.renew_leases(parts, self._lease).on_sync(self._connection))
        missing: list[tuple[Attempt, Any]] = []
        for attempt, row, begun in snapshot:
            if (row.sequence_id, row.epoch) in renewed:
                attempt.trusted = trusted_until(sent, self._lease.total_seconds())
                attempt.marked = attempt.marked or begun
            else:
                missing.append((attempt, row))
        if missing:
            self._look(missing)

    def _look(self, missing: list[tuple[Attempt, Any]]) -> None:
        """A missing id is no lost lease until a look at its epoch says so: it may only be locked, or just written."""
        if self._connection is None:
            return
        sent = time.monotonic()
        found = self._database.store.read_fates([rows.epoch_row(row) for _, row in missing]).on_sync(self._connection)
        fates = {(key, epoch): fate for key, epoch, fate in found}
        for attempt, row in missing:
            fate = fates.get((row.sequence_id, row.epoch), "deleted")
            if fate == "mine":  # the lock on the row keeps reapers away as well
                attempt.trusted = max(attempt.trusted, trusted_until(sent, self._lease.total_seconds()))
            elif fate != "written":
                self._loop.call_soon_threadsafe(self._report, attempt, row.epoch, fate)

    def _report(self, attempt: Attempt, epoch: int, fate: str) -> None:
        if attempt.row.epoch == epoch:
            self._lost(attempt, fate)

    async def distrust(self) -> None:
        """In the event loop: without a renewal in time the worker stops by itself before anybody may take the job, and a heartbeat that
        hangs on a dead connection is cut loose."""
        tick = self._lease.total_seconds() / 12
        while True:
            await asyncio.sleep(tick)
            now = time.monotonic()
            connection = self._connection
            if connection is not None and now - self._beat > 4 * tick + 1:
                sever(connection)
            for attempt in self._held():
                if attempt.trusted < now and not attempt.writing:
                    self._lost(attempt, "lease_lost")

    def _watch_loop(self, lease: float) -> None:
        """Report an event loop that has not answered for over a second, with the stack that blocks it."""
        silent = time.monotonic() - self._heard
        if silent > 1.5 + renew_every(lease) / 2 and not self._stalled:
            frame = sys._current_frames().get(self._loop_thread)
            stack = "".join(traceback.format_stack(frame)) if frame else ""
            logger.warning("the event loop has been blocked for %.1f s (leases are renewed meanwhile):\n%s", silent, stack)
        self._stalled = silent > STALL_LIMIT * lease
        self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._heard = time.monotonic()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()


def identity(name: str) -> dict[str, object]:
    """Who this worker is, for the table `worker`."""
    return {"name": name, "host": socket.gethostname(), "pid": os.getpid()}
