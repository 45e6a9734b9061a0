"""Numbered plain-SQL migrations, forward only, each recorded with its checksum, under an advisory lock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import AsyncConnection

from queuert_py.errors import ConfigurationError, SchemaError
from queuert_py.postgres.store import fill, quoted

_BOOTSTRAP = """
create schema if not exists {schema};
create table if not exists /* schema */migration (
    number integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp()
);
create table if not exists /* schema */setting (
    name text primary key,
    value jsonb not null
);
"""
_LANES = "insert into /* schema */setting values ('lanes', '{lanes}') on conflict do nothing;"
_RECORD = "insert into /* schema */migration (number, name, checksum) values ({number}, '{name}', '{checksum}');"
_APPLIED = "select number, checksum from /* schema */migration"
_READ_SETTINGS = "select name, value #>> '{}' from /* schema */setting"
_CLOCK = """
insert into /* schema */setting values ('clock', '"0"');
create function /* schema */virtual_now() returns timestamptz language sql volatile as
$$ select clock_timestamp() + (select (value #>> '{}')::interval from /* schema */setting where name = 'clock') $$;
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All migrations of this package, in order."""
    found = [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in files("queuert_py.postgres").joinpath("migrations").iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda each: each.number)


def script(schema: str, lanes: int = 1, *, virtual: bool = False) -> str:
    """Everything as one SQL script, for review or for another tool. ConfigurationError for lanes out of range.

    virtual: for tests that travel in time: a schema with a clock of its own, which engines find by its setting when they open.
    """
    _check(lanes)
    parts = [_bootstrap(schema), _lanes(schema, lanes), *([fill(_CLOCK, schema)] if virtual else [])]
    for each in migrations():
        parts += [f"-- {each.name}", fill(each.sql, schema, virtual=virtual), _record(schema, each)]
    return "begin;\n" + "\n".join(parts) + "\ncommit;\n"


def _check(lanes: int) -> None:
    if not 1 <= lanes <= 256:
        raise ConfigurationError(f"lanes={lanes}: from 1 to 256.")


def _bootstrap(schema: str) -> str:
    return fill(_BOOTSTRAP.replace("{schema}", quoted(schema)), schema)


def _record(schema: str, each: Migration) -> str:
    return fill(_RECORD.format(number=each.number, name=each.name, checksum=each.checksum), schema)


def _lanes(schema: str, lanes: int) -> str:
    return fill(_LANES.replace("{lanes}", str(int(lanes))), schema)


async def applied(connection: AsyncConnection[Any], schema: str) -> dict[int, str]:
    """The recorded migrations, number to checksum; empty when the schema is not there."""
    try:
        async with connection.transaction():
            cursor = await connection.execute(fill(_APPLIED, schema).encode())
            return {int(number): str(checksum) for number, checksum in await cursor.fetchall()}
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return {}


async def settings_of(connection: AsyncConnection[Any], schema: str) -> dict[str, str]:
    """What the schema was made with: `lanes`; `clock`, in tests, if it has one of its own."""
    cursor = await connection.execute(fill(_READ_SETTINGS, schema).encode())
    return {str(name): str(value) for name, value in await cursor.fetchall()}


async def lanes_of(connection: AsyncConnection[Any], schema: str) -> int:
    """How many lanes the schema was made with."""
    return int((await settings_of(connection, schema)).get("lanes", 1))


def pending(done: dict[int, str], schema: str) -> list[Migration]:
    """What is still to be applied. SchemaError when the schema is newer than this package, or was changed by hand."""
    known = {each.number: each for each in migrations()}
    newer = sorted(done.keys() - known.keys())
    if newer:
        raise SchemaError(
            f"schema {schema!r} is at migration {newer[-1]}, this package knows {max(known)}: upgrade queuert_py in this environment."
        )
    for number, checksum in done.items():
        if known[number].checksum != checksum:
            raise SchemaError(f"migration {known[number].name} of schema {schema!r} is not the one this package has: were they edited?")
    return [each for number, each in sorted(known.items()) if number not in done]


async def migrate(connection: AsyncConnection[Any], schema: str, *, lanes: int = 1) -> list[str]:
    """Bring the schema up to date; the names of what was applied. Any number of processes may call it at once.

    `lanes` (1 to 256) is fixed by the first call. SchemaError as `pending`; the database's own errors as they are.
    """
    _check(lanes)
    async with connection.transaction():
        await connection.execute(b"set local lock_timeout = '10s'")
        await connection.execute(b"select pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"queuert migrate {schema}"])
        missing = pending(await applied(connection, schema), schema)
        if missing:
            await connection.execute(_bootstrap(schema).encode())
            await connection.execute(_lanes(schema, lanes).encode())
        for each in missing:
            await connection.execute(fill(each.sql, schema).encode())
            await connection.execute(_record(schema, each).encode())
    return [each.name for each in missing]
