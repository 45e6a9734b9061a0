"""Takes jobs back from workers that are gone: by their presence within a second or two, by their leases at the latest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import AsyncConnection

from queuert_py import payload
from queuert_py.decisions import judge
from queuert_py.decisions.leases import renew_every
from queuert_py.postgres.calls import together
from queuert_py.postgres.database import Database, Link
from queuert_py.runtime.finisher import settle_calls
from queuert_py.runtime.leases import presence_class
from queuert_py.values import Doom, Ending, LiveJob, Verdict

logger = logging.getLogger("queuert_py.worker")
LOOK = 0.5
"""Seconds between looks at the others' presence: gone in two of them, a worker is gone."""
BATCH = 1000


class Reaper:
    """Every worker has one; no leader. `policy_of(type)` gives a job type's policy, `mute` those that no worker of this engine takes and
    whose failure nobody answers; `told` gets the hints of what is ready again, `done` the sequences that have ended and are waited for,
    `taken` each job with what was written for it and the worker that had it."""

    def __init__(
        self,
        database: Database,
        link: Link,
        worker_id: str,
        lease: float,
        policy_of: Callable[[str], judge.Policy],
        mute: Callable[[], list[str]],
        told: Callable[[Iterable[tuple[Any, ...]]], None],
        done: Callable[[Iterable[str]], None],
        taken: Callable[[Iterable[tuple[LiveJob, object, str | None]]], None],
    ) -> None:
        self._database = database
        self._link = link
        self._id = worker_id
        self._lease = lease
        self._policy_of = policy_of
        self._mute = mute
        self._told = told
        self._done = done
        self._taken = taken
        self._quiet_until = 0.0
        self._sweep_at = 0.0
        self._absent: set[str] = set()
        self._hurry = asyncio.Event()

    def hold_back(self, age: float = 0.0) -> None:
        """After an outage every lease looks dead: reap nothing for one renew interval, so that the living renew first.

        `age`: seconds since the outage ended.
        """
        self._quiet_until = time.monotonic() + renew_every(self._lease) * (1 + random.random() / 10) - age
        self._absent.clear()

    async def run(self) -> None:
        await self.prepare()
        while True:
            try:
                await self.once()
            except (psycopg.Error, OSError) as error:
                logger.debug("reaping postponed: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK, self._lease / 4) * (0.8 + random.random() * 0.4)):
                    await self._hurry.wait()
            self._hurry.clear()

    def hurry(self) -> None:
        """Look for leases that have ended now, not when it is time."""
        self._sweep_at = 0.0
        self._hurry.set()

    async def prepare(self) -> None:
        """Before the first look: has the server only just come back?"""
        while True:
            try:
                age = (await self._link.run(self._database.store.postmaster_age()))[0]
            except (psycopg.Error, OSError):
                await asyncio.sleep(LOOK)
                continue
            if age < renew_every(self._lease):
                self.hold_back(age)
            return

    async def once(self) -> int:
        """One look; how many jobs were taken back."""
        if time.monotonic() < self._quiet_until:
            return 0
        seen = await self._link.run(self._database.store.find_absent(presence_class(self._database.schema)))
        absent = {id for id, free in seen if free and id != self._id}
        gone = sorted(absent & self._absent)
        self._absent = absent
        now = time.monotonic()
        if not gone and now < self._sweep_at:
            return 0
        self._sweep_at = now + min(1.0, self._lease / 3) * max(1, len(seen)) * (0.5 + random.random() / 2)
        taken = await self._link.use(lambda connection: self._reap(connection, gone))
        await self._link.use(self._bury)
        if gone:
            await self._link.run(self._database.store.remove_workers(gone))
        return taken

    async def _reap(self, connection: AsyncConnection[Any], gone: list[str]) -> int:
        """Lock what is lost, decide, write: one transaction."""
        store = self._database.store
        async with connection.transaction():
            found = await store.lock_lost(gone, BATCH).on(connection)
            if not found:
                return 0
            items = [self._judge(row) for row in found]
            calls = settle_calls(store, items, timedelta(0))
            answers = dict(zip(calls, await together(connection, *calls.values()), strict=True))
        workers = sorted({str(row[-1]) for row in found})
        logger.warning("took back %d job(s) of %s", len(found), ", ".join(workers))
        self._taken((job, verdict, row[-1]) for (job, verdict, _), row in zip(items, found, strict=True))
        self._told(queue_row[1:] for queue_row in answers.get("delay_jobs", ()))
        self._done(key for key, watched in answers.get("end_jobs", ()) if watched)
        self._told((*place, 0.0) for *place, free in answers.get("unblock_jobs", ()) if free)
        self._told((*place, 0.0) for place in answers.get("doom_jobs", ()))
        return len(found)

    async def _bury(self, connection: AsyncConnection[Any]) -> None:
        """End what is too late to run: sequences over their deadline, jobs that had to begin by now; and what has failed and would wait for
        ever to be taken."""
        store = self._database.store
        async with connection.transaction():
            found = await store.lock_limited(self._mute(), BATCH).on(connection)
            if not found:
                return
            items = [(blank_job(*row), judge.unrun(expired=True, deadline=0.0 if late else None, doom=doom)) for *row, late, doom in found]
            verdicts = [(job, self._or_doom(job.type, verdict), False) for job, verdict in items if verdict]
            calls = settle_calls(store, verdicts, timedelta(0))
            answers = dict(zip(calls, await together(connection, *calls.values()), strict=True))
        self._taken((job, verdict, None) for job, verdict, _ in verdicts)
        self._done(key for key, watched in answers.get("end_jobs", ()) if watched)
        self._told((*place, 0.0) for *place, free in answers.get("unblock_jobs", ()) if free)
        self._told((*place, 0.0) for place in answers.get("doom_jobs", ()))

    def _or_doom(self, type_: str, verdict: Verdict, *, crash: bool = False) -> Verdict | Doom:
        """A failure that has to be answered is not written here, between locks and without the job's declaration."""
        if isinstance(verdict, Ending) and verdict.outcome == "failed" and self._policy_of(type_).answered:
            return Doom(verdict, crash)
        return verdict

    def _judge(self, row: tuple[Any, ...]) -> tuple[LiveJob, Verdict | Doom, bool]:
        lane, sequence_id, position, epoch, type_, attempt, crash_count, begun, max_attempts, backoff, worker = row
        error = payload.note_json("WorkerLost", f"worker {worker} died, or lost its lease, while it ran this job")
        verdict = judge.after_loss(
            judge.policy_for(self._policy_of(type_), backoff),
            error,
            begun=begun,
            override=max_attempts,
            attempt=attempt,
            crash_count=crash_count,
            random=random.random(),
        )
        return blank_job(lane, sequence_id, position, epoch, type_, attempt), self._or_doom(type_, verdict, crash=begun), False


def blank_job(lane: int, sequence_id: str, position: int, epoch: int, type: str, attempt: int | None = None) -> LiveJob:
    """As much of a job as its ending needs."""
    blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
    known: dict[str, Any] = {
        "lane": lane,
        "sequence_id": sequence_id,
        "position": position,
        "epoch": epoch,
        "type": type,
        "attempt": attempt,
    }
    return LiveJob(**{**blank, **known})
