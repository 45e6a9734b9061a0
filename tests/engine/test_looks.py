"""Looking: every filter by itself, pages that miss nothing and show nothing twice, and what hangs together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Engine, Fail, Job, JobSequence, JobType, Request, continue_with
from queuert_py.errors import JobNotFoundError, SequenceNotFoundError, UsageError
from queuert_py.looking import SequenceFilters

Connection = psycopg.AsyncConnection[Any]


class Number(BaseModel):
    n: int = 0


class Sum(BaseModel):
    parts: list[Blocker[Number]]


@pytest.fixture
async def shop(engine: Engine) -> Engine:
    """An engine with types that complete, go on, fail, and wait for others."""

    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def halve(job: Job[Number]) -> Number | Continuation[Number]:
        return job.input if job.input.n < 2 else continue_with(halve, Number(n=job.input.n // 2))

    @engine.job_type(max_attempts=2, backoff=0)
    async def fail(job: Job[Number]) -> Number:
        if job.attempt == 1:
            raise ValueError("no")
        raise Fail("never")

    @engine.job_type
    async def add(job: Job[Sum]) -> Number:
        return Number(n=sum(part.output.n for part in job.input.parts))

    return engine


async def ran(engine: Engine) -> None:
    """Run all that can be run."""
    async with engine.worker(drain=True, queues=["default", "slow"]):
        pass


def request(engine: Engine, name: str, input: BaseModel) -> Request[Number]:
    """A start of one of them."""
    return cast("JobType[Any, Number]", engine.get(name))(input)


async def ids(engine: Engine, **filters: Any) -> set[UUID]:
    return {each.id for each in await engine.list_sequences(**filters)}


# --- filters


async def test_each_filter_finds_what_it_says_and_nothing_else(shop: Engine, db: Connection) -> None:
    done = await shop.start_sequence("echo", {}, tags=["a", "b"], correlation_id="order-1")
    failed = await shop.start_sequence("fail", {}, queue="slow", key="k")
    await ran(shop)
    later = await shop.start_sequence("echo", {}, delay=3600, tags=["b"], key="k")
    waiting = await shop.start_sequence("echo", {}, queue="slow", correlation_id="order-2")
    blocked = await shop.start_sequence("add", Sum(parts=[waiting]))
    await db.execute(
        "update queuert.live_job set leased_by = 'w', leased_until = clock_timestamp() + interval '1 h' where sequence_id = %s",
        [waiting.id],
    )
    middle = (await shop.get_sequence(later.id)).created_at
    ended = (await shop.get_sequence(failed.id)).finished_at
    assert ended is not None
    d, f, la, w, b = done.id, failed.id, later.id, waiting.id, blocked.id
    table: list[tuple[SequenceFilters, set[UUID]]] = [
        ({}, {d, f, la, w, b}),
        ({"status": "completed"}, {d}),
        ({"status": "failed"}, {f}),
        ({"status": "scheduled"}, {la}),
        ({"status": "running"}, {w}),
        ({"status": "blocked"}, {b}),
        ({"status": "pending"}, set()),
        ({"status": "cancelled"}, set()),
        ({"status": "expired"}, set()),
        ({"type": "echo"}, {d, la, w}),
        ({"type": "nope"}, set()),
        ({"queue": "slow"}, {f, w}),
        ({"key": "k"}, {f, la}),
        ({"key": "k", "type": "echo"}, {la}),
        ({"tag": "b"}, {d, la}),
        ({"tag": "b", "status": "completed"}, {d}),
        ({"correlation_id": "order-1"}, {d}),
        ({"correlation_id": "order-2"}, {w}),
        ({"root_id": w}, {w}),
        ({"created_after": middle}, {la, w, b}),
        ({"created_before": middle}, {d, f}),
        ({"created_after": middle, "created_before": middle + timedelta(microseconds=1)}, {la}),
        ({"finished_after": ended}, {f} | ({d} if (await shop.get_sequence(d)).finished_at >= ended else set())),  # type: ignore[operator]
        ({"finished_before": datetime(2020, 1, 1, tzinfo=UTC)}, set()),
        ({"finished_after": ended, "status": "running"}, set()),
    ]
    for filters, expected in table:
        assert await ids(shop, **filters) == expected, filters


async def test_the_tree_of_a_root_holds_what_its_handlers_started(shop: Engine) -> None:
    @shop.job_type
    async def parent(job: Job[Number]) -> Number:
        await shop.start_sequence("echo", {"n": 1}, tags=["mine"])
        return job.input

    root = await shop.start_sequence(parent, Number(), tags=["t"], correlation_id="c")
    other = await shop.start_sequence("echo", {})
    await ran(shop)
    tree = await shop.list_sequences(root_id=root.id)
    assert {each.type for each in tree} == {"parent", "echo"}
    child = next(each for each in tree if each.type == "echo")
    assert (child.root_id, child.correlation_id, list(child.tags)) == (root.id, "c", ["mine"])
    assert other.id not in {each.id for each in tree}
    assert {each.sequence_id for each in await shop.list_jobs(root_id=root.id)} == {root.id, child.id}
    assert (await shop.list_jobs(child.id))[0].origin_id == root.id


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"status": "done"}, "status='done': one of blocked, scheduled"),
        ({"colour": "red"}, "unknown option colour"),
        ({"created_after": datetime(2026, 1, 1)}, "created_after=.*aware"),
        ({"root_id": "x"}, "root_id='x': a uuid.UUID"),
        ({"tag": 3}, "tag=3: a text"),
        ({"limit": 0}, "limit=0: from 1"),
        ({"after": "j~1~2"}, "the `next` of a page of the same list"),
        ({"after": "s~nonsense"}, "the `next` of a page of the same list"),
    ],
)
async def test_a_wrong_filter_is_named(engine: Engine, filters: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await engine.list_sequences(**filters)


# --- pages


async def pages(next_page: Callable[[str | None], Any]) -> AsyncIterator[list[Any]]:
    after: str | None = None
    while True:
        page = await next_page(after)
        yield page
        if page.next is None:
            return
        after = page.next


async def test_pages_show_everything_once_while_things_start_and_end_between_them(shop: Engine) -> None:
    kept = {each.id for each in await shop.start_sequences([request(shop, "echo", Number(n=n)) for n in range(25)])}
    seen: list[UUID] = []
    async for page in pages(lambda after: shop.list_sequences(limit=4, after=after)):
        assert len(page) <= 4
        seen += [each.id for each in page]
        await shop.start_sequences([request(shop, "echo", Number()), request(shop, "fail", Number())])
        if len(seen) == 8:
            await ran(shop)
    assert len(seen) == len(set(seen)), "none is shown twice"
    assert kept <= set(seen), "none is left out"
    assert seen == sorted(seen, reverse=True)


async def test_pages_are_exact_for_rows_of_one_microsecond(shop: Engine, db: Connection) -> None:
    started = [await shop.start_sequence("echo", {}, id=uuid4()) for _ in range(7)]
    await db.execute("update queuert.live_job set sequence_created_at = '2026-01-01T00:00:00Z', created_at = '2026-01-01T00:00:00Z'")
    seen = [each.id async for page in pages(lambda after: shop.list_sequences(limit=2, after=after)) for each in page]
    assert sorted(seen) == sorted(each.id for each in started)
    assert len(await shop.list_sequences(limit=7)) == 7
    assert (await shop.list_sequences(limit=7)).next is None, "a last page that is full says so"


async def test_pages_of_jobs_go_through_every_step(shop: Engine) -> None:
    await shop.start_sequences([request(shop, "halve", Number(n=8)) for _ in range(3)])
    await ran(shop)
    seen = [(job.sequence_id, job.position) async for page in pages(lambda after: shop.list_jobs(limit=5, after=after)) for job in page]
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen)) == 12
    assert {job.position for job in await shop.list_jobs(status="completed")} == {3}
    assert len(await shop.list_jobs(status="continued", type="halve")) == 9
    worker = (await shop.list_jobs(limit=1))[0].worker
    assert len(await shop.list_jobs(worker=worker)) == 12


async def test_every_lane_is_looked_through(fresh_database: Callable[[], str]) -> None:
    engine = Engine(fresh_database())
    await engine.migrate(lanes=8)

    @engine.job_type
    async def halve(job: Job[Number]) -> Number | Continuation[Number]:
        return job.input if job.input.n < 2 else continue_with(halve, Number(n=job.input.n // 2))

    async with engine:
        started = await engine.start_sequences([halve(Number(n=3), tags=["t"]) for _ in range(40)])
        seen = [each.id async for page in pages(lambda after: engine.list_sequences(limit=7, after=after, tag="t")) for each in page]
        assert seen == sorted((each.id for each in started), reverse=True)
        await ran(engine)
        for job in await engine.list_jobs(limit=1000):
            assert await engine.get_job(job.job_id) == job


# --- one


async def test_a_job_is_found_by_its_id_with_its_attempts(shop: Engine) -> None:
    failed = await shop.start_sequence("fail", {}, tags=["t"], correlation_id="c")
    steps = await shop.start_sequence("halve", {"n": 4})
    await ran(shop)
    job = await shop.get_job(failed.id, attempts=True)
    assert (job.status, job.reason, job.attempt, job.correlation_id, list(job.tags)) == ("failed", "fail", 2, "c", ["t"])
    assert [(each.attempt, each.outcome) for each in job.attempts] == [(1, "error"), (2, "failed")]
    assert (await shop.get_job(failed.id)).attempts == ()
    for each in await shop.list_jobs(steps.id):
        assert await shop.get_job(each.job_id) == each
    assert [each.origin_id for each in await shop.list_jobs(steps.id)][1:] == [each.job_id for each in await shop.list_jobs(steps.id)][:-1]
    with pytest.raises(JobNotFoundError, match="does not exist"):
        await shop.get_job(uuid4())
    with pytest.raises(SequenceNotFoundError):
        await shop.get_sequence(uuid4())
    assert await shop.list_jobs(uuid4()) == []


async def test_what_is_completed_is_done_to_100_percent(shop: Engine) -> None:
    done = await shop.start_sequence("halve", {"n": 4})
    waits = await shop.start_sequence("echo", {}, delay=60)
    await ran(shop)
    assert (await shop.get_sequence(done.id)).progress == {"percent": 100}
    record = await shop.get_sequence(waits.id)
    assert (record.progress, record.queue, record.worker, record.started_at, record.open_blockers) == (None, "default", None, None, 0)


# --- blockers and dependents


async def test_blockers_and_dependents_with_what_is_still_open(shop: Engine) -> None:
    first = await shop.start_sequence("echo", {"n": 1})
    second: JobSequence[Number] = await shop.start_sequence("echo", {"n": 2}, delay=3600, output=Number)
    added = await shop.start_sequence("add", Sum(parts=[first, second, first]))
    await ran(shop)
    blockers = await shop.list_blockers(added.id)
    assert {(each.id, each.status, each.settled, each.position) for each in blockers} == {
        (first.id, "completed", True, 0),
        (second.id, "scheduled", False, 0),
    }
    assert [(each.id, each.type, each.status, each.settled) for each in await shop.list_dependents(second.id)] == [
        (added.id, "add", "blocked", False)
    ]
    assert await shop.list_dependents(added.id) == []
    assert (await shop.get_sequence(added.id)).open_blockers == 1


async def test_many_dependents_come_in_pages(shop: Engine) -> None:
    blocker: JobSequence[Number] = await shop.start_sequence("echo", {}, output=Number)
    waiting = await shop.start_sequences([request(shop, "add", Sum(parts=[blocker])) for _ in range(9)])
    seen = [each.id async for page in pages(lambda after: shop.list_dependents(blocker.id, limit=4, after=after)) for each in page]
    assert seen == sorted(each.id for each in waiting)
    blockers = await shop.start_sequences([request(shop, "echo", Number()) for _ in range(5)])
    added = await shop.start_sequence("add", Sum(parts=list(blockers)))
    seen = [each.id async for page in pages(lambda after: shop.list_blockers(added.id, limit=2, after=after)) for each in page]
    assert seen == sorted(each.id for each in blockers)
