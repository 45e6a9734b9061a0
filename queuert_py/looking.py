"""What may be asked of lists: filters, checked before anything is read, and pages that follow one another by a key that never changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypedDict, TypeVar, cast

from queuert_py import options
from queuert_py.errors import UsageError
from queuert_py.ids import about_now
from queuert_py.sequence import SequenceRef
from queuert_py.values import Reason, Status

T = TypeVar("T")
MOST = 100_000
LIVE = ("blocked", "scheduled", "pending", "running")


class Page(list[T]):
    """A part of a list. `next`: give it as `after=` to get what follows; None at the end."""

    def __init__(self, rows: Iterable[T] = (), next: str | None = None) -> None:
        super().__init__(rows)
        self.next = next


class JobFilters(TypedDict, total=False):
    """Which jobs. All optional; all that are given must hold.

    status: where it stands. reason: why it failed for good. type: the job's own. queue, worker (the one that runs it or ended it).
    tag: one of its tags. correlation_id: the caller's own id. root_id: jobs of the sequence tree that began with this sequence, itself
    included. created_after, created_before: when its sequence was started; finished_after, finished_before: when it ended. Aware
    datetimes, the database's clock; from (and at) `after` up to (not at) `before`.
    """

    status: Status | None
    reason: Reason | None
    type: str | None
    queue: str | None
    worker: str | None
    tag: str | None
    correlation_id: str | None
    root_id: SequenceRef | None
    created_after: datetime | None
    created_before: datetime | None
    finished_after: datetime | None
    finished_before: datetime | None


class SequenceFilters(TypedDict, total=False):
    """Which sequences. All optional; all that are given must hold.

    status: that of the current or last job. reason: why it failed (see Reason). type: the job type it was started with. queue: of its
    current or last job. key: its key. tag: one of its tags. correlation_id: the caller's own id. root_id: the tree that began with this
    sequence, itself included. created_after, created_before: when it was started; finished_after, finished_before: when it ended. Aware
    datetimes, the database's clock; from (and at) `after` up to (not at) `before`.
    """

    status: Status | None
    reason: Reason | None
    type: str | None
    queue: str | None
    key: str | None
    tag: str | None
    correlation_id: str | None
    root_id: SequenceRef | None
    created_after: datetime | None
    created_before: datetime | None
    finished_after: datetime | None
    finished_before: datetime | None


def checked(filters: Mapping[str, Any], known: type[SequenceFilters] | type[JobFilters]) -> dict[str, object]:
    """The parameters of a list's statement. UsageError for a filter that does not exist or cannot be right."""
    names = known.__annotations__
    options.known(filters, names)
    status, reason = options.one_of(filters.get("status"), "status", Status), options.one_of(filters.get("reason"), "reason", Reason)
    values: dict[str, object] = {}
    for name in ("type", "queue", "key", "worker", "tag", "correlation_id"):
        if name in names:
            values[name] = options.text(filters.get(name), name)
    root: Any = filters.get("root_id")
    values["root_id"] = None if root is None else options.identifier(root, "root_id")
    for name, column in (
        ("created_after", "since"),
        ("created_before", "until"),
        ("finished_after", "ended_since"),
        ("finished_before", "ended_until"),
    ):
        values[column] = options.instant(filters.get(name), name)
    ended = reason is not None or values["ended_since"] is not None or values["ended_until"] is not None
    values["live"] = (status is None or status in LIVE) and not ended
    values["finished"] = status not in LIVE
    values["live_status"] = status if status in LIVE else None
    values["outcome"] = None if status in LIVE else status or ("failed" if reason else None)
    values["reason"] = reason
    values["by_time"] = _far(values["since"], values["until"]) or _far(values["ended_since"], values["ended_until"])
    return values


def _far(since: Any, until: Any) -> bool:
    """Is there more behind this window of time than in it? A guess that only chooses how to read."""
    return since is not None and until is not None and about_now() - until > until - since


def page_size(limit: int) -> int:
    """A limit. UsageError."""
    given = cast("object", limit)
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MOST:
        raise UsageError(f"limit={limit!r}: from 1 to {MOST:,}.")
    return given


def cursor(kind: str, *place: object) -> str:
    """Where a page ended: opaque to users."""
    return "~".join([kind, *map(str, place)])


def place(cursor: str | None, kind: str, *of: type) -> tuple[Any, ...]:
    """What `cursor` holds; Nones for no cursor. UsageError for one of another list."""
    if cursor is None:
        return (None,) * len(of)
    try:
        found, *parts = cursor.split("~")
        if found != kind or len(parts) != len(of):
            raise ValueError
        return tuple(make(part) for make, part in zip(of, parts, strict=True))
    except (ValueError, AttributeError):
        raise UsageError(f"after={cursor!r}: the `next` of a page of the same list is needed.") from None


def page(rows: list[T], limit: int, place_of: Callable[[T], str]) -> Page[T]:
    """A page of what was read with one row more than asked for: whether there is more is known, not guessed."""
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, place_of(rows[-1]) if more else None)
