"""A real PostgreSQL for every test: QUEUERT_TEST_DSN, else --queuert-pg=docker:17, else the embedded one. Clean for each test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from queuert_py import Engine
from queuert_py.decisions.pace import Pace
from queuert_py.postgres.migrate import script
from queuert_py.runtime import patience


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--queuert-pg", default="", help="docker:17 runs the tests on that image (needs a Docker engine and testcontainers)")


LONG = ("interleave", "docs", "embedded", "typing", "faults", "testing")
"""Folders whose files take long, however few tests they have: they come first, so that both processes end at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)


LARGE = 256 * 1024
"""Bytes of a table from which on it is truncated: that makes a new file for each of its indexes, and costs more than a few rows."""
_TABLES = """
    select format('queuert.%I', relname), pg_relation_size(oid) from pg_class
    where relnamespace = 'queuert'::regnamespace and relkind = 'r' and relname not in ('migration', 'setting')
"""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of a server on which databases can be made."""
    image = str(request.config.getoption("--queuert-pg"))
    if os.environ.get("QUEUERT_TEST_DSN"):
        yield os.environ["QUEUERT_TEST_DSN"]
    elif image.startswith("docker:"):
        containers: Any = pytest.importorskip("testcontainers.postgres", reason="needs the extra docker")
        with containers.PostgresContainer(f"postgres:{image.removeprefix('docker:')}", driver=None) as container:
            yield str(container.get_connection_url())
    else:
        from queuert_py.embedded import open_server

        with open_server(ephemeral=True) as embedded:
            yield embedded.dsn


def drop(connection: psycopg.Connection[Any], name: str) -> None:
    """Where the server stays: a drop is a checkpoint of the whole of it."""
    if os.environ.get("QUEUERT_TEST_DSN"):
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def database(server: str) -> Iterator[str]:
    """A database of this test run's own, with the schema in it."""
    name = f"queuert_test_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        dsn = make_conninfo(server, dbname=name)
        with psycopg.connect(dsn, autocommit=True) as inside:
            inside.execute(script("queuert").encode())
        yield dsn
        drop(connection, name)


@pytest.fixture
def fresh_database(server: str) -> Iterator[Callable[[], str]]:
    """Makes databases without a schema, dropped after the test."""
    made: list[str] = []

    def make() -> str:
        made.append(f"queuert_test_{uuid4().hex[:12]}")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(made[-1])))
        return make_conninfo(server, dbname=made[-1])

    yield make
    with psycopg.connect(server, autocommit=True) as connection:
        for name in made:
            drop(connection, name)


@pytest.fixture
def dsn(database: str) -> Iterator[str]:
    """The database, as empty as it was made."""
    yield database
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
        tables: dict[str, int] = dict(connection.execute(_TABLES).fetchall())
        with connection.transaction():
            connection.execute("drop schema public cascade; create schema public")
            connection.execute(f"lock table {', '.join(tables)}".encode())  # until the last of the others has let go
            for table, size in tables.items():
                connection.execute(f"{'truncate' if size > LARGE else 'delete from'} {table}".encode())


@pytest.fixture
def claims_ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """So many jobs, its only number, a worker of this process claims beyond its slots, as if as many had ended just now; it keeps them."""
    pace = [10]

    def ended(*_: object) -> int:
        return pace[0]

    monkeypatch.setattr(Pace, "ended", ended)
    monkeypatch.setattr(patience, "PREFETCHED", 600.0)
    return pace


@pytest.fixture
async def db(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of the test's own, autocommit."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def engine(dsn: str) -> AsyncIterator[Engine]:
    """An engine on the clean database; declare job types on it, then `async with engine.worker():`."""
    engine = Engine(dsn)
    yield engine
    await engine.close()
