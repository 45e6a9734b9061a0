"""Running one handler to its end in this process, and what is then known of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Engine, Job, JobSequence
from queuert_py.values import AttemptRecord, Backoff, SequenceRecord
from tests.faults.kit import PATIENCE, Facts, until

ENDED = ("completed", "failed", "expired")


class In(BaseModel):
    n: int = 0


class Out(BaseModel):
    n: int = 0


Tx = AsyncConnection[Any]
Handler = Callable[[Job[In]], Awaitable[Out]]


class Lab:
    """An engine, and the test's own look at its database. `seen`: the exceptions that handlers met, and whatever else they note."""

    def __init__(self, engine: Engine, facts: Facts) -> None:
        self.engine = engine
        self.facts = facts
        self.seen: list[Any] = []

    async def run(self, handler: Handler, *, max_attempts: int = 3, backoff: Backoff = 0.0, **worker: Any) -> SequenceRecord:
        """One sequence of this handler, by a worker of its own, to its end."""
        job_type = self.engine.job_type("work", max_attempts=max_attempts, backoff=backoff)(handler)
        async with self.engine.worker(**worker):
            sequence = await self.engine.start_sequence(job_type, In())
            return await self.end(sequence)

    async def end(self, sequence: JobSequence[Any], within: float = PATIENCE) -> SequenceRecord:
        async def ended() -> SequenceRecord | None:
            record = await self.engine.get_sequence(sequence.id)
            return record if record.status in ENDED else None

        found = await until(ended, "the sequence to end", within)
        assert found is not None
        return found

    async def attempts(self, record: SequenceRecord) -> list[tuple[int, str, str]]:
        """(attempt, outcome, type of error) of those that did not succeed."""
        found: list[AttemptRecord] = await self.engine.list_attempts(record.id)
        return [(each.attempt, each.outcome, str((each.error or {}).get("type"))) for each in found]

    async def effects(self) -> list[str]:
        return [row[0] for row in await self.facts.rows("select what from effect order by id")]


async def write(tx: Tx, job: Job[Any], what: str) -> None:
    """A row in the handler's transaction; nothing keeps doubles out."""
    await tx.execute("insert into effect (sequence_id, what) values (%s, %s)", [str(job.sequence_id), what])


async def fail(tx: Tx, state: str) -> None:
    """A statement that fails with this SQLSTATE."""
    await tx.execute(f"do $$ begin raise exception 'made up' using errcode = '{state}'; end $$".encode())
