"""Lets the shared typing proofs (`from api import …`) run against the real package: its names, re-exported under the proof's own.

Nothing here widens or narrows what the package says, with one exception that is said where it stands.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import psycopg
from psycopg_pool import AsyncConnectionPool
from typing_extensions import TypeVar

import queuert_py
from queuert_py import (
    Blocker,
    Continuation,
    InternalJobType,
    Job,
    JobSequence,
    JobType,
    JobTypes,
    Request,
    continue_with,
)
from queuert_py.job import Connection
from queuert_py.testing import run_handler

__all__ = [
    "AsyncConnection",
    "AsyncSession",
    "Blocker",
    "Continuation",
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
    "continue_with",
    "run_handler",
]

AsyncConnection: TypeAlias = Connection
Pool: TypeAlias = AsyncConnectionPool[Any]
Tx = TypeVar("Tx", default=AsyncConnection)


class Engine(queuert_py.Engine[Tx]):
    """Only `schedule` is added, typed as in the proof: the package has none yet. Delete this class when it has."""

    def schedule(self, cron: str, request: Request[Any], *, name: str | None = None) -> None: ...


class PostgresPool:
    """A Database (see queuert_py.Database) whose transactions are psycopg's: a stand-in."""

    conninfo = ""

    def transaction(self, connection: psycopg.AsyncConnection[Any], /) -> AbstractAsyncContextManager[AsyncConnection]:
        raise NotImplementedError


class AsyncSession:
    """A stand-in for SQLAlchemy's."""

    async def scalars(self, query: Any) -> list[int]:
        raise NotImplementedError


class SqlAlchemy:
    """A Database whose transactions are sessions: a stand-in."""

    conninfo = ""

    def transaction(self, connection: psycopg.AsyncConnection[Any], /) -> AbstractAsyncContextManager[AsyncSession]:
        raise NotImplementedError
