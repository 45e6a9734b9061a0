"""`queuert demo`: what it promises holds, and nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from queuert_py.cli.demo_files import default_folder, text_files
from tests.cli.conftest import Run, Spawn, is_gone, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files to work on, and some to leave alone."""
    place = tmp_path / "a folder"
    for name in ("src", ".git", ".venv", "__pycache__", "node_modules", "own env"):
        (place / name).mkdir(parents=True)
    (place / "own env" / "pyvenv.cfg").touch()
    for number in range(30):
        (place / "src" / f"m{number:02}.py").write_text("def f(): ...\nclass C: ...\n")
    (place / "broken.py").write_text("def (:\n")
    (place / "latin.txt").write_bytes(b"gr\xfc\xdfe\n")
    (place / "empty").touch()
    for name in (".git/config", ".venv/x.py", "__pycache__/x.py", "node_modules/x.js", "own env/x.py", ".hidden"):
        (place / name).write_text("x")
    (place / "image.png").write_bytes(b"\x89PNG\0\0")
    (place / "large.txt").write_bytes(b"x" * 1_000_001)
    (place / "link.py").symlink_to(place / "broken.py")
    return place


def test_it_works_on_text_files_only(folder: Path) -> None:
    found, more = text_files(folder)
    assert len(found) == 33
    assert {"broken.py", "latin.txt", "empty", "src/m00.py"} < set(found)
    assert not more
    assert [len(files) + more for files, more in (text_files(folder, most=5), text_files(folder, most=33))] == [6, 33]


def test_its_folder_is_the_projects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "src")
    assert default_folder() == folder / "src"
    (folder / "pyproject.toml").touch()
    assert default_folder() == folder


def test_a_worker_is_killed_and_every_file_is_stored_exactly_once(folder: Path, spawn: Spawn) -> None:
    process = spawn("demo", folder, "--json", dsn=None)
    out, _ = process.popen.communicate(timeout=60)
    assert process.popen.returncode == 0, out
    known = json.loads(out)
    assert known["holds"] is True
    assert known["files"] == known["rows"] == known["distinct_rows"] == known["report"]["files"] == 33
    assert known["jobs"] == 3 * 33 + 1
    assert known["held"] > 0
    assert known["attempts_lost"] == known["held_begun"]
    assert sum(known["stored_by"].values()) == 33
    assert known["report"]["definitions"] == 60
    assert all(is_gone(int(pid)) for pid in known["stored_by"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_stays_after_an_interruption(folder: Path, spawn: Spawn, number: signal.Signals) -> None:
    process = spawn("demo", folder, dsn=None, merge=True)
    pids = [int(pid) for pid in process.line(r"pids (\d+) and (\d+)")[0].groups()]
    place = process.line(r"its own folder (\S+),")[0][1]
    assert Path(place).exists()
    process.send(number)
    assert process.ended() == (130 if number == signal.SIGINT else -number)
    until(lambda: all(is_gone(pid) for pid in pids))
    until(lambda: not Path(place).exists())
    assert "Traceback" not in process.text


def test_a_folder_without_files(bare: Run, tmp_path: Path) -> None:
    assert "no text file" in bare("demo", tmp_path).trouble(2)
    assert os.listdir(tmp_path) == []
