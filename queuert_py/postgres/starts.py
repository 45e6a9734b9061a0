"""Starting sequences: any number at once, exactly once each, first of a key wins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from queuert_py.decisions.faults import Fault, pause, retries
from queuert_py.errors import DuplicateIdError, UsageError
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database, deadline, fault_of, unreachable
from queuert_py.postgres.store import Call

COPY_FROM = 500
CHUNK = 1000
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

    @property
    def row(self) -> str:
        return rows.start_row(self.fields, self.input)


Outcome = tuple[str, bool]
"""The id that answers a start, and whether it was there before."""


async def start(database: Database, starts: Sequence[Start], *, repeat: bool = False) -> list[Outcome]:
    """Start them in a transaction of the engine's own, tried again when the answer was lost: ids are known, so a repeat is no second."""
    tried = 0
    while True:
        connection: AsyncConnection[Any] | None = None
        try:
            async with database.connection() as connection:
                with deadline(connection, 10.0 + len(starts) / 1000):
                    return await _start(database, connection, starts, repeat=repeat or tried > 0)
        except (psycopg.Error, OSError) as error:
            fault = fault_of(error, connection)
            tried += 1
            if fault is None or fault is Fault.BROKEN:
                raise
            if tried > retries(fault):
                raise unreachable(error, database.conninfo) from error
            await asyncio.sleep(pause(fault, tried, random.random()))


async def stream(database: Database, chunks: Iterator[list[Start]]) -> list[Outcome]:
    """Copy plain starts straight in while they are still being checked; one that is refused ends the COPY, and nothing is written.

    If the connection fails, all are started by `start`, as what may be a repeat.
    """
    starts: list[Start] = []
    connection: AsyncConnection[Any] | None = None
    try:
        async with database.connection() as connection:
            table, columns = sql.Identifier(database.schema, "live_job"), sql.SQL(", ").join(map(sql.Identifier, _COPIED))
            async with connection.cursor() as cursor, cursor.copy(sql.SQL("copy {} ({}) from stdin").format(table, columns)) as copy:
                for chunk in chunks:
                    starts += chunk
                    await copy.write("".join(map(_line, chunk)))
    except (psycopg.Error, OSError) as error:
        if fault_of(error, connection) in (None, Fault.BROKEN):
            raise
        for chunk in chunks:
            starts += chunk
        return await start(database, starts, repeat=True)
    return [(each.id, False) for each in starts]


async def start_in(database: Database, connection: AsyncConnection[Any], starts: Sequence[Start], hints: Sequence[str]) -> list[Outcome]:
    """Start them in the caller's transaction, with the hint as part of it."""
    if any(each.own_id for each in starts):
        level = (await Call(b"show transaction_isolation", {}, lambda row: str(row[0])).on(connection))[0]
        if level != "read committed":
            raise UsageError(
                f"id= cannot be used in a {level} transaction: a finished sequence of this id would be invisible. Use READ COMMITTED."
            )
    outcomes = await _careful(database, connection, starts, repeat=False)
    await database.store.notify(database.channel, hints).on(connection)
    return outcomes


async def _start(database: Database, connection: AsyncConnection[Any], starts: Sequence[Start], *, repeat: bool) -> list[Outcome]:
    plain = not any(each.own_id or each.key for each in starts)
    if plain and not repeat and len(starts) <= CHUNK:
        await database.store.insert_sequences(each.row for each in starts).on(connection)
        return [(each.id, False) for each in starts]
    if len(starts) == 1 and not repeat and not starts[0].own_id:
        return await _careful(database, connection, starts, repeat=False)
    async with connection.transaction():
        return await _careful(database, connection, starts, repeat=repeat)


async def _careful(database: Database, connection: AsyncConnection[Any], starts: Sequence[Start], *, repeat: bool) -> list[Outcome]:
    """Insert, then look: what was not inserted is held by its key or repeats an id; what repeats a finished one is undone."""
    store = database.store
    inserted: set[str] = set()
    for first in range(0, len(starts), CHUNK):
        inserted |= set(await store.insert_sequences(each.row for each in starts[first : first + CHUNK]).on(connection))
    doubtful = [each for each in starts if repeat or each.own_id]
    same: dict[str, bool] = {}
    if doubtful:
        inserted -= set(await store.undo_starts(rows.sequence_row(each.id, each.lane) for each in doubtful).on(connection))
        same = dict(await store.find_repeats(each.row for each in doubtful).on(connection))
    keyed = [(number, each) for number, each in enumerate(starts) if each.key and each.id not in inserted]
    winners: dict[int, str] = {}
    if keyed:
        parts = [rows.start_row({"ordinal": number, **each.fields}, "null") for number, each in keyed]
        winners = dict(await store.find_keys(parts).on(connection))
    outcomes: list[Outcome] = []
    for number, each in enumerate(starts):
        if each.id in inserted:
            outcomes.append((each.id, False))
        elif number in winners:
            outcomes.append((winners[number], winners[number] != each.id))
        elif each.id in same:
            if not same[each.id]:
                raise DuplicateIdError(f"a sequence {each.id} exists, of another type or input: give it another id.", id=each.id)
            outcomes.append((each.id, each.own_id))
        else:  # its winner has ended meanwhile: the key is free, or somebody else's once more
            found = (await store.insert_or_join(each.row).on(connection))[0][0]
            outcomes.append((found, found != each.id))
    return outcomes


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
