"""The phases of one attempt: the handler's own transactions. What may follow what is decided in `decisions.phases`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, cast

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from queuert_py.decisions import phases
from queuert_py.decisions.faults import Fault
from queuert_py.decisions.phases import Kind
from queuert_py.errors import JobDeletedError, LeaseLostError, PhaseError, TransactionAbortedError, TransactionEscapedError, UsageError
from queuert_py.job import Job, SyncConnection
from queuert_py.joining import ForeignTx, Joinable, join
from queuert_py.middleware import Middleware, phase_hooks
from queuert_py.postgres.calls import BEGIN, COMMIT, together
from queuert_py.postgres.carriers import AsyncPsycopg
from queuert_py.postgres.database import Database, fault_of
from queuert_py.postgres.faces import failed_on, lent, make_sync_face, sync_face
from queuert_py.postgres.plans import Carrier
from queuert_py.runtime.callbacks import Callback, call_back
from queuert_py.runtime.durable import Durable, Keeps
from queuert_py.values import Abort, LiveJob, Suspended

if TYPE_CHECKING:
    from queuert_py.runtime.batches import Batch

IDLED = "25P03"
ESCAPED = "the handler ended the engine's transaction: do not COMMIT or ROLLBACK on the given connection."


class PhaseHost(Protocol):
    """What phases need of the worker."""

    lease: timedelta

    @property
    def database(self) -> Database: ...
    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None: ...
    async def fate(self, job: LiveJob) -> str: ...


class Phases(Keeps):
    """An attempt, as far as its transactions go: at most one is open, and it is this attempt's or it is rolled back."""

    __slots__ = (
        "_again",
        "_cause",
        "_connection",
        "_face",
        "_finalized",
        "_held",
        "_host",
        "_phase",
        "_tx",
        "_watched",
        "_xid",
        "abort_reason",
        "batch",
        "job",
        "middleware",
        "row",
        "task",
        "writing",
    )

    def __init__(self, host: PhaseHost, row: LiveJob) -> None:
        super().__init__()
        self._host = host
        self.row = row
        self.job: Job[Any, Any] | None = None
        self.middleware: Sequence[Middleware[Any]] = ()
        self.batch: Batch | None = None
        self.task: asyncio.Task[None] | None = None
        self.abort_reason: Abort | None = None
        self.writing = False
        self._phase: phases.State = "ready"
        self._held: AbstractAsyncContextManager[Any] | None = None
        self._connection: AsyncConnection[Any] | None = None
        self._face: AsyncConnection[Any] | None = None
        self._tx: object = None
        self._xid = ""
        self._watched = row.watched
        self._again: Fault | None = None
        self._cause: BaseException | None = None
        self._finalized = False

    def _begin_again(self) -> None:
        """As before the first phase, for another run of the handler."""
        self._again, self._cause, self._phase, self._finalized = None, None, "ready", False
        self.restart()

    @property
    def origin(self) -> LiveJob | None:
        return self.row

    @property
    def durable(self) -> Durable:
        if self.batch is not None:
            raise PhaseError("step, sleep and waiting belong to one job, and this handler has a batch of them: return one outcome per job.")
        return super().durable

    @property
    def in_phase(self) -> bool:
        return self._phase in ("preparing", "finalizing", "atomic", "sealed")

    @property
    def completing(self) -> bool:
        return phases.holds_transaction(self._phase)

    @property
    def over(self) -> bool:
        return self.writing

    def on_commit(self, callback: Callback) -> None:
        if self.writing:
            raise PhaseError("on_commit() comes too late: the handler has returned.")
        super().on_commit(callback)

    @property
    def place(self) -> tuple[object, ...]:
        """See `Database.place`."""
        return self._host.database.place

    def carrier_for(self, tx: object) -> Carrier | None:
        """What runs statements in the latest phase, if `tx` is its transaction, in whatever form. PhaseError when its block has ended."""
        given = tx.transaction if isinstance(tx, ForeignTx) else tx
        face = self._face
        if face is None or given is None or (given is not face and given is not self._tx and given is not sync_face(face)):
            return None
        self._check_open(face)
        if given is self._tx and given is not face:
            with suppress(UsageError):  # a session of another kind than those that can be joined
                return join(cast("Joinable", given))  # through what wraps it: it may have something to send first, like a SAVEPOINT
        return AsyncPsycopg(face)

    def sync_tx(self) -> SyncConnection:
        """The open phase's transaction, for the handler's thread."""
        if self._connection is None or self._face is None:
            raise PhaseError("no phase is open.")
        return make_sync_face(self._face)

    @asynccontextmanager
    async def phase(self, kind: Kind) -> AsyncGenerator[Any]:
        """Open a phase: a transaction that begins with the fence."""
        if self.batch is not None:
            raise PhaseError(f"{kind}(): a batch has no phases: return one outcome per job, and write in jobs that follow.")
        if asyncio.current_task() is not self.task or self.writing:
            raise PhaseError(f"{kind}() belongs to the handler itself: not to a task it started, nor to code that runs after its return.")
        if self.suspension is not None:
            raise Suspended(f"the handler is suspended: {kind}() comes too late")
        before, callbacks = self._phase, len(self.callbacks or ())
        self._phase = phases.opened(before, kind)
        try:
            connection = await self._begin()
        except BaseException as error:
            self._phase = before
            self._remember(error, None)
            raise
        inside: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                tx = await self._enter(stack, kind, connection)
                try:
                    yield tx
                except BaseException as error:
                    inside = error
                    raise
            if inside is not None:  # a middleware has held it back: what the block wrote may not be whole
                raise inside
        except BaseException as error:
            self.take_callbacks(callbacks)
            if self._is_ours(error, connection):
                self._remember(error, connection)
            self._phase = phases.undone(self._phase, again=self._finalized)
            self._finalized = self._finalized or kind != "prepare"
            await self._give_back()
            raise
        if kind != "prepare":
            self._phase = phases.ended(self._phase)
            return
        try:
            self._check_open(connection)
            await COMMIT.on(connection)
        except BaseException as error:
            self.take_callbacks(callbacks)
            self._remember(error, connection)
            raise
        finally:
            self._phase = phases.ended(self._phase)
            await self._give_back()
        await call_back(self.take_callbacks(callbacks))

    async def _enter(self, stack: AsyncExitStack, kind: Kind, connection: AsyncConnection[Any]) -> Any:
        """What the phase yields: a face of the connection or what wraps it, inside the middleware of the phase."""
        self._face = face = stack.enter_context(lent(connection))
        wrapped = self._host.wrap(face)
        self._tx = tx = face if wrapped is None else await stack.enter_async_context(wrapped)
        for hook in phase_hooks(self.middleware, kind):
            await stack.enter_async_context(hook(self.job, tx))
        return tx

    async def _begin(self) -> AsyncConnection[Any]:
        """BEGIN, the limit on idling, and the fence, in one round trip."""
        held = self._host.database.connection()
        connection: AsyncConnection[Any] = await held.__aenter__()
        self._held, self._connection = held, connection
        store = self._host.database.store
        try:
            _, _, fence = await together(connection, BEGIN, store.limit_idle(self._host.lease), store.fence_job(self.row))
        except BaseException as error:
            self._remember(error, connection)
            await self._give_back()
            raise
        if not fence:
            await self._give_back()
            raise await self.lost()
        self._watched, self._xid = fence[0]
        return connection

    async def lost(self) -> LeaseLostError:
        fate = await self._host.fate(self.row)
        if fate in ("deleted", "cancelled", "completed_elsewhere"):
            self.abort_reason = fate  # type: ignore[assignment]
        else:
            self.abort_reason = "lease_lost"
        kind = JobDeletedError if fate == "deleted" else LeaseLostError
        return kind(f"job {self.row.sequence_id} is no longer this attempt's: {fate}.", fate=fate)

    def _remember(self, error: BaseException, connection: AsyncConnection[Any] | None) -> None:
        """A fault of this attempt's own connection that the server or the network caused: the whole attempt may run again at once. Not so
        one that idled too long in a transaction: it would do so again."""
        fault = None if getattr(error, "sqlstate", None) == IDLED else fault_of(error, connection)
        if fault in (Fault.CONFLICT, Fault.LOST, Fault.OVERLOADED, Fault.READ_ONLY, Fault.STORAGE):
            self._again, self._cause = fault, error
        if fault in (Fault.LOST, Fault.READ_ONLY):
            self._host.database.health.failed(error)

    def _is_ours(self, error: BaseException, connection: AsyncConnection[Any]) -> bool:
        """Does what leaves a phase come of its connection? A handler may have others, which fail by themselves."""
        face = self._face
        return connection.broken or (face is not None and any(failed_on(each, face) for each in causes(error)))

    def _check_open(self, connection: AsyncConnection[Any]) -> None:
        match connection.info.transaction_status:
            case TransactionStatus.INERROR:
                raise TransactionAbortedError(
                    "a statement of this phase failed and was caught: wrap it in `async with tx.transaction():`, to roll back only it."
                )
            case TransactionStatus.IDLE:
                raise TransactionEscapedError(ESCAPED)
            case _:
                return

    async def _give_back(self) -> None:
        """Roll back whatever is open and return the connection to the pool."""
        held, connection = self._held, self._connection
        self._held = self._connection = None
        if held is None or connection is None:
            return
        try:
            if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
                await connection.rollback()
        except BaseException as error:
            await connection.close()
            if not isinstance(error, (psycopg.Error, OSError)):
                raise
        finally:
            await held.__aexit__(None, None, None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it comes of. A group comes of each of its errors."""
    open_, seen = [error], set[int]()  # what users chain may be a ring
    while open_:
        each = open_.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        cause = each.__cause__ or each.__context__
        if cause is not None:
            open_.append(cause)
        if isinstance(each, BaseExceptionGroup):
            open_ += cast("BaseExceptionGroup[Any]", each).exceptions
