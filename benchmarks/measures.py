"""The measurements: each uses the public API, on a schema of its own that it drops."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import AsyncGenerator
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, JobTypes, continue_with

SCHEMA = "queuert_bench"
jobs = JobTypes()


class Number(BaseModel):
    n: int


class Steps(BaseModel):
    left: int


class Started(BaseModel):
    at: float


@jobs.job_type
async def noop(job: Job[Number]) -> Number:
    return Number(n=job.input.n)


@jobs.job_type
async def chain(job: Job[Steps]) -> Steps | Continuation[Steps]:
    if job.input.left <= 1:
        return Steps(left=0)
    return continue_with(chain, Steps(left=job.input.left - 1))


@jobs.job_type
async def first_line(job: Job[Number]) -> Started:
    return Started(at=time.perf_counter())


async def describe(dsn: str) -> str:
    """The server, and whether it is durable."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("select version(), current_setting('fsync'), current_setting('synchronous_commit')")
        row = await cursor.fetchone()
        assert row is not None
        return f"{str(row[0]).split(' on ')[0]}, fsync {row[1]}, synchronous_commit {row[2]}"


@contextlib.asynccontextmanager
async def fresh(dsn: str) -> AsyncGenerator[Engine]:
    """An engine on an empty schema."""
    await execute(dsn, f"drop schema if exists {SCHEMA} cascade")
    async with Engine(dsn, jobs, schema=SCHEMA) as engine:
        yield engine
    await execute(dsn, f"drop schema if exists {SCHEMA} cascade")


async def execute(dsn: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def drain(dsn: str, count: int) -> tuple[float, float]:
    """Rows a second of one start_sequences, then jobs a second of one worker from its start to the last commit."""
    async with fresh(dsn) as engine:
        requests = [noop(Number(n=n)) for n in range(count)]
        begun = time.perf_counter()
        await engine.start_sequences(requests)
        started = count / (time.perf_counter() - begun)
        await execute(dsn, f"vacuum analyze {SCHEMA}.live_job", "checkpoint")
        begun = time.perf_counter()
        async with engine.worker(concurrency=100) as worker:
            await worker.drained()
            drained = count / (time.perf_counter() - begun)
        await check(dsn, count)
        return started, drained


async def chains(dsn: str, count: int, steps: int) -> float:
    """Steps a second of many sequences at once."""
    async with fresh(dsn) as engine:
        await engine.start_sequences([chain(Steps(left=steps)) for _ in range(count)])
        begun = time.perf_counter()
        async with engine.worker(concurrency=100) as worker:
            await worker.drained()
            rate = count * steps / (time.perf_counter() - begun)
        await check(dsn, count)
        return rate


async def check(dsn: str, completed: int) -> None:
    """Nothing is left, and everything completed."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        query = f"select (select count(*) from {SCHEMA}.live_job), (select count(*) from {SCHEMA}.finished_job where outcome = 'completed')"
        row = await (await connection.execute(query.encode())).fetchone()
        assert row == (0, completed), row


async def idle_start(dsn: str, count: int) -> list[float]:
    """Seconds from the call of start_sequence to the handler's first line, one start every 50 ms, the worker in another task."""
    seconds: list[float] = []
    async with fresh(dsn) as engine, engine.worker():
        for number in range(count + 10):
            begun = time.perf_counter()
            sequence = await engine.start_sequence(first_line, Number(n=number))
            output = await sequence.result(timeout=10)
            seconds.append(output.at - begun)
            await asyncio.sleep(0.05)
    return seconds[10:]


async def idle_chain(dsn: str, count: int, steps: int) -> list[float]:
    """Seconds from the start of one sequence to its result in code."""
    seconds: list[float] = []
    async with fresh(dsn) as engine, engine.worker():
        for _ in range(count + 10):
            begun = time.perf_counter()
            sequence = await engine.start_sequence(chain, Steps(left=steps))
            await sequence.result(timeout=10)
            seconds.append(time.perf_counter() - begun)
            await asyncio.sleep(0.05)
    return seconds[10:]


async def procrastinate_drain(dsn: str, count: int) -> float:
    """Jobs a second of procrastinate's worker, concurrency 100, on the same server."""
    procrastinate: Any = importlib.import_module("procrastinate")  # the extra `bench`
    await execute(dsn, "drop schema if exists procrastinate_bench cascade", "create schema procrastinate_bench")
    conninfo = make_conninfo(dsn, options="-c search_path=procrastinate_bench")
    app: Any = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=conninfo, max_size=20))

    async def task(n: int) -> int:
        return n

    app.task(name="noop")(task)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for first in range(0, count, 1000):
            await app.configure_task("noop").batch_defer_async(*[{"n": n} for n in range(first, min(count, first + 1000))])
        begun = time.perf_counter()
        await app.run_worker_async(concurrency=100, wait=False, install_signal_handlers=False)
        rate = count / (time.perf_counter() - begun)
    await execute(dsn, "drop schema if exists procrastinate_bench cascade")
    return rate
