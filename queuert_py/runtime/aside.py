"""What a worker does beside its jobs: how far they are is written once a second, and callbacks run after a commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

import psycopg
from pydantic import BaseModel

from queuert_py.job import current
from queuert_py.postgres import rows
from queuert_py.postgres.database import Link
from queuert_py.postgres.store import Store
from queuert_py.runtime.attempt import Attempt
from queuert_py.runtime.callbacks import call_back
from queuert_py.runtime.services import Services
from queuert_py.runtime.telling import Tells
from queuert_py.sequence import JobSequence
from queuert_py.values import LiveJob

logger = logging.getLogger("queuert_py.worker")
EVERY = 1.0
"""Seconds between two writes of progress."""


class Beside(Tells):
    """The part of a worker that is beside its jobs."""

    _engine: Services
    _running: dict[str, Attempt]

    def find(self, type: str, id: str) -> JobSequence[Any]:
        return self._engine.find(type, id)

    def model(self, type: str, name: str) -> type[BaseModel] | None:
        return self._engine.model(type, name)

    def begin_aside(self, link: Link) -> None:
        store = self._engine.database.store
        self._progress = Progress(store, link, self._runs, lambda ids: self._engine.notifier.send(f"g:{id}" for id in ids))
        self._calling: set[asyncio.Task[None]] = set()

    def progress(self, job: LiveJob, progress: str) -> None:
        self._progress.put(job, progress)
        self.tell_progress(job, progress)

    def committed(self, attempt: Attempt) -> None:
        """What this attempt wrote has been committed."""
        if attempt.callbacks:
            outside = copy_context()
            outside.run(current.set, None)  # no handler's code any more: it may await results, and start without tx=
            task = asyncio.create_task(call_back(attempt.take_callbacks()), name="queuert on_commit", context=outside)
            self._calling.add(task)
            task.add_done_callback(self._calling.discard)

    async def end_aside(self, timeout: float) -> None:
        """Give callbacks `timeout` seconds to end; what progress is not written is dropped."""
        await self._progress.stop()
        if self._calling:
            _, late = await asyncio.wait(self._calling, timeout=timeout)
            for task in late:
                task.cancel()

    def _runs(self, job: LiveJob) -> bool:
        held = self._running.get(job.sequence_id)
        return held is not None and held.row.epoch == job.epoch and not held.writing


class Progress:
    """How far the jobs of a worker are: the first report of a job is written at once, then the latest of each once a second, all jobs by
    one statement. `told(id)`: it is written. Never waits, never fails: progress is not worth a job."""

    def __init__(self, store: Store, link: Link, runs: Callable[[LiveJob], bool], told: Callable[[Iterable[str]], None]) -> None:
        self._store = store
        self._link = link
        self._runs = runs
        self._told = told
        self._pending: dict[str, tuple[LiveJob, str]] = {}
        self._task: asyncio.Task[None] | None = None
        self._writing = self._stopped = False

    def put(self, job: LiveJob, progress: str) -> None:
        if self._stopped:
            return
        self._pending[job.sequence_id] = job, progress
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="queuert progress")

    async def _write(self) -> None:
        while self._pending:
            pending, self._pending = self._pending, {}
            self._writing = True
            try:
                parts = [rows.progress_row(job, progress) for job, progress in pending.values()]
                written = set(await self._link.run(self._store.save_progress(parts)))
            except (psycopg.Error, OSError) as error:
                logger.debug("progress not written: %s", error)
                written = set[str]()
            finally:
                self._writing = False
            for id, (job, progress) in pending.items():
                if id not in written and self._runs(job):  # its row is locked, or the database is away: again
                    self._pending.setdefault(id, (job, progress))
            self._told(written)
            if self._stopped:
                return
            await asyncio.sleep(EVERY)

    async def stop(self) -> None:
        """What is not written yet is dropped; what is being written is not interrupted: its connection is the settling lane's."""
        self._stopped = True
        if self._task is not None:
            if not self._writing:
                self._task.cancel()
            await asyncio.wait([self._task])
