"""A worker: claims jobs, runs their attempts, writes what became of them. One process, one event loop, five connections of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from pydantic_core import from_json

from queuert_py import __version__, payload
from queuert_py.decisions import health, judge, leases
from queuert_py.decisions.backoff import seconds
from queuert_py.decisions.pace import hands_off
from queuert_py.errors import ConfigurationError
from queuert_py.ids import uuid7
from queuert_py.job_types import InternalJobType
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database, Link, Report
from queuert_py.runtime.attempt import Attempt
from queuert_py.runtime.claimer import Claimer
from queuert_py.runtime.finisher import Finisher
from queuert_py.runtime.leases import Heartbeat, identity
from queuert_py.runtime.reaper import Reaper
from queuert_py.runtime.services import Opens, Services
from queuert_py.runtime.settings import Settings
from queuert_py.runtime.waiters import Ended
from queuert_py.values import Abort, Continuation, Delay, Duration, Ending, LiveJob, Step, Verdict

logger = logging.getLogger("queuert_py.worker")


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
        self._idle = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False

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
        scope = (self._queues, list(self._types))
        self._claimer = Claimer(self, self.database, self._claim_link, self.settings, scope, self._run_alone)
        seconds_ = self.lease.total_seconds()
        self._reaper = Reaper(self.database, self._settle_link, self.id, seconds_, self._policy_of, self._ready_again, self._tell)
        who = {
            "id": self.id,
            **identity(self.settings.name),
            "version": __version__,
            "queues": self._queues,
            "types": list(self._types),
            "concurrency": self.settings.concurrency,
        }
        self._heartbeat = Heartbeat(self.database, who, self.lease, self._held, self._lease_lost)
        self._heartbeat.start()
        await self._heartbeat.present.wait()
        self._leave_hints = self._engine.listener.subscribe(self._hint, self._claimer.look)
        self.database.health.on_change(self._health_changed)
        loops: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("plain", self._finisher.write_plain),
            ("settle", self._finisher.settle),
            ("reap", self._reaper.run),
            ("distrust", self._heartbeat.distrust),
            ("claim", self._claimer.run),
        ]
        self._tasks = [asyncio.create_task(self._forever(name, loop), name=f"queuert {name}") for name, loop in loops]
        self._engine.joined(self)
        logger.info("worker %s serves %s of queues %s", self.id, ", ".join(self._types), ", ".join(self._queues))

    async def stop(self, timeout: Duration | None = None) -> None:
        """Stop claiming, let handlers run for `timeout` (default: shutdown_timeout), cancel the rest, write everything, leave."""
        if not self._started or self.shutting_down:
            return
        self.shutting_down = True
        self._leave_hints()
        self._engine.left(self)
        self._claimer.stop()
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
            async with asyncio.timeout(2):
                await self._settle_link.run(self.database.store.remove_workers([self.id]))
        for link in (self._claim_link, self._settle_link, self._finish_link):
            await link.close()

    async def drained(self) -> None:
        """Wait until the worker runs nothing and has found nothing more to claim."""
        while True:
            await self._idle.wait()
            self._idle.clear()
            if not self._running and not self._waiting and not self._suspects and self._claimer.sated:
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
                async with asyncio.timeout(left):
                    await self._idle.wait()
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
            except (psycopg.Error, OSError) as error:  # reconnecting is paced by the health: while it is down nothing gets here
                logger.debug("%s interrupted: %s", name, error)
                await asyncio.sleep(0.05 + 0.1 * random.random())
                continue
            except Exception:
                logger.exception("the worker's %s loop failed; it goes on", name)
            failures = 0 if time.monotonic() - begun > 60 else failures + 1
            await asyncio.sleep(min(30.0, 0.1 * 2 ** min(failures, 9)) * (0.5 + random.random() / 2))

    # --- taking what was claimed

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def suspects(self) -> int:
        return len(self._suspects)

    @property
    def deaf(self) -> bool:
        return self._engine.listener.deaf

    def rest(self) -> None:
        """The claimer has nothing to do."""
        if not self._running and not self._waiting and not self._suspects:
            self._idle.set()

    def take(self, row: LiveJob, trusted: float) -> None:
        self._take(Attempt(self, row, self._types[row.type], trusted))

    def _take(self, attempt: Attempt) -> None:
        row = attempt.row
        if row.expired:
            self._running[row.sequence_id] = attempt
            attempt.writing = True
            error = payload.note_json("Expired", "it was not started by its `expires`")
            self._finisher.put(attempt, Ending("expired", error=error))
        elif row.crash_count >= leases.SUSPECT:
            self._suspects.append(attempt)
        else:
            self._waiting.append(attempt)
            self._fill()

    def _fill(self) -> None:
        """Free slots take what was prefetched."""
        while self._waiting and len(self._running) < self.settings.concurrency and not self.shutting_down:
            self._run(self._waiting.popleft())

    def _run(self, attempt: Attempt) -> None:
        attempt.begun = True
        self._running[attempt.row.sequence_id] = attempt
        limit = attempt.row.timeout or attempt.job_type.options.get("timeout")
        if limit is not None:
            attempt.timers = [self._loop.call_later(seconds(limit), attempt.abort, "timeout", self.settings.grace)]
        attempt.task = self._loop.create_task(attempt.run())

    async def _run_alone(self) -> None:
        """A job with which workers died: nothing else runs meanwhile, so that its next death blames nobody else."""
        attempt = self._suspects[0]
        marked = await self._claim_link.run(self.database.store.mark_begun(attempt.row, self.lease))
        self._suspects.popleft()
        if not marked:
            return
        attempt.marked = True
        self._run(attempt)
        while attempt.row.sequence_id in self._running:
            await self._claimer.slot_change()

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

    def finished(self, attempt: Attempt, ending: Ending) -> None:
        self._release(attempt)
        self._deliver(attempt, ending)

    def _deliver(self, attempt: Attempt, ending: Ending) -> None:
        """To whoever waits in this process."""
        id, waiters = attempt.row.sequence_id, self._engine.waiters
        if waiters.awaits(id):
            error = None if ending.error is None else from_json(ending.error)
            output = None if ending.output_type is None else ending.output
            waiters.deliver(id, Ended(ending.outcome, ending.reason, output, ending.output_type, error, attempt.row.type))

    def ended(self, attempt: Attempt, ending: Ending, watched: bool) -> None:
        self._release(attempt)
        if ending.outcome == "failed":
            logger.warning(
                "job %s (%s) failed for good, attempt %d: %s", attempt.row.sequence_id, attempt.row.type, attempt.row.attempt, ending.reason
            )
        self._deliver(attempt, ending)
        if watched:
            self._engine.notifier.send([f"d:{attempt.row.sequence_id}"])

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
        self._fill()
        self._claimer.freed()
        if not self._running:
            self._idle.set()

    # --- hints

    def serves(self, queue: str, type_: str) -> bool:
        return queue in self._queues and type_ in self._types

    def wake(self, lane: int, queue: str, priority: int, due: float) -> None:
        """There is, or will be in `due` seconds, a job in this queue."""
        self._claimer.told(lane, queue, priority, due)

    def look(self) -> None:
        """Something may have been missed: claim."""
        self._claimer.look()

    def has_room(self) -> bool:
        return not self._suspects and len(self._running) + len(self._waiting) < self.settings.concurrency

    def _hint(self, hint: str) -> None:
        kind, _, rest = hint.partition(":")
        if kind == "q":
            lane, _, rest = rest.partition(":")
            priority, _, queue = rest.partition(":")
            if queue in self._queues and lane.isdigit() and priority.lstrip("-").isdigit():
                self.wake(int(lane), queue, int(priority), 0)

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
            self._claimer.look()

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


class WorkerContext:
    """A worker to be: opens the engine, then starts it."""

    def __init__(self, engine: Opens, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._worker: Worker | None = None

    async def start(self) -> Worker:
        await self._engine.open()
        self._engine.validate()
        self._worker = Worker(self._engine, self._settings)
        await self._worker.start()
        return self._worker

    async def __aenter__(self) -> Worker:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._worker is not None:
            if self._settings.drain and kind is None:
                await self._worker.drained()
            await self._worker.stop()
