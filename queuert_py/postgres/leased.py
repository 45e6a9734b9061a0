"""Starting a sequence whose first job is somebody's from birth."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from queuert_py.postgres.calls import Call
from queuert_py.postgres.database import Database
from queuert_py.postgres.plans import carry_out
from queuert_py.postgres.starts import Outcome, Start, careful, repeated
from queuert_py.values import LiveJob


async def start_leased(database: Database, start: Start, claim: Call[LiveJob]) -> tuple[Outcome, list[LiveJob]]:
    """Start a sequence and claim its job in one transaction, tried again when the answer was lost: the id, and the claim's token, are
    known. Nothing is claimed when it waits for blockers, its queue is paused, or its key is held: then the outcome says by whom."""

    async def work(connection: AsyncConnection[Any], again: bool) -> tuple[Outcome, list[LiveJob]]:
        async with connection.transaction():
            outcome = (await carry_out(careful(database.store, [start], repeat=again), connection))[0]
            return outcome, await claim.on(connection)

    return await repeated(database, [start], work)
