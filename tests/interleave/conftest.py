"""A database of the interleaver's own: its trigger and its gates are in no other test's way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from queuert_py.postgres.migrate import script
from tests.interleave.kit import Lab


@pytest.fixture(scope="module")
def lab_database(server: str) -> Iterator[str]:
    name = f"queuert_interleave_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        dsn = make_conninfo(server, dbname=name)
        with psycopg.connect(dsn, autocommit=True) as inside:
            inside.execute(script("queuert").encode())
        yield dsn
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
async def lab(lab_database: str) -> AsyncIterator[Lab]:
    async with Lab(lab_database) as lab:
        yield lab
