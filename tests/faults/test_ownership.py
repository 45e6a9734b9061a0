"""Who owns a job may write it, nobody else; and every way in which a handler can end has its outcome."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import pytest

from queuert_py import Continuation, Engine, Fail, Job, Retry, Snooze, continue_with
from queuert_py.errors import LeaseLostError
from tests.engine.kit import time_out
from tests.faults import app
from tests.faults.kit import Facts, event, until, worker_process
from tests.faults.lab import In, Lab, Out, write

REAP = (
    "update queuert.live_job set epoch = epoch + 1, leased_by = null, leased_until = null, claim_token = null, begun = false,"
    " run_at = clock_timestamp() + interval '1 hour'"
)


class Broken(Exception):
    """The handler's own failure."""


@pytest.mark.parametrize("end", ["return", "continue", "raise", "prepare", "finalize", "atomic", "fail", "snooze"])
async def test_a_job_that_was_reaped_is_not_written_by_its_old_attempt(end: str, lab: Lab) -> None:
    begun, reaped = asyncio.Event(), asyncio.Event()

    @lab.engine.job_type(backoff=0)
    async def work(job: Job[In]) -> Out | Continuation[Out]:
        begun.set()
        await reaped.wait()
        match end:
            case "continue":
                return continue_with(work, In())
            case "raise":
                raise Broken
            case "fail":
                raise Fail("no use")
            case "snooze":
                raise Snooze(after=0)
            case "finalize" | "atomic" | "prepare":
                with pytest.raises(LeaseLostError) as raised:
                    async with {"finalize": job.finalize, "atomic": job.atomic, "prepare": job.prepare}[end]() as tx:
                        await write(tx, job, "too late")
                lab.seen.append("refused")
                raise raised.value
            case _:
                pass
        return Out()

    async with lab.engine.worker() as worker:
        await lab.engine.start_sequence(work, In())
        await event(begun, "the handler to begin")
        await lab.facts.rows(REAP)
        before = await lab.facts.rows("select epoch, attempt, crash_count from queuert.live_job")
        reaped.set()
        await until(lambda: asyncio.sleep(0, not worker._running), "the old attempt to be let go")
        assert await lab.facts.rows("select epoch, attempt, crash_count from queuert.live_job") == before
    assert await lab.facts.finished() + await lab.facts.finished("failed") + await lab.facts.finished("continued") == 0
    assert await lab.effects() == []
    assert lab.seen == (["refused"] if end in ("prepare", "finalize", "atomic") else [])
    assert await lab.facts.rows("select outcome from queuert.attempt_log") == []


@pytest.mark.parametrize(("change", "reason"), [("delete from queuert.live_job", "deleted"), (REAP, "lease_lost")])
async def test_a_handler_whose_job_is_gone_is_cancelled(change: LiteralString, reason: str, lab: Lab) -> None:
    begun = asyncio.Event()

    @lab.engine.job_type
    async def work(job: Job[In]) -> Out:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            lab.seen.append((job.aborted, job.abort_reason))
        return Out()

    async with lab.engine.worker(lease=3.0) as worker:
        await lab.engine.start_sequence(work, In())
        await event(begun, "the handler to begin")
        await lab.facts.rows(change)
        await until(lambda: asyncio.sleep(0, lab.seen), "the handler to be cancelled")
        await until(lambda: asyncio.sleep(0, not worker._running), "its slot to be free")
    assert lab.seen == [(True, reason)]
    assert await lab.facts.rows("select outcome from queuert.attempt_log") == []


async def test_a_handler_over_its_timeout_is_cancelled_and_tried_again(lab: Lab) -> None:
    @lab.engine.job_type(timeout=0.1, backoff=0)
    async def work(job: Job[In]) -> Out:
        if job.attempt == 1:
            try:
                await asyncio.Event().wait()
            finally:
                lab.seen.append(job.abort_reason)
        return Out()

    async with lab.engine.worker():
        record = await lab.end(await lab.engine.start_sequence(work, In()))
    assert (record.status, record.attempt, lab.seen) == ("completed", 2, ["timeout"])
    assert await lab.attempts(record) == [(1, "timeout", "TimeoutError")]


async def test_a_timeout_of_the_last_attempt_fails_the_job(lab: Lab) -> None:
    @lab.engine.job_type(timeout=0.1, max_attempts=1)
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "lost")
            await asyncio.Event().wait()
        return Out()

    async with lab.engine.worker():
        record = await lab.end(await lab.engine.start_sequence(work, In()))
    assert (record.status, record.reason, await lab.effects()) == ("failed", "timeout", [])


@pytest.mark.parametrize("phase", ["none", "open", "sealed"])
async def test_a_handler_that_swallows_its_cancellation_is_detached(phase: str, lab: Lab) -> None:
    inside, free, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def deaf() -> None:
        inside.set()
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                lab.seen.append("swallowed")

    @lab.engine.job_type(timeout=3600, max_attempts=1)
    async def work(job: Job[In]) -> Out:
        if phase == "none":
            await deaf()
        else:
            async with job.finalize() as tx:
                await write(tx, job, "detached")
                if phase == "open":
                    await deaf()
            await deaf()
        ended.set()
        return Out()

    @lab.engine.job_type
    async def good(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "good")
        return Out()

    engine = Engine(lab.facts.dsn, lab.engine, pool_size=2)
    async with engine, engine.worker(concurrency=1, grace=0.1) as worker:
        try:
            for _ in range(2):  # as many as the pool has connections
                for each in (inside, free, ended):
                    each.clear()
                lab.seen.clear()
                stuck = await engine.start_sequence(work, In())
                await event(inside, "the handler to be where it is deaf")
                time_out(worker)

                async def let_go() -> bool:
                    return "swallowed" in lab.seen

                await until(let_go, "the handler to be asked to end")
                if phase == "none":  # its slot is free while it still runs; its job is written by the engine
                    record = await lab.end(stuck)
                    assert (record.status, record.reason) == ("failed", "timeout")
                await lab.end(await engine.start_sequence(good, In()))
                free.set()
                await event(ended, "the detached handler to end")
                record = await lab.end(stuck)
                assert (record.status, record.reason) == ("failed", "timeout")
        finally:
            free.set()
        for _ in range(2):
            assert (await lab.end(await engine.start_sequence(good, In()))).status == "completed"
    assert await lab.effects() == ["good"] * 4


class Strange(BaseException):
    """Neither an Exception nor a signal."""


async def _generator() -> AsyncGenerator[int]:
    yield 1


async def _misuse() -> None:
    generator = _generator()
    await generator.__anext__()
    await generator.athrow(GeneratorExit)


async def _cancelled_child() -> None:
    child = asyncio.ensure_future(asyncio.Event().wait())
    child.cancel()
    await child


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("base", "Strange"),
        ("generator", "GeneratorExit"),
        ("cancelled", "CancelledError"),
        ("child", "CancelledError"),
        ("exit", "SystemExit"),
        ("stop", "RuntimeError"),
        ("group", "ExceptionGroup"),
        ("unprintable", "Unprintable"),
    ],
)
async def test_whatever_a_handler_raises_has_an_outcome_and_the_worker_lives(how: str, kind: str, lab: Lab) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @lab.engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "lost")
        match how:
            case "base":
                raise Strange
            case "generator":
                await _misuse()
            case "cancelled":
                raise asyncio.CancelledError
            case "child":
                await _cancelled_child()
            case "exit":
                sys.exit(3)
            case "stop":
                raise StopIteration
            case "group":
                raise ExceptionGroup("two", [Broken(), Broken()])
            case _:
                raise Unprintable("\x00\ud800")
        return Out()

    @lab.engine.job_type
    async def good(job: Job[In]) -> Out:
        return Out()

    async with lab.engine.worker(concurrency=1):
        record = await lab.end(await lab.engine.start_sequence(work, In()))
        assert (record.status, await lab.effects()) == ("failed", [])
        assert await lab.attempts(record) == [(1, "failed", kind)]
        assert (await lab.end(await lab.engine.start_sequence(good, In()))).status == "completed"


async def test_snooze_is_not_charged(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        lab.seen.append(job.attempt)
        if len(lab.seen) < 4:
            raise Snooze(after=0)
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, lab.seen) == ("completed", 1, [1, 1, 1, 1])
    assert [outcome for _, outcome, _ in await lab.attempts(record)] == ["snoozed"] * 3


@pytest.mark.parametrize("at", [True, False])
async def test_retry_says_when(at: bool, lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        lab.seen.append(await lab.facts.stamp())
        if job.attempt == 1:
            raise Retry(at=lab.seen[0].astimezone(UTC) + timedelta(seconds=0.5)) if at else Retry(after=0.5)
        return Out()

    record = await lab.run(work, backoff=3600.0)
    assert (record.status, record.attempt) == ("completed", 2)
    assert lab.seen[1] - lab.seen[0] >= timedelta(seconds=0.5)
    assert await lab.attempts(record) == [(1, "error", "Retry")]


async def test_retry_beyond_max_attempts_fails(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        raise Retry("again", after=0)

    record = await lab.run(work, max_attempts=3)
    assert (record.status, record.reason, record.attempt) == ("failed", "error", 3)
    assert await lab.attempts(record) == [(1, "error", "Retry"), (2, "error", "Retry"), (3, "failed", "Retry")]


async def test_fail_leaves_no_further_attempt(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        raise Fail("no use")

    record = await lab.run(work, max_attempts=5)
    assert (record.status, record.reason, record.attempt) == ("failed", "fail", 1)
    assert await lab.attempts(record) == [(1, "failed", "Fail")]


async def test_the_backoff_is_waited_for(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="queuert_py.worker")  # what this error says cannot be written as UTF-8, as logs are
    waited: list[int] = []

    def backoff(attempt: int) -> float:
        waited.append(attempt)
        return 0.2 * attempt

    async def work(job: Job[In]) -> Out:
        lab.seen.append(await lab.facts.stamp())
        if job.attempt < 3:
            raise Broken("with a \x00 and a \ud800 in it")
        return Out()

    record = await lab.run(work, backoff=backoff)
    assert (record.status, record.attempt, waited) == ("completed", 3, [1, 2])
    first, second, third = lab.seen
    assert second - first >= timedelta(seconds=0.15)  # less up to a quarter, the jitter
    assert third - second >= timedelta(seconds=0.3)
    rows: list[Any] = await lab.engine.list_attempts(record.id)
    assert [(row.attempt, row.outcome, row.type, row.position) for row in rows] == [(1, "error", "work", 0), (2, "error", "work", 0)]
    assert all(row.started_at <= row.finished_at and row.worker and "Broken" in row.error["traceback"] for row in rows)
    assert isinstance(rows[0].finished_at, datetime)


async def test_a_poison_job_is_dead_after_five_crashes_and_harms_nobody_else(facts: Facts, producer: Engine, tmp_path: Path) -> None:
    good = [app.slow_noop(app.Work(tag=str(number))) for number in range(49)]
    bad = await producer.start_sequence(app.poison_now, app.Work())
    await producer.start_sequences(good)
    crashes = 0

    async def crashed_or_done(worker: Any) -> bool:
        return worker.process.returncode is not None or await facts.live() == 0

    while await facts.live():
        async with worker_process(facts.dsn, tmp_path, concurrency=50, lease=10.0) as worker:
            await until(lambda: crashed_or_done(worker), "the worker to die, or everything to end", 60)
            crashes += worker.process.returncode is not None
        assert crashes <= 5
    assert crashes == 5
    record = await producer.get_sequence(bad.id)
    assert (record.status, record.reason) == ("failed", "poison")
    outcomes = [each.outcome for each in await producer.list_attempts(bad.id)]
    assert outcomes == ["lost"] * 4 + ["failed"]
    assert await facts.finished() == 49
    assert await facts.finished("failed") == 1
    assert await facts.doubles() == []


async def test_prefetched_jobs_of_a_dead_worker_go_back_uncharged(facts: Facts, producer: Engine, tmp_path: Path) -> None:
    async with worker_process(facts.dsn, tmp_path, hold=True, concurrency=8, pool=4, ahead=4) as victim:
        await producer.start_sequences([app.work(app.Work(stage="before")) for _ in range(20)])

        async def prefetched() -> bool:
            leased = await facts.rows("select begun from queuert.live_job where leased_by is not null")
            return leased.count((True,)) == 8 and (False,) in leased and await facts.events("held") == 8

        await until(prefetched, "eight jobs to run and some to be prefetched")
        waiting = await facts.rows("select sequence_id from queuert.live_job where leased_by is not null and not begun order by 1")
        await victim.kill()
        async with worker_process(facts.dsn, tmp_path):
            await facts.all_done(20)
    again = await facts.rows("select sequence_id from queuert.finished_job where attempt = 2 and crash_count = 1 order by 1")
    assert len(again) == 8
    assert not {row[0] for row in again} & {row[0] for row in waiting}
    assert await facts.one("select count(*) from queuert.finished_job where attempt = 1 and crash_count = 0") == 12
    assert await facts.rows("select outcome, count(*) from queuert.attempt_log group by 1") == [("lost", 8)]
