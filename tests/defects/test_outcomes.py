"""How things end: every handler has an ending, a failure stays one, a completion stays one, and a worker that recovers starts afresh."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from queuert_py import Engine, Job, JobSequence
from queuert_py.errors import SequenceFailedError
from queuert_py.events import JobCompleted
from queuert_py.runtime import loops
from tests.defects.kit import TIMEOUT, Connection, Number


class Broken(Exception):
    """The user's own failure."""


# --- every handler has an ending


async def _nothing(job: Job[Number]) -> Number:
    return job.input


async def _prepare_only(job: Job[Number]) -> Number:
    async with job.prepare():
        pass
    return job.input


async def _finalize_given_up(job: Job[Number]) -> Number:
    with contextlib.suppress(Broken):
        async with job.finalize():
            raise Broken
    return job.input


async def _none(job: Job[Number]) -> Any:
    return None


async def _another_model(job: Job[Number]) -> Any:
    async with job.finalize():
        return Other()


async def _cancels_itself(job: Job[Number]) -> Number:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.Event().wait()
    return job.input


async def _no_exception(job: Job[Number]) -> Number:
    raise GeneratorExit


class Other(Number):
    """Not what the handler has declared."""


@pytest.mark.parametrize(
    ("handler", "ending"),
    [
        (_nothing, "completed"),
        (_prepare_only, "completed"),
        (_finalize_given_up, "completed"),
        (_none, "failed"),
        (_cancels_itself, "failed"),
        (_no_exception, "failed"),
    ],
)
async def test_a_handler_that_returns_without_completing_does_not_hang(
    engine: Engine, handler: Callable[[Job[Number]], Awaitable[Number]], ending: str
) -> None:
    """Queuert: a handler had to call complete(); one that returned without it left its job leased, and renewed, for ever."""

    @engine.job_type(max_attempts=1)
    async def work(job: Job[Number]) -> Number:
        return await handler(job)

    async with engine.worker(concurrency=1, shutdown_timeout=0) as worker:
        sequence = await engine.start_sequence(work, Number(n=1))
        with contextlib.suppress(SequenceFailedError):
            await sequence.result(timeout=TIMEOUT)
        async with asyncio.timeout(TIMEOUT):
            await worker.drained()
    assert (await engine.get_sequence(sequence.id)).status == ending


# --- a failure stays one


async def test_failed_attempts_are_not_archived_as_completed(engine: Engine, db: Connection) -> None:
    """gravito: whatever had become of a job, the archive said that it was completed."""

    @engine.job_type(max_attempts=2, backoff=0)
    async def work(job: Job[Number]) -> Number:
        if job.attempt <= job.input.n:
            raise Broken
        return job.input

    good, bad = await engine.start_sequences([work(Number(n=1)), work(Number(n=2))])
    async with engine.worker(drain=True):
        pass
    found = await (await db.execute("select sequence_id, outcome, attempt from queuert.finished_job order by attempt, outcome")).fetchall()
    assert set(found) == {(good.id, "completed", 2), (bad.id, "failed", 2)}
    assert [each.outcome for each in await engine.list_attempts(good.id)] == ["error"]
    assert [each.outcome for each in await engine.list_attempts(bad.id)] == ["error", "failed"]
    assert [each.id for each in await engine.list_sequences(status="completed")] == [good.id]


# --- a completion stays one


@pytest.mark.parametrize("error", [Broken, asyncio.CancelledError])
@pytest.mark.parametrize("where", ["on", "async on", "on_commit", "on_commit in finalize", "done"])
async def test_a_users_callback_that_raises_does_not_uncomplete_the_job(engine: Engine, where: str, error: type[BaseException]) -> None:
    """steve: callbacks ran before the completion was written; what one raised failed the job, which ran again.

    Here all jobs of a batch complete at once, each with a callback that raises, and the worker has to go on.
    """
    runs: list[int] = []
    called: list[int] = []
    all_in = asyncio.Barrier(4)

    def call(_: object = None) -> None:
        called.append(1)
        raise error

    @engine.job_type(backoff=0, max_attempts=2)
    async def work(job: Job[Number]) -> Number:
        runs.append(job.input.n)
        await all_in.wait()
        if where.startswith("on_commit"):
            job.on_commit(call)
        if where == "on_commit in finalize":
            async with job.finalize():
                return job.input
        return job.input

    async def call_async(event: object) -> None:
        call(event)

    if where == "on":
        engine.on(JobCompleted)(call)
    elif where == "async on":
        engine.on(JobCompleted)(call_async)
    async with engine.worker(concurrency=4, shutdown_timeout=0):
        sequences: list[JobSequence[Number]] = await engine.start_sequences([work(Number(n=n)) for n in range(12)])
        if where == "done":
            for each in sequences:
                each.add_done_callback(call)
        for each in sequences:
            with contextlib.suppress(SequenceFailedError):
                await each.result(timeout=TIMEOUT)
        async with asyncio.timeout(TIMEOUT):
            while len(called) < 12:
                await asyncio.sleep(0)
    assert sorted(runs) == list(range(12)), "each ran once"
    assert {each.status for each in await engine.list_sequences()} == {"completed"}


# --- a worker that recovers starts afresh


async def test_the_backoff_of_a_worker_is_reset_when_it_has_worked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queuert: the pause after an error of the worker's loop grew with every error of its life, however well it worked in between.

    Here a loop fails five times at once, then works for longer than it has paused, and fails again. Time is the test's.
    """
    now, pauses, works_for = 0.0, list[float](), iter([0, 0, 0, 0, 0, 2, 0])

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now

    class Asyncio:
        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def sleep(self, seconds: float) -> None:
            pauses.append(seconds)

    async def loop() -> None:
        nonlocal now
        seconds = next(works_for, None)
        if seconds is None:
            return
        now += seconds
        raise Broken

    @engine.job_type
    async def note(job: Job[Number]) -> None: ...

    async with engine.worker() as worker:
        with monkeypatch.context() as patched:
            patched.setattr(loops, "time", Time)
            patched.setattr(loops, "asyncio", Asyncio())
            await worker._loops.keep("a part", loop)
    growing, afresh = pauses[:5], pauses[5:]
    assert growing[4] > 4 * growing[0], "it grows as long as nothing works"
    assert afresh[0] <= 0.1, "and begins again after that"
    assert len(pauses) == 7
