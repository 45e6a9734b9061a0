"""Group commit: whatever has gathered while the last batch was being written goes into the next. Three lanes of writing:

plain  completions nobody waits for, and continuations: one connection, never waits for a row lock
settle everything else, and what plain did not match: one transaction a batch on another connection; what is locked is tried again, and
       what ends while somebody holds a dependent goes apart, one after the other
edges  what waits for blockers: one transaction each, on a third connection
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Protocol

import psycopg
from psycopg import AsyncConnection

from queuert_py import payload
from queuert_py.decisions.faults import Fault, pause
from queuert_py.errors import DatabaseUnavailableError, SequenceBusyError, SequenceNotFoundError, UsageError
from queuert_py.postgres import blocking, rows
from queuert_py.postgres.calls import Call
from queuert_py.postgres.database import Database, Link, fault_of
from queuert_py.postgres.plans import carry_out
from queuert_py.postgres.store import Store
from queuert_py.runtime.answers import Answers
from queuert_py.runtime.attempt import Attempt
from queuert_py.values import Block, Delay, Doom, Ending, LiveJob, Step, Suspend, Verdict

logger = logging.getLogger("queuert_py.worker")
BATCH = 500
PATIENCE = timedelta(milliseconds=300)
"""How long a batch waits for a dependent that somebody holds: less than it takes PostgreSQL to find a deadlock."""
Item = tuple[Attempt, Verdict]
_GIVEN_BACK = Delay(None, charged=False, outcome="")


class _DependentHeld(Exception):  # noqa: N818 - a signal
    """Somebody's open transaction holds a dependent of what is ending."""


class Owner(Protocol):
    """The worker, as the finisher sees it."""

    lease: timedelta

    def hands_off(self, step: Step, attempt: Attempt) -> bool: ...
    def finished(self, attempt: Attempt, ending: Ending) -> None: ...
    def ended(self, attempt: Attempt, ending: Ending, watched: bool) -> None: ...
    def advanced(self, attempt: Attempt, step: Step, answer: tuple[Any, ...] | None) -> None: ...
    def delayed(self, attempt: Attempt, delay: Delay, answer: tuple[Any, ...] | None) -> None: ...
    def unblocked(self, answers: Iterable[tuple[Any, ...]]) -> None: ...
    def lost(self, attempt: Attempt, fate: str) -> None: ...


class Finisher:
    """Writes verdicts. `put` never waits; the owner is told when a batch has committed."""

    def __init__(self, owner: Owner, database: Database, plain: Link, settle: Link, edges: Link) -> None:
        self._owner = owner
        self._database = database
        self._store = database.store
        self._plain_link = plain
        self._settle_link = settle
        self._edges_link = edges
        self._completions: list[tuple[Attempt, Ending]] = []
        self._steps: list[tuple[Attempt, Step]] = []
        self._rest: list[Item] = []
        self._apart: list[Item] = []
        self._blocked: list[tuple[Attempt, Step | Block, int]] = []
        self._edges_wake = asyncio.Event()
        self._plain_wake = asyncio.Event()
        self._settle_wake = asyncio.Event()
        self._busy = 0
        self._answers = Answers(self.put)

    def put(self, attempt: Attempt, verdict: Verdict) -> None:
        """Take a verdict to be written with the next batch. A failure for good is answered first, if its job type has an answer."""
        if isinstance(verdict, Ending) and self._answers.take(attempt, verdict):
            return
        if isinstance(verdict, Block) or (isinstance(verdict, Step) and verdict.blockers):
            self._block(attempt, verdict, 0)
            return
        if isinstance(verdict, Step) and verdict.failure is None:
            self._steps.append((attempt, verdict))
        elif isinstance(verdict, Ending) and verdict.outcome == "completed" and not attempt.row.watched:
            self._completions.append((attempt, verdict))
        else:
            self._rest.append((attempt, verdict))
            self._settle_wake.set()
            return
        self._plain_wake.set()

    @property
    def idle(self) -> bool:
        return not (self._completions or self._steps or self._rest or self._apart or self._blocked or self._busy)

    async def write_plain(self) -> None:
        """The plain lane; runs until cancelled."""
        while True:
            await self._plain_wake.wait()
            self._plain_wake.clear()
            self._busy += 1
            try:
                completions, self._completions = self._completions[:BATCH], self._completions[BATCH:]
                if completions:
                    await self._finish(completions)
                steps, self._steps = self._steps[:BATCH], self._steps[BATCH:]
                if steps:
                    await self._advance(steps)
            finally:
                self._busy -= 1
                if self._completions or self._steps:
                    self._plain_wake.set()

    async def _finish(self, batch: list[tuple[Attempt, Ending]]) -> None:
        parts = [rows.finish_row(attempt.row, ending.output or "null", ending.output_type) for attempt, ending in batch]
        done = await self._persist(self._plain_link, lambda link: link.run(self._store.finish_jobs(parts)), batch)
        if done is None:
            return
        matched = set(done)
        for attempt, ending in batch:
            if attempt.row.sequence_id in matched:
                self._owner.finished(attempt, ending)
            else:
                self._settle((attempt, ending))

    async def _advance(self, batch: list[tuple[Attempt, Step]]) -> None:
        parts = [rows.step_row(attempt.row, step, self._owner.hands_off(step, attempt)) for attempt, step in batch]
        calls: tuple[Call[Any], ...] = (self._store.finish_steps(parts), self._store.advance_jobs(parts, self._owner.lease))
        done = await self._persist(self._plain_link, lambda link: link.transact(*calls), batch)
        if done is None:
            return
        answers = {answer[0]: answer for answer in done[1]}
        for attempt, step in batch:
            answer = answers.get(attempt.row.sequence_id)
            if answer is not None:
                self._owner.advanced(attempt, step, answer)
            else:
                self._settle((attempt, step))

    def _block(self, attempt: Attempt, verdict: Step | Block, tried: int) -> None:
        self._blocked.append((attempt, verdict, tried))
        self._edges_wake.set()

    async def write_edges(self) -> None:
        """The edges lane; runs until cancelled."""
        while True:
            await self._edges_wake.wait()
            self._edges_wake.clear()
            while self._blocked:
                attempt, verdict, tried = self._blocked.pop(0)
                self._busy += 1
                try:
                    await self._write_blocked(attempt, verdict, tried)
                finally:
                    self._busy -= 1

    async def _write_blocked(self, attempt: Attempt, verdict: Step | Block, tried: int) -> None:
        """A job that is to wait for blockers; failed when they cannot be had, and tried again, without end, when one is held just now."""

        async def once(connection: AsyncConnection[Any]) -> list[Any]:
            async with connection.transaction():
                if isinstance(verdict, Block):
                    return await carry_out(blocking.block(self._store, attempt.row, verdict), connection)
                return (await carry_out(blocking.advance(self._store, attempt.row, verdict), connection))[1]

        def write(link: Link) -> Any:
            return blocking.marking(self._database, lambda: link.use(once), verdict.blockers, patience=0)

        try:
            answers = await self._persist(self._edges_link, write, [(attempt, verdict)])
        except (SequenceBusyError, DatabaseUnavailableError):  # the others of this lane do not wait for that
            answers = []
        except (UsageError, SequenceNotFoundError) as error:
            if isinstance(verdict, Step) and verdict.failure is not None:
                told = attempt.row.sequence_id, attempt.row.type, error
                logger.error("sequence %s (%s): what on_failed goes on with cannot be had; the job has failed: %s", *told)
                self.put(attempt, self._answers.unanswered(attempt, verdict.failure))
            else:
                self.put(attempt, Ending("failed", reason="validation", error=payload.error_json(error)))
            return
        if answers is None:
            return
        if not answers:
            for _ in await self._look([(attempt, verdict)]):
                asyncio.get_running_loop().call_later(min(1.0, 0.01 * 2 ** min(tried, 7)), self._block, attempt, verdict, tried + 1)
        elif isinstance(verdict, Step):
            self._owner.advanced(attempt, verdict, answers[0])
        else:
            lane, queue, priority, type_, free = answers[0]
            ready = (attempt.row.sequence_id, lane, queue, priority, type_, 0.0) if free else None
            self._owner.delayed(attempt, _GIVEN_BACK, ready)

    def _settle(self, item: Item) -> None:
        self._rest.append(item)
        self._settle_wake.set()

    async def settle(self) -> None:
        """The settling lane; runs until cancelled."""
        stuck = 0
        while True:
            await self._settle_wake.wait()
            self._settle_wake.clear()
            self._busy += 1
            try:
                batch, self._rest = self._rest[:BATCH], self._rest[BATCH:]
                left = await self._settle_batch(batch) if batch else []
                more = bool(self._rest)
                self._rest.extend(left)  # at once: what is cancelled from here on loses nothing
                batch, self._apart = self._apart[:1], self._apart[1:]
                held = await self._settle_batch(batch) if batch else []
                self._rest.extend(held)
            finally:
                self._busy -= 1
            if more or self._apart:
                self._settle_wake.set()
            stuck = stuck + 1 if left or held else 0
            if stuck:  # rows that somebody's open transaction holds: again shortly, without waiting on their locks
                asyncio.get_running_loop().call_later(min(1.0, 0.01 * 2 ** min(stuck, 7)), self._settle_wake.set)

    async def _settle_batch(self, batch: list[Item]) -> list[Item]:
        """One transaction for all; returns what could not be written because its row is locked. If it is a dependent's, all go apart."""
        calls = settle_calls(
            self._store, [(attempt.row, verdict, self._hand(attempt, verdict)) for attempt, verdict in batch], self._owner.lease
        )
        limit = [self._store.limit_wait(PATIENCE)] if "unblock_jobs" in calls else []

        async def write(link: Link) -> list[list[Any]]:
            try:
                return (await link.transact(*limit, *calls.values()))[len(limit) :]
            except psycopg.errors.LockNotAvailable as error:
                raise _DependentHeld from error

        try:
            answers = await self._persist(self._settle_link, write, batch)
        except _DependentHeld:
            self._apart += batch
            return []
        if answers is None:
            return []
        named = dict(zip(calls, answers, strict=True))
        ended, advanced, delayed = ({row[0]: row for row in named.get(name, ())} for name in ("end_jobs", "advance_jobs", "delay_jobs"))
        delayed.update((row[0], row) for row in named.get("suspend_jobs", ()))
        missing: list[Item] = []
        for attempt, verdict in batch:
            key = attempt.row.sequence_id
            match verdict:
                case Ending() if key in ended:
                    self._owner.ended(attempt, verdict, ended[key][1])
                case Step() if key in advanced:
                    self._owner.advanced(attempt, verdict, advanced[key])
                case Delay() if key in delayed:
                    self._owner.delayed(attempt, verdict, delayed[key])
                case Suspend() if key in delayed:
                    self._owner.delayed(attempt, _GIVEN_BACK, delayed[key])
                case _:
                    missing.append((attempt, verdict))
        self._owner.unblocked(named.get("unblock_jobs", ()))
        self._owner.unblocked((*place, True) for place in named.get("start_dead_letters", ()))
        return await self._look(missing) if missing else []

    def _hand(self, attempt: Attempt, verdict: Verdict) -> bool:
        return isinstance(verdict, Step) and self._owner.hands_off(verdict, attempt)

    async def _look(self, items: list[Item]) -> list[Item]:
        """The fate of rows that did not match: still mine means locked."""
        call = self._store.read_fates([rows.epoch_row(attempt.row) for attempt, _ in items])
        try:
            answers = await self._persist(self._settle_link, lambda link: link.run(call), [])
        except asyncio.CancelledError:
            self._put_back(items)
            raise
        fates = {(key, epoch): fate for key, epoch, fate in answers or []}
        locked: list[Item] = []
        for attempt, verdict in items:
            fate = fates.get((attempt.row.sequence_id, attempt.row.epoch), "deleted")
            match fate, verdict:
                case "mine", _:
                    locked.append((attempt, verdict))
                case "written", Ending():
                    self._owner.ended(attempt, verdict, True)
                case "written", Step():
                    self._owner.advanced(attempt, verdict, None)
                case "lease_lost", Delay():
                    self._owner.delayed(attempt, verdict, None)
                case "lease_lost", Block() | Suspend():
                    self._owner.delayed(attempt, _GIVEN_BACK, None)
                case _:
                    self._owner.lost(attempt, fate)
        return locked

    async def _persist(self, link: Link, write: Callable[[Link], Any], batch: list[Any]) -> list[Any] | None:
        """Write until it is written: every statement matches by epoch, so writing it twice changes nothing. A batch that the database
        refuses is done row by row (None then), so that one bad row fails alone."""
        tried = 0
        while True:
            try:
                answer: list[Any] = await write(link)
            except (psycopg.Error, OSError) as error:
                fault = fault_of(error)
                if fault is Fault.BROKEN and batch and not self._link_broke(error):
                    self._single_out(batch, error)
                    return None
                tried += 1
                logger.log(logging.DEBUG if tried > 1 else logging.WARNING, "completions not written yet: %s", error)
                await asyncio.sleep(min(1.0, pause(fault or Fault.LOST, tried, random.random())))
            except asyncio.CancelledError:
                self._put_back(batch)
                raise
            else:
                return answer

    def _put_back(self, batch: Iterable[Item]) -> None:
        """The event loop ends while they are being written: the worker's stop is to write them."""
        for attempt, verdict in batch:
            self.put(attempt, verdict)

    @staticmethod
    def _link_broke(error: BaseException) -> bool:
        return getattr(error, "sqlstate", None) is None

    def _single_out(self, batch: list[Any], error: BaseException) -> None:
        if len(batch) > 1:
            logger.warning("a batch of %d was refused, writing its rows one by one: %s", len(batch), error)
            for item in batch:
                asyncio.get_running_loop().call_soon(self._alone, item)
            return
        attempt, verdict = batch[0]
        if isinstance(verdict, Ending) and verdict.outcome == "failed":
            logger.error("sequence %s cannot be written at all: %s", attempt.row.sequence_id, error)
            self._owner.lost(attempt, "lease_lost")
            return
        self.put(attempt, Ending("failed", reason="error", error=payload.error_json(error)))

    def _alone(self, item: Item) -> None:
        task = asyncio.ensure_future(self._settle_alone(item))
        task.add_done_callback(lambda done: done.exception() if not done.cancelled() else None)

    async def _settle_alone(self, item: Item) -> None:
        left = await self._settle_batch([item])
        for each in left:
            self._settle(each)


def settle_calls(store: Store, items: list[tuple[LiveJob, Verdict | Doom, bool]], lease: timedelta) -> dict[str, Call[Any]]:
    """The statements that write any verdicts, by name, in the order in which they must run in one transaction."""
    calls: dict[str, Call[Any]] = {}
    endings = [(job, verdict) for job, verdict, _ in items if isinstance(verdict, Ending)]
    steps = [rows.step_row(job, verdict, handoff) for job, verdict, handoff in items if isinstance(verdict, Step)]
    delays = [rows.delay_row(job, verdict) for job, verdict, _ in items if isinstance(verdict, Delay)]
    waits = [rows.suspend_row(job, verdict) for job, verdict, _ in items if isinstance(verdict, Suspend)]
    if endings:
        calls["end_jobs"] = store.end_jobs([rows.end_row(job, ending) for job, ending in endings])
        calls["unblock_jobs"] = store.unblock_jobs([rows.epoch_row(job) for job, _ in endings])
    letters = [ending.dead_letter for _, ending in endings if ending.dead_letter is not None]
    if letters:
        calls["start_dead_letters"] = store.start_dead_letters(letters)
    if steps:
        calls["finish_steps"] = store.finish_steps(steps)
        failures = [rows.failure_row(job, verdict.failure) for job, verdict, _ in items if isinstance(verdict, Step) and verdict.failure]
        if failures:
            calls["log_failures"] = store.log_failures(failures)
        calls["advance_jobs"] = store.advance_jobs(steps, lease)
    if delays:
        calls["delay_jobs"] = store.delay_jobs(delays)
    if waits:
        calls["suspend_jobs"] = store.suspend_jobs(waits)
    dooms = [rows.doom_row(job, verdict) for job, verdict, _ in items if isinstance(verdict, Doom)]
    if dooms:
        calls["doom_jobs"] = store.doom_jobs(dooms)
    return calls
