"""A worker: claims jobs, runs their attempts, writes what became of them. One process, one event loop, five connections of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import AsyncConnection

from queuert_py import __version__, payload
from queuert_py.decisions import health, judge, leases
from queuert_py.decisions.backoff import seconds
from queuert_py.decisions.pace import hands_off
from queuert_py.errors import ConfigurationError
from queuert_py.ids import uuid7
from queuert_py.payload import Wire
from queuert_py.postgres.database import Database, Link
from queuert_py.postgres.health import Report
from queuert_py.runtime.aside import Beside
from queuert_py.runtime.attempt import Attempt
from queuert_py.runtime.claimer import Claimer
from queuert_py.runtime.fates import Fates
from queuert_py.runtime.finisher import Finisher
from queuert_py.runtime.handling import Surroundings
from queuert_py.runtime.leases import Heartbeat, identity
from queuert_py.runtime.loops import Loops, Part
from queuert_py.runtime.patience import Patience
from queuert_py.runtime.reaper import Reaper
from queuert_py.runtime.reports import log_delayed, log_failed
from queuert_py.runtime.reviving import revive_invalid
from queuert_py.runtime.services import Services
from queuert_py.runtime.settings import Settings, queues_of, types_of
from queuert_py.sequence import BlockerEnding
from queuert_py.values import Abort, Continuation, Delay, Duration, Ending, LiveJob, Step, Verdict

logger = logging.getLogger("queuert_py.worker")
FAR = 1e9
"""Seconds beyond which a job is not waited for: only an event wakes it."""


class Worker(Beside):
    """Made by `engine.worker(…)`; use it as `async with`, or `start` and `stop`."""

    present, listens = True, True  # does it show itself to the others, and do hints tell it of work? see runtime/once.py
    claim_ends = 10.0  # seconds in which a claim that is under way when it stops must have ended

    def __init__(self, engine: Services, settings: Settings) -> None:
        self.id = f"{settings.name}-{uuid7()}"
        self.settings = settings
        self.lease = settings.lease
        self.shutting_down = False
        self._engine = engine
        self._running: dict[str, Attempt] = {}
        self._waiting: deque[Attempt] = deque()
        self._suspects: deque[Attempt] = deque()
        self._patience = Patience(self._waiting, self._suspects, lambda: bool(self._running), self._give_back)
        self._idle = asyncio.Event()
        self._leave: list[Callable[[], None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._started = False

    # --- what attempts and the finisher ask for

    @property
    def database(self) -> Database:
        return self._engine.database

    @property
    def wire(self) -> Wire:
        return self._engine.wire

    @property
    def grace(self) -> float:
        return self.settings.grace

    @property
    def cut_off(self) -> bool:
        """Does the event loop end under it? Then everything is cancelled, whatever it does."""
        return self._loops.cut_off

    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None:
        return self._engine.wrap(connection)

    def step_for(self, continuation: Continuation[Any], attempt: Attempt) -> Step | Ending:
        if attempt.row.position + 1 >= attempt.job_type.options.get("max_steps", 10_000) + attempt.answered:
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
        """Begin to work. ConfigurationError when it has been started before, or has no handler to run; UnknownJobTypeError.

        A start that fails, or is cancelled, leaves nothing behind.
        """
        if self._started:
            raise ConfigurationError("this worker has been started already: make another with engine.worker().")
        self._assemble()
        self._started = True
        self._heartbeat.start()
        try:
            await self._begin()
        except BaseException:
            await self.stop(0)
            raise

    def _assemble(self) -> None:
        self._loop = asyncio.get_running_loop()
        types = self._engine.job_types()
        self._types = types_of(self.settings, types)
        self._queues = queues_of(self.settings, self._types)
        self.surroundings = Surroundings(types, self._types)
        self._links = self._new_links()
        self._claim_link, self._settle_link, self._finish_link, self._edges_link = self._links
        self._finisher = Finisher(self, self.database, self._finish_link, self._settle_link, self._edges_link)
        self.fates = Fates(self.database.store, self._settle_link, self._held, self._lease_lost)
        self.begin_aside(self._settle_link)
        scope = (self._queues, list(self._types))
        self._claimer = self._new_claimer(scope)
        seconds_ = self.lease.total_seconds()
        told = (self._ready_again, self._tell, self.tell_taken)
        self._reaper = Reaper(self.database, self._settle_link, self.id, seconds_, self._policy_of, self._mute, *told)
        who = {
            "id": self.id,
            **identity(self.settings.name),
            "version": __version__,
            "queues": self._queues,
            "types": list(self._types),
            "concurrency": self.settings.concurrency,
        }
        shown = who if self.present and not self.database.pooler else None
        self._heartbeat = Heartbeat(self.database, shown, self.lease, self._held, self._lease_lost)
        self._loops = Loops(self._parts(), lambda: self.shutting_down)

    async def _begin(self) -> None:
        await self._heartbeat.present.wait()
        self._leave.append(self.database.health.on_change(self._health_changed))
        if self.listens:
            self._leave.append(self._engine.listener.subscribe(self._hint, self._claimer.look))
            self._leave.append(self._engine.listener.subscribe(self.fates.hint, lambda: None))
        await revive_invalid(self.database, self._types.values(), self._ready_again)
        self._loops.begin()
        self._engine.joined(self)
        logger.info("worker %s serves %s of queues %s", self.id, ", ".join(self._types), ", ".join(self._queues))

    def _new_links(self) -> tuple[Link, Link, Link, Link]:
        """The connections for claiming, settling, finishing and edges."""
        return Link(self.database, "claim"), Link(self.database, "settle"), Link(self.database, "finish"), Link(self.database, "edges")

    def _new_claimer(self, scope: tuple[Sequence[str], Sequence[str]]) -> Claimer:
        return Claimer(self, self.database, self._claim_link, self.settings, scope, self._run_alone)

    def _parts(self) -> dict[str, Part]:
        """What goes on as long as it works."""
        return {
            "plain": self._finisher.write_plain,
            "settle": self._finisher.settle,
            "edges": self._finisher.write_edges,
            "reap": self._reaper.run,
            "distrust": self._heartbeat.distrust,
            "claim": self._claimer.run,
        }

    async def stop(self, timeout: Duration | None = None) -> None:
        """Stop claiming, let handlers run for `timeout` (default: shutdown_timeout), cancel the rest, write everything, leave.

        There is one stop: whoever calls it again waits for the same end, and a caller who is cancelled does not keep it from ending.
        """
        if not self._started:
            return
        if self._stopping is None:
            self.shutting_down = True
            self._stopping = asyncio.create_task(self._stop(timeout), name="queuert stop")
        await asyncio.shield(self._stopping)

    async def _stop(self, timeout: Duration | None) -> None:
        try:
            await self._end_jobs(self.settings.shutdown_timeout if timeout is None else seconds(timeout))
        finally:
            try:
                await self._end_links()
            finally:
                self._engine.left(self)
                self._idle.set()

    async def _end_jobs(self, timeout: float) -> None:
        """Begin nothing more, and end what runs."""
        for leave in self._leave:
            leave()
        self._claimer.stop()
        await self._loops.last("claim", self.claim_ends)
        with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
            async with asyncio.timeout(self.claim_ends):
                await self._claimer.release_lost()
        self._patience.end()
        for attempt in [*self._waiting, *self._suspects]:
            self._give_back(attempt, None)
        self._waiting.clear()
        self._suspects.clear()
        if not await self._quiet(timeout):
            for attempt in list(self._running.values()):
                attempt.abort("shutdown", self.settings.grace)
            if not await self._quiet(self.settings.grace + 5):
                logger.error("%d job(s) could not be given back; their leases will end", len(self._running))

    async def _end_links(self) -> None:
        await self.end_aside(self.settings.grace)
        await self.fates.stop()
        await self._loops.end()
        await self._heartbeat.stop()
        with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
            async with asyncio.timeout(2 if self.present else 0):
                await self._settle_link.run(self.database.store.remove_workers([self.id]))
        await self.surroundings.close()
        for link in self._links:
            await link.close()

    async def drained(self) -> None:
        """Wait until the worker runs nothing and has found nothing more to claim, not even of what was committed just before this call; or
        until it is stopped."""
        self._claimer.look()
        while not self.shutting_down:
            self._idle.clear()
            await self._idle.wait()
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

    def take(self, row: LiveJob, trusted: float, endings: Mapping[str, BlockerEnding]) -> None:
        self._take(Attempt(self, row, self._types[row.type], trusted, endings=endings))

    def _take(self, attempt: Attempt) -> None:
        row = attempt.row
        ending = judge.unrun(expired=row.expired, deadline=row.deadline, doom=row.doom)
        if ending is not None:
            self._running[row.sequence_id] = attempt
            attempt.writing = True
            self._finisher.put(attempt, ending)
        elif row.crash_count >= leases.SUSPECT:
            self._suspects.append(attempt)
        else:
            self._waiting.append(attempt)
            self._fill()
        self._patience.begin()

    def _give_back(self, attempt: Attempt, rest: timedelta | None) -> None:
        """A job that has not begun: uncharged, for any worker to take."""
        attempt.writing = True  # that is its verdict: nothing aborts it any more
        self._running[attempt.row.sequence_id] = attempt
        self._finisher.put(attempt, Delay(rest, charged=False, outcome=""))

    def _fill(self) -> None:
        """Free slots take what was prefetched."""
        while self._waiting and len(self._running) < self.settings.concurrency and not self.shutting_down:
            self._run(self._waiting.popleft())

    def _run(self, attempt: Attempt) -> None:
        attempt.begun = True
        self._running[attempt.row.sequence_id] = attempt
        self.surroundings.begin(attempt)
        self.tell_started(attempt)

    async def _run_alone(self) -> None:
        """A job with which workers died: nothing else runs meanwhile, so that its next death blames nobody else."""
        attempt = self._suspects[0]
        marked = await self._claim_link.run(self.database.store.mark_begun(attempt.row, self.lease))
        if attempt not in self._suspects or self.shutting_down:  # given back meanwhile, or about to be
            return
        self._suspects.remove(attempt)
        if not marked:
            return
        attempt.marked = True
        self._patience.ran(attempt.row.sequence_id)
        self._run(attempt)
        while attempt.row.sequence_id in self._running and not self.shutting_down:
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
        for lane, queue, priority, type_ in attempt.places:
            if self.serves(queue, type_):
                self.wake(lane, queue, priority, 0)
        if isinstance(verdict, Step):
            self.advanced(attempt, verdict, answers[1][0] if answers else None)
        elif isinstance(verdict, Ending):
            watched = answers[1][0][1] if answers else True
            if watched and answers:
                self.unblocked(answers[2])
            self.ended(attempt, verdict, watched)

    def finished(self, attempt: Attempt, ending: Ending) -> None:
        self.committed(attempt)
        self._release(attempt)
        self.tell_ending(attempt, ending)

    def ended(self, attempt: Attempt, ending: Ending, watched: bool) -> None:
        self._release(attempt)
        if ending.outcome == "failed":
            log_failed(attempt, ending)
        elif ending.outcome == "completed":
            self.committed(attempt)
        self.tell_ending(attempt, ending)
        if watched:
            self._engine.notifier.send([f"d:{attempt.row.sequence_id}"])

    def advanced(self, attempt: Attempt, step: Step, answer: tuple[Any, ...] | None) -> None:
        self.committed(attempt)
        self.tell_continued(attempt, step)
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
        trusted = leases.trusted_until(time.monotonic() - 1.0, self.lease.total_seconds())
        following = attempt.following(step, watched=watched, queue=queue, priority=priority)
        self._run(Attempt(self, following, self._types[step.type], trusted, attempt.handoffs + 1))

    def delayed(self, attempt: Attempt, delay: Delay, answer: tuple[Any, ...] | None) -> None:
        self._release(attempt)
        log_delayed(attempt, delay)
        self.tell_delayed(attempt, delay)
        if answer is not None and answer[-1] < FAR:
            self._ready_again([answer[1:]])

    def unblocked(self, answers: Iterable[tuple[Any, ...]]) -> None:
        self._ready_again((lane, queue, priority, type_, 0.0) for lane, queue, priority, type_, free in answers if free)

    def lost(self, attempt: Attempt, fate: str) -> None:
        logger.warning(
            "sequence %s (%s): attempt %d is no longer ours (%s)", attempt.row.sequence_id, attempt.row.type, attempt.row.attempt, fate
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
        return not (self.shutting_down or self._suspects) and len(self._running) + len(self._waiting) < self.settings.concurrency

    def _hint(self, hint: str) -> None:
        kind, _, rest = hint.partition(":")
        if kind == "q":
            lane, _, rest = rest.partition(":")
            priority, _, queue = rest.partition(":")
            if queue in self._queues and lane.isdigit() and priority.lstrip("-").isdigit():
                self.wake(int(lane), queue, int(priority), 0)
        elif kind == "w":
            self._engine.events.heard(hint)

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
        declared = self._engine.job_types()
        return declared.get(type_).policy if declared.has(type_) else judge.Policy(answered=True)

    def _mute(self) -> list[str]:
        return [each.name for each in self._engine.job_types() if each.handler is None and not each.policy.answered]

    def _health_changed(self, report: Report) -> None:
        if report.state == "recovering":
            self._reaper.hold_back()
        if health.claims(report.state):
            self._claimer.look()

    async def fate(self, job: LiveJob) -> str:
        """What became of an attempt: waits for whoever holds its row, then looks."""
        return await self.fates.of(job)
