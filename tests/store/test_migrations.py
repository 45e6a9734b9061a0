"""Migrations: an empty schema is made, once; what does not fit is refused with the way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from queuert_py import Engine
from queuert_py.errors import ConfigurationError, SchemaError
from queuert_py.postgres.migrate import applied, lanes_of, migrate, migrations, pending, script
from queuert_py.postgres.store import fill, quoted

Connection = psycopg.AsyncConnection[Any]
NAMES = [each.name for each in migrations()]
TABLES = {"live_job", "finished_job", "job_blocker", "attempt_log", "queue", "schedule", "worker", "setting", "migration", "stat"}


@pytest.fixture
async def schema(db: Connection) -> AsyncIterator[str]:
    """The name of a schema that is not there yet."""
    name = f"made_{uuid4().hex[:8]}"
    yield name
    await db.execute(f"drop schema if exists {name} cascade".encode())


async def tables(db: Connection, schema: str) -> set[str]:
    cursor = await db.execute("select tablename from pg_tables where schemaname = %s", [schema])
    return {row[0] for row in await cursor.fetchall()}


async def recorded(db: Connection, schema: str) -> list[str]:
    cursor = await db.execute(f"select name from {schema}.migration order by number".encode())
    return [row[0] for row in await cursor.fetchall()]


async def test_an_empty_schema_is_made(db: Connection, schema: str) -> None:
    assert await applied(db, schema) == {}
    assert await migrate(db, schema) == NAMES
    assert await tables(db, schema) == TABLES
    assert await recorded(db, schema) == NAMES
    assert pending(await applied(db, schema), schema) == []


async def test_a_second_time_changes_nothing(db: Connection, schema: str) -> None:
    await migrate(db, schema)
    assert await migrate(db, schema) == []
    assert await recorded(db, schema) == NAMES


async def test_eight_processes_at_once_make_it_once(dsn: str, db: Connection, schema: str) -> None:
    async def one() -> list[str]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            return await migrate(connection, schema)

    done = await asyncio.gather(*(one() for _ in range(8)))
    assert sorted(done, key=len) == [[]] * 7 + [NAMES]
    assert await recorded(db, schema) == NAMES


async def test_eight_engines_that_open_at_once_find_one_schema(dsn: str, db: Connection, schema: str) -> None:
    engines = [Engine(dsn, schema=schema, pool_size=1) for _ in range(8)]
    await asyncio.gather(*(engine.open() for engine in engines))
    assert await recorded(db, schema) == NAMES
    await asyncio.gather(*(engine.close() for engine in engines))


async def test_a_migration_that_fails_leaves_nothing(db: Connection, schema: str) -> None:
    await db.execute(f"create schema {schema}; create table {schema}.finished_job (other integer)".encode())
    with pytest.raises(psycopg.errors.DuplicateTable):
        await migrate(db, schema)
    assert await tables(db, schema) == {"finished_job"}


async def test_a_newer_schema_asks_for_a_newer_package(dsn: str, db: Connection, schema: str) -> None:
    await migrate(db, schema)
    await db.execute(f"insert into {schema}.migration (number, name, checksum) values (9999, '9999_future', 'x')".encode())
    with pytest.raises(SchemaError, match=r"is at migration 9999, this package knows \d+: upgrade queuert_py"):
        pending(await applied(db, schema), schema)
    with pytest.raises(SchemaError, match="upgrade queuert_py"):
        await migrate(db, schema)
    with pytest.raises(SchemaError, match="upgrade queuert_py"):
        await Engine(dsn, schema=schema).open()


async def test_an_edited_migration_is_told(dsn: str, db: Connection, schema: str) -> None:
    await migrate(db, schema)
    await db.execute(f"update {schema}.migration set checksum = 'edited' where number = 1".encode())
    with pytest.raises(SchemaError, match=f"migration {NAMES[0]} of schema '{schema}' is not the one this package has: were they edited"):
        await Engine(dsn, schema=schema).open()


async def test_a_schema_that_lacks_migrations_names_the_command(dsn: str, db: Connection, schema: str) -> None:
    await migrate(db, schema)
    await db.execute(f"delete from {schema}.migration; insert into {schema}.migration values (0, 'zero', 'x')".encode())
    done = await applied(db, schema)
    del done[0]
    assert [each.name for each in pending(done, schema)] == NAMES
    await db.execute(f"delete from {schema}.migration".encode())
    with pytest.raises(SchemaError, match=f"schema '{schema}' lacks .*: run `queuert migrate`"):
        await Engine(dsn, schema=schema).open(migrate=False)


@pytest.mark.parametrize("name", ["", "Queuert", "a-b", "a b", "1a", 'a"b', "a;drop schema public", "ä", "a" * 42, "pg.catalog", "a\n"])
def test_a_schema_name_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="use lower-case letters, digits and _, at most 41"):
        quoted(name)
    with pytest.raises(ConfigurationError):
        script(name)


@pytest.mark.parametrize("name", ["a", "_a1", "a" * 41, "select", "user"])
async def test_any_plain_name_will_do(db: Connection, name: str) -> None:
    try:
        assert await migrate(db, name) == NAMES
        assert await tables(db, name) == TABLES
    finally:
        await db.execute(f'drop schema "{name}" cascade'.encode())


@pytest.mark.parametrize("lanes", [1, 2, 64, 256])
async def test_lanes_are_fixed_by_the_first_migration(db: Connection, schema: str, lanes: int) -> None:
    await migrate(db, schema, lanes=lanes)
    assert await lanes_of(db, schema) == lanes
    await migrate(db, schema, lanes=3)
    assert await lanes_of(db, schema) == lanes


@pytest.mark.parametrize("lanes", [0, -1, 257])
async def test_lanes_out_of_range_are_refused(db: Connection, schema: str, lanes: int) -> None:
    with pytest.raises(ConfigurationError, match=f"lanes={lanes}: from 1 to 256"):
        await migrate(db, schema, lanes=lanes)
    with pytest.raises(ConfigurationError, match=f"lanes={lanes}: from 1 to 256"):
        script(schema, lanes)
    assert await tables(db, schema) == set()


async def test_the_script_makes_the_same(db: Connection, schema: str) -> None:
    await db.execute(script(schema, lanes=7).encode())
    assert await lanes_of(db, schema) == 7
    assert await recorded(db, schema) == NAMES
    assert await migrate(db, schema) == []

    async def columns(name: str) -> list[Any]:
        cursor = await db.execute(
            "select table_name, column_name, data_type, is_nullable, replace(column_default, %s, '') from information_schema.columns"
            " where table_schema = %s order by 1, ordinal_position",
            [name, name],
        )
        return await cursor.fetchall()

    assert await columns(schema) == await columns("queuert")


async def test_a_script_that_is_run_twice_fails_and_changes_nothing(db: Connection, schema: str) -> None:
    await db.execute(script(schema).encode())
    with pytest.raises(psycopg.errors.DuplicateTable):
        await db.execute(script(schema).encode())
    await db.execute("rollback")
    assert await recorded(db, schema) == NAMES


@pytest.mark.parametrize("path", ["evil", "evil, pg_catalog", '"", nowhere'])
async def test_nothing_depends_on_the_search_path(dsn: str, db: Connection, schema: str, path: str) -> None:
    evil = f"evil_{uuid4().hex[:8]}"
    await db.execute(f"create schema {evil}".encode())
    try:
        for table in TABLES:
            await db.execute(f"create table {evil}.{table} (nothing integer)".encode())
        hostile = make_conninfo(dsn, options=f"-csearch_path={path.replace('evil', evil).replace(' ', '')}")
        engine = Engine(hostile, schema=schema)
        async with engine:
            await engine.list_sequences()
        assert await tables(db, schema) == TABLES
        for table in TABLES:
            cursor = await db.execute(f"select count(*) from {evil}.{table}".encode())
            assert await cursor.fetchone() == (0,)
    finally:
        await db.execute(f"drop schema {evil} cascade".encode())


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [each.number for each in migrations()] == list(range(1, len(NAMES) + 1))
    assert all(name.startswith(f"{number:04}_") for number, name in enumerate(NAMES, 1))


def test_every_marker_is_filled() -> None:
    for each in migrations():
        assert "/*" not in fill(each.sql, "queuert")
