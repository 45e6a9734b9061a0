"""Events in this process: after the commit, of the right kind, and without any say in the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Fail, Job, Snooze, continue_with, events
from queuert_py.errors import UsageError

Connection = psycopg.AsyncConnection[Any]


class Number(BaseModel):
    n: int = 0


@pytest.fixture
def heard(engine: Engine) -> list[events.Event]:
    """Every event of the engine."""
    found: list[events.Event] = []
    engine.on(events.Event)(found.append)
    return found


async def ran(engine: Engine) -> None:
    async with engine.worker(drain=True):
        pass


def names(found: list[events.Event]) -> list[str]:
    return [type(each).__name__ for each in found]


async def test_a_sequence_tells_its_whole_life(engine: Engine, heard: list[events.Event]) -> None:
    @engine.job_type
    async def last(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type(backoff=0)
    async def first(job: Job[Number]) -> Continuation[Number]:
        if job.attempt == 1:
            raise ValueError("once")
        return continue_with(last, Number(n=5))

    sequence = await engine.start_sequence(first, Number(), tags=["t"], correlation_id="c", key="k")
    await ran(engine)
    assert names(heard) == ["SequenceStarted", "JobStarted", "JobRetrying", "JobStarted", "JobContinued", "JobStarted", "JobCompleted"]
    assert {each.sequence_id for each in heard} == {sequence.id}
    assert {(tuple(each.tags), each.correlation_id) for each in heard} == {(("t",), "c")}
    started, _, retrying, _, continued, begun, completed = heard
    assert isinstance(started, events.SequenceStarted)
    assert started.key == "k"
    assert isinstance(retrying, events.JobRetrying)
    assert (retrying.attempt, retrying.outcome, retrying.error and retrying.error["message"]) == (1, "error", "once")
    assert isinstance(continued, events.JobContinued)
    assert (continued.type, continued.next_type, continued.position) == ("first", "last", 0)
    assert isinstance(begun, events.JobStarted)
    jobs = await engine.list_jobs(sequence.id)
    assert [continued.job_id, begun.job_id] == [job.job_id for job in jobs]
    assert isinstance(completed, events.JobCompleted)
    assert (completed.type, completed.position, completed.output, completed.output_type) == ("last", 1, '{"n":5}', "Number")


async def test_each_kind_of_end_has_its_event(engine: Engine, heard: list[events.Event], db: Connection) -> None:
    @engine.job_type
    async def fail(job: Job[Number]) -> Number:
        raise Fail("no")

    @engine.job_type
    async def nap(job: Job[Number]) -> Number:
        raise Snooze(after=3600)

    @engine.job_type
    async def never(job: Job[Number]) -> Number:
        return job.input

    await engine.start_sequence(fail, Number())
    await engine.start_sequence(nap, Number())
    await engine.start_sequence(never, Number(), expires=3600)
    await db.execute("update queuert.live_job set expires_at = clock_timestamp() - interval '1 s' where expires_at is not null")
    await ran(engine)
    ends = [each for each in heard if isinstance(each, (events.JobEnded, events.JobSnoozed))]
    assert {(type(each), each.type) for each in ends} == {
        (events.JobFailed, "fail"),
        (events.JobSnoozed, "nap"),
        (events.JobExpired, "never"),
    }
    failed = next(each for each in ends if isinstance(each, events.JobFailed))
    assert (failed.reason, failed.error and failed.error["message"]) == ("fail", "no")


async def test_what_sleeps_and_what_is_given_back_are_told_apart(engine: Engine, heard: list[events.Event]) -> None:
    begun = asyncio.Event()

    @engine.job_type
    async def sleep(job: Job[Number]) -> Number:
        await job.sleep(3600)
        return job.input

    @engine.job_type
    async def hang(job: Job[Number]) -> Number:
        begun.set()
        await asyncio.Event().wait()
        return job.input

    await engine.start_sequence(sleep, Number())
    await engine.start_sequence(hang, Number())
    async with engine.worker(shutdown_timeout=0):
        async with asyncio.timeout(10):
            await begun.wait()
            while "JobSuspended" not in names(heard):
                await asyncio.sleep(0.01)
    assert {(type(each).__name__, each.type) for each in heard[2:] if not isinstance(each, events.JobStarted)} == {
        ("JobSuspended", "sleep"),
        ("JobReleased", "hang"),
    }


async def test_the_event_comes_after_the_commit(engine: Engine, dsn: str) -> None:
    seen: list[str] = []

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        async with job.finalize():
            return job.input

    @engine.on(events.JobCompleted, events.SequenceStarted)
    def look(event: events.Event) -> None:
        with psycopg.connect(dsn) as connection:
            row = connection.execute("select status from queuert.sequence where sequence_id = %s", [event.sequence_id]).fetchone()
            assert row is not None
            seen.append(row[0])

    await engine.start_sequence(echo, Number())
    await ran(engine)
    assert seen == ["pending", "completed"]


async def test_a_start_in_a_callers_transaction_and_a_found_one_are_not_told(engine: Engine, heard: list[events.Event], dsn: str) -> None:
    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    async with await psycopg.AsyncConnection[Any].connect(dsn) as connection:
        await engine.start_sequence(echo, Number(), tx=connection)
        await connection.rollback()
    await engine.start_sequence(echo, Number(), key="k")
    await engine.start_sequence(echo, Number(), key="k")
    assert names(heard) == ["SequenceStarted"]


# --- handlers


async def test_a_handler_that_raises_changes_nothing_and_is_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.on(events.JobCompleted)
    def wrong(event: events.JobCompleted) -> None:
        raise ValueError("in a def")

    @engine.on(events.JobCompleted)
    async def wrong_too(event: events.JobCompleted) -> None:
        raise ValueError("in an async def")

    @engine.on(events.JobCompleted)
    def right(event: events.JobCompleted) -> None:
        heard.append("right")

    sequence = await engine.start_sequence(echo, Number(n=1))
    async with engine.worker():
        assert (await sequence.result(timeout=10)).n == 1
    await engine.close()
    assert heard == ["right"]
    assert "in a def" in caplog.text
    assert "in an async def" in caplog.text


async def test_an_async_handler_gets_one_event_at_a_time_in_order(engine: Engine) -> None:
    inside = 0
    order: list[int] = []

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.on(events.JobCompleted)
    async def slow(event: events.JobCompleted) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await asyncio.sleep(0)
        order.append(Number.model_validate_json(event.output or "").n)
        inside -= 1

    for n in range(5):
        await engine.start_sequence(echo, Number(n=n))
    async with engine.worker(drain=True, concurrency=1):
        pass
    await engine.close()
    assert order == [0, 1, 2, 3, 4]


async def test_closing_waits_for_async_handlers_and_cancels_one_that_hangs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = asyncio.Event()

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.on(events.JobCompleted)
    async def hang(event: events.JobCompleted) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    await engine.start_sequence(echo, Number())
    await ran(engine)
    stop = engine.events.stop
    monkeypatch.setattr(engine.events, "stop", lambda: stop(timeout=0.05))
    await engine.close()
    assert cancelled.is_set()


async def test_a_handler_may_use_the_engine(engine: Engine) -> None:
    """It is nobody's job: a start in it belongs to no sequence."""
    done = asyncio.Event()

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        async with job.atomic():
            return job.input

    @engine.job_type
    async def alarm(job: Job[Number]) -> Number:
        return job.input

    @engine.on(events.JobCompleted)
    async def react(event: events.JobCompleted) -> None:
        if event.type == "echo":
            result = await (await engine.start_sequence(alarm, Number(n=2))).result(timeout=10)
            assert result.n == 2
            done.set()

    async with engine.worker():
        await engine.start_sequence(echo, Number())
        async with asyncio.timeout(10):
            await done.wait()


async def test_nothing_is_made_when_nobody_listens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    def refuse(event: events.Event) -> None:
        raise AssertionError("nobody listens")

    monkeypatch.setattr(engine.events, "emit", refuse)
    async with engine.worker():
        await (await engine.start_sequence(echo, Number())).result(timeout=10)
    assert not engine.events.wanted


@pytest.mark.parametrize("kinds", [(), (int,), (events.JobFailed, "JobCompleted")])
async def test_only_kinds_of_events_can_be_listened_to(engine: Engine, kinds: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="no kind of event"):
        engine.on(*kinds)


async def test_a_handler_must_be_callable(engine: Engine) -> None:
    with pytest.raises(UsageError, match="decorates a function"):
        engine.on(events.JobFailed)(cast("Callable[[events.JobFailed], None]", 3))
