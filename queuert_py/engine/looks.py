"""Looking at sequences and jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import overload
from uuid import UUID

from typing_extensions import Unpack

from queuert_py import options
from queuert_py.engine.core import Core
from queuert_py.errors import JobNotFoundError, SequenceNotFoundError
from queuert_py.ids import lane_of
from queuert_py.job import Tx
from queuert_py.looking import JobFilters, Page, SequenceFilters, checked, cursor, page, page_size, place
from queuert_py.runtime.standing import why
from queuert_py.sequence import SequenceRef
from queuert_py.values import AttemptRecord, JobRecord, LinkRecord, SequenceRecord
from queuert_py.why import Why


class Looks(Core[Tx]):
    """The verbs that look and change nothing."""

    async def get_sequence(self, id: SequenceRef, /) -> SequenceRecord:
        """Where a sequence stands. SequenceNotFoundError."""
        id = options.identifier(id)
        database = await self._db()
        found = await database.run(database.store.read_sequence(lane_of(id, database.store.lanes), id))
        if not found:
            raise SequenceNotFoundError(f"sequence {id} does not exist.", id=id)
        return found[0]

    async def get_job(self, id: UUID, /, *, attempts: bool = False) -> JobRecord:
        """Where a job stands. attempts: also those of its attempts that did not succeed, oldest first. JobNotFoundError."""
        options.uuid(id)
        database = await self._db()
        found = await database.run(database.store.read_job(lane_of(id, database.store.lanes), id))
        if not found:
            raise JobNotFoundError(f"job {id} does not exist.", id=id)
        job = found[0]
        if not attempts:
            return job
        return replace(job, attempts=[each for each in await self.list_attempts(job.sequence_id) if each.position == job.position])

    async def list_sequences(
        self, *, limit: int = 100, after: str | None = None, **filters: Unpack[SequenceFilters]
    ) -> Page[SequenceRecord]:
        """Sequences, newest first (by id: those that the engine made begin with the time). Where a filter is given, all of it must hold.

        limit: of this page (1 to 100,000). after: the `next` of the page before. Pages that follow one another show no sequence twice and
        leave none out that was there (and held) throughout, whatever is started and ends meanwhile. UsageError.
        """
        values, size, last = checked(filters, SequenceFilters), page_size(limit), place(after, "s", UUID)[0]
        database = await self._db()
        call = database.store.list_sequences(values, limit=size + 1, after=last)
        return page(await database.run(call), size, lambda last: cursor("s", last.id))

    @overload
    async def list_jobs(self, id: SequenceRef, /) -> list[JobRecord]: ...
    @overload
    async def list_jobs(self, /, *, limit: int = 100, after: str | None = None, **filters: Unpack[JobFilters]) -> Page[JobRecord]: ...
    async def list_jobs(
        self, id: SequenceRef | None = None, /, *, limit: int = 100, after: str | None = None, **filters: Unpack[JobFilters]
    ) -> list[JobRecord]:
        """The jobs of one sequence, in order ([] if it does not exist); or the jobs of all, newest sequence first, as `list_sequences`."""
        if id is not None:
            id = options.identifier(id)
            database = await self._db()
            return await database.run(database.store.list_jobs(lane_of(id, database.store.lanes), id))
        values, size = checked(filters, JobFilters), page_size(limit)
        last_id, position = place(after, "j", UUID, int)
        database = await self._db()
        call = database.store.find_jobs(values, limit=size + 1, after=last_id, position=position)
        return page(await database.run(call), size, lambda last: cursor("j", last.sequence_id, last.position))

    async def list_attempts(self, id: SequenceRef, /) -> list[AttemptRecord]:
        """The attempts of a sequence that did not succeed, oldest first."""
        id = options.identifier(id)
        database = await self._db()
        return await database.run(database.store.list_attempts(lane_of(id, database.store.lanes), id))

    async def list_blockers(self, id: SequenceRef, /, *, limit: int = 1000, after: str | None = None) -> Page[LinkRecord]:
        """What the jobs of a sequence wait, or waited, for: by the position of the job, then by id. [] when it does not exist."""
        id = options.identifier(id)
        size = page_size(limit)
        last_id, position = place(after, "b", UUID, int)
        database = await self._db()
        lane = lane_of(id, database.store.lanes)
        call = database.store.list_blockers(lane, id, limit=size + 1, after=last_id, position=position)
        return page(await database.run(call), size, lambda last: cursor("b", last.id, last.position))

    async def list_dependents(self, id: SequenceRef, /, *, limit: int = 1000, after: str | None = None) -> Page[LinkRecord]:
        """The jobs that wait, or waited, for a sequence, by their sequence's id. [] when it does not exist."""
        id = options.identifier(id)
        size = page_size(limit)
        last_id, position = place(after, "d", UUID, int)
        database = await self._db()
        lane = lane_of(id, database.store.lanes)
        call = database.store.list_dependents(lane, id, limit=size + 1, after=last_id, position=position)
        return page(await database.run(call), size, lambda last: cursor("d", last.id, last.position))

    async def why(self, id: SequenceRef, /) -> Why:
        """What a sequence waits for, or how it ended: code, sentence, facts, and behind a block its causes. SequenceNotFoundError."""
        id = options.identifier(id)
        return await why(await self._db(), self, id)
