"""Threads for `def` handlers. A handler's thread and its attempt's task take turns: while one works the other waits for it, so that
everything about an attempt is decided in its task, and its connection is never used by both."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from queuert_py.errors import LeaseLostError, PhaseError

T = TypeVar("T")
_OVER = "this attempt is over: nothing more of it can be written."


class _Thread(threading.Thread):
    """Does what it is given, in turn; None ends it. A daemon: a handler that never returns must not hold the process at its end."""

    def __init__(self) -> None:
        super().__init__(name="queuert handler", daemon=True)
        self.work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run(self) -> None:
        while True:
            work = self.work.get()
            if work is None:
                return
            work()
            del work  # nothing of a handler outlives it here


class Threads:
    """The threads of one worker: no more than handlers run at once, kept for the next ones."""

    def __init__(self) -> None:
        self._idle: list[_Thread] = []
        self._closed = False

    def take(self) -> _Thread:
        if self._idle:
            return self._idle.pop()
        thread = _Thread()
        thread.start()
        return thread

    def give_back(self, thread: _Thread) -> None:
        if self._closed:
            thread.work.put(None)
        else:
            self._idle.append(thread)

    def close(self) -> None:
        """End those that are idle, the others when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().work.put(None)


@dataclass(frozen=True, slots=True)
class _Asked:
    fn: Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any
    error: BaseException | None

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class Bridge:
    """One thread, for one run of a handler. `holds_on`: is a cancelled task to wait for its thread all the same?"""

    def __init__(self, threads: Threads, holds_on: Callable[[], bool]) -> None:
        self._threads = threads
        self._holds_on = holds_on
        self._loop = asyncio.get_running_loop()
        self._said: deque[_Asked | _Outcome] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._turns: SimpleQueue[Callable[[], Any] | _Outcome | None] = SimpleQueue()
        self.over = self._ended = False
        self._context, self._known = copy_context(), copy_context()
        self._asking = 0
        self._thread = threads.take()
        self._thread.work.put(self._stay)

    # --- in the task

    async def run(self, fn: Callable[[], T]) -> T:
        """Have the thread call it; meanwhile do what it asks for. May be called while it asks."""
        if self.over:
            raise LeaseLostError(_OVER)
        self._turns.put(partial(self._shared_context().run, fn))
        while True:
            said = await self._hear()
            if isinstance(said, _Outcome):
                value: T = said.get()
                return value
            self._turns.put(await self._answer(said.fn))

    def _shared_context(self) -> Context:
        """All that the thread calls has one context: what a `def` provider sets is there for the handler. What coroutines have set since is
        put into it; what is called while the thread asks has a copy, as it is in the midst of the other."""
        context, now = self._context.copy() if self._asking else self._context, copy_context()
        for variable, value in now.items():
            if variable not in self._known or self._known[variable] is not value:
                context.run(variable.set, value)
        if not self._asking:
            self._known = now
        return context

    async def _answer(self, fn: Callable[[], Awaitable[Any]]) -> _Outcome:
        self._asking += 1
        try:
            return _Outcome(await fn(), None)
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None:
                task.uncancel()  # it is the thread's now
            return _Outcome(None, error)
        finally:
            self._asking -= 1

    async def _hear(self) -> _Asked | _Outcome:
        while not self._said:
            self._wake = self._loop.create_future()
            try:
                await self._wake
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or not self._holds_on():
                    self.over = True  # nobody will hear the thread any more
                    self._turns.put(None)
                    raise
                task.uncancel()
        return self._said.popleft()

    def end(self) -> None:
        """The thread is free for others, unless it was left to itself."""
        if not self.over:
            self.over = self._ended = True
            self._turns.put(None)
            self._threads.give_back(self._thread)  # now, so that the next handler finds it: what it is given waits until it is through

    def _heard(self, said: _Asked | _Outcome) -> None:
        self._said.append(said)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- in the thread

    def _stay(self) -> None:
        self._serve()
        if not self._ended:  # it was left behind
            self._threads.give_back(self._thread)

    def _serve(self) -> _Outcome | None:
        """Do what the task wants, until an answer comes, or (None) the end."""
        while True:
            turn = self._turns.get()
            if turn is None or isinstance(turn, _Outcome):
                return turn
            try:
                outcome = _Outcome(turn(), None)
            except BaseException as error:
                outcome = _Outcome(None, error)
            del turn
            self._say(outcome)
            del outcome

    def _say(self, what: _Asked | _Outcome) -> None:
        try:
            self._loop.call_soon_threadsafe(self._heard, what)
        except RuntimeError:  # the loop is closed
            self.over = True
            self._turns.put(None)

    def ask(self, fn: Callable[[], Awaitable[T]]) -> T:
        """From the thread: have the attempt's task await it, and give what it gives."""
        if threading.get_ident() != self._thread.ident:
            raise PhaseError("a job's phases belong to its handler's own thread: not to another one that it started.")
        if not self.over:
            self._say(_Asked(fn))
        answer = self._serve()
        if answer is None:
            self._turns.put(None)  # for whoever called the handler
            raise LeaseLostError(_OVER)
        value: T = answer.get()
        return value
