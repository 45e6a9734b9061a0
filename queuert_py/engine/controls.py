"""Changing what was started."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from queuert_py.engine.core import Core
from queuert_py.ids import lane_of
from queuert_py.job import Tx
from queuert_py.postgres import rows
from queuert_py.postgres.listener import hint
from queuert_py.postgres.store import together


class Controls(Core[Tx]):
    """The verbs that change what was started."""

    async def retry_sequences(self, ids: Iterable[UUID], /) -> list[UUID]:
        """Run failed sequences again from the job that failed, with all attempts; those that were (not failed, or key taken: left)."""
        database = await self._db()
        parts = [rows.sequence_row(str(id), lane_of(id, database.store.lanes)) for id in ids]

        async def work(connection: AsyncConnection[Any]) -> list[tuple[int, str, str, int, str]]:
            async with connection.transaction():
                revived = await database.store.revive_failed(parts).on(connection)
                moved = [rows.sequence_row(id, lane) for lane, id, *_ in revived]
                await together(connection, database.store.move_failed(moved))
                return revived

        revived = await database.retrying(work)
        for worker in self._workers:
            worker.look()
        self._notifier.send(hint(lane, queue, priority) for lane, _, queue, priority, _ in revived)
        return [UUID(id) for _, id, *_ in revived]
