"""Tells the handlers of `engine.on` what has been committed here, and the watchers, here and elsewhere, that there is something to read.

Whoever listens can harm nobody: exceptions are logged, async handlers have a queue and a task of their own. When nobody listens and nobody
watches, `wanted` is false, and no event is even made.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from queuert_py.events import Event, JobProgress, JobStarted, JobSuspended, SequenceStarted

logger = logging.getLogger("queuert_py.events")
WATCH, NEWS = "w:", "e:"
"""Hints: somebody watches, for the next WATCHED seconds; and: there is something to see."""
WATCHED = 60.0
BEHIND = 10_000
"""Events that an async handler may be behind; those beyond are dropped, and that is logged."""
Handler = Callable[[Any], object]
_HERE = (SequenceStarted, JobStarted, JobSuspended, JobProgress)
"""What history does not tell."""


@dataclass(eq=False)
class _Listening:
    """A handler, the kinds of events it wants, and for an async one those it has not been given yet."""

    handler: Handler
    kinds: tuple[type[Event], ...]
    waiting: deque[Event] = field(default_factory=deque[Event])
    task: asyncio.Task[None] | None = None
    dropped: int = 0


class Dispatch:
    """The events of one engine. `notify(hints)` tells other processes; it is asked only while somebody watches."""

    def __init__(self) -> None:
        self.wanted = False
        self._listening: list[_Listening] = []
        self._notify: Callable[[Iterable[str]], None] | None = None
        self._watched_until = 0.0
        self._watchers: list[tuple[Callable[[], None], Callable[[], None]]] = []

    # --- who listens

    def on(self, kinds: Sequence[type[Event]], handler: Handler) -> Callable[[], None]:
        """Call `handler` with each event of these kinds; a function that ends that."""
        listening = _Listening(handler, tuple(kinds))
        self._listening.append(listening)
        self.wanted = True

        def leave() -> None:
            if listening in self._listening:
                self._listening.remove(listening)
            self._reckon()

        return leave

    def listens(self, kind: type[Event]) -> bool:
        """Would anybody here be told of an event of this kind?"""
        return any(issubclass(kind, each.kinds) for each in self._listening)

    def watch(self, woken: Callable[[], None], over: Callable[[], None]) -> Callable[[], None]:
        """A watcher of this process: `woken` when something has been committed here, `over` when the engine closes. To end that: the
        function returned."""
        watcher = (woken, over)
        self._watchers.append(watcher)
        self.wanted = True

        def leave() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
            self._reckon()

        return leave

    def connect(self, notify: Callable[[Iterable[str]], None]) -> None:
        self._notify = notify

    def heard(self, hint: str) -> None:
        """A hint has come: somebody, somewhere, watches."""
        if hint == WATCH:
            self._watched_until = asyncio.get_running_loop().time() + WATCHED
            self.wanted = True

    def _reckon(self) -> None:
        self.wanted = bool(self._listening or self._watchers or self._watched_until)

    # --- what happens

    def emit(self, event: Event) -> None:
        """Something was committed. Never waits, never fails. Ask `wanted` first: it saves making the event."""
        for listening in self._listening:
            if isinstance(event, listening.kinds):
                self._tell(listening, event)
        if not isinstance(event, _HERE):
            self.stir()

    def stir(self) -> None:
        """There is something to see for watchers, here and elsewhere."""
        for woken, _ in self._watchers:
            woken()
        if self._watched_until and self._notify is not None:
            if asyncio.get_running_loop().time() > self._watched_until:
                self._watched_until = 0.0
                self._reckon()
            else:
                self._notify([NEWS])

    def _tell(self, listening: _Listening, event: Event) -> None:
        if inspect.iscoroutinefunction(listening.handler) or listening.task is not None:
            self._later(listening, event)
            return
        try:
            answer = contextvars.Context().run(listening.handler, event)
        except (Exception, asyncio.CancelledError):  # a future's result() may raise it: it must not cancel whoever tells
            logger.exception("%s failed on %s", _name(listening.handler), type(event).__name__)
            return
        if inspect.isawaitable(answer):  # an object with an async __call__, a partial
            self._start(listening, answer)

    def _later(self, listening: _Listening, event: Event) -> None:
        if len(listening.waiting) >= BEHIND:
            listening.dropped += 1
            if listening.dropped == 1:
                logger.error("%s is %d events behind: those that follow are dropped until it catches up", _name(listening.handler), BEHIND)
            return
        listening.waiting.append(event)
        if listening.task is None:
            self._start(listening, None)

    def _start(self, listening: _Listening, first: Awaitable[Any] | None) -> None:
        work = self._work(listening, first)
        listening.task = asyncio.get_running_loop().create_task(work, name="queuert events", context=contextvars.Context())

    async def _work(self, listening: _Listening, first: Awaitable[Any] | None) -> None:
        """One at a time, in order: an async handler is never run twice at once."""
        name = "an event"
        try:
            while first is not None or listening.waiting:
                try:
                    if first is not None:
                        await first
                    else:
                        event = listening.waiting.popleft()
                        name = type(event).__name__
                        await cast("Awaitable[Any]", listening.handler(event))
                except (Exception, asyncio.CancelledError):
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():  # by `stop`, not the handler's own
                        raise
                    logger.exception("%s failed on %s", _name(listening.handler), name)
                first = None
        finally:
            listening.task = None
            if listening.dropped:
                logger.error("%s has caught up; %d event(s) were dropped", _name(listening.handler), listening.dropped)
                listening.dropped = 0

    async def stop(self, timeout: float = 5.0) -> None:
        """End the watches; give async handlers `timeout` seconds for what is waiting, then cancel them."""
        for _, over in self._watchers:
            over()
        tasks = [each.task for each in self._listening if each.task is not None]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _name(handler: Handler) -> str:
    return f"the event handler {getattr(handler, '__qualname__', repr(handler))}"
