"""Starting sequences: any number at once, exactly once each, first of a key wins."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, sql

from queuert_py.decisions.faults import Fault
from queuert_py.errors import BlockerError, DuplicateIdError, DuplicateKeyError, SequenceBusyError, SequenceNotFoundError, UsageError
from queuert_py.ids import lane_of
from queuert_py.options import span
from queuert_py.postgres import blocking, rows
from queuert_py.postgres.calls import RELEASE, SAVEPOINT, UNDO, Call
from queuert_py.postgres.database import DEADLINE, Database, fault_of
from queuert_py.postgres.plans import Carrier, Plan, carry_out
from queuert_py.postgres.store import Store
from queuert_py.values import BlockerPolicy, Dedup, LiveJob

T = TypeVar("T")
COPY_FROM = 500
CHUNK, BYTES = 1000, 16_000_000
"""The most starts, and about the most bytes of input, of one statement."""
ISOLATION = Call(b"show transaction_isolation", {}, lambda row: str(row[0]))
TRIES = 5
"""How often a key is tried again whose holder ended while it was looked for, before holders are waited for as well."""
_COPIED = (
    "lane",
    "sequence_id",
    "job_id",
    "root_id",
    "origin_id",
    "sequence_type",
    "type",
    "queue",
    "priority",
    "correlation_id",
    "max_attempts",
    "input",
)


@dataclass(slots=True)
class Start:
    """One sequence to be started: its fields (JSON-able, `lane` and `sequence_id` among them), its input as JSON."""

    id: str
    lane: int
    fields: dict[str, Any]
    input: str
    key: str | None
    own_id: bool
    dedup: Dedup | None = None
    blockers: Sequence[str] = ()
    policy: BlockerPolicy = "hold"
    sealed: bool = False

    @property
    def row(self) -> str:
        return rows.start_row(self.fields, self.input)

    @property
    def repeat_row(self) -> str:
        """The row for find_repeats. A sealed input may be stored as another text each time: then the type alone tells."""
        return rows.start_row(self.fields, "null") if self.sealed else self.row

    @property
    def place(self) -> tuple[int, str, bool, str]:
        """Where it stands among others that are inserted, as insert_sequences sorts them: batches meet each other in one order."""
        return self.lane, self.fields["type"], self.key is None, self.key or self.id

    @property
    def replaces(self) -> bool:
        return self.dedup is not None and self.dedup.on_match == "replace"

    @property
    def lasting(self) -> bool:
        """Do finished sequences hold its key as well?"""
        return self.dedup is not None and self.dedup.scope == "all"

    def key_row(self, number: int) -> str:
        """The row for find_keys, find_holders and release_key."""
        window = span(self.dedup.window, "window") if self.dedup is not None else None
        more = {"ordinal": number, "lasting": self.lasting, "window": f"{window.total_seconds():.6f} seconds" if window else None}
        return rows.key_row(self.lane, self.fields["type"], self.key, **more)


@dataclass(slots=True)
class Own:
    """The job in whose own transaction something is started. `completing`: it ends there. `released`: the type and key of its sequence,
    if one of the starts has taken the key over."""

    job: LiveJob
    completing: bool
    released: tuple[str, str] | None = None


Outcome = tuple[str, bool]
"""The id that answers a start, and whether it was there before."""


async def start(database: Database, starts: Sequence[Start], *, repeat: bool = False) -> list[Outcome]:
    """Start them in a transaction of the engine's own, tried again when the answer was lost: ids are known, so a repeat is no second."""

    async def work(connection: AsyncConnection[Any], again: bool) -> list[Outcome]:
        return await _start(database, connection, starts, repeat=repeat or again)

    return await repeated(database, starts, work)


async def repeated(database: Database, starts: Sequence[Start], work: Callable[[AsyncConnection[Any], bool], Awaitable[T]]) -> T:
    """Do `work`, which starts these, as often as it takes; it is told whether it has been tried before. DatabaseUnavailableError;
    SequenceBusyError when somebody's open transaction has one of the keys."""
    tried = 0

    async def once(connection: AsyncConnection[Any]) -> T:
        nonlocal tried
        tried += 1
        return await work(connection, tried > 1)

    async def several() -> T:
        try:
            return await database.retrying(once, DEADLINE + len(starts) / 1000 + sum(len(each.input) for each in starts) / BYTES)
        except SequenceBusyError as error:
            keys = [each.key for each in starts if each.key]
            if not keys:
                raise
            names = ", ".join(map(repr, keys[:5])) + (", …" if len(keys) > 5 else "")
            what = f"the key {names}" if len(keys) == 1 else f"one of the keys {names}"
            said = f"{what} is being started, or let go, by another transaction, which does not end"
            raise SequenceBusyError(f"{said}: commit it or roll it back. Nothing was started.", keys=keys) from error

    return await blocking.marking(database, several, dict.fromkeys(id for each in starts for id in each.blockers))


class _NotPlain(Exception):  # noqa: N818 - a signal
    """A start with blockers among those that are being copied."""


async def stream(database: Database, chunks: Iterator[list[Start]]) -> list[Outcome]:
    """Copy plain starts straight in while they are still being checked; one that is refused ends the COPY, and nothing is written.

    If the connection fails, or one has blockers, all are started by `start`, as what may be a repeat.
    """
    starts: list[Start] = []
    connection: AsyncConnection[Any] | None = None
    try:
        async with database.connection() as connection:
            table, columns = sql.Identifier(database.schema, "live_job"), sql.SQL(", ").join(map(sql.Identifier, _COPIED))
            async with connection.cursor() as cursor, cursor.copy(sql.SQL("copy {} ({}) from stdin").format(table, columns)) as copy:
                for chunk in chunks:
                    starts += chunk
                    if any(each.blockers for each in chunk):
                        raise _NotPlain
                    await copy.write("".join(map(_line, chunk)))
    except (psycopg.Error, OSError, _NotPlain) as error:
        if not isinstance(error, _NotPlain) and fault_of(error, connection) in (None, Fault.BROKEN):
            raise
        for chunk in chunks:
            starts += chunk
        return await start(database, starts, repeat=not isinstance(error, _NotPlain))
    return [(each.id, False) for each in starts]


async def start_in(
    database: Database,
    connection: Carrier,
    starts: Sequence[Start],
    hints: Sequence[str],
    own: Own | None = None,
) -> list[Outcome]:
    """Start them in the caller's transaction, with the hint as part of it."""
    first = dict.fromkeys(id for each in starts for id in each.blockers) if own is None else ()
    work = partial(joined, database, starts, hints, own)
    return await blocking.marking(database, lambda: carry_out(work(), connection), first, patience=blocking.PATIENCE_INSIDE)


def joined(database: Database, starts: Sequence[Start], hints: Sequence[str], own: Own | None = None) -> Plan[list[Outcome]]:
    """What `start_in` does. NotWatched: mark these blockers apart, and begin again; nothing has been written."""
    store = database.store
    if any(each.own_id or each.lasting or (each.blockers and each.replaces) for each in starts):
        level = (yield ISOLATION)[0]
        if level != "read committed":
            raise UsageError(
                f"id=, a Dedup of scope 'all', and one that replaces blockers cannot be used in a {level} transaction: what they meet "
                "may be invisible. Use READ COMMITTED."
            )
    for each in starts:
        each.fields["watched"] = True  # a later start in this transaction may wait for it, and nobody else could mark it
    if own is not None and any(own.job.sequence_id in each.blockers for each in starts):
        yield store.watch_self(own.job)
    try:
        outcomes = yield from _succeeding(store, starts, own)
    except blocking.NotWatched:
        level = (yield ISOLATION)[0]
        if level != "read committed":  # its snapshot is older than the mark, and always will be
            raise BlockerError(f"a blocker has changed since this {level} transaction began: roll it back, and begin it again.") from None
        raise
    yield store.notify(database.channel, hints)
    return outcomes


def _succeeding(store: Store, starts: Sequence[Start], own: Own | None) -> Plan[list[Outcome]]:
    """Start them; in the transaction in which a job completes its sequence's own key is free for one of them, unless they are refused."""
    keyed = [each.key_row(0) for each in starts if each.key]
    if own is None or not own.completing or not keyed:
        return (yield from careful(store, starts, repeat=False))
    released: list[tuple[str, str]] = yield store.release_key(own.job, keyed)
    try:
        outcomes = yield from careful(store, starts, repeat=False)
    except (blocking.NotWatched, UsageError, SequenceNotFoundError):
        for _, key in released:
            yield store.restore_key(own.job, key)
        raise
    own.released = released[0] if released else None
    return outcomes


async def _start(database: Database, connection: AsyncConnection[Any], starts: Sequence[Start], *, repeat: bool) -> list[Outcome]:
    plain = not any(each.own_id or each.key or each.blockers for each in starts)
    if plain and not repeat and len(list(_portions(starts))) == 1:
        await database.store.insert_sequences(each.row for each in starts).on(connection)
        return [(each.id, False) for each in starts]
    only = starts[0]
    if len(starts) == 1 and not repeat and not (only.own_id or only.blockers or (only.dedup and only.dedup != Dedup(only.dedup.key))):
        return await carry_out(careful(database.store, starts, repeat=False), connection)
    async with connection.transaction():
        return await carry_out(careful(database.store, starts, repeat=repeat), connection)


def _portions(starts: Iterable[Start]) -> Iterator[list[Start]]:
    """As many at a time as one statement takes."""
    portion, size = list[Start](), 0
    for each in starts:
        if portion and (len(portion) == CHUNK or size + len(each.input) > BYTES):
            yield portion
            portion, size = [], 0
        portion.append(each)
        size += len(each.input)
    if portion:
        yield portion


def careful(store: Store, starts: Sequence[Start], *, repeat: bool) -> Plan[list[Outcome]]:
    """Insert, then look: what was not inserted is held by its key or repeats an id; what repeats a finished one is undone.

    Whoever waits for a key holds no blockers, and no other key out of order: so that no two starts wait for each other.
    """
    blocked = [each for each in starts if each.blockers]
    exclusive = repeat or any(each.key or each.own_id for each in starts)
    saved = exclusive and (bool(blocked) or len(starts) > 1)
    standing: blocking.Standing = {}
    replaces = any(each.blockers and each.replaces for each in starts)
    if replaces:  # new edges of one that exists: this lock comes before all others
        yield from blocking.alone(store)
    if blocked and not exclusive:
        standing = yield from blocking.stand(store, [id for each in blocked for id in each.blockers])
    for each in blocked:
        each.fields.update(blocking.counts(standing or dict.fromkeys(each.blockers), each.blockers, each.policy))
    if saved:
        yield SAVEPOINT
    try:
        inserted, outcomes = yield from _enter(store, starts, repeat=repeat, saved=saved)
        waiting = [(outcomes.get(number, each.id), each) for number, each in enumerate(starts) if each.blockers]
        waiting = [(id, each) for id, each in waiting if id in inserted or each.replaces]
        if waiting and exclusive:  # before a holder is: whoever ends a blocker wants its dependents next
            standing = yield from blocking.stand(store, [id for _, each in waiting for id in each.blockers])
        new = inserted | (yield from _replace(store, starts, outcomes))
        waiting = [(id, each) for id, each in waiting if id in new]
        replaced = [(id, each) for id, each in waiting if id not in inserted]
        if waiting and exclusive:
            yield store.set_waits([_waits(id, each, standing) for id, each in waiting])
        for id, each in replaced:
            blocking.check(each.blockers, id, f"replacing {id}")
            yield from blocking.refuse_ring(store, id, each.blockers, f"replacing {id}")
    except (blocking.NotWatched, UsageError, SequenceNotFoundError):
        if saved:
            yield UNDO
        raise
    if waiting:
        edges = [blocking.edges(store, standing, (each.lane, id, 0), each.blockers, each.policy) for id, each in waiting]
        yield store.insert_blockers([part for parts in edges for part in parts])
    if saved:
        yield RELEASE
    return [(outcomes.get(number, each.id), _found(each, outcomes.get(number), inserted)) for number, each in enumerate(starts)]


def _found(each: Start, outcome: str | None, inserted: set[str]) -> bool:
    """Was it there before? Not where only an answer of ours was lost."""
    return outcome not in (None, each.id) or (each.own_id and each.id not in inserted)


def _waits(id: str, each: Start, standing: blocking.Standing) -> str:
    return rows.start_row({"lane": each.lane, "sequence_id": id, **blocking.counts(standing, each.blockers, each.policy)}, "null")


def _enter(store: Store, starts: Sequence[Start], *, repeat: bool, saved: bool) -> Plan[tuple[set[str], dict[int, str]]]:
    """The ids that were inserted, and by number which sequence answers each other start. DuplicateKeyError, DuplicateIdError."""
    order = sorted(range(len(starts)), key=lambda number: starts[number].place)
    keyed = [number for number in order if starts[number].key]
    doubtful = [starts[number] for number in order if repeat or starts[number].own_id]
    inserted: set[str] = set()
    for tried in itertools.count():
        last = tried == TRIES or (tried > 0 and not saved)
        plain = [number for number in order if not (last and starts[number].key)]
        for portion in _portions(starts[number] for number in plain):
            inserted |= set((yield store.insert_sequences([each.row for each in portion])))
        if last:  # waits for the holders' rows as well, and cannot lose
            for portion in _portions(starts[number] for number in keyed):
                joined = yield store.insert_or_join([each.row for each in portion])
                inserted |= {each.id for each in portion} & {id for id, _ in joined}
        outcomes: dict[int, str] = {}
        if doubtful:
            inserted -= set((yield store.undo_starts([rows.sequence_row(each.id, each.lane) for each in doubtful])))
            same: dict[str, bool] = {}
            for portion in _portions(doubtful):
                same.update((yield store.find_repeats([each.repeat_row for each in portion])))
            _refuse_repeats(starts, same, inserted)
            outcomes = {number: starts[number].id for number in order if starts[number].id in same and starts[number].id not in inserted}
        others = [number for number in keyed if starts[number].id not in inserted and number not in outcomes]
        if others:
            outcomes.update((yield store.find_keys([starts[number].key_row(number) for number in others])))
        yield from _find_holders(store, starts, [number for number in keyed if number not in outcomes], inserted, outcomes)
        if not any(number not in outcomes for number in others):
            _refuse_keys(starts, outcomes)
            return inserted, outcomes
        if saved:  # the winner of a key has ended meanwhile: let go of the others, so that nobody waits for them while we wait
            yield UNDO
            inserted.clear()
    raise AssertionError  # the last try cannot lose


def _refuse_repeats(starts: Sequence[Start], same: Mapping[str, bool], inserted: set[str]) -> None:
    for each in starts:
        if same.get(each.id) is False and each.id not in inserted:
            raise DuplicateIdError(f"a sequence {each.id} exists, of another type or input: give it another id.", id=each.id)


def _refuse_keys(starts: Sequence[Start], outcomes: Mapping[int, str]) -> None:
    for number, found in outcomes.items():
        each = starts[number]
        if found != each.id and each.dedup is not None and each.dedup.on_match == "raise":
            raise DuplicateKeyError(f"the key {each.key!r} is held by sequence {found}.", id=found, key=each.key)


def _find_holders(
    store: Store, starts: Sequence[Start], numbers: Sequence[int], inserted: set[str], outcomes: dict[int, str]
) -> Plan[None]:
    """Finished sequences that hold the keys of these: what was inserted all the same is undone."""
    lasting = [number for number in numbers if starts[number].lasting]
    held: dict[int, str] = dict((yield store.find_holders([starts[number].key_row(number) for number in lasting]))) if lasting else {}
    undone = [starts[number] for number in held if starts[number].id in inserted]
    if undone:
        yield store.undo_keyed([rows.sequence_row(each.id, each.lane) for each in undone])
        inserted.difference_update(each.id for each in undone)
    outcomes.update(held)


def _replace(store: Store, starts: Sequence[Start], outcomes: Mapping[int, str]) -> Plan[set[str]]:
    """Those that wait give way to what was started with their key (`on_match="replace"`); the ids of those that did."""
    holders = {
        each.id: outcomes[number] for number, each in enumerate(starts) if each.replaces and outcomes.get(number, each.id) != each.id
    }
    replaced: set[str] = set()
    if holders:
        parts = {id: rows.sequence_row(id, lane_of(id, store.lanes)) for id in holders.values()}
        if any(each.blockers and each.replaces for each in starts):  # has the lock of the edges: not waited for, see lock_free
            free = yield store.lock_free(parts.values())
            others = [part for id, part in parts.items() if id not in free]
            held = [parts[id] for id, live, *_ in (yield store.read_blockers(others)) if live] if others else []
            if held:
                raise blocking.NotWatched(held)
        else:
            yield store.lock_jobs(parts.values())
    for portion in _portions(each for each in starts if each.id in holders):
        wanted = [rows.start_row({**each.fields, "holder": holders[each.id]}, each.input) for each in portion]
        replaced |= set((yield store.replace_waiting(wanted)))
    if replaced:
        yield store.delete_blockers([rows.sequence_row(id, lane_of(id, store.lanes)) for id in sorted(replaced)])
    return replaced


def _line(each: Start) -> str:
    field = each.fields.get
    id = each.id
    how = _how(field("origin_id"), field("type"), field("queue"), field("priority"), field("correlation_id"), field("max_attempts"))
    return f"{each.lane}\t{id}\t{id}\t{field('root_id') or id}\t{how}\t{_text(each.input)}\n"


@lru_cache(64)
def _how(origin: str | None, type: str, queue: str, priority: int, correlation_id: str | None, max_attempts: int | None) -> str:
    """The columns in which the rows of a batch are mostly alike."""
    return "\t".join(map(_text, (origin, type, type, queue, priority, correlation_id, max_attempts)))


def _text(value: object) -> str:
    if value is None:
        return r"\N"
    text = str(value)
    if "\\" in text or "\t" in text or "\n" in text or "\r" in text:
        text = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return text
