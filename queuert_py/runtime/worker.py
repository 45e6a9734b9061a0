"""A worker: claims jobs, runs their attempts, writes what became of them. One process, one event loop, five connections of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4

import psycopg
from psycopg import AsyncConnection

from queuert_py import __version__, payload
from queuert_py.decisions import health, judge, leases
from queuert_py.decisions.backoff import seconds
from queuert_py.decisions.faults import Fault
from queuert_py.decisions.pace import claim_size, hands_off, poll_after
from queuert_py.errors import ConfigurationError
from queuert_py.ids import uuid7
from queuert_py.job_types import InternalJobType, JobTypes
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database, Link, Report, fault_of
from queuert_py.postgres.listener import Listener, Notifier
from queuert_py.runtime.attempt import Attempt
from queuert_py.runtime.finisher import Finisher
from queuert_py.runtime.leases import Heartbeat, identity
from queuert_py.runtime.reaper import Reaper
from queuert_py.runtime.scans import Scans
from queuert_py.runtime.waiters import Waiters
from queuert_py.values import Abort, Continuation, Delay, Duration, Ending, LiveJob, Step, Verdict

logger = logging.getLogger("queuert_py.worker")
LOOKS_AGAIN = 7
CALM = 0.01
FULL_SCAN = 1.0
"""Seconds after which a claim scans its queues from the beginning, for rows that became ready out of order."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a worker works; see `Engine.worker`."""

    concurrency: int = 100
    queues: Sequence[str] | None = None
    types: Sequence[str] | None = None
    lease: timedelta = timedelta(seconds=30)
    poll_interval: tuple[float, float] = (1.0, 60.0)
    shutdown_timeout: float = 30.0
    grace: float = 5.0
    batch: int = 100
    drain: bool = False
    name: str = "worker"


class Services(Protocol):
    """What a worker needs of its engine."""

    @property
    def database(self) -> Database: ...
    @property
    def listener(self) -> Listener: ...
    @property
    def notifier(self) -> Notifier: ...
    @property
    def waiters(self) -> Waiters: ...
    @property
    def max_payload(self) -> int: ...
    def job_types(self) -> JobTypes[Any]: ...
    def step_for(self, continuation: Continuation[Any], row: LiveJob) -> Step: ...
    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None: ...
    def joined(self, worker: Worker) -> None: ...
    def left(self, worker: Worker) -> None: ...


class Worker:
    """Made by `engine.worker(…)`; use it as `async with`, or `start` and `stop`."""

    def __init__(self, engine: Services, settings: Settings) -> None:
        self.id = f"{settings.name}-{uuid7()}"
        self.settings = settings
        self.lease = settings.lease
        self.shutting_down = False
        self._engine = engine
        self._running: dict[str, Attempt] = {}
        self._waiting: deque[Attempt] = deque()
        self._suspects: deque[Attempt] = deque()
        self._more = True
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._due_at = float("inf")
        self._empty_polls = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._lost_claims: list[UUID] = []
        self._passed_over = 0
        self._unlisted = False
        self._started = False
        self._done = 0

    # --- what attempts and the finisher ask for

    @property
    def database(self) -> Database:
        return self._engine.database

    @property
    def max_payload(self) -> int:
        return self._engine.max_payload

    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None:
        return self._engine.wrap(connection)

    def step_for(self, continuation: Continuation[Any], attempt: Attempt) -> Step | Ending:
        if attempt.row.position + 1 >= attempt.job_type.options.get("max_steps", 10_000):
            error = payload.note_json(
                "TooManySteps", f"the sequence has reached max_steps ({attempt.row.position + 1}) of {attempt.row.type!r}"
            )
            return Ending("failed", reason="max_steps", error=error)
        return self._engine.step_for(continuation, attempt.row)

    def hands_off(self, step: Step, attempt: Attempt) -> bool:
        serves = step.type in self._types and (step.queue or attempt.row.queue) in self._queues
        stopping = self.shutting_down or bool(self._suspects) or attempt.detached
        return hands_off(step, serves=serves, stopping=stopping, in_a_row=attempt.handoffs)

    # --- life

    async def start(self) -> None:
        """Begin to work. ConfigurationError when it has been started before, or has no handler to run."""
        if self._started:
            raise ConfigurationError("this worker has been started already: make another with engine.worker().")
        self._started = True
        self._loop = asyncio.get_running_loop()
        types = self._engine.job_types()
        self._types: dict[str, InternalJobType[Any, Any]] = {
            each.name: each
            for each in types
            if each.handler is not None and (self.settings.types is None or each.name in self.settings.types)
        }
        if not self._types:
            raise ConfigurationError(
                "this worker has no job type to run: decorate a handler with @engine.job_type, or import the module that does."
            )
        for name in self.settings.types or ():
            types.get(name)
        self._queues = list(
            self.settings.queues or dict.fromkeys(["default", *(each.options.get("queue", "default") for each in self._types.values())])
        )
        self._claim_link = Link(self.database, "claim")
        self._settle_link = Link(self.database, "settle")
        self._finish_link = Link(self.database, "finish")
        self._finisher = Finisher(self, self.database.store, self._finish_link, self._settle_link)
        self._scans = Scans(self._queues, self.database.store.all_lanes)
        self._type_names = list(self._types)
        seconds_ = self.lease.total_seconds()
        self._reaper = Reaper(self.database, self._settle_link, self.id, seconds_, self._policy_of, self._ready_again, self._tell)
        who = {
            "id": self.id,
            **identity(self.settings.name),
            "version": __version__,
            "queues": self._queues,
            "types": self._type_names,
            "concurrency": self.settings.concurrency,
        }
        self._heartbeat = Heartbeat(self.database, who, self.lease, self._held, self._lease_lost)
        self._heartbeat.start()
        await self._heartbeat.present.wait()
        self._leave_hints = self._engine.listener.subscribe(self._hint, self._look)
        self.database.health.on_change(self._health_changed)
        loops: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("plain", self._finisher.write_plain),
            ("settle", self._finisher.settle),
            ("reap", self._reaper.run),
            ("distrust", self._heartbeat.distrust),
            ("claim", self._claim),
        ]
        self._tasks = [asyncio.create_task(self._forever(name, loop), name=f"queuert {name}") for name, loop in loops]
        self._engine.joined(self)
        logger.info("worker %s serves %s of queues %s", self.id, ", ".join(self._type_names), ", ".join(self._queues))

    async def stop(self, timeout: Duration | None = None) -> None:
        """Stop claiming, let handlers run for `timeout` (default: shutdown_timeout), cancel the rest, write everything, leave."""
        if not self._started or self.shutting_down:
            return
        self.shutting_down = True
        self._leave_hints()
        self._engine.left(self)
        self._wake.set()
        await self._ended(self._tasks[-1], 10)
        for attempt in [*self._waiting, *self._suspects]:
            self._running[attempt.row.sequence_id] = attempt
            self._finisher.put(attempt, Delay(None, charged=False, outcome=""))
        self._waiting.clear()
        self._suspects.clear()
        if not await self._quiet(self.settings.shutdown_timeout if timeout is None else seconds(timeout)):
            for attempt in list(self._running.values()):
                attempt.abort("shutdown", self.settings.grace)
            if not await self._quiet(self.settings.grace + 5):
                logger.error("%d job(s) could not be given back; their leases will end", len(self._running))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._heartbeat.stop()
        with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
            await asyncio.wait_for(self._settle_link.run(self.database.store.remove_workers([self.id])), 2)
        for link in (self._claim_link, self._settle_link, self._finish_link):
            await link.close()

    async def drained(self) -> None:
        """Wait until the worker runs nothing and has found nothing more to claim."""
        while True:
            await self._idle.wait()
            self._idle.clear()
            if not self._running and not self._waiting and not self._suspects and not self._more:
                return

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _quiet(self, timeout: float) -> bool:
        """Wait until nothing runs and everything is written."""
        until = time.monotonic() + timeout
        while self._running:
            self._idle.clear()
            left = until - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), left)
        return True

    @staticmethod
    async def _ended(task: asyncio.Task[None], timeout: float) -> None:
        await asyncio.wait([task], timeout=timeout)

    async def _forever(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Keep a part of the worker running, whatever happens in it: a bug is logged, and tried again with growing pauses."""
        failures = 0
        while not self.shutting_down or name in ("plain", "settle"):
            begun = time.monotonic()
            try:
                await loop()
                return
            except (psycopg.Error, OSError) as error:
                logger.debug("%s interrupted: %s", name, error)
            except Exception:
                logger.exception("the worker's %s loop failed; it goes on", name)
            failures = 0 if time.monotonic() - begun > 60 else failures + 1
            await asyncio.sleep(min(30.0, 0.1 * 2 ** min(failures, 9)) * (0.5 + random.random() / 2))

    # --- claiming

    async def _claim(self) -> None:
        """Claim when there is a reason: a hint, a due time, a freed slot while there is more, the fallback poll."""
        while not self.shutting_down:
            self._wake.clear()
            if self._suspects and not self._running:
                await self._run_alone(self._suspects[0])
                continue
            size = 0 if self._suspects else self._claim_size()
            if not self._more or size == 0:
                await self._reason()
                continue
            if self._running and size < min(self.settings.batch, self.settings.concurrency) // 2 and not self._empty_polls:
                await asyncio.sleep(0.001)  # slots are freed by batches: gather some
                size = self._claim_size()
            self._more = False  # a hint that comes while the claim is under way sets it again
            try:
                claimed = await self._claim_some(size)
                if len(claimed) == size:
                    self._more = True
                elif claimed:
                    self._unlisted = True
                else:
                    self._more = await self._relist(passed_over=True) or self._more
            except BaseException:
                self._more = True
                raise

    def _claim_size(self) -> int:
        free = self.settings.concurrency - len(self._running)
        prefetch = self.settings.concurrency // 4
        return claim_size(free=free, waiting=len(self._waiting), prefetch=prefetch, batch=self.settings.batch)

    async def _reason(self) -> None:
        """Sleep until something is worth a claim."""
        if self._unlisted and not self._more:
            self._unlisted = False
            with contextlib.suppress(TimeoutError):  # the next hint may be on its way: what comes later can wait for a calm moment
                await asyncio.wait_for(self._wake.wait(), CALM)
            if not self._more:
                self._more = await self._relist()
            return
        if not self._more and not self._running and not self._waiting:
            self._idle.set()
        busiest, calmest = self.settings.poll_interval
        poll = poll_after(idle=self._empty_polls, busiest=busiest, calmest=calmest, deaf=self._engine.listener.deaf, random=random.random())
        wait = min(poll, self._due_at - time.monotonic())
        if self._more:  # no free slot: only a slot is a reason
            await self._wake.wait()
            return
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.001, wait))
        except TimeoutError:
            self._empty_polls += wait >= poll
            self._due_at = float("inf")
            self._scans.from_the_start()
            self._more = True

    async def _claim_some(self, size: int) -> list[LiveJob]:
        store = self.database.store
        while self._lost_claims:
            await self._claim_link.run(store.release_claim(self.id, self._lost_claims[0]))
            self._lost_claims.pop(0)
        token = uuid4()
        if self._scans.age() > FULL_SCAN:
            await self._relist()
        call = store.claim_jobs(
            self._scans.parts(),
            self._type_names,
            limit=size,
            slots=self.settings.concurrency - len(self._running) - len(self._waiting),
            worker=self.id,
            token=token,
            lease=self.lease,
            suspect=leases.SUSPECT,
        )
        trusted = leases.trusted_until(time.monotonic(), self.lease.total_seconds())
        try:
            claimed = await self._claim_link.run(call)
        except BaseException as error:
            if not isinstance(error, Exception) or fault_of(error) is Fault.LOST:
                self._lost_claims.append(token)
            raise
        self._scans.learn(claimed, full=len(claimed) == size)
        for row in claimed:
            self._take(Attempt(self, row, self._types[row.type], trusted))
        if claimed:
            self._empty_polls = 0
        return claimed

    async def _relist(self, *, passed_over: bool = False) -> bool:
        """Learn the priorities in use and when the next job is due; was one due under a priority that was not scanned?

        passed_over: the claim found nothing. If something is due all the same its row was locked for a moment (somebody marked it as
        watched): look again in 1, 2, 4 … ms, a few times, since it may as well be of a type that is not served here.
        """
        self._due_at = float("inf")
        listed = await self._claim_link.run(self.database.store.list_ready(self._scans.queues()))
        due = min((each[3] for each in listed if each[3] > 0), default=float("inf"))
        locked = passed_over and any(each[3] <= 0 for each in listed)
        self._passed_over = self._passed_over + 1 if locked else 0
        if 0 < self._passed_over <= LOOKS_AGAIN:
            due = min(due, 0.001 * 2 ** (self._passed_over - 1))
        self._due_at = min(self._due_at, time.monotonic() + due)
        return self._scans.relist(listed)

    def _take(self, attempt: Attempt) -> None:
        row = attempt.row
        if row.expired:
            self._running[row.sequence_id] = attempt
            attempt.writing = True
            error = payload.note_json("Expired", "it was not started by its `expires`")
            self._finisher.put(attempt, Ending("expired", error=error))
        elif row.crash_count >= leases.SUSPECT:
            self._suspects.append(attempt)
        elif row.begun and len(self._running) < self.settings.concurrency:
            self._run(attempt)
        else:
            self._waiting.append(attempt)

    def _run(self, attempt: Attempt) -> None:
        attempt.begun = True
        self._running[attempt.row.sequence_id] = attempt
        limit = attempt.row.timeout or attempt.job_type.options.get("timeout")
        if limit is not None:
            attempt.timers = [self._loop.call_later(seconds(limit), attempt.abort, "timeout", self.settings.grace)]
        attempt.task = self._loop.create_task(attempt.run())

    async def _run_alone(self, attempt: Attempt) -> None:
        """A job with which workers died: nothing else runs meanwhile, so that its next death blames nobody else."""
        marked = await self._claim_link.run(self.database.store.mark_begun(attempt.row, self.lease))
        self._suspects.popleft()
        if not marked:
            return
        attempt.marked = True
        self._run(attempt)
        while attempt.row.sequence_id in self._running:
            self._wake.clear()
            await self._wake.wait()

    # --- what becomes of attempts

    def decided(self, attempt: Attempt, verdict: Verdict | None) -> None:
        """An attempt has a verdict to be written; None: it is no longer ours."""
        for timer in attempt.timers or ():
            timer.cancel()
        if verdict is None:
            self.lost(attempt, attempt.abort_reason or "lease_lost")
        else:
            self._finisher.put(attempt, verdict)

    def written(self, attempt: Attempt, verdict: Verdict, answers: list[list[Any]]) -> None:
        """A verdict was committed in the handler's own transaction; no answers: that is known only from its fate."""
        for timer in attempt.timers or ():
            timer.cancel()
        if isinstance(verdict, Step):
            self.advanced(attempt, verdict, answers[1][0] if answers else None)
        elif isinstance(verdict, Ending):
            watched = answers[0][0][1] if answers else True
            if watched and answers:
                self.unblocked(answers[1])
            self.ended(attempt, verdict, watched)

    def finished(self, attempt: Attempt) -> None:
        self._release(attempt)

    def ended(self, attempt: Attempt, ending: Ending, watched: bool) -> None:
        self._release(attempt)
        if ending.outcome == "failed":
            logger.warning(
                "job %s (%s) failed for good, attempt %d: %s", attempt.row.sequence_id, attempt.row.type, attempt.row.attempt, ending.reason
            )
        if watched:
            self._tell([attempt.row.sequence_id])

    def advanced(self, attempt: Attempt, step: Step, answer: tuple[Any, ...] | None) -> None:
        if answer is None:  # written, but the answer was lost: if the next job was born leased to us, let it go
            next_row = attempt.row._replace(epoch=attempt.row.epoch + 1, position=attempt.row.position + 1)
            attempt.row = next_row
            self._finisher.put(attempt, Delay(None, charged=False, outcome=""))
            return
        _, begun, watched, queue, priority, due = answer
        if begun and not self.shutting_down:
            self._go_on(attempt, step, watched=watched, queue=queue, priority=priority)
            return
        if begun:
            attempt.row = attempt.row._replace(epoch=attempt.row.epoch + 1, position=attempt.row.position + 1)
            self._finisher.put(attempt, Delay(None, charged=False, outcome=""))
            return
        self._release(attempt)
        self._ready_again([(attempt.row.lane, queue, priority, step.type, due)])

    def _go_on(self, attempt: Attempt, step: Step, *, watched: bool, queue: str, priority: int) -> None:
        row = attempt.row
        trusted = leases.trusted_until(time.monotonic() - 1.0, self.lease.total_seconds())
        following = row._replace(
            position=row.position + 1,
            epoch=row.epoch + 1,
            type=step.type,
            input=step.input,
            attempt=1,
            crash_count=0,
            begun=True,
            watched=watched,
            queue=queue,
            priority=priority,
            max_attempts=step.max_attempts,
            timeout=step.timeout,
            job_id=step.job_id,
            origin_id=row.job_id or row.sequence_id,
            blocker_count=0,
        )
        self._run(Attempt(self, following, self._types[step.type], trusted, attempt.handoffs + 1))

    def delayed(self, attempt: Attempt, delay: Delay, answer: tuple[Any, ...] | None) -> None:
        self._release(attempt)
        if delay.outcome in ("error", "timeout"):
            logger.info("job %s (%s): attempt %d failed, to be tried again", attempt.row.sequence_id, attempt.row.type, attempt.row.attempt)
        if answer is not None:
            self._ready_again([answer[1:]])

    def unblocked(self, answers: Iterable[tuple[Any, ...]]) -> None:
        self._ready_again((lane, queue, priority, type_, 0.0) for lane, queue, priority, type_, free in answers if free)

    def lost(self, attempt: Attempt, fate: str) -> None:
        logger.warning(
            "job %s (%s): attempt %d is no longer ours (%s)", attempt.row.sequence_id, attempt.row.type, attempt.row.attempt, fate
        )
        self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        """A slot is free: the next prefetched job runs, or the claimer looks again."""
        if self._running.get(attempt.row.sequence_id) is attempt:
            del self._running[attempt.row.sequence_id]
        self._done += 1
        if self._waiting and not self.shutting_down:
            self._run(self._waiting.popleft())
        if self._more or self._suspects:
            self._wake.set()
        if not self._running:
            self._idle.set()
            self._wake.set()

    # --- hints

    def serves(self, queue: str, type_: str) -> bool:
        return queue in self._queues and type_ in self._types

    def wake(self, lane: int, queue: str, priority: int, due: float) -> None:
        """There is, or will be in `due` seconds, a job in this queue."""
        self._passed_over = 0
        if due > 0:
            self._due_at = min(self._due_at, time.monotonic() + due)
        else:
            self._more = True
            self._scans.hinted(lane, queue, priority)
        self._wake.set()

    def has_room(self) -> bool:
        return not self._suspects and len(self._running) + len(self._waiting) < self.settings.concurrency

    def _hint(self, hint: str) -> None:
        kind, _, rest = hint.partition(":")
        if kind == "q":
            lane, _, rest = rest.partition(":")
            priority, _, queue = rest.partition(":")
            if queue in self._queues and lane.isdigit() and priority.lstrip("-").isdigit():
                self.wake(int(lane), queue, int(priority), 0)

    def _look(self) -> None:
        self._scans.from_the_start()
        self._more = True
        self._wake.set()

    def _ready_again(self, ready: Iterable[tuple[int, str, int, str, float]]) -> None:
        """Jobs that wait again or have become ready: the own claimer knows at once, the others by a hint."""
        hints: dict[str, None] = {}
        for lane, queue, priority, type_, due in ready:
            if self.serves(queue, type_) and not self.shutting_down:
                self.wake(lane, queue, priority, due)
                if self.has_room():
                    continue
            hints[f"q:{lane}:{priority}:{queue}"] = None
        self._engine.notifier.send(hints)

    def _tell(self, ended: Iterable[str]) -> None:
        """Sequences that somebody waits for have ended."""
        ids = list(ended)
        self._engine.waiters.ended(ids)
        self._engine.notifier.send(f"d:{id}" for id in ids)

    # --- leases and health

    def _held(self) -> list[Attempt]:
        return [*self._running.copy().values(), *self._waiting.copy(), *self._suspects.copy()]

    def _lease_lost(self, attempt: Attempt, fate: str) -> None:
        if attempt in self._waiting:
            self._waiting.remove(attempt)
            return
        reasons: dict[str, Abort] = {"deleted": "deleted", "cancelled": "cancelled", "completed_elsewhere": "completed_elsewhere"}
        attempt.abort(reasons.get(fate, "lease_lost"), self.settings.grace)

    def _policy_of(self, type_: str) -> judge.Policy:
        known = self._types.get(type_)
        return known.policy if known else judge.Policy()

    def _health_changed(self, report: Report) -> None:
        if report.state == "recovering":
            self._reaper.hold_back()
        if health.claims(report.state):
            self._look()

    async def fate(self, job: LiveJob) -> str:
        """What became of an attempt: waits for whoever holds its row, then looks."""
        part = rows.epoch_row(job)
        store = self.database.store
        tried = 0
        while True:
            try:
                answers = await self._settle_link.transact(store.lock_jobs([part]), store.read_fates([part]))
                return str(answers[1][0][2])
            except (psycopg.Error, OSError) as error:
                tried += 1
                logger.debug("fate of %s not known yet: %s", job.sequence_id, error)
                await asyncio.sleep(min(1.0, 0.05 * tried))
