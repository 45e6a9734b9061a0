"""What the fault tests share: waiting on facts, tables in which doubles show, and workers in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, LiteralString, Self, TypeVar

import psycopg
from psycopg import AsyncConnection

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds after which something hangs: ten times what it takes on a machine with nothing else to do."""
TABLES = """
create table if not exists public.effect (
    id bigint generated always as identity, sequence_id text not null, what text not null, pid integer,
    at timestamptz default clock_timestamp()
);
create table if not exists public.history (
    id bigint generated always as identity, sequence_id text, attempt integer, event text not null, pid integer,
    at timestamptz default clock_timestamp()
);
"""


async def until(probe: Callable[[], Awaitable[T]], what: str, within: float = PATIENCE) -> T:
    """The first truthy answer of `probe`, asked every few milliseconds."""
    deadline = time.monotonic() + within
    while True:
        answer = await probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within} s for {what}; last seen: {answer!r}")
        await asyncio.sleep(0.01)


async def event(flag: asyncio.Event, what: str, within: float = PATIENCE) -> None:
    """Wait for an event, and say which one did not come."""
    try:
        await asyncio.wait_for(flag.wait(), within)
    except TimeoutError:
        raise AssertionError(f"waited {within} s for {what}") from None


class Facts:
    """The test's own look at the database, on a connection of its own, made anew when the server was gone."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection: AsyncConnection[tuple[Any, ...]] | None = None

    async def __aenter__(self) -> Self:
        await self.rows(TABLES)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def rows(self, query: LiteralString, parameters: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
        fresh = self._connection is None or self._connection.closed
        if self._connection is None or fresh:
            self._connection = await AsyncConnection.connect(self.dsn, autocommit=True)
        try:
            cursor = await self._connection.execute(query, parameters)
        except psycopg.OperationalError:
            await self._connection.close()
            if fresh:
                raise
            return await self.rows(query, parameters)
        return await cursor.fetchall() if cursor.description else []

    async def one(self, query: LiteralString, parameters: Mapping[str, object] | None = None) -> Any:
        return (await self.rows(query, parameters))[0][0]

    async def note(self, event: str) -> None:
        await self.rows("insert into history (event) values (%(event)s)", {"event": event})

    async def events(self, event: str) -> int:
        return int(await self.one("select count(*) from history where event = %(event)s", {"event": event}))

    async def live(self) -> int:
        return int(await self.one("select count(*) from queuert.live_job"))

    async def finished(self, outcome: str = "completed") -> int:
        return int(await self.one("select count(*) from queuert.finished_job where outcome = %(outcome)s", {"outcome": outcome}))

    async def doubles(self) -> list[tuple[Any, ...]]:
        """Effects that were written more than once."""
        return await self.rows("select sequence_id, what, count(*) from effect group by 1, 2 having count(*) > 1")

    async def unpaired(self) -> int:
        """Effects without the completion that they belong to, and completions without their effect."""
        return int(
            await self.one(
                "select count(*) from (select distinct sequence_id from effect) e full join queuert.finished_job f"
                " on f.sequence_id::text = e.sequence_id and f.outcome in ('completed', 'continued')"
                " where f.sequence_id is null or e.sequence_id is null"
            )
        )

    async def all_done(self, count: int, within: float = PATIENCE) -> None:
        """Wait until all is done, then hold the invariants of effects: each completion has its effect, each effect its completion."""
        await self.all_done_but_pairs(count, within)
        assert await self.unpaired() == 0

    async def all_done_but_pairs(self, count: int, within: float = PATIENCE) -> None:
        """Wait until nothing is unfinished; `count` sequences are completed, no effect is double. Not every job has one."""

        async def done() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                return await self.live() == 0
            return False

        await until(done, "all sequences to end", within)
        assert await self.finished() == count
        assert await self.doubles() == []

    async def stamp(self) -> Any:
        """The database's clock now."""
        return await self.one("select clock_timestamp()")


class WorkerProcess:
    """A worker of tests/faults/app.py in a process of its own; `ready` once it serves."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.id = ""
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def ready(self) -> None:
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE)).decode()
        assert line.startswith("ready "), f"the worker did not start: {line}{self.log}"
        self.id = line.split()[1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.process.wait()

    async def ended(self, within: float = PATIENCE) -> int:
        return await asyncio.wait_for(self.process.wait(), within)


@contextlib.asynccontextmanager
async def worker_process(dsn: str, folder: Path, **settings: object) -> AsyncGenerator[WorkerProcess]:
    """Run a worker until the block ends. settings: see `app.Setup`."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    environment = {**os.environ, "QUEUERT_DSN": dsn, "QUEUERT_FAULTS": json.dumps(settings), "PYTHONPATH": str(ROOT)}
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.app",
            env=environment,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            stdin=asyncio.subprocess.DEVNULL,
        )
    worker = WorkerProcess(process, log)
    try:
        await worker.ready()
        yield worker
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # its pipe, before the loop is gone
