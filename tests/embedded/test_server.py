"""What a caller gets."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from queuert_py.embedded import Server, default_path, open_server
from queuert_py.errors import EmbeddedError

from .conftest import ask, do, postmaster, sockets, strictly, until, until_gone


def test_a_persistent_server_answers(project: Path) -> None:
    with open_server(project) as server:
        assert ask(server.dsn, "select 1") == 1
        assert server.data.parent.name == str(ask(server.dsn, "select current_setting('server_version_num')::int / 10000"))


def test_an_ephemeral_server_answers() -> None:
    with open_server(ephemeral=True) as server:
        assert ask(server.dsn, "select 1") == 1


@pytest.fixture(scope="module")
def common() -> Iterator[Server]:
    with open_server(ephemeral=True) as server:
        yield server


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("select current_user", "postgres"),
        ("select current_database()", "queuert"),
        ("select current_setting('server_encoding')", "UTF8"),
        ("select current_setting('TimeZone')", "UTC"),
        ("select current_setting('listen_addresses')", ""),
        ("select current_setting('cluster_name')", "queuert"),
        ("select upper('é')", "É"),
        ("select bool_and(rolsuper) from pg_roles where rolname = current_user", True),
    ],
)
def test_it_is_set_up_for_use(query: str, answer: object, common: Server) -> None:
    assert ask(common.dsn, query) == answer


def test_commits_are_durable_where_the_data_stays(project: Path) -> None:
    with open_server(project) as server:
        assert ask(server.dsn, "select current_setting('fsync')") == "on"
        assert ask(server.dsn, "select current_setting('full_page_writes')") == "on"


@pytest.mark.parametrize(("fsync", "setting"), [(None, "off"), (False, "off"), (True, "on")])
def test_an_ephemeral_server_waits_for_no_disk_unless_asked(fsync: bool | None, setting: str) -> None:
    with open_server(ephemeral=True, fsync=fsync) as server:
        assert ask(server.dsn, "select current_setting('fsync')") == setting


def test_settings_reach_the_server() -> None:
    with open_server(ephemeral=True, settings={"max_connections": "17", "log_line_prefix": "a 'b' %p "}) as server:
        assert ask(server.dsn, "select current_setting('max_connections')") == "17"
        assert ask(server.dsn, "select current_setting('log_line_prefix')") == "a 'b' %p "


@pytest.mark.parametrize("name", ["port", "listen_addresses", "fsync", "data_directory", "Port", "a b", ""])
def test_settings_of_its_own_are_refused(name: str) -> None:
    with pytest.raises(EmbeddedError, match="cannot be given"):
        open_server(ephemeral=True, settings={name: "x"})


def test_a_path_is_refused_for_an_ephemeral_server(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="leave out path="):
        open_server(tmp_path, ephemeral=True)


def test_an_ephemeral_server_leaves_nothing() -> None:
    server = open_server(ephemeral=True)
    pid, socket_folder = postmaster(server.data), sockets(server.dsn)
    do(server.dsn, "create table t (a int)")
    assert (socket_folder.stat().st_mode & 0o777, server.data.stat().st_mode & 0o777) == (0o700, 0o700)
    server.close()
    server.close()
    assert not server.data.parent.exists()
    assert not socket_folder.exists()
    until_gone(pid)


def test_ephemeral_servers_are_apart() -> None:
    with open_server(ephemeral=True) as one, open_server(ephemeral=True) as other:
        do(one.dsn, "create table t (a int)")
        assert ask(other.dsn, "select to_regclass('t')") is None


def test_several_holds_of_one_process_are_one_server(project: Path) -> None:
    with open_server(project) as one:
        with open_server(project) as other:
            assert other.dsn == one.dsn
        assert ask(one.dsn, "select 1") == 1


def test_the_project_ignores_its_data(project: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root's data is not in the project")
    with open_server(project):
        assert (project / ".gitignore").read_text() == "*\n"


def folders_made() -> set[Path]:
    """Folders of servers, but those in which one runs (of a test beside this one)."""
    found = {path for base in ("/tmp", "/run", tempfile.gettempdir()) for path in Path(base).glob("queuert-????????")}
    return {
        path for path in found if not [*path.glob(".s.PGSQL.*"), *path.glob("*/data/postmaster.pid"), *path.glob("data/postmaster.pid")]
    }


@pytest.mark.parametrize("ephemeral", [True, False])
def test_a_server_that_cannot_start_says_why_and_leaves_nothing(ephemeral: bool, project: Path) -> None:
    before = folders_made()
    path = None if ephemeral else project
    with pytest.raises(EmbeddedError, match=r"(?s)ended as it started.*invalid value for parameter.*QUEUERT_DSN"):
        open_server(path, ephemeral=ephemeral, settings={"shared_buffers": "much"})
    until(lambda: folders_made() <= before, "its folders to be removed")


def test_an_interpreter_that_does_not_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = folders_made()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EmbeddedError, match="keeper of the embedded PostgreSQL could not be started with /bin/false"):
        open_server(ephemeral=True)
    until(lambda: folders_made() <= before, "its folders to be removed")


def test_the_default_path_is_the_nearest_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "package" / "room"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert default_path() == below / ".queuert"
    (tmp_path / "pyproject.toml").touch()
    assert default_path() == tmp_path / ".queuert"


def test_nothing_is_said_by_a_strict_interpreter(project: Path) -> None:
    script = "import sys, pathlib, queuert_py.embedded as e; e.open_server(pathlib.Path(sys.argv[1])).close()"
    done = strictly(script + "; e.open_server(ephemeral=True)", project)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_callers_postgres_variables_are_not_heeded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "7777")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    with open_server(project) as server:
        assert ask(server.dsn, "select current_setting('port')") == "5432"
