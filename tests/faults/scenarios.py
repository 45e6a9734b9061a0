"""The scenarios that are measured as well as asserted; `python -m tests.faults.figures` prints what they measure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection

from queuert_py import Engine
from queuert_py.runtime.leases import presence_class
from tests.faults import app
from tests.faults.app import Stage, Work
from tests.faults.kit import Facts, WorkerProcess, until, worker_process
from tests.faults.servers import OwnServer

IN_FLIGHT = 50
STAGES: Sequence[Stage] = ("before", "inside", "before", "after", "before", "atomic", "before", "before", "before", "before")


@dataclass
class Spans:
    """Measured spans in seconds, by the database's clock."""

    what: str
    seconds: list[float] = field(default_factory=list[float])

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        if not ordered:
            return f"{self.what}: none"
        middle, last = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return f"{self.what}: n={len(ordered)} p50={middle:.3f} s p99={last:.3f} s max={ordered[-1]:.3f} s"


async def start_work(engine: Engine[Any], stages: Sequence[Stage]) -> int:
    requests = [(app.whole if stage == "atomic" else app.work)(Work(stage=stage)) for stage in stages]
    return len(await engine.start_sequences(requests))


async def in_flight(engine: Engine[Any], facts: Facts, victim: WorkerProcess) -> int:
    """Start sequences until the victim holds 50 at their stages; how many were started."""
    started = 0

    async def held() -> bool:
        nonlocal started
        here = await facts.rows("select count(*) from history where pid = %(pid)s and event = 'held'", {"pid": victim.pid})
        waiting = await facts.one("select count(*) from queuert.live_job where leased_by is null")
        if here[0][0] < IN_FLIGHT and waiting == 0:
            started += await start_work(engine, [STAGES[number % len(STAGES)] for number in range(10)])
        return bool(here[0][0] == IN_FLIGHT)

    await until(held, "the victim to hold its jobs")
    return started


async def restarts(facts: Facts, killed_at: Any, pid: int) -> list[float]:
    """For each job that the dead process had begun and not finished: seconds from its death to the next start."""
    found = await facts.rows(
        "select extract(epoch from min(again.at) - %(at)s)::float8 from history lost"
        " join history again on again.sequence_id = lost.sequence_id and again.at > %(at)s and again.event = 'start'"
        " where lost.pid = %(pid)s and lost.event = 'held' group by lost.sequence_id",
        {"at": killed_at, "pid": pid},
    )
    return [row[0] for row in found]


async def kills(dsn: str, folder: Path, *, times: int, lease: float = 30.0, presence: bool = True) -> Spans:
    """kill -9 of a worker with 50 jobs in flight, held before, inside and after their transactions, `times` times over."""
    spans, total = Spans("kill -9 to the next start" + ("" if presence else ", presence impossible")), 0
    async with Facts(dsn) as facts, Engine(dsn, app.jobs) as engine, worker_process(dsn, folder, lease=lease):
        for _ in range(times):
            async with worker_process(dsn, folder, lease=lease, hold=True, concurrency=IN_FLIGHT, pool=40) as victim:
                total += await in_flight(engine, facts, victim)
                async with contextlib.AsyncExitStack() as stack:
                    if not presence:
                        await stack.enter_async_context(claimed_presence(facts, victim))
                    killed_at = await facts.stamp()
                    await victim.kill()
                    await facts.all_done(total)
                lost = await restarts(facts, killed_at, victim.pid)
                assert len(lost) == IN_FLIGHT
                spans.seconds += lost
        assert await facts.one("select count(*) from queuert.attempt_log where outcome = 'lost'") == IN_FLIGHT * times
    return spans


@contextlib.asynccontextmanager
async def claimed_presence(facts: Facts, victim: WorkerProcess) -> AsyncGenerator[None]:
    """Another session waits for the victim's presence lock: it has it the moment the victim is dead, so the dead one seems present."""
    presence = await facts.one("select presence from queuert.worker where id = %(id)s", {"id": victim.id})
    async with await AsyncConnection.connect(facts.dsn, autocommit=True) as other:
        taking = asyncio.create_task(other.execute("select pg_advisory_lock(%s, %s)", [presence_class("queuert"), presence]))
        query = "select count(*) from pg_locks where locktype = 'advisory' and pid = %(pid)s and not granted"

        async def waits() -> bool:
            return bool(await facts.one(query, {"pid": other.info.backend_pid}))

        await until(waits, "the other session to wait for the presence")
        try:
            yield
            await taking
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


async def outages(server: OwnServer, folder: Path, *, count: int, times: int) -> Spans:
    """The server crashes `times` times while one worker runs `count` sequences of two steps, each with an effect in finalize."""
    spans = Spans("server ready to the first commit")
    async with Engine(server.dsn, app.jobs) as engine:
        await engine.start_sequences([app.first(Work(tag=str(number))) for number in range(count)])
    async with Facts(server.dsn) as facts, worker_process(server.dsn, folder, history=False):
        for time in range(1, times + 1):

            async def far_enough(least: int = time * 2 * count // (times + 1)) -> bool:
                return bool(await facts.one("select count(*) from effect") >= least)

            await until(far_enough, "the next crash")
            await server.stop()
            await server.start()
            ready_at = await facts.stamp()

            async def committed(since: Any = ready_at) -> Any:
                with contextlib.suppress(psycopg.OperationalError):
                    found = await facts.one(
                        "select extract(epoch from min(at) - %(at)s)::float8 from effect where at > %(at)s", {"at": since}
                    )
                    return None if found is None else (found,)
                return None

            spans.seconds.append((await until(committed, "a commit after the crash"))[0])
        await facts.all_done(count, 120)
        assert await facts.finished("continued") == count
    return spans


def resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


async def memory(dsn: str, folder: Path, *, jobs: int, warm_up: int = 40_000) -> list[int]:
    """What a worker holds in memory after the warm-up and after each tenth of `jobs` no-op jobs."""
    held: list[int] = []
    async with (
        Facts(dsn) as facts,
        Engine(dsn, app.jobs) as engine,
        worker_process(dsn, folder, history=False, concurrency=100) as worker,
    ):
        for size in [warm_up] + [jobs // 10] * 10:
            for _ in range(size // 1000):
                await engine.start_sequences([app.noop(Work()) for _ in range(1000)])

            async def all_ended() -> bool:
                return await facts.live() == 0

            await until(all_ended, "the jobs to end", 120)
            held.append(resident(worker.pid))
    return held


@dataclass
class FanIns:
    """What came of fan-ins on two worker processes."""

    count: int
    completed: int
    effects: int
    right: int
    deadlocks: int
    workers: int
    close: int
    spread: Spans

    def __str__(self) -> str:
        return (
            f"{self.count} fan-ins of {WIDTH}: {self.completed} completed, {self.effects} effects, {self.right} with all outputs, "
            f"{self.deadlocks} deadlocks, on {self.workers} processes; {self.close} ended within {CLOSE * 1000:.0f} ms; {self.spread}"
        )


WIDTH = 50
"""Blockers of each fan-in."""
CLOSE = 0.050
"""Seconds within which the blockers of a fan-in end to be counted as ended together."""


async def fanins(dsn: str, folder: Path, *, count: int) -> FanIns:
    """`count` jobs that wait for 50 blockers each; the blockers of each end at nearly the same time, on two worker processes."""
    async with Facts(dsn) as facts, Engine(dsn, app.jobs) as engine:
        before = await facts.one("select deadlocks from pg_stat_database where datname = current_database()")
        async with worker_process(dsn, folder, history=False), worker_process(dsn, folder, history=False):
            due = 1 + count / 100  # when all are there, and both are awake
            pieces = await engine.start_sequences([app.noop(Work(tag=str(number % WIDTH)), delay=due) for number in range(count * WIDTH)])
            groups = [pieces[first : first + WIDTH] for first in range(0, len(pieces), WIDTH)]
            handles = await engine.start_sequences([app.gather(app.Gather(pieces=group)) for group in groups])
            outputs = [await handle.result(timeout=300) for handle in handles]
        spans = await facts.rows(
            "select extract(epoch from max(f.finished_at) - min(f.finished_at))::float8 from queuert.job_blocker b"
            " join queuert.finished_job f on f.sequence_id = b.blocker_id group by b.sequence_id"
        )
        return FanIns(
            count=count,
            completed=await facts.one("select count(*) from queuert.finished_job where type = 'gather' and attempt = 1"),
            effects=await facts.one("select count(*) from effect where what = 'gather'"),
            right=sum(output.count == WIDTH for output in outputs),
            deadlocks=await facts.one("select deadlocks from pg_stat_database where datname = current_database()") - before,
            workers=await facts.one("select count(distinct finished_by) from queuert.finished_job where type = 'noop'"),
            close=sum(row[0] <= CLOSE for row in spans),
            spread=Spans("blockers of one fan-in ended within", [row[0] for row in spans]),
        )
