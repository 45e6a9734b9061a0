"""Engines: what they are made of, and the transaction type that this fixes for their handlers."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias, TypeVar

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from pydantic import BaseModel
from typing_extensions import assert_type

import queuert_py
from queuert_py import Continuation, Database, Engine, JobType, JobTypes, Worker, continue_with
from queuert_py.job import Connection


class Session:
    """A unit of work of some other library."""

    async def add(self, row: object) -> None:
        raise NotImplementedError


class Sessions:
    """Gives handlers sessions."""

    conninfo = "postgresql://"

    def transaction(self, connection: AsyncConnection[Any], /) -> AbstractAsyncContextManager[Session]:
        raise NotImplementedError


class NoDatabase:
    def transaction(self, connection: AsyncConnection[Any], /) -> AbstractAsyncContextManager[Session]:
        raise NotImplementedError


class Ticket(BaseModel):
    seat: int


class Seated(BaseModel):
    row: str


In = TypeVar("In", bound=BaseModel)
Job: TypeAlias = queuert_py.Job[In, Session]

plain_jobs = JobTypes()
session_jobs = JobTypes[Session]()
sessions: Database[Session] = Sessions()
usher = JobType[Ticket, Seated]("usher")


# --- forms


def forms(pool: AsyncConnectionPool[Any], sync_pool: ConnectionPool[Any]) -> None:
    assert_type(Engine("postgresql://"), Engine[Connection])
    assert_type(Engine(), Engine[Connection])
    assert_type(Engine(None, plain_jobs), Engine[Connection])
    assert_type(Engine(pool, plain_jobs, schema="tenant", pool_size=3, max_payload=1000), Engine[Connection])
    assert_type(Engine(Sessions()), Engine[Session])
    assert_type(Engine(Sessions(), session_jobs), Engine[Session])
    assert_type(Engine.embedded(), Engine[Connection])
    assert_type(Engine.embedded(plain_jobs, ephemeral=True), Engine[Connection])
    bare: Engine = Engine("postgresql://")
    print(bare)

    Engine(sync_pool)  # E
    Engine(5432)  # E
    Engine("postgresql://", "jobs")  # E
    Engine("postgresql://", shema="tenant")  # E
    Engine("postgresql://", session_jobs)  # E
    Engine(Sessions(), plain_jobs)  # E
    Engine(NoDatabase())  # E
    Engine(dsn="postgresql://")  # E
    Engine.embedded("jobs")  # E
    Engine.embedded(session_jobs)  # E
    Engine.embedded(ephemeral="yes")  # E


def mounting(engine: Engine, with_sessions: Engine[Session]) -> None:
    engine.mount(plain_jobs)
    with_sessions.mount(session_jobs)
    engine.mount(session_jobs)  # E
    with_sessions.mount(plain_jobs)  # E
    engine.mount(usher)  # E
    engine.add(usher)


# --- the transaction that an engine gives


@session_jobs.job_type
async def sell(job: Job[Ticket]) -> Seated | Continuation[Seated]:
    async with job.atomic() as session:
        assert_type(session, Session)
        await session.add(job.input)
        await session.execute("select 1")  # E
        return continue_with(usher, job.input)


assert_type(sell, JobType[Ticket, Seated])


@session_jobs.job_type  # E
async def other_transaction(job: queuert_py.Job[Ticket]) -> Seated:
    return Seated(row="A")


@plain_jobs.job_type  # E
async def another_transaction(job: Job[Ticket]) -> Seated:
    return Seated(row="A")


async def joining(engine: Engine, with_sessions: Engine[Session], connection: AsyncConnection[Any], session: Session) -> None:
    await with_sessions.start_sequence(sell, Ticket(seat=1), tx=session)
    await engine.start_sequence(sell, Ticket(seat=1), tx=connection)
    await with_sessions.start_sequence(sell, Ticket(seat=1), tx=connection)  # E
    await engine.start_sequence(sell, Ticket(seat=1), tx=session)  # E
    await engine.start_sequences([sell(Ticket(seat=1))], tx=session)  # E


# --- life


async def life(engine: Engine) -> None:
    async with engine as opened:
        assert_type(opened, Engine[Connection])
    async with engine.worker(concurrency=5, queues=["a"], types=["usher"], lease=10, poll_interval=(0.1, 5)) as worker:
        assert_type(worker, Worker)
    worker = await engine.worker(drain=True).start()
    await worker.stop()
    assert_type(await engine.migrate(), list[str])

    with engine:  # E
        pass
    engine.worker(5)  # E
    engine.worker(concurency=5)  # E
    engine.worker(queues=7)  # E
    await engine.migrate(4)  # E
    await engine.get_sequence("0199")  # E
    await engine.list_sequences(status="done")  # E
