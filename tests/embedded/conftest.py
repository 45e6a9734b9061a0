"""Real servers, real processes. Nothing here sleeps for a guess: `until` polls for the thing itself, with a deadline."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from queuert_py.embedded import folders, open_server

REPOSITORY = Path(__file__).parents[2]

CLIENT = """
import sys
from pathlib import Path
from queuert_py.embedded import open_server
server = open_server(Path(sys.argv[1])) if sys.argv[1:] else open_server(ephemeral=True)
print(server.dsn, server.data, sep="\\n", flush=True)
sys.stdin.read()
"""


def until(reached: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """No process, or one that has ended and waits for its parent to notice."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] in ("", "Z")


def until_gone(*pids: int) -> None:
    for pid in pids:
        until(partial(is_gone, pid), f"the end of process {pid}")


def postmaster(data: Path) -> int:
    return int((data / "postmaster.pid").read_text().splitlines()[0])


def keeper(data: Path) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(postmaster(data))]))


def sockets(dsn: str) -> Path:
    return Path(str(conninfo_to_dict(dsn)["host"]))


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, connect_timeout=60) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def asked(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, connect_timeout=60) as connection:
        return connection.execute(query.encode()).fetchall()


def do(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, connect_timeout=60) as connection:
        connection.execute(statement.encode())


@dataclass
class Client:
    """Another process that holds a server."""

    process: subprocess.Popen[str]
    dsn: str
    data: Path

    def end(self) -> None:
        """Without close(): the way most programs end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def strictly(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run by an interpreter that warns of everything and takes each warning for an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


@contextmanager
def client(*arguments: Path) -> Generator[Client]:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CLIENT, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield Client(process, process.stdout.readline().strip(), Path(process.stdout.readline().strip()))
        finally:
            process.kill()


@contextmanager
def project_folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="project with spaces ") as folder:
        path = Path(folder).resolve() / ".queuert"
        yield path
        stop(path)
        if os.geteuid() == 0:
            shutil.rmtree(folders.ROOT / "projects" / hashlib.sha256(os.fsencode(path)).hexdigest()[:16])


def stop(path: Path) -> None:
    """Whatever a test has killed is stopped by this in good order."""
    server = open_server(path)
    for (table,) in asked(server.dsn, "select relname from pg_class where relnamespace = 'public'::regnamespace"):
        do(server.dsn, f"drop table {table}")
    server.close()
    until(lambda: not (server.data / "postmaster.pid").exists(), "the end of the test's server")


@pytest.fixture
def fresh_project() -> Iterator[Path]:
    """A project's `.queuert` that does not exist yet; what was made for it is removed."""
    with project_folder() as path:
        yield path


@pytest.fixture(scope="module")
def used_project() -> Iterator[Path]:
    with project_folder() as path:
        yield path


@pytest.fixture
def project(used_project: Path) -> Iterator[Path]:
    """A project's `.queuert`, one for all tests of a file: no server runs, no table is there."""
    yield used_project
    stop(used_project)


@contextmanager
def other_root() -> Generator[Path]:
    if os.geteuid():
        pytest.skip("needs root")
    outer = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="queuert-test-"))
    outer.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "ROOT", outer / "root")
        yield outer / "root"
    shutil.rmtree(outer)


@pytest.fixture
def missing_root() -> Iterator[Path]:
    """Another folder for /var/lib/queuert, not made yet."""
    with other_root() as root:
        yield root


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Another folder for /var/lib/queuert, one for all tests of a file."""
    with other_root() as root:
        yield root


def kill_all(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until_gone(*pids)
