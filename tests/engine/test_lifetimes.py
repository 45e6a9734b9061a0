"""How workers begin and end: there is one stop, whoever asks for it, and what did not begin leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import AsyncConnection

from queuert_py import Engine, Job
from queuert_py.errors import ConfigurationError, PhaseError
from queuert_py.runtime.leases import Heartbeat
from tests.engine.kit import Number, Runs

Db = AsyncConnection[tuple[Any, ...]]


def heartbeats() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == "queuert heartbeat"}


async def gone(db: Db) -> None:
    """Until none of an engine's own connections is left: the server notices their ends a moment later."""
    async with asyncio.timeout(20):
        left = b"select from pg_stat_activity where datname = current_database() and application_name like 'queuert:%'"
        while await (await db.execute(left)).fetchone() is not None:
            await asyncio.sleep(0)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    before = heartbeats()
    yield
    assert heartbeats() <= before


pytestmark = pytest.mark.usefixtures("nothing_is_left")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


# --- one stop


async def test_closing_the_engine_waits_for_a_worker_that_stops_already(engine: Engine, db: Db, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        async with job.finalize():
            return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    worker = await engine.worker().start()
    await runs.begun.wait()
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: worker.shutting_down)
    closing = [asyncio.create_task(engine.close()) for _ in range(2)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(each.done() for each in closing), "the handler still runs"
    runs.go_on.set()
    await asyncio.gather(stopping, *closing)
    await gone(db)
    assert (await engine.get_sequence(sequence.id)).status == "completed"


async def test_whoever_stops_it_again_waits_for_the_same_end(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> None:
        await runs.hold(job)

    await engine.start_sequence(hold, Number(n=1))
    worker = await engine.worker().start()
    await runs.begun.wait()
    stopping = [asyncio.create_task(worker.stop()) for _ in range(3)]
    await until(lambda: worker.shutting_down)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(each.done() for each in stopping)
    runs.go_on.set()
    await asyncio.gather(*stopping)
    assert not worker.running
    await worker.stop()


async def test_a_stop_whose_caller_gives_up_goes_on(engine: Engine, db: Db, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        await runs.hold(job)
        return job.input

    sequence = await engine.start_sequence(hold, Number(n=1))
    worker = await engine.worker().start()
    await runs.begun.wait()
    given_up = asyncio.create_task(worker.stop())
    await until(lambda: worker.shutting_down)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    runs.go_on.set()
    await engine.close()
    await gone(db)
    assert (await engine.get_sequence(sequence.id)).status == "completed"


async def test_a_worker_that_is_cancelled_while_it_drains_stops(engine: Engine, db: Db, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> None:
        await runs.hold(job)

    async def work() -> None:
        async with engine.worker(drain=True, shutdown_timeout=0):
            pass

    await engine.start_sequence(hold, Number(n=1))
    working = asyncio.create_task(work())
    await runs.begun.wait()
    working.cancel()
    await asyncio.wait([working])
    assert runs.reasons == ["shutdown"]
    await engine.close()
    await gone(db)


async def test_a_handler_may_close_the_engine_and_is_given_back(engine: Engine, db: Db, runs: Runs) -> None:
    @engine.job_type
    async def closes(job: Job[Number]) -> None:
        try:
            await engine.close()
        finally:
            runs.reasons.append(job.abort_reason)

    sequence = await engine.start_sequence(closes, Number(n=1))
    worker = await engine.worker(shutdown_timeout=0).start()
    await until(lambda: worker.shutting_down)
    await engine.close()
    await gone(db)
    assert runs.reasons == ["shutdown"]
    assert (await engine.get_sequence(sequence.id)).status == "pending"
    assert [each.outcome for each in await engine.list_attempts(sequence.id)] == ["released"]


async def test_a_worker_that_stops_while_a_suspect_runs_alone_does_not_wait_for_a_claim(engine: Engine, db: Db, runs: Runs) -> None:
    @engine.job_type
    async def hold(job: Job[Number]) -> None:
        await runs.hold(job)

    sequence = await engine.start_sequence(hold, Number(n=1))
    await db.execute("update queuert.live_job set crash_count = 2")
    worker = await engine.worker(shutdown_timeout=0).start()
    await runs.begun.wait()
    worker.claim_ends = 1e6
    async with asyncio.timeout(20):
        await worker.stop()
    assert runs.reasons == ["shutdown"]
    assert (await engine.get_sequence(sequence.id)).status == "pending"


# --- a start that fails


async def test_a_start_that_is_cancelled_leaves_nothing_behind(engine: Engine, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    @engine.job_type
    async def work(job: Job[Number]) -> None: ...

    await engine.open()
    connecting = threading.Event()
    connect = Heartbeat._connect

    def noted(self: Heartbeat) -> None:
        connecting.set()
        connect(self)

    monkeypatch.setattr(Heartbeat, "_connect", noted)
    starting = asyncio.create_task(engine.worker().start())
    await until(connecting.is_set)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert not heartbeats()
    assert not await (await db.execute("select from queuert.worker")).fetchall()
    await engine.close()
    await gone(db)


async def test_a_start_that_fails_leaves_nothing_behind(engine: Engine, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    @engine.job_type
    async def work(job: Job[Number]) -> None: ...

    async def fails(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("queuert_py.runtime.worker.revive_invalid", fails)
    context = engine.worker()
    with pytest.raises(RuntimeError):
        await context.start()
    assert not heartbeats()
    assert not await (await db.execute("select from queuert.worker")).fetchall()
    with pytest.raises(ConfigurationError):
        await context.start()
    await engine.close()
    await gone(db)


async def test_one_context_starts_one_worker(engine: Engine) -> None:
    @engine.job_type
    async def work(job: Job[Number]) -> None: ...

    context = engine.worker()
    async with context:
        with pytest.raises(ConfigurationError, match="make another"):
            await context.start()


# --- an event loop that ends under it

INTERRUPTED = """
import asyncio
from collections.abc import Sequence

from pydantic import BaseModel

from queuert_py import Engine, Job, SyncJob
from queuert_py.control import Failure

engine = Engine()


class Number(BaseModel):
    n: int


@engine.job_type
async def alone(job: Job[Number]) -> None:
    raise KeyboardInterrupt


@engine.job_type
async def inside(job: Job[Number]) -> None:
    async with job.finalize():
        raise KeyboardInterrupt


@engine.batch_type("batch", size=10)
async def batch(jobs: Sequence[Job[Number]]) -> list[None]:
    raise KeyboardInterrupt


@engine.job_type
def thread(job: SyncJob[Number]) -> None:
    raise KeyboardInterrupt


def interrupt() -> None:
    raise KeyboardInterrupt


@engine.job_type
async def commit(job: Job[Number]) -> None:
    async with job.finalize() as tx:
        await tx.execute("insert into slow values (1)")
        asyncio.get_running_loop().call_later(0.2, interrupt)


async def answer(failure: Failure) -> None:
    asyncio.get_running_loop().call_soon(interrupt)
    await asyncio.Event().wait()


@engine.job_type(max_attempts=1, on_failed=answer)
async def fail(job: Job[Number]) -> None:
    raise ValueError("it is answered")


@engine.job_type
async def hold(job: Job[Number]) -> None:
    begun.set()
    await asyncio.Event().wait()


async def main() -> None:
    global begun
    begun = asyncio.Event()
    async with engine, engine.worker():
        await engine.start_sequence(hold, Number(n=0))
        await begun.wait()
        await engine.start_sequence("NAME", Number(n=1))
        await asyncio.Event().wait()


try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""
SLOW = b"""
    create table slow (i int);
    create function wait() returns trigger language plpgsql as $$ begin perform pg_sleep(600); return null; end $$;
    create constraint trigger wait after insert on slow deferrable initially deferred for each row execute function wait()
"""
"""A table: whoever has written there does not commit soon."""


@pytest.mark.parametrize("name", ["alone", "inside", "batch", "thread", "commit", "fail"])
async def test_an_interrupt_ends_the_event_loop_and_gives_back_whatever_ran(engine: Engine, db: Db, dsn: str, name: str) -> None:
    await db.execute(SLOW)
    await engine.open()
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        INTERRUPTED.replace("NAME", name),
        env={**os.environ, "QUEUERT_DSN": dsn},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(25):  # less than its shutdown_timeout
        said, complained = await program.communicate()
    assert (program.returncode, said.decode().strip(), complained.decode()) == (0, "interrupted", "")
    for each in await engine.list_sequences():
        assert (each.status, each.attempt) == ("pending", 0)
        assert [attempt.outcome for attempt in await engine.list_attempts(each.id)] == ["released"]


# --- what a handler leaves running


async def test_what_a_handler_has_left_running_is_outside_of_it(engine: Engine) -> None:
    found: list[object] = []
    over = asyncio.Event()

    @engine.job_type
    async def other(job: Job[Number]) -> Number:
        return job.input

    async def later(job: Job[Number]) -> None:
        await over.wait()
        found.append(await (await engine.start_sequence(other, Number(n=7))).result(timeout=20))
        with pytest.raises(PhaseError, match="too late"):
            job.on_commit(lambda: None)

    @engine.job_type
    async def leaves(job: Job[Number]) -> None:
        async with job.finalize():
            tasks.append(asyncio.create_task(later(job)))

    tasks: list[asyncio.Task[None]] = []
    async with engine.worker():
        await (await engine.start_sequence(leaves, Number(n=1))).result(timeout=20)
        over.set()
        await asyncio.gather(*tasks)
    assert found == [Number(n=7)]
