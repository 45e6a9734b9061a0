"""Being told what happens: in this process, and across processes."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias, TypeVar, cast, overload

from queuert_py import options
from queuert_py.engine.core import Core
from queuert_py.errors import UsageError
from queuert_py.events import E, Event
from queuert_py.job import Tx
from queuert_py.runtime.watching import Watch
from queuert_py.sequence import SequenceRef

E1 = TypeVar("E1", bound=Event)
E2 = TypeVar("E2", bound=Event)
E3 = TypeVar("E3", bound=Event)
E4 = TypeVar("E4", bound=Event)
Told: TypeAlias = Callable[[Callable[[E1], Any]], Callable[[E1], Any]]


class Watches(Core[Tx]):
    """The verbs that tell what happens."""

    @overload
    def on(self, kind: type[E1], /) -> Told[E1]: ...
    @overload
    def on(self, kind: type[E1], kind2: type[E2], /) -> Told[E1 | E2]: ...
    @overload
    def on(self, kind: type[E1], kind2: type[E2], kind3: type[E3], /) -> Told[E1 | E2 | E3]: ...
    @overload
    def on(self, kind: type[E1], kind2: type[E2], kind3: type[E3], kind4: type[E4], /) -> Told[E1 | E2 | E3 | E4]: ...
    @overload
    def on(
        self, kind: type[Event], kind2: type[Event], kind3: type[Event], kind4: type[Event], kind5: type[Event], /, *more: type[Event]
    ) -> Told[Event]: ...
    def on(self, *kinds: Any) -> Any:
        """Decorates a function that is called with each event of these kinds (a base stands for all of its kinds) that a worker or a call
        of this engine has committed: after the commit, and without any say in it (what it raises is logged).

        A `def` is called at once, in the event loop: it must be quick. An `async def` has a task of its own, gets one event at a time, in
        order, and up to 10,000 may wait for it; those beyond are dropped, with a log line. What must not be missed is for `watch`.
        """
        _check(kinds)

        def listen(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
            if not callable(handler):
                raise UsageError("@engine.on(JobFailed, …) decorates a function that takes the event.")
            self._events.on(kinds, handler)
            return handler

        return listen

    @overload
    def watch(
        self,
        *,
        id: SequenceRef | None = None,
        type: str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        correlation_id: str | None = None,
        since: datetime | None = None,
    ) -> Watch[Event]: ...
    @overload
    def watch(
        self,
        *kinds: builtins.type[E],
        id: SequenceRef | None = None,
        type: str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        correlation_id: str | None = None,
        since: datetime | None = None,
    ) -> Watch[E]: ...
    def watch(
        self,
        *kinds: Any,
        id: SequenceRef | None = None,
        type: str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        correlation_id: str | None = None,
        since: datetime | None = None,
    ) -> Any:
        """The events of all processes, from now on, or since an instant: `async for event in engine.watch(JobFailed, tag="vip")`.

        None is left out and none is given twice by one watch, in whatever order transactions commit; ordered by time as far as that can be.
        What others have not committed when it begins is to come (of another role's transactions, whose age the server does not show: what
        they wrote within the last minute). What is deleted before the watch has come to it is not told.
        kinds: which (default: all that `queuert_py.events` marks for watch). id: of the sequence. type: of the job. since: the `cursor` of
        an earlier watch, or any instant as far back as finished jobs are kept. It begins at the first step, or at `async with`. UsageError.
        """
        if kinds:
            _check(kinds)
        texts = {"type": type, "queue": queue, "tag": tag, "correlation_id": correlation_id}
        filters: dict[str, object] = {name: options.text(value, name) for name, value in texts.items()}
        filters["sequence_id"] = None if id is None else options.identifier(id)
        return Watch[Any](self, kinds, filters, options.instant(since, "since"))


def _check(kinds: tuple[Any, ...]) -> None:
    known = cast("tuple[object, ...]", kinds)
    wrong: list[object] = [each for each in known if not (isinstance(each, builtins.type) and issubclass(each, Event))]
    if wrong or not known:
        raise UsageError(f"{wrong[0]!r} is no kind of event." if wrong else "no kind of event is given: Event stands for all of them.")
