"""`def` handlers: they run in a thread, with the same phases, and nothing that a thread does can be written once its time is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Fail, InternalJobType, JobType, Retry, SyncJob, continue_with
from queuert_py.errors import LeaseLostError, PhaseError, SequenceFailedError, TransactionEscapedError, UsageError
from queuert_py.job import current
from queuert_py.testing import run_handler
from queuert_py.values import SequenceRecord
from tests.engine.kit import time_out


class In(BaseModel):
    n: int = 0


class Out(BaseModel):
    n: int = 0


class Broken(Exception):
    """The handler's own failure."""


class Stop(BaseException):
    """Something that is no Exception."""


Db = psycopg.AsyncConnection[Any]
Handler = Callable[[SyncJob[In]], Out]


@pytest.fixture
async def effects(db: Db) -> Callable[[], Any]:
    """What handlers have written, in order."""
    await db.execute("create table effect (id int generated always as identity, what text)")

    async def read() -> list[str]:
        return [row[0] for row in await (await db.execute("select what from effect order by id")).fetchall()]

    return read


def write(tx: psycopg.Connection[Any], what: str) -> None:
    tx.execute("insert into effect (what) values (%s)", [what])


async def ended(engine: Engine, handler: Handler, *, max_attempts: int = 1, **worker: Any) -> SequenceRecord:
    """One sequence of this handler, run by a worker until nothing is due."""
    job_type = engine.job_type("work", max_attempts=max_attempts, backoff=0.0)(handler)
    sequence = await engine.start_sequence(job_type, In(n=3))
    async with engine.worker(drain=True, **worker):
        pass
    return await engine.get_sequence(sequence.id)


def error_type(record: SequenceRecord) -> str:
    assert record.error is not None
    return str(record.error["type"])


# --- where it runs, and what it returns


async def test_it_runs_in_a_thread_and_its_return_value_completes_the_job(engine: Engine) -> None:
    seen: list[Any] = []

    def work(job: SyncJob[In]) -> Out:
        running = current.get()
        seen.append((threading.current_thread() is threading.main_thread(), running is not None, job.attempt, job.aborted, job.type))
        return Out(n=job.input.n + 1)

    record = await ended(engine, work)
    assert (record.status, record.output) == ("completed", {"n": 4})
    assert seen == [(False, True, 1, False, "work")]


async def test_as_many_run_at_once_as_the_worker_has_slots_and_the_loop_goes_on(engine: Engine) -> None:
    together = threading.Barrier(8)

    @engine.job_type
    def meet(job: SyncJob[In]) -> None:
        together.wait(20)  # nobody passes before all eight are here

    await engine.start_sequences([meet(In()) for _ in range(16)])
    async with engine.worker(concurrency=8, drain=True):
        pass
    assert {each.status for each in await engine.list_sequences()} == {"completed"}


async def test_threads_are_kept_for_the_next_handlers_and_end_with_the_worker(engine: Engine) -> None:
    names: set[int] = set()

    @engine.job_type
    def work(job: SyncJob[In]) -> None:
        names.add(threading.get_ident())

    await engine.start_sequences([work(In()) for _ in range(50)])
    async with engine.worker(concurrency=2, drain=True):
        pass
    assert len(names) <= 2
    for thread in threading.enumerate():
        if thread.name == "queuert handler" and thread.ident in names:
            thread.join(10)
            assert not thread.is_alive()


async def test_it_may_continue_with_a_job_of_either_kind(engine: Engine) -> None:
    last = InternalJobType[In, Out]("last")

    @engine.job_type
    def first(job: SyncJob[In]) -> Continuation[Out]:
        with job.finalize():
            return continue_with(last, In(n=job.input.n + 1))

    @engine.handler(last)
    def finish(job: SyncJob[In]) -> Out:
        return Out(n=job.input.n * 10)

    async with engine.worker():
        sequence = await engine.start_sequence(first, In(n=1))
        assert await sequence.result(timeout=20) == Out(n=20)


@pytest.mark.parametrize(
    ("error", "outcome", "type_"),
    [
        (Broken("no"), "failed", "Broken"),
        (Fail("never"), "failed", "Fail"),
        (Stop(), "failed", "Stop"),
        (StopIteration(), "failed", "RuntimeError"),
        (SystemExit(3), "failed", "SystemExit"),
    ],
    ids=repr,
)
async def test_what_it_raises_is_what_the_job_fails_with(engine: Engine, error: BaseException, outcome: str, type_: str) -> None:
    def work(job: SyncJob[In]) -> Out:
        raise error

    record = await ended(engine, work)
    assert (record.status, error_type(record)) == (outcome, type_)


async def test_it_is_tried_again_as_its_policy_says(engine: Engine) -> None:
    def work(job: SyncJob[In]) -> Out:
        if job.attempt < 3:
            raise Retry(after=0) if job.attempt == 1 else Broken
        return Out(n=job.attempt)

    assert (await ended(engine, work, max_attempts=3)).output == {"n": 3}


# --- its phases


async def test_prepare_commits_at_the_end_of_its_block_and_finalize_with_the_return(engine: Engine, db: Db, effects: Any) -> None:
    seen: list[list[str]] = []

    async def look() -> None:
        seen.append(await effects())

    def work(job: SyncJob[In]) -> Out:
        loop = engine_loop
        with job.prepare() as tx:
            write(tx, "prepared")
        asyncio.run_coroutine_threadsafe(look(), loop).result(20)
        with job.finalize() as tx:
            write(tx, "finalized")
            return Out(n=1)

    engine_loop = asyncio.get_running_loop()
    record = await ended(engine, work)
    assert (record.status, seen, await effects()) == ("completed", [["prepared"]], ["prepared", "finalized"])


async def test_atomic_is_one_transaction_and_rolled_back_as_a_whole(engine: Engine, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.atomic() as tx:
            write(tx, f"attempt {job.attempt}")
            if job.attempt == 1:
                raise Broken
            return Out()

    record = await ended(engine, work, max_attempts=2)
    assert (record.status, await effects()) == ("completed", ["attempt 2"])


async def test_an_exception_after_finalize_rolls_it_back(engine: Engine, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.finalize() as tx:
            write(tx, "lost")
        raise Broken

    record = await ended(engine, work)
    assert (record.status, error_type(record), await effects()) == ("failed", "Broken", [])


async def test_between_the_end_of_finalize_and_the_return_its_transaction_takes_nothing(engine: Engine, effects: Any) -> None:
    refused: list[str] = []

    def work(job: SyncJob[In]) -> Out:
        with job.finalize() as tx:
            write(tx, "inside")
        try:
            write(tx, "too late")
        except PhaseError as error:
            refused.append(str(error))
        return Out()

    record = await ended(engine, work)
    assert (record.status, await effects()) == ("completed", ["inside"])
    assert refused == ["this transaction is over: use it inside the `with` block, or the function, that it was given to."]


async def test_the_transaction_of_prepare_takes_nothing_after_its_block(engine: Engine, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.prepare() as tx:
            cursor = tx.cursor()
            write(tx, "inside")
        for late in (partial(write, tx, "late"), partial(cursor.execute, "select 1"), tx.commit, tx.transaction().__enter__):
            with pytest.raises(PhaseError, match="use it inside"):
                late()
        with pytest.raises(PhaseError):
            engine.sync.start_sequence("work", In(), tx=tx)
        return Out()

    record = await ended(engine, work)
    assert (record.status, await effects()) == ("completed", ["inside"])


async def test_what_may_follow_what_is_the_same_table(engine: Engine, effects: Any) -> None:
    refused: list[str] = []

    def work(job: SyncJob[In]) -> Out:
        with job.prepare() as tx:
            try:
                with job.finalize():
                    raise AssertionError
            except PhaseError:
                refused.append("finalize in prepare")
            write(tx, "prepared")
        with job.finalize():
            pass
        try:
            with job.prepare(mode="atomic"):
                raise AssertionError
        except PhaseError:
            refused.append("atomic after finalize")
        return Out()

    record = await ended(engine, work)
    assert (record.status, await effects()) == ("completed", ["prepared"])
    assert refused == ["finalize in prepare", "atomic after finalize"]


async def test_a_phase_belongs_to_the_handlers_own_thread(engine: Engine) -> None:
    refused: list[str] = []

    def work(job: SyncJob[In]) -> Out:
        def elsewhere() -> None:
            try:
                with job.prepare():
                    raise AssertionError
            except PhaseError as error:
                refused.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return Out()

    assert (await ended(engine, work)).status == "completed"
    assert "its handler's own thread" in refused[0]


async def test_a_statement_that_failed_and_was_caught_fails_the_attempt(engine: Engine, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.finalize() as tx:
            write(tx, "lost")
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                tx.execute("select 1 / 0")
            return Out()

    record = await ended(engine, work)
    assert (record.status, error_type(record), await effects()) == ("failed", "TransactionAbortedError", [])


async def test_a_savepoint_keeps_such_a_statement_apart(engine: Engine, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.finalize() as tx:
            write(tx, "kept")
            try:
                with tx.transaction():
                    tx.execute("select 1 / 0")
            except psycopg.errors.DivisionByZero:
                pass
            return Out()

    assert ((await ended(engine, work)).status, await effects()) == ("completed", ["kept"])


@pytest.mark.parametrize("how", ["commit", "rollback"])
async def test_a_handler_that_ends_the_transaction_itself_is_told_and_does_not_run_again(engine: Engine, how: str, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.finalize() as tx:
            write(tx, f"attempt {job.attempt}")
            getattr(tx, how)()
            return Out()

    record = await ended(engine, work, max_attempts=3)
    assert (record.status, error_type(record), record.attempt) == ("failed", TransactionEscapedError.__name__, 1)
    assert await effects() == (["attempt 1"] if how == "commit" else [])


async def test_what_is_written_after_ending_the_transaction_is_not_taken_for_the_phases_own(engine: Engine, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.prepare() as tx:
            tx.rollback()
            write(tx, "by itself")
        return Out()

    record = await ended(engine, work)
    assert (record.status, error_type(record), await effects()) == ("failed", TransactionEscapedError.__name__, ["by itself"])


async def test_a_conflict_runs_the_whole_handler_again_at_once_and_is_not_charged(engine: Engine, effects: Any) -> None:
    runs: list[int] = []

    def work(job: SyncJob[In]) -> Out:
        runs.append(job.attempt)
        with job.finalize() as tx:
            write(tx, f"run {len(runs)}")
            if len(runs) < 3:
                tx.execute("do $$ begin raise exception 'made up' using errcode = '40001'; end $$")
            return Out()

    record = await ended(engine, work)
    assert (record.status, runs, await effects()) == ("completed", [1, 1, 1], ["run 3"])


async def test_prepared_statements_of_both_faces_of_a_connection_do_not_collide(engine: Engine, effects: Any) -> None:
    def work(job: SyncJob[In]) -> Out:
        for _ in range(3):
            with job.prepare() as tx:
                for n in range(12):
                    assert tx.execute("select %s::int + 1", [n], prepare=True).fetchone() == (n + 1,)
        with job.finalize() as tx:
            write(tx, "done")
            return Out()

    engine.job_type("many")(work)
    await engine.start_sequences([engine.get("many")(In()) for _ in range(20)])  # type: ignore[operator]
    async with engine.worker(concurrency=3, drain=True):
        pass
    assert {each.status for each in await engine.list_sequences()} == {"completed"}
    assert await effects() == ["done"] * 20


async def test_a_blockers_output_is_in_its_input(engine: Engine) -> None:
    class Sum(BaseModel):
        parts: list[Blocker[Out]]

    @engine.job_type
    def part(job: SyncJob[In]) -> Out:
        return Out(n=job.input.n)

    @engine.job_type
    def total(job: SyncJob[Sum]) -> Out:
        return Out(n=sum(each.output.n for each in job.input.parts))

    async with engine.worker():
        parts: list[Blocker[Out]] = list(await engine.start_sequences([part(In(n=n)) for n in (1, 2, 3)]))
        sequence = await engine.start_sequence(total, Sum(parts=parts))
        assert await sequence.result(timeout=20) == Out(n=6)


# --- when its time is over


async def test_a_thread_that_looks_at_aborted_ends_with_its_timeout_and_its_value_is_discarded(engine: Engine, effects: Any) -> None:
    reasons: list[str | None] = []

    @engine.job_type(timeout=0.2, max_attempts=1)
    def work(job: SyncJob[In]) -> Out:
        try:
            with job.finalize() as tx:
                write(tx, "too late")
                while not job.aborted:
                    pass
                return Out()
        finally:
            reasons.append(job.abort_reason)

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        with pytest.raises(SequenceFailedError) as failed:
            await sequence.result(timeout=20)
    assert (failed.value.reason, reasons, await effects()) == ("timeout", ["timeout"], [])


async def test_a_thread_that_ignores_its_timeout_is_left_behind_and_can_write_nothing_more(engine: Engine, effects: Any) -> None:
    go_on = threading.Event()
    met: list[Any] = []
    inside, over = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @engine.job_type(timeout=3600, max_attempts=1)
    def work(job: SyncJob[In]) -> Out:
        try:
            with job.prepare() as tx:
                write(tx, "before")
            with job.finalize() as tx:
                write(tx, "inside")
                loop.call_soon_threadsafe(inside.set)
                go_on.wait(30)
                try:
                    write(tx, "after")
                except BaseException as error:
                    met.append(type(error))
                    raise
                return Out()
        finally:
            loop.call_soon_threadsafe(over.set)

    async with engine.worker(concurrency=1, grace=0.2) as worker:
        sequence = await engine.start_sequence(work, In())
        async with asyncio.timeout(20):
            await inside.wait()
        time_out(worker)
        with pytest.raises(SequenceFailedError, match="timeout"):  # its slot is free, and its fate is written, while it still runs
            await sequence.result(timeout=20)
        assert not over.is_set()
        go_on.set()
        async with asyncio.timeout(20):
            await over.wait()
    assert met == [psycopg.OperationalError]
    assert await effects() == ["before"]


async def test_a_thread_left_behind_can_open_no_phase_and_does_not_hold_the_engine(engine: Engine, effects: Any) -> None:
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    met: list[Any] = []

    @engine.job_type(timeout=3600, max_attempts=1)
    def work(job: SyncJob[In]) -> Out:
        begun.set()
        go_on.wait(30)
        try:
            with job.finalize() as tx:
                write(tx, "after")
        except BaseException as error:
            met.append(type(error).__name__)
        over.set()
        return Out()

    async with engine.worker(grace=0.1) as worker:
        sequence = await engine.start_sequence(work, In())
        assert await asyncio.to_thread(begun.wait, 20)
        time_out(worker)
        with pytest.raises(SequenceFailedError):
            await sequence.result(timeout=20)
        go_on.set()
        assert await asyncio.to_thread(over.wait, 20)
    assert met == ["PhaseError"]
    assert await effects() == []


async def test_a_cancelled_job_reaches_the_thread_as_a_flag_and_leaves_nothing(engine: Engine, effects: Any) -> None:
    started = asyncio.Event()
    reasons: list[str | None] = []
    loop = asyncio.get_running_loop()

    @engine.job_type
    def work(job: SyncJob[In]) -> Out:
        loop.call_soon_threadsafe(started.set)
        while not job.aborted:
            pass
        reasons.append(job.abort_reason)
        with job.finalize() as tx:
            write(tx, "after")
            return Out()

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        await started.wait()
        await engine.cancel_sequences([sequence.id])
    assert (await engine.get_sequence(sequence.id)).status == "cancelled"
    assert (reasons, await effects()) == (["cancelled"], [])


async def test_a_stopping_worker_tells_the_thread_and_gives_the_job_back(engine: Engine) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    seen: list[Any] = []

    @engine.job_type
    def work(job: SyncJob[In]) -> Out:
        loop.call_soon_threadsafe(started.set)
        while not job.aborted:
            pass
        seen.append((job.shutting_down, job.abort_reason))
        raise Broken

    sequence = await engine.start_sequence(work, In())
    worker = await engine.worker(shutdown_timeout=0.1).start()
    await started.wait()
    await worker.stop()
    (job,) = await engine.list_jobs(sequence.id)
    assert (job.status, job.attempt, seen) == ("pending", 0, [(True, "shutdown")])


async def test_a_thread_that_returns_within_the_grace_of_a_stopping_worker_completes_its_job(engine: Engine, effects: Any) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    @engine.job_type
    def work(job: SyncJob[In]) -> Out:
        loop.call_soon_threadsafe(started.set)
        while not job.aborted:
            pass
        with job.finalize() as tx:
            write(tx, "just in time")
            return Out(n=1)

    sequence = await engine.start_sequence(work, In())
    worker = await engine.worker(shutdown_timeout=0.1).start()
    await started.wait()
    await worker.stop()
    record = await engine.get_sequence(sequence.id)
    assert (record.status, record.output, await effects()) == ("completed", {"n": 1}, ["just in time"])


async def test_a_thread_whose_job_is_no_longer_its_own_can_write_nothing(engine: Engine, dsn: str, effects: Any) -> None:
    runs: list[int] = []
    met: list[str] = []

    @engine.job_type
    def work(job: SyncJob[In]) -> Out:
        runs.append(job.attempt)
        if len(runs) == 1:
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute("update queuert.live_job set epoch = epoch + 1, leased_by = null, leased_until = null")
        try:
            with job.finalize() as tx:
                write(tx, f"attempt {job.attempt}")
        except LeaseLostError as error:
            met.append(type(error).__name__)
            raise
        return Out()

    async with engine.worker(poll_interval=0.1):
        sequence = await engine.start_sequence(work, In())
        await sequence.result(timeout=20)
    assert (met, await effects()) == (["LeaseLostError"], ["attempt 2"])


# --- what lasts


async def test_steps_and_sleeps_work_as_in_an_async_handler_and_a_step_runs_in_the_thread(engine: Engine) -> None:
    runs: list[Any] = []

    @engine.job_type
    def work(job: SyncJob[In]) -> Out:
        def count() -> int:
            runs.append(threading.current_thread() is threading.main_thread())
            return len(runs)

        n = job.step("count", count)
        job.sleep(0.01)
        return Out(n=n)

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        assert await sequence.result(timeout=20) == Out(n=1)
    assert runs == [False]


async def test_it_starts_sequences_in_its_own_transaction_by_the_sync_facade(engine: Engine) -> None:
    refused: list[str] = []

    @engine.job_type
    def other(job: SyncJob[In]) -> Out:
        return Out(n=job.input.n)

    @engine.job_type(max_attempts=2, backoff=0)
    def work(job: SyncJob[In]) -> Out:
        with job.finalize() as tx:
            engine.sync.start_sequence(other, In(n=job.attempt), tx=tx)
            try:
                engine.sync.start_sequence(other, In())
            except UsageError as error:
                refused.append(str(error))
            if job.attempt == 1:
                raise Broken  # what it has started is rolled back with it
            return Out()

    async with engine.worker(drain=True):
        sequence = await engine.start_sequence(work, In())
        await sequence.result(timeout=20)
    (started,) = await engine.list_sequences(type="other")
    assert (started.input, started.status) == ({"n": 2}, "completed")
    assert refused == ["inside a phase this must be part of its transaction: pass tx=tx."] * 2
    assert (await engine.list_jobs(started.id))[0].origin_id == sequence.id


async def test_a_handler_that_never_returns_does_not_hold_the_process_at_its_end(dsn: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys, threading\n"
        "from pydantic import BaseModel\n"
        "from queuert_py import Engine, SyncJob\n"
        "class In(BaseModel): n: int\n"
        "engine = Engine(sys.argv[1])\n"
        "@engine.job_type(timeout=0.1, max_attempts=1)\n"
        "def stuck(job: SyncJob[In]) -> None:\n"
        "    with job.prepare():\n"
        "        threading.Event().wait()\n"
        "async def main() -> None:\n"
        "    async with engine:\n"
        "        async with engine.worker(grace=0.1, drain=True):\n"
        "            handle = await engine.start_sequence(stuck, In(n=1))\n"
        "        print((await engine.get_sequence(handle.id)).reason)\n"
        "asyncio.run(main())\n"
        "print('the end')\n"
    )
    root = Path(__file__).parents[2]
    run = partial(subprocess.run, capture_output=True, text=True, timeout=60, check=False)
    done = await asyncio.to_thread(run, [sys.executable, str(program), dsn], env={**os.environ, "PYTHONPATH": str(root)})
    assert (done.returncode, done.stdout) == (0, "timeout\nthe end\n"), done.stderr


async def test_run_handler_runs_it_without_a_database() -> None:
    job_type = JobType[In, Out]("alone")
    engine = Engine("postgresql://")

    @engine.handler(job_type)
    def work(job: SyncJob[In]) -> Out:
        assert threading.current_thread() is not threading.main_thread()
        return Out(n=job.input.n)

    assert await run_handler(job_type, In(n=7)) == Out(n=7)
