"""One attempt at one job: runs the handler, keeps its phases, and turns how it ended into a verdict that is written once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, Protocol, cast

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from pydantic import ValidationError

from queuert_py import payload
from queuert_py.decisions import judge, phases
from queuert_py.decisions.faults import Fault, pause
from queuert_py.decisions.phases import Kind
from queuert_py.errors import (
    InvalidOutputError,
    JobDeletedError,
    LeaseLostError,
    PhaseError,
    TransactionAbortedError,
    TransactionEscapedError,
)
from queuert_py.job import Job, current
from queuert_py.job_types import InternalJobType
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database, fault_of, sever
from queuert_py.postgres.store import BEGIN, COMMIT, Call, together
from queuert_py.values import Abort, Continuation, Delay, Ending, LiveJob, Step, Verdict

logger = logging.getLogger("queuert_py.worker")
RERUNS = 5
_ESCAPED = "the handler ended the engine's transaction: do not COMMIT or ROLLBACK on the given connection."


class Host(Protocol):
    """What an attempt needs of its worker."""

    lease: timedelta
    shutting_down: bool

    @property
    def database(self) -> Database: ...
    @property
    def max_payload(self) -> int: ...
    def step_for(self, continuation: Continuation[Any], attempt: Attempt) -> Step | Ending: ...
    def hands_off(self, step: Step, attempt: Attempt) -> bool: ...
    def decided(self, attempt: Attempt, verdict: Verdict | None) -> None: ...
    def written(self, attempt: Attempt, verdict: Verdict, answers: list[list[Any]]) -> None: ...
    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None: ...
    async def fate(self, job: LiveJob) -> str: ...


class Attempt:
    """A claimed job in this process. Its task runs the handler; the lease is renewed by the heartbeat as long as it is held."""

    __slots__ = (
        "_again",
        "_cause",
        "_connection",
        "_finalized",
        "_held",
        "_phase",
        "_tx",
        "_watched",
        "_xid",
        "abort_reason",
        "begun",
        "detached",
        "handoffs",
        "host",
        "job_type",
        "marked",
        "row",
        "task",
        "timers",
        "trusted",
        "writing",
    )

    def __init__(self, host: Host, row: LiveJob, job_type: InternalJobType[Any, Any], trusted: float, handoffs: int = 0) -> None:
        self.host = host
        self.row = row
        self.job_type = job_type
        self.trusted = trusted
        self.handoffs = handoffs
        self.begun = self.marked = row.begun
        self.task: asyncio.Task[None] | None = None
        self.abort_reason: Abort | None = None
        self.writing = False
        self.detached = False
        self.timers: list[asyncio.TimerHandle] | None = None
        self._phase: phases.State = "ready"
        self._held: AbstractAsyncContextManager[Any] | None = None
        self._connection: AsyncConnection[Any] | None = None
        self._tx: object = None
        self._xid = ""
        self._watched = row.watched
        self._again: Fault | None = None
        self._cause: BaseException | None = None
        self._finalized = False

    @property
    def shutting_down(self) -> bool:
        return self.host.shutting_down

    @property
    def in_phase(self) -> bool:
        return self._phase in ("preparing", "finalizing", "atomic", "sealed")

    def connection_of(self, tx: object) -> AsyncConnection[Any] | None:
        """The connection under what a phase of this attempt has yielded."""
        return self._connection if tx is not None and tx is self._tx else None

    # --- running

    async def run(self) -> None:
        """The attempt's task: from the input to a verdict in the finisher's hands, or written in the handler's own transaction."""
        current.set(self)
        try:
            job: Job[Any, Any] = Job(self, self.job_type.load_input(self.row.input))
        except (ValidationError, NotImplementedError) as error:
            self.writing = True
            self.host.decided(self, Ending("failed", reason="validation", error=payload.error_json(error)))
            return
        handler = self.job_type.handler
        assert handler is not None  # noqa: S101 - only types with handlers are claimed
        for tried in range(RERUNS + 1):
            raised = False
            try:
                if tried:
                    await asyncio.sleep(pause(self._again or Fault.CONFLICT, tried, random.random()))
                self._again, self._cause, self._phase, self._finalized = None, None, "ready", False
                value = await handler(job)
            except BaseException as error:
                raised = self._again is not None and _caused(error, self._cause)
                verdict = self._after_error(error)
            else:
                verdict = self._after_value(value)
            if self.detached:
                await self._give_back()
                return
            if raised and self.abort_reason is None:
                await self._give_back()
            elif self._connection is None:
                self.writing = True
                self.host.decided(self, verdict)
                return
            elif await self._write_here(verdict):
                return
            self.writing = False
        self.writing = True
        self.host.decided(self, Delay(timedelta(seconds=1), charged=False, outcome="released"))

    def _after_value(self, value: object) -> Verdict | None:
        """What a returned value means. Nothing here awaits: from the handler's return on, cancellation is over."""
        self.writing = True
        if self.abort_reason not in (None, "shutdown"):
            return self._after_abort()
        try:
            if isinstance(value, Continuation):
                return self.host.step_for(cast("Continuation[Any]", value), self)
            return Ending("completed", *self.job_type.dump_output(value, self.host.max_payload))
        except Exception as error:
            if isinstance(error, InvalidOutputError):
                return Ending("failed", reason="validation", error=payload.error_json(error))
            return self._judge(error)

    def _after_error(self, error: BaseException) -> Verdict | None:
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
            self.job_type.policy,
            override=self.row.max_attempts,
            attempt=self.row.attempt,
            random=random.random(),
            outcome=outcome,
        )

    def _after_abort(self) -> Verdict | None:
        match self.abort_reason:
            case "timeout":
                return self._judge(
                    TimeoutError(f"the handler took longer than its timeout of {self.job_type.options.get('timeout')}"), "timeout"
                )
            case "shutdown":
                return Delay(None, charged=False, outcome="released")
            case _:
                return None

    # --- aborting

    def abort(self, reason: Abort, grace: float) -> None:
        """Cancel the handler, again after half the grace, and detach it at its end. Ignored once it has returned."""
        if self.writing or self.detached or self.task is None or (self.abort_reason is not None and reason != "lease_lost"):
            return
        first = self.abort_reason is None
        self.abort_reason = reason
        if first:
            loop = asyncio.get_running_loop()
            self.task.cancel(reason)
            self.timers = [
                *(self.timers or []),
                loop.call_later(grace / 2, self._insist),
                loop.call_later(grace, self._detach),
            ]

    def _insist(self) -> None:
        if self.task is not None and not self.writing and not self.task.done():
            self.task.cancel(self.abort_reason)

    def _detach(self) -> None:
        """The handler ignores its cancellation: go on without it. The fence keeps whatever it still writes from committing."""
        if self.writing or self.task is None or self.task.done():
            return
        self.detached = self.writing = True
        if self._connection is not None:
            sever(self._connection)  # what it holds is rolled back now, not when its idle limit ends
        logger.error("job %s (%s): its handler ignores cancellation (%s); detached", self.row.sequence_id, self.row.type, self.abort_reason)
        self.host.decided(self, self._after_abort())

    # --- phases

    @asynccontextmanager
    async def phase(self, kind: Kind) -> AsyncGenerator[Any]:
        """Open a phase: a transaction that begins with the fence. See decisions/phases.py for what may follow what."""
        if asyncio.current_task() is not self.task or self.writing:
            raise PhaseError(f"{kind}() belongs to the handler itself: not to a task it started, nor to code that runs after its return.")
        before = self._phase
        self._phase = phases.opened(before, kind)
        try:
            connection = await self._begin()
        except BaseException as error:
            self._phase = before
            self._remember(error, None)
            raise
        try:
            wrapped = self.host.wrap(connection)
            if wrapped is None:
                self._tx = connection
                yield connection
            else:
                async with wrapped as tx:
                    self._tx = tx
                    yield tx
        except BaseException as error:
            self._remember(error, connection)
            self._phase = phases.undone(self._phase, again=self._finalized)
            self._finalized = self._finalized or kind != "prepare"
            await self._give_back()
            raise
        if kind != "prepare":
            self._phase = phases.ended(self._phase)
            seal(connection)
            return
        try:
            self._check_open(connection)
            await COMMIT.on(connection)
        except BaseException as error:
            self._remember(error, connection)
            raise
        finally:
            self._phase = phases.ended(self._phase)
            await self._give_back()

    async def _begin(self) -> AsyncConnection[Any]:
        """BEGIN, the limit on idling, and the fence, in one round trip."""
        held = self.host.database.connection()
        connection: AsyncConnection[Any] = await held.__aenter__()
        self._held, self._connection = held, connection
        store = self.host.database.store
        try:
            _, _, fence = await together(connection, BEGIN, store.limit_idle(self.host.lease), store.fence_job(self.row))
        except BaseException as error:
            self._remember(error, connection)
            await self._give_back()
            raise
        if not fence:
            await self._give_back()
            raise await self._lost()
        self._watched, self._xid = fence[0]
        return connection

    async def _lost(self) -> LeaseLostError:
        fate = await self.host.fate(self.row)
        if fate in ("deleted", "cancelled", "completed_elsewhere"):
            self.abort_reason = fate  # type: ignore[assignment]
        else:
            self.abort_reason = "lease_lost"
        kind = JobDeletedError if fate == "deleted" else LeaseLostError
        return kind(f"job {self.row.sequence_id} is no longer this attempt's: {fate}.", fate=fate)

    def _remember(self, error: BaseException, connection: AsyncConnection[Any] | None) -> None:
        """A fault that the server or the network caused: the whole attempt may run again at once."""
        fault = fault_of(error, connection)
        if fault is Fault.LOST and connection is not None and not (connection.closed or connection.broken):
            return  # of another connection of the handler's
        if fault in (Fault.CONFLICT, Fault.LOST, Fault.OVERLOADED, Fault.READ_ONLY, Fault.STORAGE):
            self._again, self._cause = fault, error
        if fault in (Fault.LOST, Fault.READ_ONLY):
            self.host.database.health.failed(error)

    def _check_open(self, connection: AsyncConnection[Any]) -> None:
        match connection.info.transaction_status:
            case TransactionStatus.INERROR:
                raise TransactionAbortedError(
                    "a statement of this phase failed and was caught: wrap it in `async with tx.transaction():`, to roll back only it."
                )
            case TransactionStatus.IDLE:
                raise TransactionEscapedError(
                    "the handler ended the engine's transaction: do not COMMIT or ROLLBACK on the given connection."
                )
            case _:
                return

    async def _give_back(self) -> None:
        """Roll back whatever is open and return the connection to the pool."""
        held, connection = self._held, self._connection
        self._held = self._connection = None
        if held is None or connection is None:
            return
        unseal(connection)
        try:
            if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
                await connection.rollback()
        except BaseException as error:
            await connection.close()
            if not isinstance(error, (psycopg.Error, OSError)):
                raise
        finally:
            await held.__aexit__(None, None, None)

    # --- writing in the handler's own transaction

    async def _write_here(self, verdict: Verdict | None) -> bool:
        """Write the verdict in the sealed transaction and commit. False: nothing was committed, run again."""
        self.writing = True
        connection = self._connection
        assert connection is not None  # noqa: S101
        unseal(connection)
        if not (isinstance(verdict, Step) or (isinstance(verdict, Ending) and verdict.outcome == "completed")):
            await self._give_back()
            self.host.decided(self, verdict)
            return True
        try:
            self._check_open(connection)
            answers = await together(connection, *self._calls(verdict), COMMIT)
        except Exception as error:
            return await self._after_failed_commit(error, verdict, connection)
        await self._give_back()
        self.host.written(self, verdict, answers)
        return True

    def _calls(self, verdict: Step | Ending) -> list[Call[Any]]:
        store = self.host.database.store
        if isinstance(verdict, Step):
            part = rows.step_row(self.row, verdict, self.host.hands_off(verdict, self))
            calls: list[Call[Any]] = [store.finish_steps([part]), store.advance_jobs([part], self.host.lease)]
        else:
            calls = [store.end_jobs([rows.end_row(self.row, verdict)])]
            if self._watched:
                calls.append(store.unblock_jobs([rows.epoch_row(self.row)]))
        return [*calls, store.assert_written(self.row, self._xid)]

    async def _after_failed_commit(self, error: Exception, verdict: Verdict, connection: AsyncConnection[Any]) -> bool:
        fault = fault_of(error, connection)
        self._remember(error, connection)
        await self._give_back()
        if fault in (None, Fault.CONFLICT):
            if fault is None:
                self.host.decided(self, self._judge(error))
            return fault is None
        fate = await self.host.fate(self.row)
        match fate:
            case "written":
                self.host.written(self, verdict, [])
                return True
            case "mine" if self._again is not None:
                return False
            case "mine" if getattr(error, "sqlstate", None) == "22012":
                escaped = TransactionEscapedError(
                    "the handler ended the engine's transaction: do not COMMIT or ROLLBACK on the given connection."
                )
                self.host.decided(self, self._judge(escaped))
            case "mine":
                self.host.decided(self, self._judge(error))
            case _:
                self.abort_reason = "lease_lost"
                self.host.decided(self, None)
        return True


def _caused(error: BaseException | None, cause: BaseException | None) -> bool:
    """Is this error that one, or does it come of it?"""
    while error is not None:
        if error is cause:
            return True
        error = error.__cause__ or error.__context__
    return False


def seal(connection: AsyncConnection[Any]) -> None:
    """Between the end of the block and the handler's return, the transaction takes no more statements."""

    async def refuse(generator: Any, *_: Any, **__: Any) -> Any:
        generator.close()
        raise PhaseError("this transaction waits for the handler's return: write inside the `async with` block.")

    connection.__dict__["wait"] = refuse


def unseal(connection: AsyncConnection[Any]) -> None:
    connection.__dict__.pop("wait", None)
