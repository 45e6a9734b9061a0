"""The command line as its users have it: in this process where that shows the same, else as processes that are waited on, not slept for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import queuert_py
from queuert_py.cli import main

HERE = str(Path(__file__).parent)
ROOT = str(Path(queuert_py.__file__).parent.parent)
WORKER = ["sample:engine", "--app-dir", HERE]
APP = ["--app", "sample:engine", "--app-dir", HERE]


@dataclass
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def trouble(self, code: int) -> str:
        """The three lines of an error, and nothing else."""
        lines = self.err.splitlines()
        assert [line[:6] for line in lines] == ["error:", "  why:", "  fix:"], self.err
        assert (self.code, self.out) == (code, ""), self
        assert all(line[7:].strip() for line in lines)
        return self.err


Run = Callable[..., Answer]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUEUERT_DSN", "QUEUERT_APP", "QUEUERT_SCHEMA", "QUEUERT_DEBUG", "QUEUERT_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, without any setting."""

    def run(*arguments: object) -> Answer:
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        return Answer(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def queuert(bare: Run, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `bare`, with the clean database in QUEUERT_DSN."""
    monkeypatch.setenv("QUEUERT_DSN", dsn)
    return bare


@pytest.fixture
def start(queuert: Run) -> Callable[..., str]:
    """Start a sequence of the sample app; its id."""

    def run(type_: str, n: int = 1, *options: object) -> str:
        answer = queuert("start", type_, json.dumps({"n": n}), *APP, *options)
        assert answer.code == 0, answer
        return answer.out.split()[0]

    return run


class Process:
    """A queuert process whose stderr is read as it comes."""

    def __init__(self, *arguments: object, dsn: str | None, cwd: str | None = None, merge: bool = False) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUEUERT_")}
        environment["PYTHONPATH"] = ROOT
        if dsn is not None:
            environment["QUEUERT_DSN"] = dsn
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "queuert_py.cli", *map(str, arguments)],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.popen.pid
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in (self.popen.stderr or self.popen.stdout) or ():
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def line(self, pattern: str, count: int = 1, timeout: float = 60) -> list[re.Match[str]]:
        """Wait until `count` lines match."""
        until = time.monotonic() + timeout
        with self._news:
            while len(found := [match for line in self.lines if (match := re.search(pattern, line))]) < count:
                assert self._news.wait(until - time.monotonic()), f"no {pattern!r} in {self.text}"
        return found

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def ended(self, timeout: float = 60) -> int:
        code = self.popen.wait(timeout)
        self._reader.join(5)
        return code

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._reader.join(5)
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()


Spawn = Callable[..., Process]


@pytest.fixture
def spawn(dsn: str) -> Iterator[Spawn]:
    """Start a command as a process; none outlives the test."""
    processes: list[Process] = []

    def run(*arguments: object, **more: Any) -> Process:
        settings: dict[str, Any] = {"dsn": dsn, **more}
        processes.append(Process(*arguments, **settings))
        return processes[-1]

    yield run
    for process in processes:
        process.close()


@pytest.fixture
def worker(spawn: Spawn) -> Spawn:
    """Start `queuert worker` on the sample app."""

    def run(*options: object) -> Process:
        return spawn("worker", *WORKER, *options)

    return run


def until(seen: Callable[[], Any], timeout: float = 60) -> Any:
    """Look until there is something to see."""
    deadline = time.monotonic() + timeout
    while not (found := seen()):
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(0.02)
    return found


def is_gone(pid: int) -> bool:
    """Has the process ended (also as a zombie that nobody has waited for)?"""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True
