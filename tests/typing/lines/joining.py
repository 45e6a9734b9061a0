"""Transactions of the caller's, and the engine for code without an event loop."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
from pydantic import BaseModel
from sqlalchemy.engine import Connection as CoreConnection
from sqlalchemy.engine import Engine as CoreEngine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from typing_extensions import assert_type

from queuert_py import Engine, Job, JobSequence, JobType, Request, join
from queuert_py.integrations.sqlalchemy import SqlAlchemy
from queuert_py.job import Connection
from queuert_py.joining import ForeignTx
from queuert_py.values import SequenceRecord


class Order(BaseModel):
    id: int


class Sent(BaseModel):
    at: str


class Lost(BaseModel):
    why: str


class OwnSession(AsyncSession):
    """The application's own."""


engine = Engine("postgresql://")
ship = JobType[Order, Sent]("ship")
find = JobType[Order, Sent | Lost]("find")


# --- what can be joined


def joined(
    a: psycopg.Connection[Any],
    b: psycopg.AsyncConnection[Any],
    c: Session,
    d: AsyncSession,
    e: CoreConnection,
    f: AsyncConnection,
    g: Any,
) -> None:
    assert_type(join(a), ForeignTx)
    assert_type(join(d), ForeignTx)
    join(b)
    join(c)
    join(e)
    join(f)
    join(g)  # asyncpg and Django have no types


def not_joined(alchemy: CoreEngine, asynchronous: AsyncEngine) -> None:
    join(3)  # E
    join("postgresql://")  # E
    join(engine)  # E
    join(alchemy)  # E
    join(asynchronous)  # E
    join(None)  # E
    join()  # E


async def starts(session: AsyncSession, connection: Connection, sync: psycopg.Connection[Any]) -> None:
    assert_type(await engine.start_sequence(ship, Order(id=1), tx=join(session)), JobSequence[Sent])
    assert_type(await engine.start_sequence(ship, Order(id=1), tx=connection), JobSequence[Sent])
    both = await engine.start_sequences((ship(Order(id=1)), find(Order(id=1))), tx=join(sync))
    assert_type(both, tuple[JobSequence[Sent], JobSequence[Sent | Lost]])
    assert_type(await engine.start_unregistered("ship", {"id": 1}, tx=join(sync), key="k"), JobSequence[Any])
    await engine.start_sequence(ship, Order(id=1), tx=session)  # E
    await engine.start_sequence(ship, Order(id=1), tx=sync)  # E
    await engine.start_sequences([ship(Order(id=1))], tx=session)  # E
    await engine.start_unregistered(ship, {"id": 1})  # E
    await engine.start_unregistered("ship", Order(id=1))  # E


# --- an engine on SQLAlchemy

on_sessions = Engine(SqlAlchemy("postgresql://"))
assert_type(on_sessions, Engine[AsyncSession])
assert_type(Engine(SqlAlchemy()), Engine[AsyncSession])


def on_own_sessions(alchemy: AsyncEngine, sessions: async_sessionmaker[OwnSession]) -> None:
    assert_type(Engine(SqlAlchemy(alchemy, sessions=sessions)), Engine[OwnSession])
    SqlAlchemy(3)  # E
    SqlAlchemy(sessions)  # E
    SqlAlchemy(alchemy, sessions=alchemy)  # E


@on_sessions.job_type
async def write(job: Job[Order, AsyncSession]) -> Sent:
    async with job.finalize() as session:
        assert_type(session, AsyncSession)
        await on_sessions.start_sequence(ship, Order(id=1), tx=session)
        return Sent(at="now")


@on_sessions.job_type  # E
async def write_to_a_connection(job: Job[Order]) -> Sent:
    return Sent(at="now")


async def tx_of_sessions(session: AsyncSession, connection: Connection) -> None:
    await on_sessions.start_sequence(write, Order(id=1), tx=session)
    await on_sessions.start_sequence(write, Order(id=1), tx=join(connection))
    await on_sessions.start_sequence(write, Order(id=1), tx=connection)  # E


# --- without an event loop


def script(id: UUID, connection: psycopg.Connection[Any], session: Session, asynchronous: Connection) -> None:
    sequence = engine.sync.start_sequence(ship, Order(id=1), key="k", tx=connection)
    assert_type(sequence, JobSequence[Sent])
    assert_type(engine.sync.result(sequence, timeout=3), Sent)
    assert_type(engine.sync.result(engine.sync.start_sequence(find, Order(id=1), tx=join(session))), Sent | Lost)
    assert_type(engine.sync.start_sequence("ship", {"id": 1}, output=Sent), JobSequence[Sent])
    assert_type(engine.sync.start_sequence("ship", {"id": 1}), JobSequence[Any])
    assert_type(engine.sync.start_sequences((ship(Order(id=1)), find(Order(id=1)))), tuple[JobSequence[Sent], JobSequence[Sent | Lost]])
    mixed: list[Request[Sent | Lost]] = [ship(Order(id=1)), find(Order(id=1))]
    assert_type(engine.sync.start_sequences(mixed), list[JobSequence[Sent | Lost]])
    assert_type(engine.sync.get_sequence(id), SequenceRecord)
    assert_type(engine.sync.wait_all((sequence, sequence), timeout=3), tuple[Sent, Sent])
    assert_type(engine.sync.run(ship, Order(id=1)), Sent)
    with engine.sync as facade:
        facade.trigger([id])
    engine.sync.start_sequence(ship, Sent(at=""))  # E
    engine.sync.start_sequence(ship, Order(id=1), prioritty=3)  # E
    engine.sync.start_sequence(ship, Order(id=1), tx=asynchronous)  # E
    engine.sync.start_sequence(ship, Order(id=1), tx=session)  # E
    engine.sync.result(id)  # E
    engine.sync.get_sequence("id")  # E
    engine.sync.trigger(id)  # E
