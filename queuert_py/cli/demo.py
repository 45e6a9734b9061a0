"""`queuert demo`: real files, a real server, a worker that is killed while it works, and what came of it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from psycopg.conninfo import make_conninfo

from queuert_py import Engine
from queuert_py.cli import apps, output
from queuert_py.cli.demo_files import default_folder, text_files
from queuert_py.cli.demo_jobs import TABLE, File, Folder, Report, jobs, read, report
from queuert_py.cli.demo_view import View, show
from queuert_py.cli.look import json_option, list_workers
from queuert_py.cli.supervisor import ROOT, Child, command, ending
from queuert_py.cli.trouble import FAILED, OK, USAGE, Trouble
from queuert_py.cli.worker import Options
from queuert_py.embedded import open_server
from queuert_py.engine import DSN_VARIABLE

LONGEST = 60.0
"""Seconds without any progress after which the demo gives up."""
SMALL = 100
"""With fewer files, all would be done before a kill could find one in work: the table is locked from the beginning."""
LOOK = 0.01
WORKER = Options(concurrency=20, shutdown_timeout=3.0, log_level="warning")

COUNTS = """
select (select count(*) from demo_file), (select count(*) from queuert.live_job),
    (select count(*) from queuert.live_job where leased_by = %(victim)s)
"""
BEGUN = """
select exists (select from queuert.live_job where leased_by is not null) or exists (select from queuert.finished_job)
"""
STORED_BY = "select count(*) from demo_file where stored_by = %(pid)s"
HELD = "select count(*), count(*) filter (where begun) from queuert.live_job where leased_by = %(victim)s"
ACTIVE = """
select exists (
    select from pg_stat_activity
    where application_name = %(name)s and state = 'active' and coalesce(wait_event_type, '') not in ('Lock', 'Client')
)
"""
FIGURES = """
select (select count(*) from queuert.finished_job where outcome in ('completed', 'continued')),
    (select count(*) from queuert.finished_job where outcome = 'completed' and output_type = 'Changed'),
    (select count(*) from queuert.finished_job where outcome = 'failed'),
    (select count(*) from queuert.attempt_log where outcome = 'lost'),
    (select count(*) from demo_file), (select count(distinct path) from demo_file),
    (select count(*) from queuert.live_job)
"""


@dataclass
class Figures:
    """What came of it; printed as JSON by --json."""

    folder: str
    files: int
    more: bool = False
    server_seconds: float = 0.0
    start_seconds: float = 0.0
    work_seconds: float = 0.0
    total_seconds: float = 0.0
    killed_pid: int = 0
    killed_ending: str = ""
    held: int = 0
    held_begun: int = 0
    recovery_seconds: float = 0.0
    jobs: int = 0
    changed: int = 0
    jobs_failed: int = 0
    attempts_lost: int = 0
    rows: int = 0
    distinct_rows: int = 0
    unfinished: int = 0
    stored_by: dict[str, int] = field(default_factory=dict[str, int])
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    broken: list[str] = field(default_factory=list[str])

    @property
    def holds(self) -> bool:
        return not self.broken

    @property
    def jobs_per_second(self) -> float:
        return self.jobs / self.work_seconds if self.work_seconds else 0.0

    def check(self) -> None:
        """Do the promises hold: every file stored exactly once (but for those that were changed meanwhile), nothing failed or left, the
        killed worker's jobs done by the other? `broken` says what does not."""
        wanted = self.files - self.changed
        summed = self.report.get("files")
        checks = {
            f"{self.distinct_rows:,} of {wanted:,} files are stored": self.distinct_rows == wanted,
            f"{self.rows:,} rows for {self.distinct_rows:,} files": self.rows == self.distinct_rows,
            f"the report counts {summed} files": summed == self.rows,
            f"{self.jobs_failed} job(s) failed": not self.jobs_failed,
            f"{self.unfinished} job(s) are unfinished": not self.unfinished,
            f"worker {self.killed_pid} {self.killed_ending}": self.killed_ending == "was killed by SIGKILL",
            f"it held {self.held} jobs": self.held > 0,
            f"{self.attempts_lost} attempts were lost, {self.held_begun} had begun in it": self.attempts_lost == self.held_begun,
        }
        self.broken = [what for what, holds in checks.items() if not holds]


class WorkersGone(Exception):  # noqa: N818 - becomes a Trouble
    """No worker process is left to wait for."""


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def demo(folder: Path | None, as_json: bool) -> int:
    """Work on the files of FOLDER (default: this project's), kill a worker meanwhile, and check the result.

    PostgreSQL comes along and goes afterwards; nothing is installed and no file is changed.
    """
    begun = time.monotonic()
    place = (folder or default_folder()).resolve()
    files, more = text_files(place)
    if not files:
        raise Trouble(
            f"There is no text file in {place}.", "the demo works on the files of a folder", "name another: `queuert demo FOLDER`", USAGE
        )
    logging.basicConfig(level="ERROR")
    figures = Figures(str(place), len(files), more=more)
    opening = time.monotonic()
    with View(len(files), quiet=as_json) as view, open_server(ephemeral=True) as server:
        figures.server_seconds = time.monotonic() - opening
        view.say(
            f"PostgreSQL runs, started in {output.span(figures.server_seconds)}: its own folder {server.data.parent}, gone at the end."
        )
        apps.run(Demo(server.dsn, files, figures, view).run())
    figures.total_seconds = time.monotonic() - begun
    if as_json:
        output.print_json({**output.plain(figures), "holds": figures.holds, "jobs_per_second": round(figures.jobs_per_second, 1)})
    else:
        show(figures)
    return OK if figures.holds else FAILED


class Demo:
    """One run, from an empty server to the figures."""

    def __init__(self, dsn: str, files: list[str], figures: Figures, view: View) -> None:
        self._dsn = dsn
        self._files = files
        self._figures = figures
        self._view = view
        self._engine = Engine(dsn, jobs)
        self._workers: list[Child] = []
        self._victim = ""
        self._limit = asyncio.Timeout(None)
        self._seen = (0, 0, 0)

    async def run(self) -> None:
        """Everything between the server's start and its end. Trouble when it does not get anywhere."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os.kill, os.getpid(), signal.SIGINT)
        with tempfile.TemporaryFile("w+") as log:
            try:
                async with asyncio.timeout(LONGEST) as self._limit, self._engine, self._started_workers(log.fileno()):
                    await self._work()
            except (TimeoutError, WorkersGone) as error:
                log.seek(0)
                said = log.read()[-400:] or "the workers said nothing"
                stored = f"{self._seen[0]:,} of {len(self._files):,} files are stored"
                stands = isinstance(error, TimeoutError)
                what = f"Nothing has moved for {LONGEST:.0f} s: {stored}." if stands else f"Both workers have ended: {stored}."
                raise Trouble(what, said, "run it again; `queuert demo FOLDER` takes another folder", FAILED) from None
        self._figures.check()

    async def _work(self) -> None:
        figures, small = self._figures, len(self._files) < SMALL
        await self._query(TABLE)
        async with AsyncExitStack() as pause:
            if small:
                await pause.enter_async_context(self._locked())
            await self._start_sequences()
            begun = await self._begun()
            if not small:
                await self._until(len(self._files) // 3)
                await pause.enter_async_context(self._locked())
            died = await self._kill_one()
        await self._until_all(died)
        sequence = await self._engine.start_sequence(report, Folder(folder=figures.folder))
        result: Report = await sequence.result()
        figures.work_seconds = time.monotonic() - begun
        figures.report = result.model_dump()
        await self._read_figures()

    # --- the steps

    @asynccontextmanager
    async def _started_workers(self, log: int) -> AsyncGenerator[None]:
        """Two worker processes as `queuert worker` makes them; whatever happens, none is left."""
        line = command("queuert_py.cli.demo_app:engine", str(ROOT), WORKER.arguments())
        try:
            for number in (1, 2):
                dsn = make_conninfo(self._dsn, application_name=f"demo-{number}")
                self._workers.append(Child(line, {DSN_VARIABLE: dsn}, log))
            yield
        finally:
            await stop_all(self._workers)

    async def _start_sequences(self) -> None:
        folder = self._figures.folder
        begun = time.monotonic()
        await self._engine.start_sequences([read(File(folder=folder, path=path)) for path in self._files])
        self._figures.start_seconds = time.monotonic() - begun
        took = output.span(self._figures.start_seconds)
        which = f"{len(self._files)} text files in {folder}{self._capped()}"
        self._view.say(f"{which}: a sequence each (read, analyse, store), started by one call in {took}.")
        pids = " and ".join(str(worker.pid) for worker in self._workers)
        self._view.say(f"Two workers (queuert worker), pids {pids}.")

    def _capped(self) -> str:
        return " (the first; there are more)" if self._figures.more else ""

    async def _begun(self) -> float:
        """When the first job was seen at work."""
        while not (await self._query(BEGUN))[0]:
            await self._pause()
        return time.monotonic()

    async def _until(self, stored: int) -> None:
        while (await self._counts())[0] < stored:
            await self._pause()

    async def _kill_one(self) -> float:
        """SIGKILL to a worker that holds jobs, seen to be dead; when that was.

        It is stopped (SIGSTOP) for the moment in which its jobs are counted, so that the count is that of its death.
        """
        figures = self._figures
        while not figures.held:
            child, self._victim = await self._busy()
            with stopped(child):
                if await self._quiet(child):
                    figures.held, figures.held_begun = await self._query(HELD)
                if figures.held:
                    child.kill()
                    figures.killed_pid = child.pid
        figures.killed_ending = ending(await self._killed().ended())
        self._view.say(
            f"Worker {figures.killed_pid} {figures.killed_ending}. It held {figures.held} jobs, {figures.held_begun} of them begun."
        )
        return time.monotonic()

    async def _quiet(self, child: Child) -> bool:
        """Wait until its connections run nothing more that could still be committed; False when that takes too long."""
        until = time.monotonic() + 0.5
        while (await self._query(ACTIVE, name=self._name(child)))[0]:
            if time.monotonic() > until:
                return False
            await self._pause()
        return True

    def _killed(self) -> Child:
        return next(worker for worker in self._workers if worker.pid == self._figures.killed_pid)

    async def _busy(self) -> tuple[Child, str]:
        """A worker that holds jobs, by what the database says."""
        known = {worker.pid: worker for worker in self._workers}
        while True:
            for each in await list_workers(self._engine):
                if each["running"] and each["pid"] in known:
                    return known[each["pid"]], str(each["id"])
            await self._pause()

    async def _until_all(self, died: float) -> None:
        """Until no sequence is unfinished; the killed worker's jobs are seen to leave its name meanwhile."""
        recovered = False
        while True:
            stored, live, orphans = await self._counts()
            if not orphans and not recovered:
                recovered = True
                self._figures.recovery_seconds = time.monotonic() - died
                self._view.say(f"The other worker has taken them over, {output.span(self._figures.recovery_seconds)} after the death.")
            if not live:
                return
            self._view.progress(stored)
            await self._pause()

    async def _counts(self) -> tuple[int, int, int]:
        stored, live, orphans = seen = await self._query(COUNTS)
        if seen != self._seen:
            self._seen = stored, live, orphans
            self._limit.reschedule(asyncio.get_running_loop().time() + LONGEST)
        self._view.progress(stored)
        return stored, live, orphans

    async def _read_figures(self) -> None:
        figures = self._figures
        row = await self._query(FIGURES)
        figures.jobs, figures.changed, figures.jobs_failed, figures.attempts_lost, figures.rows, figures.distinct_rows = row[:6]
        figures.unfinished = row[6]
        for worker in self._workers:
            figures.stored_by[str(worker.pid)] = (await self._query(STORED_BY, pid=worker.pid))[0]

    # --- means

    def _name(self, worker: Child) -> str:
        """What its connections are called."""
        return f"demo-{self._workers.index(worker) + 1}"

    @asynccontextmanager
    async def _locked(self) -> AsyncGenerator[None]:
        """No row can be stored meanwhile: whoever is killed now is killed at work."""
        async with self._engine.database.connection() as connection, connection.transaction():
            await connection.execute("lock table demo_file in share mode")
            yield

    async def _query(self, sql: str, **values: object) -> tuple[Any, ...]:
        async with self._engine.database.connection() as connection:
            cursor = await connection.execute(sql.encode(), {"victim": self._victim, **values})
            return (await cursor.fetchone() or ()) if cursor.description else ()

    async def _pause(self) -> None:
        """A moment between two looks; Trouble when no worker is left to look for."""
        await asyncio.sleep(LOOK)
        if all(worker.process.poll() is not None for worker in self._workers):
            raise WorkersGone


@contextmanager
def stopped(child: Child) -> Generator[None]:
    """The process stands still meanwhile."""
    os.kill(child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGCONT)  # for one that was killed it means nothing


async def stop_all(children: list[Child]) -> None:
    """Ask them to stop; kill what has not in its time."""
    for child in children:
        child.ask_to_stop()
    try:
        async with asyncio.timeout(WORKER.shutdown_timeout + 2):
            await asyncio.gather(*(child.ended() for child in children))
    finally:
        for child in children:
            child.kill()
            child.process.wait()
