"""One attempt at one job: runs the handler, keeps its phases, and turns how it ended into a verdict that is written once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, cast

from psycopg import AsyncConnection
from pydantic import ValidationError

from queuert_py import payload
from queuert_py.decisions import judge
from queuert_py.decisions.backoff import seconds
from queuert_py.decisions.faults import Fault, pause
from queuert_py.errors import (
    DatabaseUnavailableError,
    InvalidOutputError,
    LeaseLostError,
    NotStartableError,
    SequenceBusyError,
    SequenceNotFoundError,
    TransactionEscapedError,
    UsageError,
)
from queuert_py.failing import invalid_input
from queuert_py.job import Job, current
from queuert_py.job_types import InternalJobType
from queuert_py.postgres import blocking, rows
from queuert_py.postgres.calls import COMMIT, Call, together
from queuert_py.postgres.database import fault_of, sever
from queuert_py.postgres.plans import carry_out
from queuert_py.runtime.durable import Home
from queuert_py.runtime.handling import Handling, Surroundings
from queuert_py.runtime.loops import interrupt
from queuert_py.runtime.phases import ESCAPED, PhaseHost, Phases, causes
from queuert_py.sequence import BlockerEnding, Outputs
from queuert_py.values import Abort, Continuation, Delay, Ending, LiveJob, Step, Verdict

logger = logging.getLogger("queuert_py.worker")
RERUNS = 5


class Host(PhaseHost, Home, Protocol):
    """What an attempt needs of its worker. `grace`: seconds that a cancelled handler has to clean up."""

    shutting_down: bool

    @property
    def grace(self) -> float: ...
    @property
    def cut_off(self) -> bool: ...
    def step_for(self, continuation: Continuation[Any], attempt: Attempt) -> Step | Ending: ...
    def hands_off(self, step: Step, attempt: Attempt) -> bool: ...
    def decided(self, attempt: Attempt, verdict: Verdict | None) -> None: ...
    def written(self, attempt: Attempt, verdict: Verdict, answers: list[list[Any]]) -> None: ...
    @property
    def surroundings(self) -> Surroundings: ...


class Attempt(Phases):
    """A claimed job in this process. Its task runs the handler; the lease is renewed by the heartbeat as long as it is held."""

    __slots__ = (
        "_deadline",
        "_key",
        "answered",
        "begun",
        "detached",
        "endings",
        "failure",
        "handoffs",
        "host",
        "job_type",
        "marked",
        "places",
        "taken",
        "timers",
        "trusted",
    )
    abort_reason: Abort | None

    def __init__(
        self,
        host: Host,
        row: LiveJob,
        job_type: InternalJobType[Any, Any],
        trusted: float,
        handoffs: int = 0,
        endings: Mapping[str, BlockerEnding] | None = None,
    ) -> None:
        super().__init__(host, row)
        self.host = host
        self.job_type = job_type
        self.trusted = trusted
        self.taken = time.monotonic()
        self.handoffs = handoffs
        self.endings = endings or {}
        self.begun = self.marked = row.begun
        self.detached = self.answered = False
        self.timers: list[asyncio.TimerHandle] | None = None
        self.failure: BaseException | None = None
        self._key: tuple[str, str] | None = None
        self.places: list[tuple[int, str, int, str]] = []
        self._deadline = None if row.deadline is None else time.monotonic() + row.deadline

    @property
    def shutting_down(self) -> bool:
        return self.host.shutting_down

    def time_left(self) -> float | None:
        """Seconds until the sequence's deadline."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def started(self, places: Sequence[tuple[int, str, int, str]], key: tuple[str, str] | None) -> None:
        """Sequences were started in this attempt's transaction: where (lane, queue, priority, type) there is work after its commit.

        key: this sequence's type and key, which one of them took over; it may only end now, under that key, unless that start is undone.
        """
        self.places += places
        self._key = key or self._key

    def following(self, step: Step, *, watched: bool, queue: str, priority: int) -> LiveJob:
        """The job that follows it, as it was born: leased to this worker."""
        return self.row._replace(
            position=self.row.position + 1,
            epoch=self.row.epoch + 1,
            type=step.type,
            input=self.host.wire.opened(step.input),
            attempt=1,
            crash_count=0,
            begun=True,
            watched=watched,
            queue=queue,
            priority=priority,
            max_attempts=step.max_attempts,
            timeout=step.timeout,
            backoff=None,
            job_id=step.job_id,
            origin_id=self.row.job_id or self.row.sequence_id,
            blocker_count=0,
            deadline=None if step.failure else self.time_left(),
            memo=None,  # events that have come before are found when they are asked for
        )

    # --- running

    async def run(self) -> None:
        """The attempt's task: from the input to a verdict in the finisher's hands, or written in the handler's own transaction."""
        current.set(self)
        job = None if self.detached else self.load()
        if job is None:
            return
        for tried in range(RERUNS + 1):
            if await self._once(job, tried):
                break
            self.writing = False
        else:
            self.writing = True
            self.host.decided(self, self._given_back())
        if isinstance(self.failure, KeyboardInterrupt):
            interrupt(self.failure)

    def _given_back(self) -> Delay:
        """What becomes of a job whose runs have written nothing, through no fault of its own: it is not charged, but says why."""
        error = None if self._cause is None else payload.error_json(self._cause)
        return Delay(timedelta(seconds=1), charged=False, outcome="released", error=error)

    def load(self) -> Job[Any, Any] | None:
        """The job for its handler. None: its model refuses the input, or it cannot be started; that is what becomes of it."""
        if self.row.position == 0 and not self.job_type.startable:  # started from SQL, or by its mere name elsewhere
            refused = NotStartableError(f"{self.row.type!r} is internal: only continue_with reaches it. Start the type that leads to it.")
            self.writing = True
            self.host.decided(self, Ending("failed", reason="validation", error=payload.error_json(refused), charged=False))
            return None
        try:
            input = self.job_type.load_input(self.row.input, Outputs(self.endings))
        except (ValidationError, NotImplementedError, payload.Sealed) as error:
            self.writing = True
            self.host.decided(self, invalid_input(self.job_type, error))
            return None
        except Exception as error:  # a validator's own mistake
            self.writing = True
            self.host.decided(self, self._judge(error))
            return None
        self.job = Job[Any, Any](self, input)
        return self.job

    def conclude(self, value: object, error: BaseException | None) -> None:
        """How its part of a batch has ended."""
        verdict = self._after_value(value) if error is None else self._after_error(error)
        self.writing = True
        self.host.decided(self, verdict)

    def begin_clock(self) -> None:
        """From now on its time runs."""
        limit = self.time_limit
        if limit:
            self._abort_after(limit)

    @property
    def time_limit(self) -> float:
        """Seconds that it may take: the job's own limit, else its type's; 0 for none."""
        limit = self.job_type.options.get("timeout") if self.row.timeout is None else self.row.timeout
        return 0.0 if limit is None else seconds(limit)

    def keep_deadline(self) -> None:
        """End it when its sequence's time is over."""
        if self.row.deadline is not None:
            self._abort_after(self.row.deadline)

    def _abort_after(self, span: float) -> None:
        timer = asyncio.get_running_loop().call_later(span, self.abort, "timeout", self.host.grace)
        self.timers = [*(self.timers or ()), timer]

    async def _once(self, job: Job[Any, Any], tried: int) -> bool:
        """One run of the handler, up to its verdict. False: nothing was written, and it is to run again."""
        handler, around = self.job_type.handler, self.host.surroundings.around(self, job)
        assert handler is not None  # noqa: S101 - only types with handlers are claimed
        value, error = None, None
        try:
            if tried:
                await asyncio.sleep(pause(self._again or Fault.CONFLICT, tried, random.random()))
            self._begin_again()
            self._key, self.places, self.failure = None, [], None
            value = await (handler(job) if around is None else around.run())
        except BaseException as raised:
            error = raised
        again = error is not None and self.suspension is None and any(each is self._cause for each in causes(error))
        if error is not None or self._connection is None or self.detached:
            error = await self._leave(around, error)
        verdict = self._after_value(value) if error is None else self._after_error(error)
        if self.detached:
            return True
        if again and self.abort_reason is None:
            return False
        if self._connection is None:
            self.writing = True
            self.host.decided(self, verdict)
            return True
        tell = await self._write_here(verdict)
        await self._leave_late(around, tell or partial(self.host.decided, self, self._given_back()))
        if tell is not None and not self.detached:
            tell()
        return tell is not None or self.detached

    async def _leave(self, around: Handling | None, error: BaseException | None) -> BaseException | None:
        """Roll back what is open, then close what stands around the handler: what that raises counts as the handler's own."""
        try:
            if around is None or not around.left_behind:  # a thread may still be in the middle of a statement
                await self._give_back()
        except BaseException as interrupted:
            error = interrupted
        return error if around is None else await around.close(error)

    async def _leave_late(self, around: Handling | None, tell: Callable[[], None]) -> None:
        """As `_leave`, when the transaction has committed or failed: nothing that happens now changes that. What takes longer than the
        grace is cancelled; what ignores that is left behind.

        tell: how it ends then.
        """
        if around is None:
            return
        error: BaseException | None = TimeoutError("it took longer than the worker's grace")
        last = asyncio.get_running_loop().call_later(1.5 * self.host.grace, self._leave_behind, tell)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.host.grace):
                error = await around.close(self.failure)
        last.cancel()
        if error is not None and error is not self.failure:
            logger.error("sequence %s (%s): what stands around its handler failed after the commit", *self._name, exc_info=error)

    def _leave_behind(self, tell: Callable[[], None]) -> None:
        self.detached = True
        logger.error("sequence %s (%s): what stands around its handler ignores cancellation; detached", *self._name)
        tell()

    @property
    def _name(self) -> tuple[str, str]:
        return self.row.sequence_id, self.row.type

    @property
    def _waits(self) -> bool:
        """Has the handler been suspended? Whatever it did afterwards, that is what becomes of the job, if it is still ours."""
        return self.suspension is not None and self.abort_reason in (None, "timeout", "shutdown")

    def progress(self, progress: str) -> None:
        """See `Job.progress`."""
        self.host.progress(self.row, progress)

    def _after_value(self, value: object) -> Verdict | None:
        """What a returned value means. Nothing here awaits: from the handler's return on, cancellation is over."""
        self.writing = True
        if self._waits:
            return self.suspension
        if self.abort_reason not in (None, "shutdown"):
            self.failure = asyncio.CancelledError(self.abort_reason)
            return self._after_abort()
        try:
            if isinstance(value, Continuation):
                return self.host.step_for(cast("Continuation[Any]", value), self)
            return Ending("completed", *self.job_type.dump_output(value, self.host.wire))
        except Exception as error:
            self.failure = error
            if isinstance(error, (InvalidOutputError, UsageError)):
                return Ending("failed", reason="validation", error=payload.error_json(error))
            return self._judge(error)

    def _after_error(self, error: BaseException) -> Verdict | None:
        self.failure = error
        cut_off = isinstance(error, asyncio.CancelledError) and self.abort_reason is None and self.host.cut_off
        if cut_off or isinstance(error, KeyboardInterrupt):
            self.abort_reason = "shutdown"
        if self._waits:
            return self.suspension
        if self.abort_reason is not None and isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            if self.task is not None:
                self.task.uncancel()
            return self._after_abort()
        if isinstance(error, LeaseLostError):
            self.abort_reason = self.abort_reason or "lease_lost"
            return None
        if self.abort_reason is not None and self.abort_reason != "timeout":
            return self._after_abort()
        if isinstance(error, asyncio.CancelledError) and self.task is not None:
            self.task.uncancel()
        return self._judge(error, "timeout" if self.abort_reason == "timeout" else "error")

    def _judge(self, error: BaseException, outcome: str = "error") -> Verdict:
        return judge.after_error(
            error,
            payload.error_json(error),
            judge.policy_for(self.job_type.policy, self.row.backoff),
            override=self.row.max_attempts,
            attempt=self.row.attempt,
            random=random.random(),
            outcome=outcome,
        )

    def _after_abort(self) -> Verdict | None:
        match self.abort_reason:
            case "timeout" if (self.time_left() or 1) <= 0:
                return judge.unrun(expired=False, deadline=0.0, doom=None)
            case "timeout":
                return self._judge(TimeoutError(f"the handler took longer than its timeout of {self.time_limit:g} s"), "timeout")
            case "shutdown":
                return Delay(None, charged=False, outcome="released")
            case _:
                return None

    # --- aborting

    def abort(self, reason: Abort, grace: float) -> None:
        """Cancel the handler, again after half the grace, and detach it at its end; one that has not begun never will. Ignored once it
        has returned."""
        if self.writing or self.detached or (self.abort_reason is not None and reason != "lease_lost"):
            return
        first = self.abort_reason is None
        self.abort_reason = reason
        if self.job is None or (self.batch is not None and reason != "shutdown"):
            self.detached = self.writing = True
            self.host.decided(self, self._after_abort())
        if self.batch is not None:  # the others go on
            self.batch.dropped(grace)
        elif first and self.task is not None and not self.writing:
            loop = asyncio.get_running_loop()
            self.task.cancel(reason)
            self.timers = [
                *(self.timers or []),
                loop.call_later(grace / 2, self._insist),
                loop.call_later(grace, self.detach),
            ]

    def _insist(self) -> None:
        if self.task is not None and not self.writing and not self.task.done():
            self.task.cancel(self.abort_reason)

    def detach(self) -> None:
        """The handler ignores its cancellation: go on without it. The fence keeps whatever it still writes from committing."""
        if self.writing or self.task is None or self.task.done():
            return
        self.detached = self.writing = True
        if self._connection is not None:
            sever(self._connection)  # what it holds is rolled back now, not when its idle limit ends
        logger.error("sequence %s (%s): its handler ignores cancellation (%s); detached", *self._name, self.abort_reason)
        self.host.decided(self, self.suspension if self._waits else self._after_abort())

    # --- writing in the handler's own transaction

    async def _write_here(self, verdict: Verdict | None) -> Callable[[], None] | None:
        """Write the verdict in the sealed transaction and commit. What to tell the host; None: nothing was committed, run again."""
        self.writing = True
        connection = self._connection
        assert connection is not None  # noqa: S101
        if not (isinstance(verdict, Step) or (isinstance(verdict, Ending) and verdict.outcome == "completed")):
            await self._let_go()
            return partial(self.host.decided, self, verdict)
        try:
            self._check_open(connection)
            answers = await self._complete(verdict, connection)
        except (Exception, asyncio.CancelledError) as error:
            self.failure = error
            return await self._after_failed_commit(error, verdict, connection)
        await self._let_go()
        return partial(self.host.written, self, verdict, answers)

    async def _let_go(self) -> None:
        """As `_give_back`. Only the end of the event loop cancels now; what is decided is to be told all the same."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._give_back()

    async def _complete(self, verdict: Step | Ending, connection: AsyncConnection[Any]) -> list[list[Any]]:
        """Write and commit. A continuation with blockers looks at them first."""
        if isinstance(verdict, Step) and self._key is not None:
            await self._refuse_successor(self._key, connection)
        if not (isinstance(verdict, Step) and verdict.blockers):
            return await together(connection, *self._calls(verdict), COMMIT)
        store, step = self.host.database.store, verdict
        plan = partial(blocking.advance, store, self.row, step)
        answers = await blocking.marking(self.host.database, lambda: carry_out(plan(), connection), patience=blocking.PATIENCE_INSIDE)
        return [*answers, *await together(connection, store.assert_written(self.row, self._xid), COMMIT)]

    async def _refuse_successor(self, named: tuple[str, str], connection: AsyncConnection[Any]) -> None:
        """UsageError if what was started with this sequence's own key is still there: a savepoint may have been rolled back since."""
        found = await self.host.database.store.find_keys([rows.key_row(self.row.lane, *named)]).on(connection)
        if found != [(0, self.row.sequence_id)]:
            raise UsageError(f"a sequence was started with this one's own key {named[1]!r}: it has to end now, it cannot continue.")

    def _calls(self, verdict: Step | Ending) -> list[Call[Any]]:
        store = self.host.database.store
        if isinstance(verdict, Step):
            part = rows.step_row(self.row, verdict, self.host.hands_off(verdict, self))
            calls: list[Call[Any]] = [store.finish_steps([part]), store.advance_jobs([part], self.host.lease)]
        else:
            own = [rows.epoch_row(self.row)]
            held = store.lock_to_delete(own)  # waits for those who are about to wait for this sequence
            calls = [held, store.end_jobs([rows.end_row(self.row, verdict, self._key and self._key[1])]), store.unblock_jobs(own)]
        return [*calls, store.assert_written(self.row, self._xid)]

    async def _after_failed_commit(
        self, error: BaseException, verdict: Step | Ending, connection: AsyncConnection[Any]
    ) -> Callable[[], None] | None:
        fault = fault_of(error, connection)
        self._remember(error, connection)
        await self._let_go()
        if isinstance(error, (UsageError, SequenceNotFoundError)):
            return partial(self.host.decided, self, Ending("failed", reason="validation", error=payload.error_json(error)))
        if isinstance(error, (SequenceBusyError, DatabaseUnavailableError)):  # who has it may wait for what this transaction has
            rest, why = timedelta(seconds=1 + random.random()), payload.error_json(error)
            return partial(self.host.decided, self, Delay(rest, charged=False, outcome="released", error=why))
        cut_off = isinstance(error, asyncio.CancelledError)
        if fault in (None, Fault.CONFLICT) and not cut_off:
            return partial(self.host.decided, self, self._judge(error)) if fault is None else None
        fate = await self.host.fate(self.row)
        match fate:
            case "written":
                self.failure = None
                return partial(self.host.written, self, verdict, [])
            case "mine" if cut_off:
                self.abort_reason = "shutdown"
                return partial(self.host.decided, self, self._after_abort())
            case "mine" if self._again is not None:
                return None
            case "mine" if getattr(error, "sqlstate", None) == "22012":
                return partial(self.host.decided, self, self._judge(TransactionEscapedError(ESCAPED)))
            case "mine":
                return partial(self.host.decided, self, self._judge(error))
            case _:
                self.abort_reason = "lease_lost"
                return partial(self.host.decided, self, None)
