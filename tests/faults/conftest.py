"""Fixtures of the fault tests: the clean database with the tables in which doubles show."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from queuert_py import Engine
from tests.faults.app import jobs
from tests.faults.kit import Facts
from tests.faults.lab import Lab
from tests.faults.servers import OwnServer


@pytest.fixture
async def facts(dsn: str) -> AsyncGenerator[Facts]:
    """The test's own look at the database."""
    async with Facts(dsn) as facts:
        yield facts


@pytest.fixture
async def producer(dsn: str) -> AsyncGenerator[Engine]:
    """An engine that starts what the workers in other processes run."""
    engine = Engine(dsn, jobs)
    async with engine:
        yield engine


@pytest.fixture
async def own_server() -> AsyncGenerator[OwnServer]:
    """A server that may be stopped, with a database that has the schema and the tables."""
    async with OwnServer.run() as server:
        yield server


@pytest.fixture
def lab(engine: Engine, facts: Facts) -> Lab:
    return Lab(engine, facts)
