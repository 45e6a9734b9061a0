"""Errors are three lines: what, why, repair; never a traceback, never a secret, soon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from queuert_py.cli.trouble import explain
from queuert_py.errors import ConfigurationError, EmbeddedError
from tests.cli.conftest import APP, HERE, Run, Spawn

SOON = 4.0
"""Seconds: a fraction of one, times what a busy machine makes of it. Whoever tries again or waits for a pool takes longer."""
DOWN = "postgresql://somebody:geheim@127.0.0.1:1/nothing"


@pytest.fixture
def empty(server: str) -> Iterator[str]:
    """A database without the schema."""
    name = f"queuert_empty_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield make_conninfo(server, dbname=name)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.mark.parametrize("command", [("status",), ("list",), ("show", uuid4()), ("retry", uuid4()), ("retry", "--failed"), ("migrate",)])
def test_a_database_that_is_down_is_told_soon(bare: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]) -> None:
    monkeypatch.setenv("QUEUERT_DSN", DOWN)
    begun = time.monotonic()
    shown = bare(*command).trouble(3)
    assert time.monotonic() - begun < SOON
    assert "127.0.0.1:1/nothing cannot be used" in shown
    assert "start that server" in shown
    assert "geheim" not in shown


def test_a_worker_whose_database_is_down_ends_with_three_lines(spawn: Spawn) -> None:
    process = spawn("worker", "sample", "--app-dir", HERE, "--log-level", "error", dsn=DOWN)
    assert process.ended() == 3
    assert [line[:6] for line in process.lines] == ["error:", "  why:", "  fix:"]
    assert "geheim" not in process.text


def test_a_name_that_does_not_resolve_and_a_wrong_database(bare: Run, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUERT_DSN", make_conninfo(server, dbname="not_there"))
    assert "createdb" in bare("status").trouble(3)


@pytest.mark.parametrize(
    "command",
    [("list",), ("retry", "--failed", "--yes"), ("delete", uuid4()), ("migrate",), ("migrate", "--sql"), ("status",)],
    ids=lambda words: "-".join(each for each in words if isinstance(each, str)),
)
def test_another_schema_than_the_apps_is_refused(queuert: Run, command: tuple[object, ...]) -> None:
    shown = queuert(*command, *APP, "--schema", "elsewhere").trouble(2)
    assert "the app's engine is on the schema 'queuert', not on 'elsewhere'" in shown
    assert "leave --schema out" in shown


def test_an_apps_own_schema_may_be_typed_and_the_variable_is_for_commands_without_an_app(
    queuert: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert queuert("list", *APP, "--schema", "queuert").code == 0
    monkeypatch.setenv("QUEUERT_SCHEMA", "elsewhere")
    assert queuert("list", *APP).code == 0


def test_a_missing_schema_names_the_command_that_makes_it(bare: Run, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUERT_DSN", empty)
    begun = time.monotonic()
    for command in (("status",), ("list",), ("show", uuid4()), ("retry", "--failed")):
        assert "queuert migrate" in bare(*command).trouble(4)
    assert time.monotonic() - begun < 4 * SOON


def test_an_id_that_is_none_or_not_there(queuert: Run) -> None:
    assert "is no id" in queuert("show", "abc").trouble(2)
    assert "queuert list" in queuert("show", uuid4()).trouble(6)
    assert "is no id" in queuert("retry", "abc").trouble(2)


def test_no_database_is_named(bare: Run) -> None:
    shown = bare("status").trouble(2)
    assert "QUEUERT_DSN" in shown
    assert "--app" in shown


def test_a_dsn_in_the_arguments_is_refused(bare: Run) -> None:
    shown = bare("status", "--app", "postgresql://u:geheim@h/d").trouble(2)
    assert "geheim" not in shown
    assert "QUEUERT_DSN" in shown


@pytest.mark.parametrize(
    ("source", "app", "code", "says"),
    [
        (None, "missing_app:engine", 5, "no module 'missing_app'"),
        (None, "no/module.py:engine", 2, "as Python imports it"),
        ("import not_installed_x\n", "app_a", 5, "not_installed_x"),
        ("def broken(:\n", "app_b", 5, "SyntaxError"),
        ("raise RuntimeError('boom \\x1b[31m')\n", "app_c", 5, "RuntimeError: boom (/"),
        ("import queuert_py\nother = queuert_py.Engine('postgresql://h/d')\n", "app_d", 5, "name one that is there: app_d:other"),
        ("engine = 5\n", "app_e", 5, "there is a int of that name"),
        ("from queuert_py import Engine\nengine = Engine()\n", "app_f", 5, "QUEUERT_DSN"),
    ],
)
def test_an_app_that_cannot_be_loaded(bare: Run, tmp_path: Path, source: str | None, app: str, code: int, says: str) -> None:
    if source is not None:
        (tmp_path / f"{app}.py").write_text(source)
    shown = bare("start", "x", "{}", "--app", app, "--app-dir", tmp_path).trouble(code)
    assert says in shown
    assert "\x1b" not in shown


def test_the_app_is_looked_up_in_its_folder_only(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "app_here.py").write_text("")
    process = spawn("status", "--app", "app_here", "--app-dir", HERE, cwd=str(tmp_path))
    assert process.ended() == 5
    assert "no module 'app_here'" in process.text


@pytest.mark.parametrize(
    ("type_", "input_", "says"),
    [
        ("double", "{n: 1}", "no JSON"),
        ("double", "[1]", "no JSON object"),
        ("double", '{"n": "x"}', "input.n"),
        ("nope", '{"n": 1}', "known: after, double, fail, hold, last_words"),
    ],
)
def test_a_start_that_cannot_be_right(queuert: Run, type_: str, input_: str, says: str) -> None:
    assert says in queuert("start", type_, input_, *APP).trouble(2)


def test_start_and_worker_need_an_app(queuert: Run) -> None:
    assert "QUEUERT_APP" in queuert("worker", "--processes", 2).trouble(2)
    assert "QUEUERT_APP" in queuert("start", "double", "{}").trouble(2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("list", "--limit", "x"),
        ("show",),
        ("list", "--failed", "--status", "running"),
        ("retry",),
        ("worker", "x", "--lease", "y"),
    ],
)
def test_usage_errors_are_three_lines_too(queuert: Run, arguments: tuple[str, ...]) -> None:
    queuert(*arguments).trouble(2)


def test_debug_adds_the_traceback(queuert: Run) -> None:
    answer = queuert("show", uuid4(), "--debug")
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.splitlines()[-3].startswith("error: ")


def test_any_error_is_three_lines_whatever_it_holds() -> None:
    for error in (
        RuntimeError("a\nb\x1b[31m"),
        ConfigurationError(""),
        EmbeddedError("x\n" * 1000),
        OSError(),
        psycopg.OperationalError("x\ny"),
    ):
        lines = explain(error).lines()
        assert len(lines) == 3
        assert all("\n" not in line and "\x1b" not in line and len(line) < 700 for line in lines)
