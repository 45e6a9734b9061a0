"""Waiting for results: one, several, in order of ending, by callback; ten thousand at once by one connection and one query a wake-up."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Engine, Fail, Job, JobSequence, JobType
from queuert_py.errors import (
    ConfigurationError,
    QueuertError,
    ResultTimeoutError,
    SequenceCancelledError,
    SequenceExpiredError,
    SequenceFailedError,
    SequenceNotFoundError,
    UsageError,
)
from queuert_py.postgres.calls import Call
from tests.engine.kit import patiently

Connection = psycopg.AsyncConnection[Any]


class Number(BaseModel):
    n: int = 0


class Word(BaseModel):
    text: str


@pytest.fixture
def echo(engine: Engine) -> JobType[Number, Number]:
    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    return echo


@pytest.fixture
def fail(engine: Engine) -> JobType[Number, Number]:
    @engine.job_type
    async def fail(job: Job[Number]) -> Number:
        raise Fail(f"number {job.input.n}")

    return fail


# --- what can be the matter is told apart


async def test_failed_cancelled_expired_missing_and_late_are_different_errors(
    engine: Engine, echo: JobType[Number, Number], fail: JobType[Number, Number], db: Connection
) -> None:
    failed = await engine.start_sequence(fail, Number(n=7))
    expired = await engine.start_sequence(echo, Number(), expires=0.001)
    waiting = await engine.start_sequence(echo, Number(), delay=3600)
    cancelled = await engine.start_sequence(echo, Number(), delay=3600)
    await engine.cancel_sequences([cancelled.id])
    await db.execute("update queuert.live_job set expires_at = clock_timestamp() - interval '1 s' where sequence_id = %s", [expired.id])
    async with engine.worker():
        with pytest.raises(SequenceFailedError, match="number 7") as told:
            await failed.result(timeout=10)
        assert (told.value.reason, told.value.sequence_id) == ("fail", failed.id)
        assert (told.value.error["type"], [each.outcome for each in told.value.attempts]) == ("Fail", ["failed"])
        with pytest.raises(SequenceCancelledError, match="was cancelled"):
            await cancelled.result(timeout=10)
        with pytest.raises(SequenceExpiredError, match="not started before it expired"):
            await expired.result(timeout=10)
        with pytest.raises(SequenceNotFoundError, match="does not exist"):
            await engine.sequence(echo, uuid4()).result(timeout=10)
        with pytest.raises(ResultTimeoutError, match="it goes on"):
            await waiting.result(timeout=0.01)
    assert (await engine.get_sequence(waiting.id)).status == "scheduled"


async def test_closing_the_engine_ends_the_waiting(engine: Engine, echo: JobType[Number, Number]) -> None:
    waiting = await engine.start_sequence(echo, Number())
    task = asyncio.create_task(waiting.result())
    while not engine.waiters.awaits(str(waiting.id)):
        await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(ConfigurationError, match="the engine was closed"):
        await task


# --- several


async def test_wait_all_gives_outputs_in_the_order_of_the_handles(engine: Engine, echo: JobType[Number, Number]) -> None:
    @engine.job_type
    async def say(job: Job[Number]) -> Word:
        return Word(text=str(job.input.n))

    async with engine.worker():
        started = await engine.start_sequences([echo(Number(n=n), delay=0.05 - n / 100) for n in range(5)])
        assert await engine.wait_all(started, timeout=10) == [Number(n=n) for n in range(5)]
        both = await engine.start_sequence(echo, Number(n=1)), await engine.start_sequence(say, Number(n=2))
        number, word = await engine.wait_all(both)
        assert (number.n, word.text) == (1, "2")
        assert await engine.wait_all([]) == []


async def test_wait_all_raises_the_first_failure_at_once(
    engine: Engine, echo: JobType[Number, Number], fail: JobType[Number, Number]
) -> None:
    never = await engine.start_sequence(echo, Number(), delay=3600)
    failed = await engine.start_sequence(fail, Number(n=3))
    async with engine.worker():
        with pytest.raises(SequenceFailedError, match="number 3"):
            await engine.wait_all([never, failed])
    assert not engine.waiters.awaits(str(never.id))


async def test_wait_all_can_give_errors_where_outputs_would_be(
    engine: Engine, echo: JobType[Number, Number], fail: JobType[Number, Number]
) -> None:
    never = await engine.start_sequence(echo, Number(), delay=3600)
    done = await engine.start_sequence(echo, Number(n=1))
    failed = await engine.start_sequence(fail, Number())

    async def wait(timeout: float) -> list[Number | QueuertError] | None:
        found: list[Number | QueuertError] = await engine.wait_all([never, done, failed], timeout=timeout, return_exceptions=True)
        return found if isinstance(found[1], Number) and isinstance(found[2], SequenceFailedError) else None

    async with engine.worker():
        await engine.wait_all([done], timeout=10)
        with pytest.raises(SequenceFailedError):
            await failed.result(timeout=10)
        outcomes = await patiently(wait)
    assert [type(each).__name__ for each in outcomes] == ["ResultTimeoutError", "Number", "SequenceFailedError"]
    assert str(never.id) in str(outcomes[0])


async def test_wait_all_says_how_many_are_late(engine: Engine, echo: JobType[Number, Number]) -> None:
    started = await engine.start_sequences([echo(Number()) for _ in range(3)])
    with pytest.raises(ResultTimeoutError, match=r"3 of 3 sequences have not ended within 0.05 s"):
        await engine.wait_all(started, timeout=0.05)


async def test_as_completed_gives_handles_in_the_order_of_ending(engine: Engine, fail: JobType[Number, Number]) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    @engine.job_type
    async def gated(job: Job[Number]) -> Number:
        await gates[job.input.n].wait()
        return job.input

    started: list[JobSequence[Number]] = await engine.start_sequences([gated(Number(n=n)) for n in range(3)])
    failed = await engine.start_sequence(fail, Number(n=9))
    seen: list[int] = []
    async with engine.worker():
        async for sequence in engine.as_completed([*started, failed], timeout=20):
            try:
                seen.append((await sequence.result()).n)
            except SequenceFailedError:
                seen.append(9)
            if len(seen) < 4:
                gates[3 - len(seen)].set()
    assert seen == [9, 2, 1, 0]


async def test_as_completed_ends_with_an_error_when_time_is_up(engine: Engine, echo: JobType[Number, Number]) -> None:
    never = await engine.start_sequence(echo, Number(), delay=3600)
    done = await engine.start_sequence(echo, Number())
    seen: list[JobSequence[Number]] = []

    async def see(timeout: float) -> str | None:
        try:
            async for each in engine.as_completed([never, done], timeout=timeout):
                seen.append(each)
        except ResultTimeoutError as late:
            return str(late) if seen else None
        raise AssertionError("what never ends has ended")

    async with engine.worker():
        await done.result(timeout=20)
        assert "1 of 2 sequences" in await patiently(see)
    assert seen == [done]
    assert not engine.waiters.awaits(str(never.id))


async def test_a_timeout_of_nothing_asks_whether_it_has_ended(engine: Engine, echo: JobType[Number, Number]) -> None:
    waiting = await engine.start_sequence(echo, Number())
    done = [await engine.start_sequence(echo, Number(n=n)) for n in range(3)]
    for each in done:
        await engine.complete_sequence(each.id, Number(n=7))
    assert await done[0].result(timeout=0) == Number(n=7)
    assert await engine.wait_all(done, timeout=0) == [Number(n=7)] * 3
    assert {each.id async for each in engine.as_completed(done, timeout=0)} == {each.id for each in done}
    with pytest.raises(ResultTimeoutError, match="has not ended within 0 s"):
        await waiting.result(timeout=0)
    outcomes = await engine.wait_all([*done, waiting], timeout=0, return_exceptions=True)
    assert [type(each) for each in outcomes] == [Number, Number, Number, ResultTimeoutError]
    with pytest.raises(ResultTimeoutError, match="1 of 4 sequences"):
        [_ async for _ in engine.as_completed([*done, waiting], timeout=0)]


async def test_closing_does_not_end_with_what_the_waiters_died_of(engine: Engine, echo: JobType[Number, Number]) -> None:
    sequence = await engine.start_sequence(echo, Number())
    waiting = asyncio.create_task(sequence.result())
    while not engine.waiters.awaits(str(sequence.id)):
        await asyncio.sleep(0)
    engine.waiters._look_at = None  # type: ignore[assignment] # pyright: ignore
    engine.waiters._wake.set()
    await engine.close()
    with pytest.raises(ConfigurationError, match="the engine was closed"):
        await waiting


async def test_a_tuple_of_any_length_gives_a_tuple(engine: Engine, echo: JobType[Number, Number]) -> None:
    started = await engine.start_sequences(tuple(echo(Number(n=n)) for n in range(7)))
    assert isinstance(started, tuple)
    async with engine.worker():
        assert await engine.wait_all(started) == tuple(Number(n=n) for n in range(7))


async def test_waiting_inside_a_handler_is_refused(engine: Engine, echo: JobType[Number, Number]) -> None:
    other = await engine.start_sequence(echo, Number())

    @engine.job_type
    async def impatient(job: Job[Number]) -> Number:
        with pytest.raises(UsageError, match="would hold its slot"):
            await engine.wait_all([other])
        with pytest.raises(UsageError, match="would hold its slot"):
            async for _ in engine.as_completed([other]):
                pass
        return job.input

    async with engine.worker():
        await (await engine.start_sequence(impatient, Number())).result(timeout=10)
    with pytest.raises(UsageError, match="3 is no handle"):
        await engine.wait_all([cast("JobSequence[Number]", 3)])


# --- callbacks


async def test_a_callback_is_called_when_the_sequence_has_ended_and_at_once_if_it_has(
    engine: Engine, echo: JobType[Number, Number]
) -> None:
    called: asyncio.Queue[int] = asyncio.Queue()

    async def note(sequence: JobSequence[Number]) -> None:
        called.put_nowait((await sequence.result()).n)

    sequence = await engine.start_sequence(echo, Number(n=1))
    sequence.add_done_callback(note)
    async with engine.worker():
        async with asyncio.timeout(10):
            assert await called.get() == 1
    sequence.add_done_callback(lambda done: called.put_nowait(100))
    async with asyncio.timeout(10):
        assert await called.get() == 100


async def test_a_callback_that_raises_is_logged_and_one_taken_back_is_not_called(
    engine: Engine, echo: JobType[Number, Number], caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []
    ended = asyncio.Event()

    def wrong(sequence: JobSequence[Number]) -> None:
        called.append("wrong")
        ended.set()
        raise ValueError("in a callback")

    sequence = await engine.start_sequence(echo, Number())
    take_back = sequence.add_done_callback(lambda _: called.append("taken back"))
    sequence.add_done_callback(wrong)
    take_back()
    async with engine.worker():
        await sequence.result(timeout=10)
        async with asyncio.timeout(10):
            await ended.wait()
    assert called == ["wrong"]
    assert "in a callback" in caplog.text


async def test_a_callback_needs_an_event_loop(engine: Engine, echo: JobType[Number, Number]) -> None:
    sequence = await engine.start_sequence(echo, Number())

    def elsewhere() -> None:
        with pytest.raises(UsageError, match="a running event loop"):
            sequence.add_done_callback(print)

    await asyncio.to_thread(elsewhere)


# --- many


async def test_ten_thousand_waiters_use_one_listening_connection_and_one_query_a_wake_up(
    engine: Engine, echo: JobType[Number, Number], dsn: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 10_000
    observing = Engine(dsn)
    async with observing:
        started = await engine.start_sequences([echo(Number(n=n)) for n in range(many)])
        handles = [observing.sequence(echo, each.id) for each in started]
        reads: list[int] = []
        marks: list[int] = []
        run = observing.database.run

        async def counted(call: Call[Any]) -> Any:
            if call.sql == read_results:
                reads.append(str(call.parameters["rows"]).count("sequence_id"))
            elif call.sql == mark_watched:
                marks.append(str(call.parameters["rows"]).count("sequence_id"))
            return await run(call)

        read_results = observing.database.store.read_results([]).sql
        mark_watched = observing.database.store.mark_watched([]).sql
        monkeypatch.setattr(observing.database, "run", counted)
        waiting = asyncio.create_task(observing.wait_all(handles))
        while not reads:
            await asyncio.sleep(0)
        assert reads[0] == many, "the first look asks for all of them by one query"
        while await (await db.execute("select 1 from queuert.live_job where not watched limit 1")).fetchone():
            await asyncio.sleep(0)
        assert marks[: many // 1000] == [1000] * (many // 1000)
        while observing.listener.deaf:
            await asyncio.sleep(0)
        cursor = await db.execute(
            "select count(*) from pg_stat_activity where application_name like '%:listen' and datname = current_database()"
        )
        assert await cursor.fetchone() == (1,)
        reads.clear()
        async with engine.worker(concurrency=1000):
            outputs = await waiting
        assert [each.n for each in outputs] == list(range(many))
        assert len(reads) < 1000, "what ends while a look is under way is asked for together"
