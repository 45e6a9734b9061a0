"""What the tests of control share: a handler that can be held, and what it saw when it was aborted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from queuert_py import Engine, Job, Worker

T = TypeVar("T")
LONG = 300.0
"""Seconds of a lease that is first renewed after a hundred: what comes before that was told by a hint."""


class Number(BaseModel):
    n: int


class Runs:
    """Signals of a handler: it has begun, it may go on, it has ended; and what it was told."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self.reasons: list[object] = []
        self.errors: list[BaseException] = []

    async def hold(self, job: Job[Any, Any]) -> None:
        """Wait inside a handler until the test says go on; note why, if it is aborted before."""
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.reasons.append(job.abort_reason)
            raise
        finally:
            self.ended.set()


async def patiently(attempt: Callable[[float], Awaitable[T | None]]) -> T:
    """What this gives for a span of time which has to end: on a busy machine a short one may be over before anything has begun (None)."""
    for seconds in (0.2, 2.0, 20.0):
        found = await attempt(seconds)
        if found is not None:
            return found
    raise AssertionError("nothing has begun, however long it took")


def time_out(worker: Worker) -> None:
    """The time of whatever this worker runs is over, now: what the timer of a timeout does, but not before the handler is there."""
    for attempt in worker._held():
        attempt.abort("timeout", worker.grace)


async def until_blocked(engine: Engine) -> None:
    """Until some connection to the engine's database waits for a lock that another one holds."""
    blocked = b"select from pg_stat_activity where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0"
    async with engine.database.connection() as connection:
        while await (await connection.execute(blocked)).fetchone() is None:
            await asyncio.sleep(0)
