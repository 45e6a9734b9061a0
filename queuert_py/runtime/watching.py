"""What happened, across processes and without loss: read from history, which is written with the jobs and never changed.

Rows of history carry the time at which they were written, but become visible when their transaction commits: in another order. So a
watcher must not simply go on from the last time it saw. It goes by this: whoever writes history holds a lock on its tables, from before
the row's time until after its commit is visible. A mark is a time t and, read after t, the transactions that hold such a lock. Once all of
them are gone, every row from before t is visible, and t becomes the horizon: rows from before it need not be looked at again. Rows from
after it are remembered, so that none is given twice. Writers of other tables, however long they take, hold up nothing.

A watch of what happens from now on begins where the oldest of those who write just then began: what they commit happens from now on. A
look goes from the horizon to the end, page by page and window of time by window, so that what lies far ahead is not read for each page.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeAlias, cast
from uuid import UUID

import psycopg

from queuert_py.errors import DatabaseUnavailableError, SequenceBusyError, UsageError
from queuert_py.events import (
    E_co,
    Event,
    JobCancelled,
    JobCompleted,
    JobContinued,
    JobExpired,
    JobFailed,
    JobProgress,
    JobReleased,
    JobRetrying,
    JobRevived,
    JobSnoozed,
)
from queuert_py.ids import lane_of
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database
from queuert_py.postgres.listener import Listener, Notifier
from queuert_py.runtime.dispatch import NEWS, WATCH, WATCHED, Dispatch

KINDS: Mapping[str, type[Event]] = {
    "completed": JobCompleted,
    "continued": JobContinued,
    "failed": JobFailed,
    "cancelled": JobCancelled,
    "expired": JobExpired,
    "error": JobRetrying,
    "timeout": JobRetrying,
    "lost": JobRetrying,
    "snoozed": JobSnoozed,
    "released": JobReleased,
    "retried": JobRevived,
}
"""What history calls them."""
Key: TypeAlias = tuple[datetime, UUID, int, str]
"""A row of history: when, which sequence, position, outcome. They are read in this order."""
PAGE, MARKS = 1000, 200
WINDOW, LEAST = timedelta(minutes=1), timedelta(milliseconds=1)
"""How much time a page looks through at first, and at least: twice as much when it was not full, else about what filled it."""
MARGIN = timedelta(seconds=1)
"""How far behind the horizon is still looked, for a server's clock that was set back."""
POLL, DEAF_POLL = 2.0, 0.5
APART, SHARE = 0.02, 4
"""At least so many seconds between two looks, and so many times what a look took: a watcher never keeps the database busy."""


class Row(NamedTuple):
    """A row of `list_news`."""

    at: datetime
    sequence_id: UUID
    position: int
    outcome: str
    type: str
    queue: str | None
    tags: Sequence[str]
    correlation_id: str | None
    job_id: UUID | None
    attempt: int
    worker: str | None
    output: str | None
    output_type: str | None
    reason: str | None
    error: Mapping[str, Any] | None

    @property
    def key(self) -> Key:
        return self[:4]


@dataclass(slots=True)
class Horizon:
    """Which rows are behind us. low: every row from before it has been visible to a look; start: the first of interest; marks: times, with
    who wrote then (one that still does is in all that follow)."""

    low: datetime
    start: datetime
    marks: deque[tuple[datetime, frozenset[str]]] = field(default_factory=deque[tuple[datetime, frozenset[str]]])

    def reached(self, at: datetime, writers: frozenset[str]) -> datetime:
        """The horizon of a look that follows a mark: the latest mark whose writers are all gone."""
        self.marks.append((at, writers))
        if len(self.marks) > MARKS:
            del self.marks[1]
        found = self.low
        while self.marks and not self.marks[0][1] & writers:
            found = max(found, self.marks.popleft()[0])
        return found

    @property
    def since(self) -> datetime:
        return max(self.start, self.low - MARGIN)


class Source(Protocol):
    """Where a watch reads: the engine."""

    @property
    def database(self) -> Database: ...
    @property
    def listener(self) -> Listener: ...
    @property
    def notifier(self) -> Notifier: ...
    @property
    def events(self) -> Dispatch: ...
    async def open(self) -> None: ...


@dataclass(slots=True)
class _Told:
    """What hints have told: apart from the watch, so that a forgotten watch can be collected."""

    woken: asyncio.Event = field(default_factory=asyncio.Event)
    progress: set[str] = field(default_factory=set[str])
    over: bool = False

    def end(self) -> None:
        self.over = True
        self.woken.set()

    def hint(self, hint: str) -> None:
        kind, _, rest = hint.partition(":")
        if kind == "g":
            self.progress.add(rest)
        if kind in ("g", "d") or hint == NEWS:
            self.woken.set()


class Watch(Generic[E_co]):
    """Events across processes: `async for event in engine.watch(…)`. Use it by one task. Ends by `aclose()`, or leave its `async with`."""

    def __init__(self, source: Source, kinds: Sequence[type[Event]], filters: Mapping[str, Any], since: datetime | None) -> None:
        self._source = source
        self._outcomes = [name for name, kind in KINDS.items() if not kinds or issubclass(kind, tuple(kinds))]
        self._progress = not kinds or issubclass(JobProgress, tuple(kinds))
        if not self._outcomes and not self._progress:
            names = ", ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"{names}: only known in the process where it happens: use @engine.on.")
        self._filters = filters
        self._since = since
        self._horizon: Horizon | None = None
        self._place: Key | None = None
        self._window = WINDOW
        self._now = datetime.min.replace(tzinfo=UTC)
        self._reached: datetime | None = None
        self._seen: dict[Key, None] = {}
        self._ready: deque[Event] = deque()
        self._told = _Told()
        self._leave: Callable[[], object] | None = None
        self._announced = float("-inf")
        self._looked = float("-inf")
        self._took = 0.0

    @property
    def cursor(self) -> datetime | None:
        """How far this watch has come, by the database's clock: every event from before it has been given. Store it when you have dealt
        with an event; `engine.watch(since=cursor)` goes on from there, and may give the events of the last moments again. None: not begun.
        """
        return self._since

    async def __aenter__(self) -> Self:
        """Begin: whatever happens from now on will be given."""
        await self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E_co:
        """The next event; waits for it."""
        while not self._ready:
            if self._place is None:
                await self._wait()
            if self._told.over:
                raise StopAsyncIteration
            await self._look()
        event = self._ready.popleft()
        if event.at is not None and self._reached is not None and self._since is not None and not isinstance(event, JobProgress):
            done = self._reached if not self._ready and self._place is None else min(event.at, self._reached)
            self._since = max(self._since, done)
        return cast("E_co", event)

    async def aclose(self) -> None:
        """End the watch."""
        self._told.end()
        if self._leave is not None:
            self._leave()

    # --- waiting

    async def _begin(self) -> Horizon:
        if self._horizon is None:
            await self._source.open()
            if self._leave is None:
                self._subscribe()
            at, writers = (await self._source.database.run(self._source.database.store.read_horizon()))[0]
            since = self._since or await self._remember(at, bool(writers))
            horizon = Horizon(since, since)
            if at >= since:
                horizon.marks.append((at, frozenset(writers)))
            self._since, self._horizon = since, horizon
            self._told.woken.set()
        return self._horizon

    def _subscribe(self) -> None:
        told = self._told
        leaves = (self._source.listener.subscribe(told.hint, told.woken.set), self._source.events.watch(told.woken.set, told.end))

        def leave() -> None:
            for each in leaves:
                each()

        self._leave = weakref.finalize(self, leave)

    async def _remember(self, at: datetime, written: bool) -> datetime:
        """Where a watch begins that is to give what happens from `at` on: with what those will commit who are writing. What others have
        committed since these began is remembered as seen."""
        database = self._source.database
        oldest = (await database.run(database.store.oldest_writer()))[0] if written else None
        if oldest is None or oldest >= at:
            return at
        place: Key | None = _behind(oldest)
        while place is not None and self._outcomes:
            found, place = await self._page(place, at, at)
            self._seen.update(dict.fromkeys(row.key for row in found))
        return oldest

    async def _wait(self) -> None:
        """Until there may be something to see: by a hint, or by the clock."""
        await self._begin()
        if self._told.over:
            return
        now = time.monotonic()
        if now - self._announced > WATCHED / 3:
            self._announced = now
            self._source.notifier.send([WATCH])
        with contextlib.suppress(TimeoutError):  # from the last look on: whoever gives up a step and takes another one waits no longer
            poll = DEAF_POLL if self._source.listener.deaf else POLL
            async with asyncio.timeout(self._looked + poll - now):
                await self._told.woken.wait()
        pause = self._looked + max(APART, SHARE * self._took) - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)

    # --- looking

    async def _look(self) -> None:
        """One look: a page of what is new. Database trouble is waited out."""
        if self._place is None:
            self._told.woken.clear()
        begun = time.monotonic()
        try:
            await self._read(await self._begin())
        except (psycopg.Error, OSError, DatabaseUnavailableError, SequenceBusyError):
            self._place = None
            await asyncio.sleep(DEAF_POLL)
        except asyncio.CancelledError:
            self._told.woken.set()  # somebody gave this step up: the next one looks at once
            raise
        self._looked = time.monotonic()
        self._took = self._looked - begun

    async def _read(self, horizon: Horizon) -> None:
        database = self._source.database
        if self._outcomes:
            if self._place is None:
                self._now, writers = (await database.run(database.store.read_horizon()))[0]
                self._reached = horizon.reached(self._now, frozenset(writers))
            found, self._place = await self._page(self._place or _behind(horizon.since), self._now, None)
            for row in found:
                if row.key not in self._seen:
                    self._seen[row.key] = None
                    self._ready.append(event_of(row))
            if self._reached is not None:
                self._pass(horizon, self._reached if self._place is None else min(self._place[0], self._reached))
        if self._progress and self._told.progress:
            await self._read_progress()

    async def _page(self, place: Key, now: datetime, end: datetime | None) -> tuple[list[Row], Key | None]:
        """What stands behind `place`: as much as a page or a window of time holds, up to `end`; and the place behind which is more."""
        database = self._source.database
        until = place[0] + self._window if now - place[0] > self._window else end
        filters = {**self._filters, "kinds": self._outcomes, "lane": lane_of(self._filters["sequence_id"] or 0, database.store.lanes)}
        read = await database.run(database.store.list_news(filters, place=place, until=until, limit=PAGE))
        found = [Row._make(each) for each in read]
        if len(found) == PAGE:
            self._window = max(found[-1].at - place[0], LEAST)
            return found, found[-1].key
        if until is None or until == end:
            return found, None
        self._window *= 2
        return found, _behind(until)

    def _pass(self, horizon: Horizon, reached: datetime) -> None:
        """All from before `reached` has been read: it need not be remembered."""
        horizon.low = max(horizon.low, reached)
        self._seen = {key: None for key in self._seen if key[0] >= horizon.since}
        if not self._ready and self._since is not None:
            self._since = max(self._since, reached)

    async def _read_progress(self) -> None:
        database, ids = self._source.database, sorted(self._told.progress)
        self._told.progress.clear()
        wanted = self._filters["sequence_id"]
        parts = [rows.sequence_row(id, lane_of(id, database.store.lanes)) for id in ids if wanted is None or str(wanted) == id]
        filters = {name: value for name, value in self._filters.items() if name != "sequence_id"}
        try:
            told = await database.run(database.store.read_progress(parts, filters)) if parts else []
        except BaseException:
            self._told.progress.update(ids)
            raise
        self._ready.extend(progress_of(row) for row in told)


def _behind(at: datetime) -> Key:
    """The place from which on everything is at `at` or later."""
    return at, UUID(int=0), -1, ""


def event_of(row: Row) -> Event:
    """The event of a row of history."""
    about: dict[str, Any] = {
        "sequence_id": row.sequence_id,
        "type": row.type,
        "queue": row.queue,
        "tags": row.tags,
        "correlation_id": row.correlation_id,
        "at": row.at,
        "job_id": row.job_id,
        "position": row.position,
        "attempt": row.attempt,
        "worker": row.worker,
    }
    kind = KINDS[row.outcome]
    if kind is JobCompleted:
        about |= {"output": row.output if row.output_type else None, "output_type": row.output_type}
    elif kind is JobFailed:
        about |= {"reason": row.reason or "error", "error": row.error}
    elif kind is JobRetrying:
        about |= {"outcome": row.outcome, "error": row.error}
    elif kind is JobSnoozed:
        about |= {"error": row.error}
    return kind(**about)


def progress_of(row: tuple[Any, ...]) -> JobProgress:
    """The event of a row of `read_progress`."""
    names = ("at", "sequence_id", "position", "type", "queue", "tags", "correlation_id", "job_id", "attempt", "worker")
    told: Mapping[str, Any] = row[-1]
    return JobProgress(**dict(zip(names, row[:-1], strict=True)), percent=told.get("percent"), message=told.get("message"))
