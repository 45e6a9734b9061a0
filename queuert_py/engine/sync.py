"""The engine for code without an event loop: scripts, Flask, Django views. Its verbs are the engine's own, run on the engine's loop while
the calling thread waits; only the statements of the caller's own sync transaction are run by that thread itself."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from functools import wraps
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast
from weakref import WeakSet

from psycopg import Connection

from queuert_py.engine.controls import Controls
from queuert_py.engine.core import Core
from queuert_py.engine.looks import Looks
from queuert_py.engine.signals import Signals
from queuert_py.engine.starts import Starts
from queuert_py.engine.waits import Waits
from queuert_py.engine.works import Works
from queuert_py.errors import ConfigurationError, UsageError
from queuert_py.job import current
from queuert_py.job_types import Out
from queuert_py.joining import ForeignTx, Row, join
from queuert_py.postgres.calls import Call
from queuert_py.runtime.home import LoopThread
from queuert_py.sequence import JobSequence
from queuert_py.values import Duration

P = ParamSpec("P")
T = TypeVar("T")
CLOSING = 5.0
"""Seconds that closing may take at the end of the process."""

_facades: WeakSet[SyncEngine] = WeakSet()
_abandoned: list[object] = []
"""What a forked process has of its parent's: never closed here, for the sockets are shared."""


class _Errands(ForeignTx):
    """A sync transaction whose statements run in the thread that waits for the verb."""

    __slots__ = ("_calls",)

    def __init__(self, tx: ForeignTx) -> None:
        self._on, self._transaction = tx._on, tx._transaction
        self._calls: SimpleQueue[tuple[Call[Any], Future[list[Any]]] | None] = SimpleQueue()
        if not self.blocks:
            raise UsageError(f"tx={tx!r}: an async transaction belongs to its event loop: use `await engine.…` there.")

    async def run(self, call: Call[Row], /) -> list[Row]:
        answer: Future[list[Row]] = Future()
        self._calls.put((call, answer))
        return await asyncio.wrap_future(answer)

    def serve(self, until: Future[Any]) -> None:
        """Run, in this thread, what is asked for until the verb is done."""
        until.add_done_callback(lambda _: self._calls.put(None))
        while (asked := self._calls.get()) is not None:
            call, answer = asked
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self.run_sync(call))
            except Exception as error:
                answer.set_exception(error)
            except BaseException:
                answer.set_exception(ConfigurationError("the calling thread was interrupted"))
                raise


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[SyncEngine, P], T]:
    """The verb for a thread that waits."""

    @wraps(method)
    def verb(self: SyncEngine, *args: Any, **options: Any) -> T:
        errands: _Errands | None = None
        if options.get("tx") is not None:
            options["tx"], errands = _joined(self._engine, options["tx"])
        return self._wait(lambda engine: method(engine, *args, **options), errands)

    return cast("Callable[Concatenate[SyncEngine, P], T]", verb)


def _joined(engine: Core[Any], tx: object) -> tuple[object, _Errands | None]:
    """`tx` as the verb is to be given it; the transaction of a `def` handler's phase is known to its attempt."""
    running = engine._mine(current.get())
    if running is not None and running.carrier_for(tx) is not None:
        return tx, None
    errands = _Errands(tx if isinstance(tx, ForeignTx) else join(cast("Connection[Any]", tx)))
    return errands, errands


class SyncEngine:
    """`engine.sync`: the engine's verbs as plain calls. Any number of threads may use it at once.

    The engine lives on an event loop in a thread that is started at first use, or, where it is open already (`async with engine` in
    another thread), there. It is closed by `close`, at the end of `with engine.sync:`, or with the process. A forked process (gunicorn's
    preload) begins anew with connections of its own. tx: a psycopg Connection, or `join(…)` of another sync transaction; its statements
    run in the calling thread. UsageError in a thread that runs an event loop: there the engine's own verbs are awaited.
    """

    def __init__(self, engine: Core[Any]) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._home: LoopThread | None = None
        _facades.add(self)

    start_sequence = _blocking(Starts[Connection[Any]].start_sequence)
    start_sequences = _blocking(Starts[Connection[Any]].start_sequences)
    start_unregistered = _blocking(Starts[Connection[Any]].start_unregistered)
    send_event = _blocking(Signals[Connection[Any]].send_event)

    get_sequence = _blocking(Looks[Connection[Any]].get_sequence)
    get_job = _blocking(Looks[Connection[Any]].get_job)
    list_sequences = _blocking(Looks[Connection[Any]].list_sequences)
    list_jobs = _blocking(Looks[Connection[Any]].list_jobs)
    list_attempts = _blocking(Looks[Connection[Any]].list_attempts)
    list_blockers = _blocking(Looks[Connection[Any]].list_blockers)
    list_dependents = _blocking(Looks[Connection[Any]].list_dependents)
    why = _blocking(Looks[Connection[Any]].why)

    cancel_sequences = _blocking(Controls[Connection[Any]].cancel_sequences)
    delete_sequences = _blocking(Controls[Connection[Any]].delete_sequences)
    complete_sequence = _blocking(Controls[Connection[Any]].complete_sequence)
    retry_sequences = _blocking(Controls[Connection[Any]].retry_sequences)
    trigger = _blocking(Controls[Connection[Any]].trigger)
    reschedule = _blocking(Controls[Connection[Any]].reschedule)
    count_failed = _blocking(Controls[Connection[Any]].count_failed)
    clear_failed = _blocking(Controls[Connection[Any]].clear_failed)

    wait_all = _blocking(Waits[Connection[Any]].wait_all)
    run = _blocking(Works[Connection[Any]].run)
    map = _blocking(Works[Connection[Any]].map)
    run_once = _blocking(Works[Connection[Any]].run_once)
    migrate = _blocking(Core[Connection[Any]].migrate)
    open = _blocking(Core[Connection[Any]].open)

    def result(self, sequence: JobSequence[Out], /, *, timeout: Duration | None = None) -> Out:
        """Wait for a sequence to end and return its output: `JobSequence.result`, for this thread."""
        given: Any = sequence
        if not isinstance(given, JobSequence):
            raise UsageError(f"{given!r} is no handle: engine.sync.start_sequence(…), or engine.sequence(type, id).")
        output: Out = self._wait(lambda engine: engine._result_of(sequence, timeout), None)
        return output

    def close(self) -> None:
        """Close the engine and end its thread, if it was opened here; one that others have opened is left to them. Idempotent."""
        with self._lock:
            home, self._home = self._home, None
            if home is not None:
                try:
                    asyncio.run_coroutine_threadsafe(self._engine.close(), home.loop).result()
                finally:
                    home.stop()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, work: Callable[[Any], Coroutine[Any, Any, T]], errands: _Errands | None) -> T:
        """Run it on the engine's loop, in this thread's context. What interrupts the waiting cancels it."""
        loop = self._loop()
        future = asyncio.run_coroutine_threadsafe(work(self._engine), loop)
        try:
            if errands is not None:
                errands.serve(future)
            return future.result()
        except CancelledError:
            raise ConfigurationError("the engine's event loop ended while this call waited: it was closed elsewhere.") from None
        except BaseException:
            future.cancel()
            raise

    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which the engine is open, or on which the verb will open it."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise UsageError("engine.sync would hold the event loop that runs in this thread: use `await engine.…` here.")
        with self._lock:
            loop = self._engine.loop
            if loop is None:
                self._home = self._home or LoopThread()
                return self._home.loop
            if not loop.is_running():
                raise UsageError("the engine was left open on an event loop that has ended: use `async with engine` there, or close it.")
            return loop

    def _close_at_exit(self) -> None:
        with self._lock:
            home, self._home = self._home, None
        if home is not None:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._engine.close(), home.loop).result(CLOSING)

    def _forget(self) -> None:
        """In a forked process: the thread does not exist here, and the connections are the parent's."""
        _abandoned.extend((self._home, self._lock, *self._engine._forget()))
        self._lock, self._home = threading.Lock(), None


@atexit.register
def _close_all() -> None:
    for facade in list(_facades):
        facade._close_at_exit()


def _forget_all() -> None:
    for facade in list(_facades):
        facade._forget()


os.register_at_fork(after_in_child=_forget_all)
