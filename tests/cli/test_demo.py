"""`queuert demo`: what it promises holds, and nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from queuert_py import Continuation
from queuert_py.cli import demo
from queuert_py.cli.demo import Figures
from queuert_py.cli.demo_files import default_folder, text_files
from queuert_py.cli.demo_jobs import Changed, Content, File, Report, analyse, read
from queuert_py.cli.demo_view import View, show
from queuert_py.cli.trouble import Trouble
from queuert_py.testing import run_handler
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


def good() -> Figures:
    """What comes of ten files, with two of them changed meanwhile."""
    figures = Figures("a folder", 10, changed=2, jobs=27, rows=8, distinct_rows=8, report={"files": 8})
    figures.killed_pid, figures.killed_ending = 7, "was killed by SIGKILL"
    figures.held, figures.held_begun, figures.attempts_lost = 5, 3, 3
    return figures


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, []),
        ({"distinct_rows": 7, "rows": 7, "report": {"files": 7}}, ["7 of 8 files are stored"]),
        ({"rows": 9, "report": {"files": 9}}, ["9 rows for 8 files"]),
        ({"report": {"files": 3}}, ["the report counts 3 files"]),
        ({"jobs_failed": 1}, ["1 job(s) failed"]),
        ({"unfinished": 2}, ["2 job(s) are unfinished"]),
        ({"killed_ending": "ended"}, ["worker 7 ended"]),
        ({"held": 0, "held_begun": 0}, ["it held 0 jobs", "3 attempts were lost, 0 had begun in it"]),
    ],
)
def test_what_does_not_hold_is_said(wrong: dict[str, object], says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    figures = replace(good(), **wrong)  # type: ignore[arg-type]
    figures.check()
    assert (figures.broken, figures.holds) == (says, not says)
    figures.report = dict.fromkeys(Report.model_fields, 0)
    show(figures)
    assert ("NOT as promised: " + "; ".join(says) in capsys.readouterr().out) is bool(says)


async def test_a_file_that_was_changed_or_is_gone_does_not_count(folder: Path) -> None:
    file = File(folder=str(folder), path="broken.py")
    run = await run_handler(read, file)
    assert isinstance(run, Continuation)
    content = run.input
    assert isinstance(content, Content)
    (folder / "broken.py").write_text("changed")
    assert await run_handler(analyse, content) == Changed(path="broken.py")
    (folder / "broken.py").unlink()
    assert await run_handler(analyse, content) == await run_handler(read, file) == Changed(path="broken.py")


async def test_where_nothing_moves_it_says_how_far_it_was(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LONGEST", 0.0)
    with pytest.raises(Trouble, match=r"Nothing has moved for 0 s: 0 of 1 files are stored\."), View(1, quiet=True) as view:
        await demo.Demo(dsn, ["a file"], Figures("a folder", 1), view).run()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
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
