"""The connection is cut after every message of an operation: it has happened once, or it happens again as if it had not."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, JobTypes, continue_with
from tests.faults.kit import Facts, until
from tests.faults.proxy import Proxy

LEASE = 10.0


class Point(BaseModel):
    """Cut after this many messages."""

    after: int


class Done(BaseModel):
    after: int


@pytest.fixture
async def proxy(dsn: str) -> AsyncGenerator[Proxy]:
    async with Proxy.before(dsn) as proxy:
        yield proxy


class Cutter:
    """Arms the proxy once for each sequence."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._armed: set[str] = set()

    def __call__(self, job: Job[Point], label: str) -> None:
        if str(job.sequence_id) not in self._armed:
            self._armed.add(str(job.sequence_id))
            self._proxy.arm(label, job.input.after)


def points(default: int) -> pytest.MarkDecorator:
    """Cut at every so many points; at every point in the long form."""
    return pytest.mark.parametrize("stride", [default, pytest.param(1, marks=pytest.mark.slow)])


async def sweep(proxy: Proxy, stride: int, step: Callable[[int, int], Awaitable[None]], most: int = 200) -> int:
    """Do `step(after, count)` with cuts after ever more messages, until an operation needs no more; `count` from 1. How many cuts."""
    for count in itertools.count(1):
        after = 1 + (count - 1) * stride
        await step(after, count)
        if not proxy.disarm():
            assert after > 4, "the proxy did not see the operation"
            return count - 1
        assert after < most, "the operation does not end"
    raise AssertionError


async def ended(facts: Facts, count: int) -> None:
    async def all_ended() -> bool:
        return await facts.finished() == count and await facts.live() == 0

    await until(all_ended, f"sequence {count} to complete")


@points(3)
@pytest.mark.parametrize("watched", [False, True])
async def test_a_finalize_is_cut(stride: int, watched: bool, facts: Facts, proxy: Proxy) -> None:
    jobs = JobTypes()
    cut = Cutter(proxy)

    @jobs.job_type
    async def work(job: Job[Point]) -> Done:
        cut(job, "pool")
        async with job.finalize() as tx:
            await tx.execute("insert into effect (sequence_id, what) values (%s, 'work')", [str(job.sequence_id)])
        return Done(after=job.input.after)

    async with (
        Engine(facts.dsn, jobs) as producer,
        Engine(proxy.dsn, jobs, pool_size=1) as engine,
        engine.worker(concurrency=1, lease=LEASE),
    ):

        async def once(after: int, count: int) -> None:
            sequence = await producer.start_sequence(work, Point(after=after))
            if watched:
                await sequence.result(timeout=30)
            await facts.all_done(count)

        cuts = await sweep(proxy, stride, once)
    print(f"finalize, watched={watched}: {cuts} cuts")
    assert await facts.rows("select distinct outcome from queuert.attempt_log") == []


@points(7)
async def test_a_finalize_with_a_continuation_is_cut(stride: int, facts: Facts, proxy: Proxy) -> None:
    jobs = JobTypes()
    cut = Cutter(proxy)

    @jobs.job_type(internal=True)
    async def second(job: Job[Point]) -> Done:
        async with job.finalize() as tx:
            await tx.execute("insert into effect (sequence_id, what) values (%s, 'second')", [str(job.sequence_id)])
        return Done(after=job.input.after)

    @jobs.job_type
    async def first(job: Job[Point]) -> Continuation[Done]:
        cut(job, "pool")
        async with job.finalize() as tx:
            await tx.execute("insert into effect (sequence_id, what) values (%s, 'first')", [str(job.sequence_id)])
        return continue_with(second, job.input, delay=0 if job.input.after % 2 else 0.01)

    async with (
        Engine(facts.dsn, jobs) as producer,
        Engine(proxy.dsn, jobs, pool_size=1) as engine,
        engine.worker(concurrency=1, lease=LEASE),
    ):

        async def once(after: int, count: int) -> None:
            await producer.start_sequence(first, Point(after=after))
            await facts.all_done(count)
            assert await facts.one("select count(*) from effect") == 2 * count

        cuts = await sweep(proxy, stride, once)
    print(f"finalize with a continuation: {cuts} cuts")


@points(2)
@pytest.mark.parametrize("label", ["finish", "settle"])
async def test_a_plain_completion_is_cut(stride: int, label: str, facts: Facts, proxy: Proxy) -> None:
    jobs = JobTypes()
    cut = Cutter(proxy)

    async def watched() -> bool:
        return bool(await facts.one("select bool_and(watched) from queuert.live_job"))

    @jobs.job_type
    async def work(job: Job[Point]) -> Done:
        if label == "settle":  # the lane of sequences that somebody waits for
            await until(watched, "the waiter's mark")
        cut(job, label)
        return Done(after=job.input.after)

    async with Engine(facts.dsn, jobs) as producer, Engine(proxy.dsn, jobs) as engine, engine.worker(concurrency=1, lease=LEASE):
        sequence = await producer.start_sequence(work, Point(after=1_000_000))  # makes the connection that is cut
        await (sequence.result(timeout=30) if label == "settle" else ended(facts, 1))

        async def once(after: int, count: int) -> None:
            sequence = await producer.start_sequence(work, Point(after=after))
            if label == "settle":
                assert await sequence.result(timeout=30) == Done(after=after)
            await ended(facts, count + 1)

        cuts = await sweep(proxy, stride, once)
    print(f"plain completion, {label}: {cuts} cuts")
    assert await facts.rows("select distinct outcome from queuert.attempt_log") == []


@points(3)
@pytest.mark.parametrize("handed_off", [True, False])
async def test_a_continuation_is_cut(stride: int, handed_off: bool, facts: Facts, proxy: Proxy) -> None:
    jobs = JobTypes()
    cut = Cutter(proxy)

    @jobs.job_type(internal=True)
    async def second(job: Job[Point]) -> Done:
        return Done(after=job.input.after)

    @jobs.job_type
    async def first(job: Job[Point]) -> Continuation[Done]:
        cut(job, "finish")
        return continue_with(second, job.input) if handed_off else continue_with(second, job.input, delay=0.01)

    async with Engine(facts.dsn, jobs) as producer, Engine(proxy.dsn, jobs) as engine, engine.worker(concurrency=1, lease=LEASE):
        await producer.start_sequence(first, Point(after=1_000_000))  # makes the connection that is cut
        await ended(facts, 1)

        async def once(after: int, count: int) -> None:
            await producer.start_sequence(first, Point(after=after))
            await ended(facts, count + 1)
            assert await facts.finished("continued") == count + 1

        cuts = await sweep(proxy, stride, once)
    print(f"continuation, handed off={handed_off}: {cuts} cuts")


@pytest.mark.parametrize("key", [None, "key"])
async def test_a_start_is_cut(key: str | None, facts: Facts, proxy: Proxy) -> None:
    """The worker polls, so that a sequence may have ended before its start is repeated."""
    jobs = JobTypes()

    @jobs.job_type
    async def work(job: Job[Point]) -> Done:
        return Done(after=job.input.after)

    async with (
        Engine(facts.dsn, jobs) as worker,
        worker.worker(lease=LEASE, poll_interval=0.01),
        Engine(proxy.dsn, jobs, pool_size=1) as producer,
    ):

        async def once(after: int, count: int) -> None:
            proxy.arm("pool", after)
            sequence = await producer.start_sequence(work, Point(after=after), key=key)
            await ended(facts, count)
            found = await facts.rows(
                "select sequence_id::text from queuert.sequence where (input ->> 'after')::int = %(after)s", {"after": after}
            )
            assert found == [(str(sequence.id),)]

        cuts = await sweep(proxy, 1, once)
    print(f"start, key={key}: {cuts} cuts")


@points(2)
async def test_a_claim_is_cut(stride: int, facts: Facts, proxy: Proxy) -> None:
    jobs = JobTypes()

    @jobs.job_type
    async def work(job: Job[Point]) -> Done:
        return Done(after=job.input.after)

    fired = 0
    async with Engine(facts.dsn, jobs) as producer, Engine(proxy.dsn, jobs) as engine, engine.worker(concurrency=1, lease=LEASE):
        await producer.start_sequence(work, Point(after=0))
        await ended(facts, 1)
        for count, after in enumerate(range(1, 31, stride), 1):
            proxy.arm("claim", after)
            await producer.start_sequence(work, Point(after=after))
            await ended(facts, count + 1)
            fired += proxy.disarm()
    print(f"claim: {fired} cuts")
    assert fired > 10 // stride
    assert await facts.rows("select distinct outcome from queuert.attempt_log") == []
