"""Starting sequences: any number at once, exactly once each, first of a key wins."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from pydantic_core import to_json

from queuert_py.decisions.faults import Fault, pause, retries
from queuert_py.errors import BlockerError, DuplicateIdError, DuplicateKeyError, SequenceNotFoundError, UsageError
from queuert_py.ids import lane_of
from queuert_py.options import span
from queuert_py.postgres import blocking, rows
from queuert_py.postgres.calls import RELEASE, SAVEPOINT, UNDO, Call
from queuert_py.postgres.database import Database, deadline, fault_of, unreachable
from queuert_py.postgres.plans import Carrier, Plan, carry_out
from queuert_py.postgres.store import Store
from queuert_py.values import BlockerPolicy, Dedup, LiveJob

COPY_FROM = 500
CHUNK = 1000
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
        """The row for find_keys and find_holders."""
        window = span(self.dedup.window, "window") if self.dedup is not None else None
        known = {"ordinal": number, "lane": self.lane, "type": self.fields["type"], "key": self.key}
        return to_json({**known, "window": f"{window.total_seconds():.6f} seconds" if window else None}).decode()


@dataclass(slots=True)
class Own:
    """The job in whose own transaction something is started. `completing`: it ends there. `released`: the key that it let go for it."""

    job: LiveJob
    completing: bool
    released: list[str] = field(default_factory=list[str])


Outcome = tuple[str, bool]
"""The id that answers a start, and whether it was there before."""


async def start(database: Database, starts: Sequence[Start], *, repeat: bool = False) -> list[Outcome]:
    """Start them in a transaction of the engine's own, tried again when the answer was lost: ids are known, so a repeat is no second."""
    tried = 0
    connection: AsyncConnection[Any] | None = None

    async def once() -> list[Outcome]:
        nonlocal connection
        async with database.connection() as connection:
            with deadline(connection, 10.0 + len(starts) / 1000):
                return await _start(database, connection, starts, repeat=repeat or tried > 0)

    while True:
        connection = None
        try:
            return await blocking.marking(database, once, dict.fromkeys(id for each in starts for id in each.blockers))
        except (psycopg.Error, OSError) as error:
            fault = fault_of(error, connection)
            tried += 1
            if fault is None or fault is Fault.BROKEN:
                raise
            if tried > retries(fault):
                raise unreachable(error, database.conninfo) from error
            await asyncio.sleep(pause(fault, tried, random.random()))


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
    connection: AsyncConnection[Any] | Carrier,
    starts: Sequence[Start],
    hints: Sequence[str],
    own: Own | None = None,
) -> list[Outcome]:
    """Start them in the caller's transaction, with the hint as part of it."""
    first = dict.fromkeys(id for each in starts for id in each.blockers) if own is None else ()
    return await blocking.marking(database, lambda: carry_out(joined(database, starts, hints, own), connection), first)


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
    if own is not None:
        for type_ in dict.fromkeys(each.fields["type"] for each in starts if each.key and own.completing):
            keys = [each.key for each in starts if each.key and each.fields["type"] == type_]
            own.released += yield store.release_key(own.job, type_, keys)
        if any(own.job.sequence_id in each.blockers for each in starts):
            yield store.watch_self(own.job)
    try:
        outcomes = yield from careful(store, starts, repeat=False)
    except blocking.NotWatched:
        level = (yield ISOLATION)[0]
        if level != "read committed":  # its snapshot is older than the mark, and always will be
            raise BlockerError(f"a blocker has changed since this {level} transaction began: roll it back, and begin it again.") from None
        raise
    yield store.notify(database.channel, hints)
    return outcomes


async def _start(database: Database, connection: AsyncConnection[Any], starts: Sequence[Start], *, repeat: bool) -> list[Outcome]:
    plain = not any(each.own_id or each.key or each.blockers for each in starts)
    if plain and not repeat and len(starts) <= CHUNK:
        await database.store.insert_sequences(each.row for each in starts).on(connection)
        return [(each.id, False) for each in starts]
    only = starts[0]
    if len(starts) == 1 and not repeat and not (only.own_id or only.blockers or (only.dedup and only.dedup != Dedup(only.dedup.key))):
        return await carry_out(careful(database.store, starts, repeat=False), connection)
    async with connection.transaction():
        return await carry_out(careful(database.store, starts, repeat=repeat), connection)


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
        new = inserted | (yield from _replace(store, starts, outcomes))
        waiting = [(outcomes.get(number, each.id), each) for number, each in enumerate(starts) if each.blockers]
        waiting = [(id, each) for id, each in waiting if id in new]
        replaced = [(id, each) for id, each in waiting if id not in inserted]
        if waiting and exclusive:
            standing = yield from blocking.stand(store, [id for _, each in waiting for id in each.blockers])
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
        for first in range(0, len(plain), CHUNK):
            inserted |= set((yield store.insert_sequences([starts[number].row for number in plain[first : first + CHUNK]])))
        if last:  # waits for the holders' rows as well, and cannot lose
            own = {starts[number].id for number in keyed}
            joined = yield store.insert_or_join([starts[number].row for number in keyed])
            inserted |= own & {id for id, _ in joined}
        outcomes: dict[int, str] = {}
        if doubtful:
            inserted -= set((yield store.undo_starts([rows.sequence_row(each.id, each.lane) for each in doubtful])))
            same = dict((yield store.find_repeats([each.repeat_row for each in doubtful])))
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
    wanted = [
        rows.start_row({**each.fields, "holder": outcomes[number]}, each.input)
        for number, each in enumerate(starts)
        if each.replaces and outcomes.get(number, each.id) != each.id
    ]
    replaced: set[str] = set((yield store.replace_waiting(wanted))) if wanted else set()
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
