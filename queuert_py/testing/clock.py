"""Time travel: the clock of a test's schema, which every statement of every engine on it reads instead of the server's."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import sql
from psycopg.errors import UndefinedFunction

from queuert_py import Engine
from queuert_py.errors import UsageError
from queuert_py.options import instant, span
from queuert_py.runtime.leases import presence_class
from queuert_py.values import Duration

_NOW: LiteralString = "select {schema}.virtual_now()"
_MOVE: LiteralString = (
    "update {schema}.setting set value = to_jsonb(((value #>> '{{}}')::interval + %(span)s)::text) where name = 'clock' "
    "returning {schema}.virtual_now()"
)
_RENEW: LiteralString = (
    "update {schema}.live_job l set leased_until = l.leased_until + %(span)s "
    "from (select lane, sequence_id from {schema}.live_job where leased_by = any(%(workers)s) "
    "order by lane, sequence_id for no key update skip locked) held "
    "where l.lane = held.lane and l.sequence_id = held.sequence_id"
)
_NEXT: LiteralString = (
    "select min(due.at) from {schema}.live_job l cross join lateral (values "
    "(case when l.leased_by is null and l.open_blockers = 0 then l.run_at end), "
    "(case when l.leased_by <> all(%(workers)s) then l.leased_until end), "
    "(case when l.leased_by is null then least(l.expires_at, l.deadline_at) end)) due (at) "
    "where due.at > {schema}.virtual_now()"
)


class VirtualClock:
    """The clock of an engine on a test database (fixture `queuert`). It goes on like the server's, and can be moved ahead.

    Everything that the engine decides by time follows: delays, retries, leases, expiry, deadlines, dedup windows, sleeps, schedules. What
    runs in a handler does not: `timeout` of an attempt, `asyncio.sleep`, `datetime.now()`.
    """

    def __init__(self, engine: Engine[Any]) -> None:
        self._engine = engine

    async def now(self) -> datetime:
        """What time it is there."""
        at: datetime = await self._ask(_NOW)
        return at

    async def advance(self, duration: Duration) -> datetime:
        """Move it ahead; what time it is then. Workers that live keep their leases, as they would have renewed them; those of dead ones
        end. Workers of this engine look at once for what has become due. UsageError for a step back."""
        step = span(duration, "duration") or timedelta(0)
        live = await self._live()

        at: datetime = await self._ask(_MOVE, {"span": step, "workers": live}, first=_RENEW)
        for worker in self._engine._workers:
            worker.look()
            worker._reaper.hurry()
        return at

    async def advance_to(self, at: datetime) -> datetime:
        """Move it ahead to an instant, if that is ahead."""
        instant(at, "at")
        return await self.advance(max(timedelta(0), at - await self.now()))

    async def next_due(self) -> datetime | None:
        """When something will be due next: a job that waits, a lease of a dead worker, an expiry, a deadline. None: nothing will."""
        at: datetime | None = await self._ask(_NEXT, {"workers": await self._live()})
        return at

    async def _live(self) -> list[str]:
        """The workers that live: of this engine, and those elsewhere whose presence is felt."""
        await self._engine.open()
        database = self._engine.database
        seen = await database.run(database.store.find_absent(presence_class(database.schema)))
        return [*(worker.id for worker in self._engine._workers), *(id for id, free in seen if not free)]

    async def _ask(self, query: LiteralString, values: Mapping[str, object] | None = None, *, first: LiteralString | None = None) -> Any:
        """What a statement answers: one value. `first`: another one before it, in the same transaction."""
        await self._engine.open()
        schema = sql.Identifier(self._engine.database.schema)
        try:
            async with self._engine.database.connection() as connection, connection.transaction():
                if first is not None:
                    await connection.execute(sql.SQL(first).format(schema=schema), values)
                row = await (await connection.execute(sql.SQL(query).format(schema=schema), values)).fetchone()
        except UndefinedFunction:
            raise UsageError("this database has no clock that can be moved: bind the engine with the fixture `queuert`.") from None
        return row[0] if row else None
