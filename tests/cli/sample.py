"""The app of these tests; its database is in QUEUERT_DSN."""

from __future__ import annotations

import asyncio
import os

from pydantic import BaseModel

from queuert_py import Blocker, Engine, Job

engine = Engine()


class Number(BaseModel):
    n: int


class Done(BaseModel):
    n: int
    pid: int


@engine.job_type
async def double(job: Job[Number]) -> Done:
    return Done(n=2 * job.input.n, pid=os.getpid())


class After(BaseModel):
    n: int
    first: Blocker[Done]


@engine.job_type
async def after(job: Job[After]) -> Done:
    return Done(n=job.input.n + job.input.first.output.n, pid=os.getpid())


@engine.job_type(max_attempts=2, backoff=0)
async def fail(job: Job[Number]) -> Done:
    raise ValueError("no \x1b[31mred\x1b[0m way\nin [bold]two[/bold] lines")


@engine.job_type
async def hold(job: Job[Number]) -> Done:
    await asyncio.Event().wait()
    raise AssertionError


@engine.job_type
async def last_words(job: Job[Number]) -> Done:
    while not job.shutting_down:
        await asyncio.sleep(0.01)
    return Done(n=job.input.n, pid=os.getpid())
