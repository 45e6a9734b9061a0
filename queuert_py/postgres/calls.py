"""A statement as a value, run by whoever waits for it: async, sync, several in a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import tuple_row

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Call(Generic[Row]):
    """A statement with its parameters, and what makes a row of its answer."""

    sql: bytes
    parameters: Mapping[str, object]
    make: Callable[[tuple[Any, ...]], Row]
    prepared: bool = True
    """False: planned anew each time, for the values it is given."""

    async def on(self, connection: AsyncConnection[Any]) -> list[Row]:
        """Run it here. Prepared; binary answer; whatever the connection's own row factory."""
        async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(self.sql, self.parameters, prepare=self.prepared, binary=True)
            return [self.make(row) for row in await cursor.fetchall()] if cursor.description else []

    def on_sync(self, connection: Connection[Any]) -> list[Row]:
        """As `on`, for a sync connection."""
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(self.sql, self.parameters, prepare=self.prepared, binary=True)
            return [self.make(row) for row in cursor.fetchall()] if cursor.description else []


async def together(connection: AsyncConnection[Any], *calls: Call[Any]) -> list[list[Any]]:
    """Run several statements in one round trip; the first that fails is raised and those behind it are not executed."""
    cursors: list[AsyncCursor[tuple[Any, ...]]] = []
    async with connection.pipeline():
        for call in calls:
            cursor = AsyncCursor(connection, row_factory=tuple_row)
            cursors.append(cursor)
            await cursor.execute(call.sql, call.parameters, prepare=call.prepared, binary=True)
    answers: list[list[Any]] = []
    for call, cursor in zip(calls, cursors, strict=True):
        answers.append([call.make(row) for row in await cursor.fetchall()] if cursor.description else [])
    return answers


def plain(sql: str) -> Call[tuple[Any, ...]]:
    """A statement without parameters or tables (BEGIN, COMMIT)."""
    return Call(sql.encode(), {}, tuple)


BEGIN = plain("begin isolation level read committed")
COMMIT = plain("commit")
READ_COMMITTED = plain("set transaction isolation level read committed")
PING = plain("select 1")
SAVEPOINT, UNDO, RELEASE = (plain(f"{verb} savepoint queuert") for verb in ("", "rollback to", "release"))
"""Of a plan that may have to let go of what it wrote, in whoever's transaction it runs."""
