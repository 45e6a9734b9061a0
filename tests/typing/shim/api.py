"""Lets the shared typing proofs (`from api import …`) run against the real package: its names, re-exported under the proof's own.

Nothing here widens or narrows what the package says, with two exceptions that are said where they stand.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import psycopg
import sqlalchemy.ext.asyncio
from psycopg_pool import AsyncConnectionPool
from typing_extensions import TypeVar

import queuert_py
import queuert_py.integrations.sqlalchemy
from queuert_py import (
    Blocker,
    Continuation,
    Depends,
    InternalJobType,
    Job,
    JobSequence,
    JobType,
    JobTypes,
    Request,
    SyncJob,
    continue_with,
    join,
)
from queuert_py.job import Connection as AsyncConnection
from queuert_py.job import SyncConnection as Connection
from queuert_py.testing import run_handler

__all__ = [
    "AsyncConnection",
    "AsyncSession",
    "Blocker",
    "Connection",
    "Continuation",
    "Depends",
    "Engine",
    "InternalJobType",
    "Job",
    "JobSequence",
    "JobType",
    "JobTypes",
    "Pool",
    "PostgresPool",
    "Request",
    "SqlAlchemy",
    "SyncJob",
    "continue_with",
    "join",
    "run_handler",
]

Pool: TypeAlias = AsyncConnectionPool[Any]
Tx = TypeVar("Tx", default=AsyncConnection)


class Engine(queuert_py.Engine[Tx]):
    """Only `schedule` is added, typed as in the proof: the package has none yet. Delete this class when it has."""

    @classmethod
    def embedded(cls, *registries: JobTypes[AsyncConnection], **how: Any) -> Engine[AsyncConnection]:
        raise NotImplementedError

    def schedule(self, cron: str, request: Request[Any], *, name: str | None = None) -> None: ...


class PostgresPool:
    """A Database (see queuert_py.Database) whose transactions are psycopg's: a stand-in."""

    conninfo = ""

    def transaction(self, connection: psycopg.AsyncConnection[Any], /) -> AbstractAsyncContextManager[AsyncConnection]:
        raise NotImplementedError


class AsyncSession(sqlalchemy.ext.asyncio.AsyncSession):
    """SQLAlchemy's, but that the proof's query is a text."""

    async def scalars(self, query: Any) -> list[int]:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError


class SqlAlchemy(queuert_py.integrations.sqlalchemy.SqlAlchemy[AsyncSession]):
    """The package's, of these sessions."""
