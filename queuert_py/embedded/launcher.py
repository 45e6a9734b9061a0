"""Attach to a home's server, starting it and its keeper if need be (who holds which lock: keeper.py)."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

from queuert_py.embedded import folders, locks, template
from queuert_py.embedded.binaries import WAY_OUT, Binaries, find_binaries
from queuert_py.embedded.folders import SOCKET, Account
from queuert_py.errors import EmbeddedError

logger = logging.getLogger("queuert_py.embedded")

START_SECONDS = 60.0
CLOSE_SECONDS = 10.0
POLL_SECONDS = 0.002
LOG_BYTES = 1_000_000

DEFAULTS = {
    "shared_buffers": "128MB",
    "max_connections": "200",
    "jit": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "queuert",
}
EPHEMERAL = {"wal_level": "minimal", "max_wal_senders": "0"}
FIXED = {"listen_addresses": "", "port": "5432", "unix_socket_permissions": "0700"}
RESERVED = {*FIXED, "unix_socket_directories", "data_directory", "hba_file", "ident_file", "external_pid_file", "fsync"}


class Opened(NamedTuple):
    dsn: str
    data: Path
    release: Callable[[], None]


@dataclass(frozen=True)
class Postmaster:
    """What a server says of itself in postmaster.pid; after a crash the file tells of one that is gone."""

    pid: int
    sockets: Path
    ready: bool

    @classmethod
    def of(cls, data: Path) -> Self | None:
        try:
            lines = (data / "postmaster.pid").read_text(errors="surrogateescape").splitlines() + [""] * 8
        except FileNotFoundError:
            return None
        return cls(int(lines[0]), Path(lines[4]), lines[7].startswith("ready")) if lines[0].isdigit() and lines[4] else None

    def runs(self, data: Path) -> bool:
        """Whether the process is there, and (where /proc tells) is no other that got its number."""
        try:
            return os.fsencode(data) in Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return not Path("/proc/self/cmdline").exists() and exists(self.pid)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.sockets / SOCKET)) == 0


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(frozen=True)
class Launch:
    """One server's home and how to start it there."""

    home: Path
    binaries: Binaries
    account: Account
    ephemeral: bool
    settings: Mapping[str, str]

    @classmethod
    def of(cls, project: Path | None, *, fsync: bool | None, settings: Mapping[str, str]) -> Self:
        """For the project's server, or (None) for an ephemeral one."""
        ephemeral = project is None
        options = server_settings(settings, ephemeral=ephemeral, fsync=not ephemeral if fsync is None else fsync)
        account = folders.server_account()
        binaries = find_binaries()
        if project is None:
            home = folders.temporary_folder(account, 0o711 if account.switched else 0o700)
        else:
            home = folders.project_home(project, account, binaries.major)
        return cls(home, binaries, account, ephemeral, options)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "log"

    def open(self) -> Opened:
        """Take a hold and see to it that the server runs. Blocks at most START_SECONDS."""
        clients = -1
        try:
            with locks.exclusive(self.home / "start.lock"):
                clients = locks.open_lock(self.home / "clients.lock")
                fcntl.flock(clients, fcntl.LOCK_SH)
                postmaster = self.ensure_running(time.monotonic() + START_SECONDS)
        except BaseException:
            if clients >= 0:
                locks.release(clients)
            if self.ephemeral and locks.is_free(self.home / "keeper.lock"):  # else the keeper removes it
                shutil.rmtree(self.home, ignore_errors=True)
            raise
        host = quote(str(postmaster.sockets), safe="")
        return Opened(f"postgresql://postgres@/queuert?host={host}&port=5432", self.data, Hold(clients, self.home).release)

    def ensure_running(self, deadline: float) -> Postmaster:
        while True:
            before = self.log_size()
            started = self.start_if_alone()
            postmaster = self.wait_until_ready(deadline)
            if postmaster is not None:
                return postmaster
            said = self.log.read_bytes()[before:].decode(errors="replace").splitlines()
            # After a kill -9 of the server alone its last sessions take a moment to notice.
            lingering = any("still in use" in line for line in said) and time.monotonic() < deadline
            if started and not lingering:
                raise EmbeddedError(f"PostgreSQL ended as it started. Its log {self.log} says:\n{folders.last_lines(said)}\nOr {WAY_OUT}")

    def log_size(self) -> int:
        """In bytes; a long log is emptied first (the server appends, so it may run)."""
        size = self.log.stat().st_size if self.log.exists() else 0
        if size > LOG_BYTES:
            os.truncate(self.log, 0)
            return 0
        return size

    def start_if_alone(self) -> bool:
        """Start a keeper, which starts the server, unless there is one."""
        lock = locks.open_lock(self.home / "keeper.lock")
        try:
            if not locks.attempt(lock, fcntl.LOCK_EX):
                return False
            self.start(lock)
        except BaseException:
            fcntl.flock(lock, fcntl.LOCK_UN)
            raise
        finally:
            os.close(lock)  # not unlocked: the keeper has it
        return True

    def start(self, lock: int) -> None:
        last = Postmaster.of(self.data)
        if last is not None and last.runs(self.data):  # its keeper was killed: a new one takes it over
            self.start_keeper(lock, last.sockets, last.pid, ["-"], folders.environment())
            return
        self.prepare()
        environment = folders.environment()
        if last is not None and exists(last.pid):
            # Another process has the dead server's number. PostgreSQL takes this one for its caller's, not for a server's.
            environment["PG_GRANDPARENT_PID"] = str(last.pid)
        sockets = self.sockets(last)
        try:
            self.start_keeper(lock, sockets, 0, self.command(sockets), environment)
        except BaseException:
            shutil.rmtree(sockets, ignore_errors=True)
            raise

    def start_keeper(self, lock: int, sockets: Path, running: int, command: list[str], environment: dict[str, str]) -> None:
        keeper = Path(__file__).with_name("keeper.py")
        arguments = [lock, self.home, sockets, running, self.account.uid, self.account.gid]
        mode = "ephemeral" if self.ephemeral else "persistent"
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            subprocess.run(  # noqa: S603
                [sys.executable, "-I", "-S", keeper, *map(str, arguments), mode, *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=environment,
                pass_fds=(lock,), start_new_session=True, check=True,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            said = folders.last_lines(self.log.read_text(errors="replace").splitlines())
            raise EmbeddedError(
                f"The keeper of the embedded PostgreSQL could not be started with {sys.executable}:\n{said}\nOr {WAY_OUT}"
            ) from error
        finally:
            os.close(log)

    def prepare(self) -> None:
        """The data folder: the one that is there, else a copy of the template."""
        if not os.path.lexists(self.data):
            self.create()
        folders.check(self.data, self.account.uid, 0o700)

    def create(self) -> None:
        others = sorted(path.parent.name for path in self.home.parent.glob("*/data")) if not self.ephemeral else []
        if others:
            logger.warning(
                "%s holds data of PostgreSQL %s, which %s cannot read: a new, empty database is made beside it.",
                self.home.parent, ", ".join(others), self.binaries.version,
            )  # fmt: skip
        binaries = template.reachable(self.binaries, self.account)
        fresh = self.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        template.copy(template.template(binaries, self.account), fresh)
        if not self.ephemeral:
            template.sync(fresh, binaries, self.account)
        fresh.rename(self.data)

    def sockets(self, last: Postmaster | None) -> Path:
        """The last server's socket folder if it is still there, so that its clients' DSN serves on; else a fresh one."""
        with contextlib.suppress(OSError, EmbeddedError):
            if last is not None and last.sockets.name.startswith("queuert-"):
                return folders.check(last.sockets, self.account.uid, 0o700)
        bases = [Path("/run")] if self.account.switched else []
        fresh = folders.temporary_folder(self.account, 0o700, bases=[*bases, *folders.TEMPORARY])
        return self.account.own(fresh)

    def command(self, sockets: Path) -> list[str]:
        postgres = template.reachable(self.binaries, self.account).postgres
        settings = {**self.settings, "unix_socket_directories": str(sockets)}
        return [
            str(postgres),
            "-D",
            str(self.data),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ]

    def wait_until_ready(self, deadline: float) -> Postmaster | None:
        """The running server, or None if its keeper has gone."""
        while time.monotonic() < deadline:
            postmaster = Postmaster.of(self.data)
            if postmaster and postmaster.ready and postmaster.runs(self.data) and postmaster.answers():
                return postmaster
            if locks.is_free(self.home / "keeper.lock"):
                return None
            time.sleep(POLL_SECONDS)
        raise EmbeddedError(f"PostgreSQL was not ready within {START_SECONDS:.0f} s. Its log: {self.log}. Or {WAY_OUT}")


@dataclass
class Hold:
    """A shared lock on clients.lock."""

    lock: int
    home: Path
    process: int = 0

    def __post_init__(self) -> None:
        self.process = os.getpid()

    def release(self) -> None:
        lock, self.lock = self.lock, -1
        if lock < 0:
            return
        if self.process != os.getpid():  # a forked child: the hold is its parent's
            os.close(lock)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_UN)
            self.wait_if_last(lock)
        finally:
            locks.release(lock)

    def wait_if_last(self, lock: int) -> None:
        """Until the keeper has gone. Other clients hold the lock shared; the keeper, which looks whether there are any, holds it alone."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while time.monotonic() < deadline and not locks.is_free(self.home / "keeper.lock"):
            others = not locks.attempt(lock, fcntl.LOCK_EX) and locks.attempt(lock, fcntl.LOCK_SH)
            if others and not locks.attempt(lock, fcntl.LOCK_EX):  # looked at twice: another one may just have looked as well
                return
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(POLL_SECONDS)


def server_settings(settings: Mapping[str, str], *, ephemeral: bool, fsync: bool) -> dict[str, str]:
    for name in settings:
        if name in RESERVED or not re.fullmatch(r"[a-z_][a-z0-9_.]*", name):
            raise EmbeddedError(
                f"The setting {name!r} cannot be given: the embedded server sets it itself, or it is no name of a setting "
                f"(lower case; fsync is a parameter of its own).",
                setting=name,
            )
    durable = "on" if fsync else "off"
    own = {**DEFAULTS, **(EPHEMERAL if ephemeral else {}), "fsync": durable, "full_page_writes": durable}
    return {**own, **settings, **FIXED}
