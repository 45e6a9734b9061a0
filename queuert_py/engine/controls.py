"""Changing what was started."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast, overload
from uuid import UUID

from psycopg import AsyncConnection, errors
from pydantic import BaseModel
from typing_extensions import Unpack

from queuert_py import options
from queuert_py.completing import Completion
from queuert_py.control import Cancelled, Cleared, Declined, FailedFilter, Failure, NewInput, OpenJob, Retried
from queuert_py.engine.core import Core
from queuert_py.errors import SequenceBusyError, UsageError
from queuert_py.failing import new_inputs
from queuert_py.job import In, Tx
from queuert_py.job_types import Completes, InternalJobType, Out, job_type_of
from queuert_py.joining import ForeignTx
from queuert_py.postgres import blocking, controls
from queuert_py.postgres.calls import READ_COMMITTED, Call, together
from queuert_py.postgres.controls import Changes
from queuert_py.postgres.database import DEADLINE, Database
from queuert_py.postgres.faces import lent
from queuert_py.postgres.plans import Plan, carry_out
from queuert_py.postgres.store import Store
from queuert_py.runtime.telling import changed
from queuert_py.sequence import SequenceRef
from queuert_py.values import Continuation, Duration, Reason

T = TypeVar("T")
Answer: TypeAlias = Out | Continuation[Out] | Declined
Decide: TypeAlias = Callable[[OpenJob[In]], Answer[Out] | Awaitable[Answer[Out]]]
DecideIn: TypeAlias = Callable[[OpenJob[In], T], Answer[Out] | Awaitable[Answer[Out]]]
WAIT = timedelta(seconds=4)
"""How long a call waits for a row which an open transaction of a handler holds."""
EACH = 0.002
"""Seconds more, for each sequence that a call is about, until a try is given up."""
LIMIT = 60.0
"""Seconds in which the function of `complete_sequence` must have answered."""


class Controls(Core[Tx]):
    """The verbs that change what was started. All take `tx=`, the caller's transaction: then they take effect when that commits."""

    async def cancel_sequences(
        self, ids: Iterable[SequenceRef], /, *, cascade: bool = False, tx: Tx | ForeignTx | None = None
    ) -> dict[UUID, Cancelled]:
        """End what has not ended, as cancelled; how each stands now, by id.

        Waiting ones end at once. Running ones, too: the handler is cancelled (`job.abort_reason` "cancelled") and can write no more; if
        its own transaction is just completing the job, that counts. Their dependents follow `on_blocker_failure`. cascade: also what
        their handlers have started, and what that has started.
        """
        wanted = options.identifiers(ids)
        own = await self._not_itself(wanted, tx)

        async def cancel(ids: Sequence[str]) -> dict[str, str]:
            plan = partial(controls.cancel, ids=ids, cascade=cascade, own=own)
            return await self._change(tx, plan, ids, partial(controls.started, ids=ids) if cascade else None)

        standing: dict[str, str] = {}
        try:
            standing = await cancel(wanted)
        except SequenceBusyError:
            if tx is not None:
                raise
            for id in wanted:  # one at a time: the others must not wait for the one that is held
                try:
                    standing.update(await cancel([id]))
                except SequenceBusyError:
                    standing[id] = "busy"
        return {UUID(id): cast("Cancelled", status) for id, status in standing.items()}

    async def delete_sequences(
        self, ids: Iterable[SequenceRef], /, *, cascade: bool = False, tx: Tx | ForeignTx | None = None
    ) -> list[UUID]:
        """Remove sequences with all that is known of them, finished or not; those that were there. Running handlers are cancelled
        (`job.abort_reason` "deleted").

        SequenceHasDependentsError, and nothing is changed, if an unfinished sequence that is not among them has one as a blocker.
        cascade: also what they have waited for, at any of their steps, as far as no other unfinished sequence needs it.
        """
        wanted = options.identifiers(ids)
        own = await self._not_itself(wanted, tx)
        gone: dict[str, None] = {}

        def plan(store: Store) -> Plan[tuple[None, Changes]]:
            deleted, changes = yield from controls.delete(store, wanted, cascade=cascade, own=own)
            gone.update(dict.fromkeys(deleted))  # a try whose COMMIT was not answered has deleted them, if the next one finds none
            return None, changes

        await self._change(tx, plan, wanted, partial(controls.upstream, ids=wanted) if cascade else None)
        return [UUID(id) for id in gone]

    async def trigger(self, ids: Iterable[SequenceRef], /, *, tx: Tx | ForeignTx | None = None) -> None:
        """Let waiting sequences run now, in the order of the ids: as `reschedule` without a time."""
        await self._reschedule(ids, None, None, tx)

    async def reschedule(
        self, ids: Iterable[SequenceRef], /, *, delay: Duration | None = None, at: datetime | None = None, tx: Tx | ForeignTx | None = None
    ) -> None:
        """Give waiting sequences another time, after `delay` or `at` an instant; all or none, due in the order of the ids.

        Blocked ones go on waiting for their blockers, and for that time. SequenceNotFoundError, SequenceEndedError, SequenceRunningError
        name those that forbid it, and nothing is changed.
        """
        span, instant = options.when({"delay": delay, "at": at})
        if span is None and instant is None:
            raise UsageError("reschedule() needs delay= or at=; `trigger(ids)` lets them run now.")
        await self._reschedule(ids, span, instant, tx)

    async def _reschedule(self, ids: Iterable[SequenceRef], delay: Any, at: datetime | None, tx: Any) -> None:
        wanted = options.identifiers(ids)
        await self._not_itself(wanted, tx)
        await self._change(tx, lambda store: controls.reschedule(store, wanted, delay, at), wanted)

    # --- completing from outside

    @overload
    async def complete_sequence(
        self,
        id: SequenceRef,
        outcome: Out | Continuation[Out],
        /,
        *,
        job_type: Completes[Any, Out],
        position: int | None = None,
        tx: Tx | ForeignTx | None = None,
    ) -> bool: ...
    @overload
    async def complete_sequence(
        self,
        id: SequenceRef,
        outcome: Decide[In, Out],
        /,
        *,
        job_type: Completes[In, Out],
        position: int | None = None,
        tx: Tx | ForeignTx | None = None,
    ) -> bool: ...
    @overload
    async def complete_sequence(
        self,
        id: SequenceRef,
        outcome: DecideIn[In, Tx, Out],
        /,
        *,
        job_type: Completes[In, Out],
        position: int | None = None,
        tx: Tx | ForeignTx | None = None,
    ) -> bool: ...
    @overload
    async def complete_sequence(
        self,
        id: SequenceRef,
        outcome: BaseModel | Continuation[Any] | Decide[Any, Any] | DecideIn[Any, Tx, Any] | None,
        /,
        *,
        position: int | None = None,
        tx: Tx | ForeignTx | None = None,
    ) -> bool: ...
    async def complete_sequence(
        self,
        id: SequenceRef,
        outcome: Any,
        /,
        *,
        job_type: Any = None,
        position: int | None = None,
        tx: Any = None,
    ) -> bool:
        """Complete a sequence's current job from outside, whether it waits or runs: for approvals and webhooks. True unless declined.

        outcome: an output of the job's type, a Continuation, or a function that gives one, or declines (`return job.decline()`). The
        function, def or async, is called with the OpenJob while its row is held, and with the transaction if it takes a second
        parameter; it may be called again after a lost connection, but is committed once, and has a minute. A handler that runs is
        cancelled (`job.abort_reason` "completed_elsewhere"). job_type, position: what the current job must be.
        SequenceNotFoundError, SequenceEndedError (says how), SequenceMovedError, UnknownJobTypeError; UsageError for what is no outcome.
        """
        wanted = str(options.identifier(id))
        if job_type is not None:
            job_type = job_type_of(job_type, "complete_sequence()")
        await self._not_itself([wanted], tx)
        database = await self._db()
        if position is None:
            position = await self._carry(tx, lambda store: controls.look(store, wanted), database)
        call = Completion(self, wanted, outcome, job_type, position)
        connection = (await self._within(tx)).carrier
        if connection is not None:
            await carry_out(controls.check_isolation(), connection)
            changes = await call.on(database, connection, tx)
            if changes is not None:
                await carry_out(_note(database, changes), connection)
            return changes is not None

        async def work(connection: AsyncConnection[Any]) -> Changes | None:
            async with _transaction(database, connection):
                with lent(connection) as face:
                    async with self.wrap(face) or nullcontext(face) as own:
                        return await call.on(database, connection, own)

        changes = await database.retrying(work, LIMIT)
        if changes is not None:
            self._tell(changes)
        return changes is not None

    # --- dead letters

    @overload
    async def retry_sequences(
        self,
        ids: Iterable[SequenceRef],
        /,
        *,
        new_input: NewInput | None = None,
        reset_attempts: bool = True,
        tx: Tx | ForeignTx | None = None,
    ) -> dict[UUID, Retried]: ...
    @overload
    async def retry_sequences(
        self,
        /,
        *,
        job_type: InternalJobType[In, Any],
        new_input: In | Callable[[Failure], In] | None = None,
        reset_attempts: bool = True,
        tx: Tx | ForeignTx | None = None,
        **which: Unpack[FailedFilter],
    ) -> dict[UUID, Retried]: ...
    @overload
    async def retry_sequences(
        self,
        /,
        *,
        job_type: str | None = None,
        new_input: NewInput | None = None,
        reset_attempts: bool = True,
        tx: Tx | ForeignTx | None = None,
        **which: Unpack[FailedFilter],
    ) -> dict[UUID, Retried]: ...
    async def retry_sequences(
        self,
        ids: Iterable[SequenceRef] | None = None,
        /,
        *,
        job_type: InternalJobType[Any, Any] | str | None = None,
        new_input: Any = None,
        reset_attempts: bool = True,
        tx: Any = None,
        **which: Unpack[FailedFilter],
    ) -> dict[UUID, Retried]:
        """Run failed sequences again, from the job that failed, in one transaction; what was done with each, by id.

        ids, or a filter (FailedFilter, and job_type: those whose failed job is of it). new_input: a model or mapping for all, or a
        function that makes one for each Failure; checked for all before anything is written (InvalidInputError lists what is refused).
        reset_attempts: with all attempts; else with one more. Sequences whose key another unfinished one has are left.
        """
        wanted = None if ids is None else options.identifiers(ids)
        conditions = _which(which, job_type)
        if (wanted is None) == (not which and job_type is None):
            raise UsageError("retry_sequences() takes ids, or a filter: say which, like oldest=100 or type='resize'.")
        await self._not_itself((), tx)
        result: dict[str, str] = {}

        def plan(store: Store) -> Plan[tuple[None, Changes]]:
            make = new_inputs(new_input, self.get, self.wire)
            same = wanted if wanted is not None else list(result) or None  # a second try is about the same sequences as the first
            now, changes = yield from controls.retry(store, same, conditions, make, reset_attempts=reset_attempts)
            # a try whose COMMIT was not answered has retried them, if the next one finds them unfinished
            result.update({id: done for id, done in now.items() if result.get(id) != "retried" or done != "not_failed"})
            return None, changes

        await self._change(tx, plan, wanted or (), (lambda store: store.find_failed(**conditions)) if wanted is None else None)
        return {UUID(id): cast("Retried", done) for id, done in result.items()}

    async def clear_failed(
        self, *, job_type: InternalJobType[Any, Any] | str | None = None, tx: Tx | ForeignTx | None = None, **which: Unpack[FailedFilter]
    ) -> dict[UUID, Cleared]:
        """Remove failed sequences (all, or those of the filter) with all that is known of them; those that an unfinished one needs stay."""
        conditions = _which(which, job_type)
        await self._not_itself((), tx)
        result: dict[str, str] = {}

        def plan(store: Store) -> Plan[tuple[None, Changes]]:
            now, changes = yield from controls.clear(store, list(result) or None, conditions)
            result.update(now)
            return None, changes

        await self._change(tx, plan, (), lambda store: store.find_failed(**conditions))
        return {UUID(id): cast("Cleared", done) for id, done in result.items()}

    async def count_failed(self, *, job_type: InternalJobType[Any, Any] | str | None = None, **which: Unpack[FailedFilter]) -> int:
        """How many sequences have failed: all, or those of the filter."""
        conditions = _which(which, job_type)
        database = await self._db()
        oldest: Any = conditions.pop("limit")
        count = sum(row[1] for row in await database.run(database.store.count_failed(**conditions)))
        return count if oldest is None else min(count, oldest)

    # --- shared

    async def _not_itself(self, ids: Sequence[str], tx: object) -> str | None:
        """What cannot be right, because a handler would wait for itself. The sequence in whose own transaction this is."""
        within = await self._within(tx)
        if within.own and within.running is not None and within.running.row.sequence_id in ids:
            raise UsageError(controls.ITSELF)
        return within.running.row.sequence_id if within.own and within.running is not None else None

    async def _carry(self, tx: Any, plan: Callable[[Store], Plan[T]], database: Database) -> T:
        carrier = (await self._within(tx)).carrier
        if carrier is not None:
            return await carry_out(plan(database.store), carrier)
        return await database.retrying(lambda connection: carry_out(plan(database.store), connection))

    async def _change(
        self,
        tx: Any,
        plan: Callable[[Store], Plan[tuple[T, Changes]]],
        ids: Sequence[str],
        more: Callable[[Store], Call[Any]] | None = None,
    ) -> T:
        """Carry a plan out in the caller's transaction, or in one of the engine's own; then tell everybody. How long a try may take
        goes by how many it is about: `ids`, and what `more` finds."""
        connection = (await self._within(tx)).carrier
        database = await self._db()
        if connection is not None:
            joined = partial(controls.in_callers_transaction, store=database.store, channel=database.channel)
            inside = partial(carry_out, connection=connection)
            return (await blocking.marking(database, lambda: inside(joined(plan(database.store))), patience=blocking.PATIENCE_INSIDE))[0]
        tries: list[Changes] = []
        limit = DEADLINE + EACH * (len(ids) + (len(await database.run(more(database.store))) if more is not None else 0))

        async def work(own: AsyncConnection[Any]) -> T:
            async with _transaction(database, own):
                await database.store.pin_plans().on(own)
                outcome, changes = await carry_out(plan(database.store), own)
                tries.append(changes)
                return outcome

        outcome = await blocking.marking(database, lambda: database.retrying(work, limit))
        for changes in tries:
            self._tell(changes)
        return outcome

    def _tell(self, changes: Changes) -> None:
        """After the commit: the workers and waiters of this engine know at once, the others by hints."""
        for worker in self._workers:
            worker.fates.told(changes.aborted)
            for lane, queue, priority, type_, due in changes.ready:
                if worker.serves(queue, type_):
                    worker.wake(lane, queue, priority, due)
        if self._events.wanted:
            for job, verdict in changes.done:
                self._events.emit(changed(job, verdict))
        self._waiters.ended(changes.ended)
        self._notifier.send(changes.hints)


@asynccontextmanager
async def _transaction(database: Database, connection: AsyncConnection[Any]) -> AsyncGenerator[None]:
    """One of the engine's own, that does not wait for long. SequenceBusyError."""
    try:
        async with connection.transaction():
            await together(connection, READ_COMMITTED, database.store.limit_wait(WAIT))
            yield
    except errors.LockNotAvailable as error:
        message = (
            f"a sequence has been held for {WAIT.total_seconds():.0f} s by an open transaction of its handler, or a caller's: try again."
        )
        raise SequenceBusyError(message) from error


def _note(database: Database, changes: Changes) -> Plan[None]:
    if changes.hints:
        yield database.store.notify(database.channel, changes.hints)


def _which(which: FailedFilter, job_type: InternalJobType[Any, Any] | str | None) -> dict[str, object]:
    options.known(which, FailedFilter.__annotations__)
    oldest: Any = which.get("oldest")
    return {
        "type": options.text(which.get("type"), "type"),
        "job_type": job_type.name if isinstance(job_type, InternalJobType) else options.text(job_type, "job_type"),
        "reason": options.one_of(which.get("reason"), "reason", Reason),
        "after": options.instant(which.get("after"), "after"),
        "before": options.instant(which.get("before"), "before"),
        "limit": None if oldest is None else options.count(oldest, "oldest"),
    }
