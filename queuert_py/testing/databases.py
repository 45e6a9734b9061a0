"""Databases for tests: made for one test process, emptied between tests, gone at its end. Their schemas have a clock that can be moved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from typing import LiteralString, cast
from uuid import uuid4

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo

from queuert_py.embedded import open_server
from queuert_py.postgres.migrate import script

_OTHERS: LiteralString = (
    "select pg_terminate_backend(pid) from pg_stat_activity "
    "where datname = current_database() and pid <> pg_backend_pid() and application_name like 'queuert%'"
)
_TABLES: LiteralString = (
    "select schemaname, tablename from pg_tables where schemaname not like 'pg\\_%' and schemaname <> 'information_schema' "
    "and tablename not in ('migration', 'setting')"
)
_RESET: LiteralString = "update {} set value = '\"0\"' where name = 'clock' and value <> '\"0\"'"


class Scratch:
    """A database for tests. `dsn` leads there."""

    def __init__(self, dsn: str, setup: Callable[[str], object] | None = None) -> None:
        self.dsn = dsn
        self._connection: Connection[tuple[str, ...]] | None = None
        self._schemas: set[str] = set()
        if setup is not None:
            setup(dsn)
        self._kept = set(self._filled())

    @property
    def connection(self) -> Connection[tuple[str, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn, autocommit=True)
        return self._connection

    def prepare(self, schema: str) -> None:
        """See to it that an engine's schema is there, with a clock of its own."""
        if schema not in self._schemas:
            if not self.connection.execute("select 1 from pg_namespace where nspname = %s", [schema]).fetchone():
                self.connection.execute(script(schema, virtual=True).encode())
            self._schemas.add(schema)

    def clean(self) -> None:
        """Empty what a test has filled, and set the clock back. Connections of engines that were left open are ended."""
        self.connection.execute(_OTHERS)
        filled = [table for table in self._filled() if table not in self._kept]
        own = [sql.SQL("delete from {}").format(sql.Identifier(*table)) for table in filled if table[0] in self._schemas]
        others = [sql.Identifier(*table) for table in filled if table[0] not in self._schemas]
        if own:  # faster than truncate, as there are few rows
            self.connection.execute(sql.SQL("; ").join(own))
        if others:
            self.connection.execute(sql.SQL("truncate {} restart identity").format(sql.SQL(", ").join(others)))
        for schema in self._schemas:
            self.connection.execute(sql.SQL(_RESET).format(sql.Identifier(schema, "setting")))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _filled(self) -> list[tuple[str, str]]:
        """The tables that hold anything."""
        tables = [cast("tuple[str, str]", row) for row in self.connection.execute(_TABLES)]
        looks = [
            sql.SQL("select {}, {} where exists (select from {})").format(*map(sql.Literal, table), sql.Identifier(*table))
            for table in tables
        ]
        query = sql.SQL(" union all ").join(looks)
        return [cast("tuple[str, str]", row) for row in self.connection.execute(query, prepare=True)] if looks else []


@contextlib.contextmanager
def scratch(server: str | None, setup: Callable[[str], object] | None = None) -> Generator[Scratch]:
    """A fresh database on this server (a DSN whose role may create databases); None: on an ephemeral PostgreSQL, gone at the end.

    EmbeddedError, with the way out, where there is neither.
    """
    with contextlib.ExitStack() as stack:
        at = server if server is not None else stack.enter_context(open_server(ephemeral=True)).dsn
        if server is None:
            database = Scratch(at, setup)
            stack.callback(database.close)
            yield database
            return
        name = f"queuert_test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_{uuid4().hex[:8]}"
        connection = stack.enter_context(psycopg.connect(at, autocommit=True))
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        stack.callback(lambda: connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name))))
        database = Scratch(make_conninfo(at, dbname=name), setup)
        stack.callback(database.close)
        yield database
