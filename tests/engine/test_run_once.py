"""engine.run_once: one round of work, for cron jobs and serverless functions."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, Retry, continue_with
from queuert_py.errors import UsageError
from queuert_py.values import Summary
from tests.engine.kit import patiently
from tests.faults.servers import free_port

Connection = psycopg.AsyncConnection[Any]


_LOCKS = (
    "(select count(*) from pg_locks where locktype = 'advisory' and database = "
    "(select oid from pg_database where datname = current_database()))"
)
"""How many advisory locks are held in this database: those of others, on the same server, are none of ours."""


class Number(BaseModel):
    n: int


async def test_it_claims_runs_and_says_what_became_of_it(engine: Engine) -> None:
    @engine.job_type(max_attempts=2)
    async def first(job: Job[Number]) -> Number | Continuation[Number]:
        match job.input.n:
            case 0:
                return continue_with(second, job.input)
            case 1:
                raise Retry("later", after=60)
            case 2:
                raise TypeError("wrong")
            case _:
                return job.input

    @engine.job_type(internal=True)
    async def second(job: Job[Number]) -> Number:
        return job.input

    await engine.start_sequences([first(Number(n=0)), first(Number(n=1)), first(Number(n=2), max_attempts=1), first(Number(n=3), delay=60)])
    done = await engine.run_once()
    assert (done.claimed, done.reaped, done.available) == (3, 0, 0)
    assert done.outcomes == {"continued": 1, "completed": 1, "retried": 1, "failed": 1}
    assert {each.type for each in done.ran} == {"first", "second"}
    assert [(each.error or {})["type"] for each in done.ran if each.outcome == "failed"] == ["TypeError"]


async def test_it_takes_no_more_than_its_limit_and_tells_what_is_left(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    await engine.start_sequences([note(Number(n=n)) for n in range(25)])
    rounds = [await engine.run_once(limit=10) for _ in range(4)]
    assert [(each.claimed, each.available) for each in rounds] == [(10, 15), (10, 5), (5, 0), (0, 0)]


async def test_at_the_end_of_its_budget_what_runs_is_given_back_uncharged(engine: Engine) -> None:
    cancelled = asyncio.Event()

    @engine.job_type
    async def wait(job: Job[Number]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    sequences = await engine.start_sequences([wait(Number(n=n)) for n in range(3)])

    async def one_round(budget: float) -> Summary | None:
        done = await engine.run_once(budget=budget, concurrency=1)
        return done if done.claimed else None

    done = await patiently(one_round)
    assert cancelled.is_set()
    assert (done.claimed, done.available, done.outcomes) == (1, 3, {"released": 1})
    jobs = [(await engine.list_jobs(each.id))[0] for each in sequences]
    assert [(job.status, job.attempt) for job in jobs] == [("pending", 0)] * 3


async def test_a_handler_that_swallows_its_cancellation_costs_the_grace_and_no_more(engine: Engine) -> None:
    go_on = asyncio.Event()

    @engine.job_type
    async def stubborn(job: Job[Number]) -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    sequence = await engine.start_sequence(stubborn, Number(n=1))

    async def one_round(budget: float) -> Summary | None:
        done = await engine.run_once(budget=budget, grace=0.1)
        return done if done.claimed else None

    done = await patiently(one_round)
    assert done.outcomes == {"released": 1}
    assert (await engine.get_sequence(sequence.id)).status == "pending"
    go_on.set()


async def test_it_takes_back_what_a_dead_worker_held(engine: Engine, db: Connection) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return Number(n=job.attempt)

    sequence = await engine.start_sequence(note, Number(n=1))
    await db.execute(
        "update queuert.live_job set leased_by = 'gone', begun = true, attempt = 1, leased_until = clock_timestamp() - interval '1 second'"
    )
    done = await engine.run_once()
    assert (done.reaped, done.claimed) == (1, 1)
    assert (await sequence.result(timeout=10)).n == 2


async def test_it_leaves_nothing_in_a_session_and_nothing_behind(engine: Engine, db: Connection) -> None:
    """No lock of a session, no row in `worker`, nobody listens: while a handler runs, and afterwards."""
    seen: list[tuple[Any, ...] | None] = []

    async def look() -> None:
        query = (
            "select (select count(*) from queuert.worker), "
            f"{_LOCKS}, "
            "(select count(*) from pg_stat_activity where datname = current_database() and application_name = 'queuert:listen')"
        )
        seen.append(await (await db.execute(query)).fetchone())

    @engine.job_type
    async def note(job: Job[Number]) -> None:
        await look()

    await engine.start_sequence(note, Number(n=1))
    await engine.run_once()
    await look()
    assert seen == [(0, 0, 0)] * 2
    assert engine._workers == []
    assert engine.database.health._callbacks == []


async def test_its_lease_is_renewed_while_a_handler_runs(engine: Engine, db: Connection) -> None:
    """With a lease of 1.5 s and nothing but it, another round would take the job over."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    attempts: list[int] = []

    @engine.job_type
    async def wait(job: Job[Number]) -> None:
        attempts.append(job.attempt)
        begun.set()
        await go_on.wait()

    await engine.start_sequence(wait, Number(n=1))
    first = asyncio.create_task(engine.run_once(lease=1.5))
    await begun.wait()
    leases: set[Any] = set()
    while len(leases) < 5:  # renewed four times, over more than a lease
        leases.add((await (await db.execute("select leased_until from queuert.live_job")).fetchone() or [None])[0])
        await asyncio.sleep(0.01)
    assert (await engine.run_once(lease=1.5)).claimed == 0
    go_on.set()
    assert (await first).outcomes == {"completed": 1}
    assert attempts == [1]


async def test_a_round_without_a_sense_is_refused(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> None: ...

    with pytest.raises(UsageError, match="limit=0"):
        await engine.run_once(limit=0)
    with pytest.raises(UsageError, match="budget"):
        await engine.run_once(budget=0)


# --- through a transaction pooler


@pytest.fixture
def pooler(dsn: str, tmp_path: Path) -> Iterator[str]:
    """PgBouncer in transaction mode, of whatever version is installed: before 1.21 it knows no prepared statements."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    to = conninfo_to_dict(dsn)
    port = free_port()
    where = " ".join(f"{name}={to[name]}" for name in ("host", "port", "dbname") if to.get(name))
    (tmp_path / "users").write_text(f'"{to.get("user", "postgres")}" "{to.get("password") or ""}"\n')
    (tmp_path / "ini").write_text(
        f"[databases]\ntest = {where} user={to.get('user', 'postgres')}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\nauth_file = {tmp_path / 'users'}\npool_mode = transaction\ndefault_pool_size = 2\n"
    )
    for path in (tmp_path, *tmp_path.parents):
        if os.geteuid() == 0 and path not in (Path("/"), Path(tempfile.gettempdir())):
            path.chmod(path.stat().st_mode | 0o055)  # it does not run as root, but must read its settings
    host = Path(str(to.get("host") or "/"))
    user = host.owner() if host.is_dir() and host.owner() != "root" else "nobody"  # an embedded server's socket is for its user only
    as_user = ["-u", user] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, "-q", *as_user, str(tmp_path / "ini")], stderr=subprocess.PIPE)
    try:
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                continue
        yield f"postgresql://{to.get('user', 'postgres')}@127.0.0.1:{port}/test"
    finally:
        process.terminate()
        process.communicate(timeout=10)


async def test_it_works_through_a_transaction_pooler(pooler: str, db: Connection) -> None:
    engine = Engine(pooler, pooler=True)

    @engine.job_type
    async def note(job: Job[Number]) -> Number | Continuation[Number]:
        async with job.prepare() as tx:
            await tx.execute("select 1")
        if job.input.n % 2:
            return continue_with(note, Number(n=job.input.n + 1))
        async with job.finalize() as tx:
            await tx.execute("select 1")
            return job.input

    async with engine:
        sequences = await engine.start_sequences([note(Number(n=n)) for n in range(30)])
        done = await engine.run_once(limit=20)
        assert (done.claimed, done.available) == (20, 10)
        done = await engine.run_once()
        assert (done.claimed, done.available) == (10, 0)
        assert [(await each.result(timeout=10)).n for each in sequences] == [n + n % 2 for n in range(30)]
        assert (await engine.run(note, Number(n=4))).n == 4


async def test_a_worker_behind_a_pooler_holds_no_session_lock_and_polls(pooler: str, db: Connection) -> None:
    engine = Engine(pooler, pooler=True)

    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine, engine.worker(poll_interval=0.05):
        sequence = await engine.start_sequence(note, Number(n=1))
        assert (await sequence.result(timeout=10)).n == 1
        assert await (await db.execute(f"select {_LOCKS}")).fetchone() == (0,)


async def test_a_short_process_does_its_round_and_ends(engine: Engine, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "cron.py").write_text(
        "import asyncio\n"
        "from pydantic import BaseModel\n"
        "from queuert_py import Engine, Job\n"
        "engine = Engine()\n"
        "class Number(BaseModel):\n    n: int\n"
        "@engine.job_type\nasync def note(job: Job[Number]) -> Number:\n    return job.input\n"
        "async def main():\n"
        "    async with engine:\n"
        "        await engine.start_sequences([note(Number(n=n)) for n in range(5)])\n"
        "        print((await engine.run_once(limit=3)).available)\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", str(tmp_path / "cron.py")],
        env={"QUEUERT_DSN": dsn, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
