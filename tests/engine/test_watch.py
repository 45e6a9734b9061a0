"""Events across processes: nothing is lost in whatever order transactions commit, nothing is given twice, and one can go on later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Fail, Job, JobType, continue_with, events
from queuert_py.errors import UsageError
from queuert_py.runtime import watching
from queuert_py.runtime.watching import Horizon, Watch

Connection = psycopg.AsyncConnection[Any]
ENDED = """
    insert into queuert.finished_job (lane, sequence_id, position, job_id, root_id, sequence_type, type, queue, priority, run_at, input,
        outcome, attempt, crash_count, epoch, blocker_count, created_at, sequence_created_at, finished_at)
    values (0, %(id)s, 0, %(id)s, %(id)s, 't', 't', 'default', 0, clock_timestamp(), '{}', 'completed', 1, 0, 1, 0, clock_timestamp(),
        clock_timestamp(), clock_timestamp())
    returning finished_at
"""


class Number(BaseModel):
    n: int = 0


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests write by hand sends no hints: the poll finds it."""
    monkeypatch.setattr(watching, "POLL", 0.02)


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[Engine]:
    """An engine of another process: it watches, it has no worker."""
    async with Engine(dsn) as engine:
        yield engine


@pytest.fixture
def echo(engine: Engine) -> JobType[Number, Number]:
    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    return echo


async def ended(connection: Connection) -> UUID:
    """History, written as a worker does it; commit it or not."""
    id = uuid4()
    await connection.execute(ENDED.encode(), {"id": id})
    return id


async def taken(watch: Watch[Any], count: int) -> list[Any]:
    async with asyncio.timeout(15):
        return [await anext(watch) for _ in range(count)]


async def nothing(watch: Watch[Any], db: Connection) -> None:
    """There is nothing more: what is written now comes next."""
    marker = await ended(db)
    assert (await taken(watch, 1))[0].sequence_id == marker


# --- no loss


async def test_transactions_that_commit_in_another_order_lose_nothing(other: Engine, dsn: str, db: Connection) -> None:
    async with await psycopg.AsyncConnection[Any].connect(dsn) as slow, await psycopg.AsyncConnection[Any].connect(dsn) as slower:
        async with other.watch() as watch:
            first = await ended(slow)
            second = await ended(slower)
            third = await ended(db)
            assert (await taken(watch, 1))[0].sequence_id == third, "what is committed is given, whatever else is open"
            fourth = await ended(db)
            assert (await taken(watch, 1))[0].sequence_id == fourth
            await slower.commit()
            assert (await taken(watch, 1))[0].sequence_id == second
            await slow.commit()
            event = (await taken(watch, 1))[0]
            assert event.sequence_id == first
            assert watch.cursor is not None
            assert event.at is not None
            await nothing(watch, db)


async def test_a_cursor_does_not_pass_what_is_still_open(other: Engine, dsn: str, db: Connection) -> None:
    async with await psycopg.AsyncConnection[Any].connect(dsn) as slow:
        async with other.watch() as watch:
            open_ = await ended(slow)
            for _ in range(3):
                later = await ended(db)
                assert (await taken(watch, 1))[0].sequence_id == later
            cursor = watch.cursor
        await slow.commit()
    async with other.watch(since=cursor) as watch:
        assert open_ in {event.sequence_id for event in await taken(watch, 4)}


async def test_what_is_open_when_a_watch_begins_is_given_when_it_commits(other: Engine, dsn: str, db: Connection) -> None:
    """Begin, look, wait: what the look did not show comes. What others have committed meanwhile does not."""
    async with await psycopg.AsyncConnection[Any].connect(dsn) as slow:
        open_ = await ended(slow)
        for _ in range(3):
            await ended(db)
        async with other.watch() as watch:
            later = await ended(db)
            assert (await taken(watch, 1))[0].sequence_id == later
            assert watch.cursor is not None
            cursor = watch.cursor
            await slow.commit()
            event = (await taken(watch, 1))[0]
            assert event.sequence_id == open_
            assert event.at > cursor, "a cursor does not pass it either"
            await nothing(watch, db)


async def test_a_stranger_with_a_long_transaction_holds_nothing_up(other: Engine, dsn: str, db: Connection) -> None:
    async with await psycopg.AsyncConnection[Any].connect(dsn) as stranger:
        await stranger.execute("create temporary table mine (n integer)")
        await stranger.execute("insert into mine values (1)")
        async with other.watch() as watch:
            before = watch.cursor
            assert before is not None
            last = [await ended(db) for _ in range(3)][-1]
            assert (await taken(watch, 3))[-1].sequence_id == last
            await nothing(watch, db)
            await nothing(watch, db)
            assert watch.cursor is not None
            assert watch.cursor > before
            assert len(watch._seen) <= 6


async def test_many_writers_at_once_lose_nothing_and_double_nothing(other: Engine, dsn: str) -> None:
    """40 connections that take their times and commit in any order, while a watch looks as often as it can."""
    written: list[UUID] = []

    async def write(number: int) -> None:
        async with await psycopg.AsyncConnection[Any].connect(dsn) as connection:
            for turn in range(10):
                mine = [await ended(connection) for _ in range(1 + turn % 3)]
                for _ in range((number * 7 + turn * 3) % 11):
                    await connection.execute("select 1")
                if (number + turn) % 5:
                    await connection.commit()
                    written.extend(mine)
                else:
                    await connection.rollback()

    async with other.watch() as watch:
        await asyncio.gather(*(write(number) for number in range(40)))
        seen = [event.sequence_id for event in await taken(watch, len(written))]
        assert sorted(seen) == sorted(written)
        async with await psycopg.AsyncConnection[Any].connect(dsn, autocommit=True) as connection:
            await nothing(watch, connection)


async def test_a_watch_goes_on_where_an_earlier_one_ended(other: Engine, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAGE", 7)
    begin = datetime.now(UTC) - timedelta(minutes=1)
    all_ = [await ended(db) for _ in range(40)]
    seen: list[UUID] = []
    cursor: datetime | None = begin
    while len(set(seen)) < 40:
        async with other.watch(since=cursor) as watch:
            until = len(set(seen)) + 10
            while len(set(seen)) < until:
                seen += [event.sequence_id for event in await taken(watch, 1)]
            cursor = watch.cursor
    assert set(seen) == set(all_)
    assert len(seen) <= 60, "a restart repeats the last moments only"


async def test_a_page_after_a_page_gives_a_long_past_in_order(other: Engine, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAGE", 10)
    all_ = [await ended(db) for _ in range(35)]
    async with other.watch(since=datetime.now(UTC) - timedelta(minutes=1)) as watch:
        assert [event.sequence_id for event in await taken(watch, 35)] == all_
        await nothing(watch, db)


async def test_a_past_with_gaps_is_read_window_by_window(other: Engine, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days apart, all at one instant, a second apart: each once, in order."""
    monkeypatch.setattr(watching, "PAGE", 5)
    now = datetime.now(UTC)
    times = [
        *[now - timedelta(days=40) + timedelta(seconds=n) for n in range(12)],
        *[now - timedelta(days=9)] * 13,
        *[now - timedelta(hours=3) + timedelta(microseconds=n) for n in range(11)],
    ]
    for at in times:
        await db.execute("update queuert.finished_job set finished_at = %s where sequence_id = %s", [at, await ended(db)])
    async with other.watch(since=now - timedelta(days=50)) as watch:
        assert [event.at for event in await taken(watch, len(times))] == times
        assert watch.cursor is not None
        assert watch.cursor >= times[-1]
        assert len(watch._seen) <= 2 * 13, "what is behind the place is forgotten on the way"
        await nothing(watch, db)


def test_the_horizon_waits_for_everyone_who_wrote_at_its_mark() -> None:
    """In small steps: a mark counts once all who wrote then are gone; one that still writes holds the later marks, too."""
    at = [datetime(2026, 1, 1, second=n, tzinfo=UTC) for n in range(10)]
    horizon = Horizon(at[0], at[0])
    assert horizon.reached(at[1], frozenset()) == at[1], "nobody writes: now"
    horizon.low = at[1]
    assert horizon.reached(at[2], frozenset({"a", "b"})) == at[1]
    assert horizon.reached(at[3], frozenset({"b", "c"})) == at[1], "b wrote at 2, and still does"
    assert horizon.reached(at[4], frozenset({"c", "d"})) == at[2], "a and b are gone; c wrote at 3"
    horizon.low = at[2]
    assert horizon.reached(at[5], frozenset({"e"})) == at[4], "c and d are gone"
    for _ in range(1000):
        horizon.reached(at[6], frozenset({"e"}))
    assert len(horizon.marks) <= watching.MARKS
    assert horizon.reached(at[7], frozenset()) == at[7]


# --- what is told


async def test_all_kinds_come_from_a_worker_of_another_process(engine: Engine, other: Engine, echo: JobType[Number, Number]) -> None:
    @engine.job_type(backoff=0, max_attempts=2)
    async def first(job: Job[Number]) -> Continuation[Number]:
        if job.attempt == 1:
            raise ValueError("once")
        return continue_with(echo, job.input)

    @engine.job_type
    async def fail(job: Job[Number]) -> Number:
        raise Fail("no")

    async with other.watch() as watch:
        async with engine.worker():
            one = await engine.start_sequence(first, Number(n=3), tags=["t"], correlation_id="c")
            retrying, continued, completed = await taken(watch, 3)
            two = await engine.start_sequence(fail, Number())
            failed = (await taken(watch, 1))[0]
            await engine.retry_sequences([two.id])
            revived, again = await taken(watch, 2)
    assert isinstance(retrying, events.JobRetrying)
    assert (retrying.outcome, retrying.attempt, list(retrying.tags), retrying.correlation_id) == ("error", 1, ["t"], "c")
    assert isinstance(continued, events.JobContinued)
    assert isinstance(completed, events.JobCompleted)
    assert (completed.sequence_id, completed.position, completed.type, completed.queue) == (one.id, 1, "echo", "default")
    assert completed.output is not None
    assert Number.model_validate_json(completed.output).n == 3
    assert [type(each) for each in (failed, revived, again)] == [events.JobFailed, events.JobRevived, events.JobFailed]
    assert failed.error["message"] == "no"
    assert all(each.at is not None and each.worker for each in (retrying, continued, completed, failed))


async def test_a_failure_that_was_retried_before_the_look_is_told(engine: Engine, other: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def fail(job: Job[Number]) -> Number:
        raise Fail("no")

    told = [events.JobFailed, events.JobRevived, events.JobFailed]
    async with other.watch(tag="t") as watch:
        sequence = await engine.start_sequence(fail, Number(), tags=["t"])
        await engine.run_once()
        await engine.retry_sequences([sequence.id])
        await engine.run_once()
        seen = await taken(watch, 3)
        assert [type(each) for each in seen] == told
        assert [each.reason for each in seen if isinstance(each, events.JobFailed)] == ["fail", "fail"]
        await engine.retry_sequences([sequence.id])
        assert isinstance((await taken(watch, 1))[0], events.JobRevived), "what was given is not given again"
    async with other.watch(events.JobFailed, since=seen[0].at) as late:
        assert [each.at for each in await taken(late, 2)] == [seen[0].at, seen[2].at]


async def test_filters_and_kinds(engine: Engine, other: Engine, echo: JobType[Number, Number]) -> None:
    @engine.job_type
    async def fail(job: Job[Number]) -> Number:
        raise Fail("no")

    async with (
        other.watch(type="echo") as by_type,
        other.watch(tag="b") as by_tag,
        other.watch(correlation_id="c", queue="default") as by_id,
        other.watch(events.JobFailed) as failures,
        other.watch(events.JobEnded, type="fail") as ends,
    ):
        a = await engine.start_sequence(echo, Number(), tags=["a", "b"])
        b = await engine.start_sequence(echo, Number(), correlation_id="c")
        c = await engine.start_sequence(fail, Number(), tags=["b"])
        async with other.watch(id=b.id) as one:
            async with engine.worker(drain=True):
                pass
            assert {each.sequence_id for each in await taken(one, 1)} == {b.id}
        assert {each.sequence_id for each in await taken(by_type, 2)} == {a.id, b.id}
        assert {each.sequence_id for each in await taken(by_tag, 2)} == {a.id, c.id}
        assert {each.sequence_id for each in await taken(by_id, 1)} == {b.id}
        assert {each.sequence_id for each in await taken(failures, 1)} == {c.id}
        assert {each.sequence_id for each in await taken(ends, 1)} == {c.id}


async def test_a_watch_without_a_block_begins_at_its_first_step(other: Engine, db: Connection) -> None:
    await ended(db)
    watch = other.watch()
    task = asyncio.create_task(anext(watch))
    async with asyncio.timeout(10):
        while watch.cursor is None:
            await asyncio.sleep(0)
    later = await ended(db)
    assert (await task).sequence_id == later
    await watch.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(watch)


async def test_progress_is_told_as_it_comes(engine: Engine, other: Engine) -> None:
    go_on = asyncio.Event()

    @engine.job_type
    async def slow(job: Job[Number]) -> Number:
        await job.progress(40, "on the way")
        await go_on.wait()
        return job.input

    async with other.watch(events.JobProgress, events.JobCompleted) as watch:
        sequence = await engine.start_sequence(slow, Number())
        async with engine.worker():
            told = (await taken(watch, 1))[0]
            assert isinstance(told, events.JobProgress)
            assert (told.sequence_id, told.percent, told.message) == (sequence.id, 40, "on the way")
            go_on.set()
            rest = await taken(watch, 1)
            while not isinstance(rest[-1], events.JobCompleted):
                rest += await taken(watch, 1)


async def test_a_step_that_is_given_up_loses_no_progress(engine: Engine, other: Engine, db: Connection, dsn: str) -> None:
    @engine.job_type
    async def slow(job: Job[Number]) -> Number:
        await job.progress(40)
        await asyncio.Event().wait()
        return job.input

    blocked = "select count(*) from pg_locks where not granted and relation = 'queuert.live_job'::regclass"
    async with engine.worker(grace=0), other.watch(events.JobProgress) as watch:
        sequence = await engine.start_sequence(slow, Number())
        assert (await taken(watch, 1))[0].percent == 40
        async with await psycopg.AsyncConnection[Any].connect(dsn) as locking:
            await locking.execute("lock table queuert.live_job in access exclusive mode")
            watch._told.hint(f"g:{sequence.id}")
            step = asyncio.create_task(anext(watch))
            while True:
                row = await (await db.execute(blocked.encode())).fetchone()
                if row and row[0]:
                    break
            step.cancel()
            await asyncio.wait([step])
        assert (await taken(watch, 1))[0].percent == 40
        await engine.cancel_sequences([sequence.id])


async def test_short_steps_poll_as_well(other: Engine, db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a moment at a time finds what no hint has told."""
    monkeypatch.setattr(watching, "POLL", 0.2)
    async with other.watch() as watch:
        await nothing(watch, db)
        id = await ended(db)
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(TimeoutError):
                    assert (await asyncio.wait_for(anext(watch), 0.05)).sequence_id == id
                    break


async def test_watchers_make_workers_tell_them_at_once(
    engine: Engine, other: Engine, echo: JobType[Number, Number], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a poll that never comes: only hints can have brought it."""
    monkeypatch.setattr(watching, "POLL", 3600)
    monkeypatch.setattr(watching, "DEAF_POLL", 3600)
    async with engine.worker(), other.watch() as watch:
        waiting = asyncio.create_task(anext(watch))
        async with asyncio.timeout(10):
            while not engine.events.wanted:
                await asyncio.sleep(0.01)
        for _ in range(5):
            sequence = await engine.start_sequence(echo, Number())
            async with asyncio.timeout(10):
                assert (await waiting).sequence_id == sequence.id
            waiting = asyncio.create_task(anext(watch))
        waiting.cancel()


async def test_closing_the_engine_ends_its_watches(other: Engine) -> None:
    watch = other.watch()
    task = asyncio.create_task(anext(watch))
    while watch.cursor is None:
        await asyncio.sleep(0)
    await other.close()
    with pytest.raises(StopAsyncIteration):
        await task


async def test_an_outage_is_waited_out(other: Engine, db: Connection) -> None:
    async with other.watch() as watch:
        first = await ended(db)
        assert (await taken(watch, 1))[0].sequence_id == first
        await db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
        second = await ended(db)
        assert (await taken(watch, 1))[0].sequence_id == second


@pytest.mark.parametrize(
    ("kinds", "filters", "says"),
    [
        ((events.JobStarted,), {}, "JobStarted: only known in the process where it happens"),
        ((int,), {}, "no kind of event"),
        ((), {"type": 3}, "type=3: a text"),
        ((), {"id": "x"}, "id='x': a uuid.UUID"),
        ((), {"since": datetime(2026, 1, 1)}, "since=.*aware"),
    ],
)
async def test_what_cannot_be_watched_is_refused(engine: Engine, kinds: Any, filters: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        engine.watch(*kinds, **filters)
