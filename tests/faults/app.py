"""The worker that the fault tests kill, stop and starve: `python -m tests.faults.app`, set up by QUEUERT_DSN and QUEUERT_FAULTS."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Job, JobTypes, continue_with
from queuert_py.decisions.pace import Pace
from queuert_py.runtime import patience

Stage = Literal["before", "inside", "after", "atomic", "nowhere"]


class Setup(BaseModel):
    """lease, concurrency, pool: the worker's. hold: handlers wait at their input's stage until the file `gate` is there.
    history: note each start. ahead: so many jobs are claimed beyond the slots, as if as many had ended just now, and kept."""

    lease: float = 30.0
    concurrency: int = 50
    hold: bool = False
    gate: str = "/nowhere"
    history: bool = True
    name: str = "worker"
    poll: float = 1.0
    pool: int = 10
    ahead: int = 0


class Work(BaseModel):
    tag: str = ""
    stage: Stage = "nowhere"


class Done(BaseModel):
    tag: str = ""


setup = Setup.model_validate_json(os.environ.get("QUEUERT_FAULTS", "{}"))
jobs: JobTypes[AsyncConnection[Any]] = JobTypes()
_history: list[AsyncConnection[Any]] = []


async def note(job: Job[Any], event: str) -> None:
    """A row of history, on a connection of its own that commits at once."""
    if setup.history:
        if not _history:
            _history.append(await AsyncConnection.connect(os.environ["QUEUERT_DSN"], autocommit=True))
        await _history[0].execute(
            "insert into history (sequence_id, attempt, event, pid) values (%s, %s, %s, %s)",
            [str(job.sequence_id), job.attempt, event, os.getpid()],
        )


async def effect(tx: AsyncConnection[Any], job: Job[Any], what: str) -> None:
    """A row in the handler's transaction; nothing keeps doubles out, so that they show."""
    await tx.execute("insert into effect (sequence_id, what, pid) values (%s, %s, %s)", [str(job.sequence_id), what, os.getpid()])


async def at(stage: Stage, job: Job[Work]) -> None:
    if setup.hold and job.input.stage == stage:
        await note(job, "held")
        while not Path(setup.gate).exists():
            await asyncio.sleep(0.01)
        await note(job, "late")


@jobs.job_type(backoff=0)
async def work(job: Job[Work]) -> Done:
    await note(job, "start")
    await at("before", job)
    async with job.finalize() as tx:
        await effect(tx, job, "work")
        await at("inside", job)
    await at("after", job)
    return Done(tag=job.input.tag)


@jobs.job_type
async def whole(job: Job[Work]) -> Done:
    await note(job, "start")
    async with job.atomic() as tx:
        await effect(tx, job, "work")
        await at("atomic", job)
    return Done(tag=job.input.tag)


@jobs.job_type
async def first(job: Job[Work]) -> Continuation[Done]:
    async with job.finalize() as tx:
        await effect(tx, job, "first")
    return continue_with(second, job.input)


@jobs.job_type(internal=True)
async def second(job: Job[Work]) -> Done:
    async with job.finalize() as tx:
        await effect(tx, job, "second")
    return Done(tag=job.input.tag)


@jobs.job_type("poison", backoff=0)
async def poison_now(job: Job[Work]) -> None:
    await note(job, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@jobs.job_type
async def block(job: Job[Work]) -> Done:
    await note(job, "start")
    time.sleep(3 * setup.lease)  # what a handler must not do: the whole event loop stands
    async with job.finalize() as tx:
        await effect(tx, job, "work")
    return Done()


@jobs.job_type
async def noop(job: Job[Work]) -> Done:
    return Done(tag=job.input.tag)


@jobs.job_type(backoff=0)
async def slow_noop(job: Job[Work]) -> Done:
    """Runs a moment, so that some are always in flight."""
    await note(job, "start")
    await asyncio.sleep(0.05)
    async with job.finalize() as tx:
        await effect(tx, job, "work")
    return Done()


@jobs.job_type(backoff=0)
async def travel(job: Job[Work]) -> Done:
    """What is kept across attempts: a step, a sleep, an event, another step."""
    await job.step("pack", lambda: note(job, "packed"))
    await at("before", job)
    await job.sleep(0.1)
    place = await job.wait_for_event("place", type=str)
    await at("inside", job)
    await job.step("arrive", lambda: note(job, "arrived"))
    await at("after", job)
    return Done(tag=place)


class Gather(BaseModel):
    pieces: Sequence[Blocker[Done]]


class Count(BaseModel):
    count: int


@jobs.job_type
async def gather(job: Job[Gather]) -> Count:
    async with job.finalize() as tx:
        await effect(tx, job, "gather")
        return Count(count=len({piece.output.tag for piece in job.input.pieces}))


async def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if setup.ahead:
        Pace.ended = lambda *_: setup.ahead  # type: ignore[method-assign]
        patience.PREFETCHED = 600.0
    engine = Engine(os.environ["QUEUERT_DSN"], jobs, pool_size=setup.pool)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = engine.worker(
        concurrency=setup.concurrency, lease=setup.lease, name=setup.name, poll_interval=(setup.poll, 60.0), shutdown_timeout=5, grace=1
    )
    async with engine, worker as running:
        print("ready", running.id, json.dumps(setup.model_dump()), flush=True)
        await stop.wait()
    for connection in _history:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
