"""What happened, across processes and without loss: read from history, which is written with the jobs and never changed.

Rows of history carry the time at which they were written, but become visible when their transaction commits: in another order. So a
watcher must not simply go on from the last time it saw. It goes by this: whoever writes history holds a lock on its tables, from before
the row's time until after its commit is visible. A mark is a time t and, read after t, the transactions that hold such a lock. Once all of
them are gone, every row from before t is visible, and t becomes the horizon: rows from before it need not be looked at again. Rows from
after it are remembered, so that none is given twice. Writers of other tables, however long they take, hold up nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, cast
from uuid import UUID

import psycopg

from queuert_py.errors import DatabaseUnavailableError, UsageError
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
PAGE, MARKS = 1000, 200
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
    def key(self) -> tuple[datetime, UUID, int, str]:
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
        self._place: Row | None = None
        self._reached: datetime | None = None
        self._seen: dict[tuple[datetime, UUID, int, str], None] = {}
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
            told = self._told
            leaves = (self._source.listener.subscribe(told.hint, told.woken.set), self._source.events.watch(told.woken.set, told.end))

            def leave() -> None:
                for each in leaves:
                    each()

            self._leave = weakref.finalize(self, leave)
            at, writers = (await self._source.database.run(self._source.database.store.read_horizon()))[0]
            self._since = at if self._since is None else self._since
            self._horizon = Horizon(self._since, self._since)
            if at >= self._horizon.low:
                self._horizon.marks.append((at, frozenset(writers)))
            self._told.woken.set()
        return self._horizon

    async def _wait(self) -> None:
        """Until there may be something to see: by a hint, or by the clock."""
        await self._begin()
        if self._told.over:
            return
        now = time.monotonic()
        if now - self._announced > WATCHED / 3:
            self._announced = now
            self._source.notifier.send([WATCH])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEAF_POLL if self._source.listener.deaf else POLL):
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
        except (psycopg.Error, OSError, DatabaseUnavailableError):
            self._place = None
            await asyncio.sleep(DEAF_POLL)
        self._looked = time.monotonic()
        self._took = self._looked - begun

    async def _read(self, horizon: Horizon) -> None:
        database = self._source.database
        if self._outcomes:
            if self._place is None:
                at, writers = (await database.run(database.store.read_horizon()))[0]
                self._reached = horizon.reached(at, frozenset(writers))
            found = [Row._make(each) for each in await database.run(self._call(horizon.since))]
            for row in found:
                if row.key not in self._seen:
                    self._seen[row.key] = None
                    self._ready.append(event_of(row))
            self._place = found[-1] if len(found) == PAGE else None
            if self._place is None and self._reached is not None:
                self._pass(horizon, self._reached)
        if self._progress and self._told.progress:
            await self._read_progress()

    def _pass(self, horizon: Horizon, reached: datetime) -> None:
        """All from before `reached` has been read: it need not be remembered."""
        horizon.low = reached
        self._seen = {key: None for key in self._seen if key[0] >= horizon.since}
        if not self._ready:
            self._since = reached

    def _call(self, since: datetime) -> Any:
        place = self._place
        return self._source.database.store.list_news(
            {**self._filters, "kinds": self._outcomes, "lane": self._lane},
            since=since,
            place=None if place is None else place.key,
            limit=PAGE,
        )

    @property
    def _lane(self) -> int:
        return lane_of(self._filters["sequence_id"] or 0, self._source.database.store.lanes)

    async def _read_progress(self) -> None:
        database, ids = self._source.database, sorted(self._told.progress)
        self._told.progress.clear()
        wanted = self._filters["sequence_id"]
        parts = [rows.sequence_row(id, lane_of(id, database.store.lanes)) for id in ids if wanted is None or str(wanted) == id]
        if parts:
            filters = {name: value for name, value in self._filters.items() if name != "sequence_id"}
            told = await database.run(database.store.read_progress(parts, filters))
            self._ready.extend(progress_of(row) for row in told)


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
