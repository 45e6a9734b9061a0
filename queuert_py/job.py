"""What a handler holds: its job, its input, and the phases in which it may write."""

from __future__ import annotations

import builtins
import functools
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeAlias, overload
from uuid import UUID

import psycopg
from anyio import to_thread
from psycopg import AsyncConnection
from pydantic import BaseModel
from typing_extensions import TypeVar

from queuert_py import memo, options
from queuert_py.decisions.phases import Kind
from queuert_py.errors import UsageError
from queuert_py.sequence import Blocker
from queuert_py.values import Abort, Duration, LiveJob


class Row(Protocol):
    """A row as psycopg's tuple and dict factories make it. Not Any: mypy gives up on overloads whose argument holds an Any."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


Connection: TypeAlias = AsyncConnection[Row]
"""What `tx` is when the engine is built on a DSN or a psycopg pool."""

SyncConnection: TypeAlias = psycopg.Connection[Row]
"""What `tx` is in a `def` handler, whatever the engine is built on."""

In = TypeVar("In", bound=BaseModel)
Out = TypeVar("Out", bound=BaseModel | None)
T = TypeVar("T")
Tx = TypeVar("Tx", default=Connection)
Tx_co = TypeVar("Tx_co", covariant=True)


class Database(Protocol[Tx_co]):
    """What an engine can be built on besides a DSN or a psycopg pool: gives handlers transactions of another kind (a session)."""

    @property
    def conninfo(self) -> str:
        """Where the database is, for the engine's own connections."""
        ...

    def transaction(self, connection: AsyncConnection[Any], /) -> AbstractAsyncContextManager[Tx_co]:
        """Wrap the engine's open transaction for one phase of a handler. It must neither commit nor roll back."""
        ...


class Durability(Protocol):
    """What a handler keeps across its attempts, and how it waits: the calls behind those of Job."""

    async def step(self, name: str | None, fn: Callable[[], Any], result: object, /) -> Any: ...
    async def sleep(self, duration: Duration | None, until: datetime | None, name: str | None, /) -> None: ...
    async def wait_for_event(self, name: str, timeout: Duration | None, type: Any, /) -> Any: ...
    async def wait_for(self, blockers: Iterable[Blocker[Any]], name: str | None, /) -> list[Blocker[Any]]: ...


class Running(Protocol):
    """What a Job needs of the attempt that runs it."""

    @property
    def durable(self) -> Durability: ...
    @property
    def state(self) -> dict[str, Any]: ...
    def on_commit(self, callback: Callable[[], object], /) -> None: ...
    def progress(self, progress: str, /) -> None: ...

    @property
    def row(self) -> LiveJob: ...
    @property
    def origin(self) -> LiveJob | None: ...
    @property
    def abort_reason(self) -> Abort | None: ...
    @property
    def shutting_down(self) -> bool: ...
    @property
    def over(self) -> bool:
        """Has the handler returned? What it has left running is no part of it any more."""
        ...

    @property
    def in_phase(self) -> bool: ...
    @property
    def completing(self) -> bool: ...
    def started(self, places: Sequence[tuple[int, str, int, str]], key: tuple[str, str] | None, /) -> None: ...
    @property
    def place(self) -> tuple[object, ...] | None: ...
    def carrier_for(self, tx: object) -> Any: ...
    def phase(self, kind: Kind) -> AbstractAsyncContextManager[Any]: ...
    def sync_tx(self) -> SyncConnection: ...


class Crossing(Protocol):
    """Between a handler's thread and the task of its attempt: each has the other do something, and waits for it."""

    def ask(self, fn: Callable[[], Awaitable[T]], /) -> T: ...
    async def run(self, fn: Callable[[], T], /) -> T: ...


current: ContextVar[Running | None] = ContextVar("queuert_current", default=None)
"""The attempt in whose task (or a child of it) this code runs."""

_log = logging.getLogger("queuert_py.job")


class _JobLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def _kind(mode: object) -> Kind:
    """The phase that a `prepare` opens."""
    if mode not in ("staged", "atomic"):
        raise UsageError(f"mode={mode!r}: 'staged' or 'atomic'.")
    return "prepare" if mode == "staged" else "atomic"


class Facts(Generic[In]):
    """What every handler may know of its job, and of the attempt at it."""

    __slots__ = ("_input", "_running")

    def __init__(self, running: Running, input: In) -> None:
        self._running = running
        self._input = input

    @property
    def input(self) -> In:
        """The input, validated again on pickup; Blocker fields have their outputs."""
        return self._input

    @property
    def id(self) -> UUID:
        """The job's id; that of a sequence's first job is the sequence's."""
        row = self._running.row
        return UUID(row.job_id or row.sequence_id)

    @property
    def sequence_id(self) -> UUID:
        return UUID(self._running.row.sequence_id)

    @property
    def root_id(self) -> UUID:
        """The first sequence of the tree that this one was started from."""
        row = self._running.row
        return UUID(row.root_id or row.sequence_id)

    @property
    def origin_id(self) -> UUID | None:
        """The job that created this one: the one before it in the sequence, or the one whose handler started the sequence."""
        origin = self._running.row.origin_id
        return UUID(origin) if origin else None

    @property
    def type(self) -> str:
        return self._running.row.type

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._running.row.attempt

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this job: give it to external services so that a repeat is recognised."""
        return str(self.id)

    @property
    def abort_reason(self) -> Abort | None:
        """Why the handler is being cancelled, if it is."""
        return self._running.abort_reason

    @property
    def aborted(self) -> bool:
        """Is the handler being cancelled? For code that cannot be interrupted and looks by itself."""
        return self._running.abort_reason is not None

    @property
    def shutting_down(self) -> bool:
        """Is the worker stopping? The handler has until its `shutdown_timeout`."""
        return self._running.shutting_down

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry job, sequence, type and attempt (in `extra`, beside what a call gives there)."""
        return _JobLog(_log, {"job_id": str(self.id), "sequence_id": str(self.sequence_id), "job_type": self.type, "attempt": self.attempt})

    @property
    def state(self) -> dict[str, Any]:
        """A dict of this attempt's own, for middleware, dependencies and the handler; nothing of it is kept."""
        return self._running.state

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """Call it (`def` or `async def`, without arguments) after the commit: of the prepare block in which it is registered, else of
        the job's completion or continuation. Forgotten when that is rolled back, and when the attempt fails or waits.

        What it raises is logged and changes nothing. It is lost with the process: what must happen belongs into a job.
        """
        options.bare(callback, "on_commit()")
        self._running.on_commit(callback)


class Job(Facts[In], Generic[In, Tx]):
    """One attempt at one job, as its `async def` handler sees it."""

    __slots__ = ()

    @overload
    async def step(self, name: str, fn: Callable[[], Awaitable[T]], /, *, result: object = None) -> T: ...
    @overload
    async def step(self, name: str, fn: Callable[[], T], /, *, result: object = None) -> T: ...
    @overload
    async def step(self, fn: Callable[[], Awaitable[T]], /, *, result: object = None) -> T: ...
    @overload
    async def step(self, fn: Callable[[], T], /, *, result: object = None) -> T: ...
    async def step(self, name: Any, fn: Any = None, /, *, result: object = None) -> Any:
        """Run `fn` once per job: what it returned is kept at once, and later attempts get it without running `fn` again.

        name: by which it is found again, up to 200 bytes (default: its number among the steps). fn: `async def` or `def`, without
        arguments; it runs again only if the attempt ended before its value was kept. Its value: whatever pydantic writes and reads back
        equal, as the type that `fn` is annotated with or `result=Type` says (plain JSON values need neither), up to max_payload; started
        sequences come back as handles. InvalidStepError (the job fails) when it would not come back equal; PhaseError in an open phase
        and in another step; UsageError for a name used twice; LeaseLostError.
        """
        if callable(name):
            name, fn = None, name
        options.bare(fn, "step()")
        return await self._running.durable.step(name, fn, result)

    async def sleep(self, duration: Duration | None = None, *, until: datetime | None = None, name: str | None = None) -> None:
        """Sleep without holding a slot: the handler ends here, and runs again from its first line when the time has come, after a
        restart as well. The attempt is not charged. Then the sleep returns at once.

        duration: from now; or until: an aware datetime. name: by which it is found again (default: its number among the sleeps).
        What must not be repeated belongs into steps. PhaseError in an open phase; UsageError.
        """
        await self._running.durable.sleep(duration, until, name)

    @overload
    async def wait_for_event(self, name: str, /, *, type: builtins.type[T], timeout: Duration | None = None) -> T: ...
    @overload
    async def wait_for_event(self, name: str, /, *, timeout: Duration | None = None) -> Any: ...
    async def wait_for_event(self, name: str, /, *, timeout: Duration | None = None, type: Any = None) -> Any:
        """The payload of an event sent to this sequence by `engine.send_event(sequence, name, payload)`: the first one of this name,
        also if it was sent before. While it has not come the handler ends here, as in `sleep`, and holds no slot.

        type: what the payload must be (default: plain JSON values); InvalidEventError, and the job fails, when it is not.
        timeout: EventTimeoutError when it has not come by then; that stays so in later attempts. PhaseError in an open phase.
        """
        return await self._running.durable.wait_for_event(name, timeout, type)

    async def wait_for(self, blockers: Iterable[Blocker[Out]], /, *, name: str | None = None) -> list[Blocker[Out]]:
        """Wait until these sequences have completed; then `output` of each is there. While one has not, the job is blocked, its handler
        ends here and runs again from its first line; the attempt is not charged.

        blockers: started sequences, the same ones in every attempt: start them in a step. One that fails: `on_blocker_failure`.
        name: by which it is found again (default: its number among these calls). BlockerCycleError when one of them waits for this
        sequence; SequenceNotFoundError; NotRepeatableError for other sequences than before; PhaseError in an open phase.
        """
        return await self._running.durable.wait_for(blockers, name)

    async def progress(self, percent: float, message: str | None = None) -> None:
        """Tell how far the job is: `engine.get_sequence(id).progress` and `engine.watch` show it. Does not wait for the database.

        percent: 0 to 100, what is beyond is cut. message: its first 500 characters. Written at most once a second, the latest report;
        of a job that has ended nothing is kept: 100 if it has completed, else none.
        """
        self._running.progress(memo.progress(percent, message))

    def prepare(self, *, mode: Literal["staged", "atomic"] = "staged") -> AbstractAsyncContextManager[Tx]:
        """A short transaction of its own, committed at the end of the block; several may follow one another.

        mode="atomic" is `atomic()`. PhaseError where a phase may not be opened; LeaseLostError when the job is no longer this attempt's.
        """
        return self._running.phase(_kind(mode))

    def finalize(self) -> AbstractAsyncContextManager[Tx]:
        """The transaction in which the job completes: what the handler returns is written in it, and it commits after the return.

        Between the end of the block and the return a statement through it is an error. An exception rolls everything back.
        """
        return self._running.phase("finalize")

    def atomic(self) -> AbstractAsyncContextManager[Tx]:
        """prepare and finalize in one transaction."""
        return self._running.phase("atomic")


class SyncJob(Facts[In]):
    """What a `def` handler holds: it runs in a thread, with the same calls as Job, which wait, and phases on a sync psycopg connection.

    Nothing can interrupt a thread: long work looks at `aborted` now and then and returns. Once its time is over the job is given up, and
    whatever the thread still writes through `tx` is rolled back.
    """

    __slots__ = ("_crossing",)

    def __init__(self, running: Running, input: In, crossing: Crossing) -> None:
        super().__init__(running, input)
        self._crossing = crossing

    def prepare(self, *, mode: Literal["staged", "atomic"] = "staged") -> AbstractContextManager[SyncConnection]:
        """As Job.prepare."""
        return self._phase(_kind(mode))

    def finalize(self) -> AbstractContextManager[SyncConnection]:
        """As Job.finalize."""
        return self._phase("finalize")

    def atomic(self) -> AbstractContextManager[SyncConnection]:
        """As Job.atomic."""
        return self._phase("atomic")

    @contextmanager
    def _phase(self, kind: Kind) -> Generator[SyncConnection]:
        """The attempt's own phase, entered and left by its task; the session under it is used from here in between."""
        ask, phase = self._crossing.ask, self._running.phase(kind)
        ask(phase.__aenter__)
        try:
            yield self._running.sync_tx()
        except BaseException as error:
            if not ask(partial(phase.__aexit__, type(error), error, error.__traceback__)):
                raise
        else:
            ask(partial(phase.__aexit__, None, None, None))

    @overload
    def step(self, name: str, fn: Callable[[], T], /, *, result: object = None) -> T: ...
    @overload
    def step(self, fn: Callable[[], T], /, *, result: object = None) -> T: ...
    def step(self, name: Any, fn: Any = None, /, *, result: object = None) -> Any:
        """As Job.step; `fn`, a `def`, runs in this thread."""
        if callable(name):
            name, fn = None, name
        options.bare(fn, "step()")
        run, durable = self._crossing.run, self._running.durable

        @functools.wraps(fn)
        async def in_thread() -> Any:
            return await run(fn)

        return self._crossing.ask(partial(durable.step, name, in_thread, result))

    def sleep(self, duration: Duration | None = None, *, until: datetime | None = None, name: str | None = None) -> None:
        """As Job.sleep."""
        self._crossing.ask(partial(self._running.durable.sleep, duration, until, name))

    @overload
    def wait_for_event(self, name: str, /, *, type: builtins.type[T], timeout: Duration | None = None) -> T: ...
    @overload
    def wait_for_event(self, name: str, /, *, timeout: Duration | None = None) -> Any: ...
    def wait_for_event(self, name: str, /, *, timeout: Duration | None = None, type: Any = None) -> Any:
        """As Job.wait_for_event."""
        return self._crossing.ask(partial(self._running.durable.wait_for_event, name, timeout, type))

    def wait_for(self, blockers: Iterable[Blocker[Out]], /, *, name: str | None = None) -> list[Blocker[Out]]:
        """As Job.wait_for."""
        return self._crossing.ask(partial(self._running.durable.wait_for, blockers, name))

    def on_commit(self, callback: Callable[[], object], /) -> None:
        """As Job.on_commit; a `def` runs in a thread."""
        options.bare(callback, "on_commit()")
        self._running.on_commit(partial(to_thread.run_sync, callback))

    def progress(self, percent: float, message: str | None = None) -> None:
        """As Job.progress."""

        put = self._running.progress

        async def tell() -> None:
            put(memo.progress(percent, message))

        self._crossing.ask(tell)
