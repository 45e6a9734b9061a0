"""What the tests of defects share: waiting until somebody waits, and a gate inside a COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker

Connection = AsyncConnection[Any]
TIMEOUT = 20.0
"""Seconds after which something hangs; nothing here takes as long."""
_BLOCKED = (
    "select count(*) from pg_stat_activity"
    " where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0 and backend_type = 'client backend'"
)
_GATE = """
create table public.gate (n integer);
create function public.wait_at_commit() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared(77);
    return null;
end $$;
create constraint trigger at_commit after insert on public.gate deferrable initially deferred
for each row execute function public.wait_at_commit();
"""
"""Whoever writes into it has written everything else, and stands in the midst of its COMMIT as long as the lock is held."""


class Number(BaseModel):
    n: int = 0


class Pair(BaseModel):
    first: Blocker[Number]
    second: Blocker[Number]


class After(BaseModel):
    number: Blocker[Number]


async def one(db: Connection, query: str, *parameters: object) -> Any:
    """The only value that a query gives."""
    row = await (await db.execute(query.encode(), parameters)).fetchone()
    assert row is not None
    return row[0]


async def until_blocked(db: Connection, count: int = 1, unless: asyncio.Task[Any] | None = None) -> None:
    """Until so many connections wait for a lock that somebody holds, or this task is done without having to wait."""
    async with asyncio.timeout(TIMEOUT):
        while await one(db, _BLOCKED) < count and (unless is None or not unless.done()):
            pass


@asynccontextmanager
async def closed_gate(db: Connection) -> AsyncGenerator[None]:
    """Inside the block, transactions that wrote into public.gate cannot commit. `db` is an autocommit connection."""
    await db.execute(_GATE.encode())
    await db.execute("select pg_advisory_lock(77)")
    try:
        yield
    finally:
        await db.execute("select pg_advisory_unlock(77)")


@asynccontextmanager
async def held(dsn: str, query: str, *parameters: object) -> AsyncGenerator[None]:
    """Inside the block, an open transaction of somebody's holds what this statement locks."""
    async with await AsyncConnection.connect(dsn) as holder:
        await holder.execute(query.encode(), parameters)
        yield
        await holder.rollback()
