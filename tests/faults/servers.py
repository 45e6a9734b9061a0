"""A PostgreSQL of a test's own that it may stop as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Self

import psycopg

from queuert_py.embedded import find_binaries
from queuert_py.embedded.binaries import Binaries
from queuert_py.embedded.folders import server_account
from queuert_py.embedded.template import reachable
from queuert_py.postgres.migrate import script
from tests.faults.kit import Facts

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_min_messages": "warning",
}


def programs() -> Binaries:
    """Of the kind that the tests run against: the machine's own 15 with QUEUERT_TEST_DSN, else the embedded ones."""
    if os.environ.get("QUEUERT_TEST_DSN"):
        for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin")):
            return Binaries(folder, folder.parent.name)
    return find_binaries()


def free_port() -> int:
    """Below those that the system gives to whoever connects: while the server is away, nobody else gets it by chance."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class OwnServer:
    """Start, stop and start again, always on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.account = server_account()
        self.binaries = reachable(programs(), self.account)
        self.dsn = f"postgresql://queuert@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls) -> AsyncGenerator[Self]:
        folder = Path(tempfile.mkdtemp(prefix="queuert-faults-"))
        server = cls(folder)
        try:
            await asyncio.to_thread(server.make)
            await server.start()
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                connection.execute(script("queuert").encode())
            async with Facts(server.dsn):
                pass
            yield server
        finally:
            await server.stop(signal.SIGQUIT)
            shutil.rmtree(folder, ignore_errors=True)

    def make(self) -> None:
        self.account.own(self.folder)
        self.account.run(
            self.binaries.initdb, "-D", self.data, "--username=queuert", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"
        )

    async def start(self) -> None:
        """Returns when it accepts connections."""
        user = {"user": self.account.uid, "group": self.account.gid, "extra_groups": ()} if self.account.switched else {}
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries.postgres, "-D", self.data, "-p", str(self.port), "-k", self.folder, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                **user,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + 60
        while not self._accepts():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            await asyncio.sleep(0.005)

    def _accepts(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].startswith("ready")

    async def stop(self, number: int = signal.SIGQUIT) -> None:
        """SIGQUIT is `pg_ctl stop -m immediate`: a crash, as far as clients can tell."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            await asyncio.to_thread(process.wait, 60)
