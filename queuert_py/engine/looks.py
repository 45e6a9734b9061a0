"""Looking at sequences and jobs."""

from __future__ import annotations

from uuid import UUID

from queuert_py.engine.core import Core
from queuert_py.errors import SequenceNotFoundError
from queuert_py.ids import lane_of
from queuert_py.job import Tx
from queuert_py.values import AttemptRecord, JobRecord, SequenceRecord, Status


class Looks(Core[Tx]):
    """The verbs that look and change nothing."""

    async def get_sequence(self, id: UUID, /) -> SequenceRecord:
        """Where a sequence stands. SequenceNotFoundError."""
        database = await self._db()
        found = await database.run(database.store.read_sequence(lane_of(id, database.store.lanes), id))
        if not found:
            raise SequenceNotFoundError(f"sequence {id} does not exist.")
        return found[0]

    async def list_sequences(
        self, *, status: Status | None = None, type: str | None = None, key: str | None = None, limit: int = 100
    ) -> list[SequenceRecord]:
        """Sequences, newest first (failed ones: those that failed last)."""
        database = await self._db()
        if status == "failed":
            return await database.run(database.store.list_failed(type=type, key=key, limit=limit))
        return await database.run(database.store.list_sequences(status=status, type=type, key=key, limit=limit))

    async def list_jobs(self, id: UUID, /) -> list[JobRecord]:
        """The jobs of a sequence, in order; [] when it does not exist."""
        database = await self._db()
        return await database.run(database.store.list_jobs(lane_of(id, database.store.lanes), id))

    async def list_attempts(self, id: UUID, /) -> list[AttemptRecord]:
        """The attempts of a sequence that did not succeed, oldest first."""
        database = await self._db()
        return await database.run(database.store.list_attempts(lane_of(id, database.store.lanes), id))
