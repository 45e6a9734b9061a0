"""`job.step`: what a handler has done once is not done again by a later attempt of its job."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, JobSequence, JobTypes, SyncJob, continue_with
from queuert_py.errors import (
    InvalidStepError,
    LeaseLostError,
    NotRepeatableError,
    PhaseError,
    QueuertError,
    SequenceFailedError,
    UsageError,
)
from queuert_py.values import ContinueOptions


class Number(BaseModel):
    n: int


class Numbers(BaseModel):
    all: list[int]


class Colour(StrEnum):
    red = "red"


@dataclass
class Point:
    x: int
    y: float


async def test_a_step_runs_once_however_often_the_job_is_tried(engine: Engine) -> None:
    calls: list[str] = []

    async def charge() -> str:
        calls.append("charge")
        return "receipt 1"

    def book() -> Number:
        calls.append("book")
        return Number(n=7)

    @engine.job_type(backoff=0)
    async def order(job: Job[Number]) -> Number:
        assert await job.step("charge", charge) == "receipt 1"
        booked = await job.step("book", book)
        if job.attempt < 3:
            raise ConnectionError("the mail server does not answer")
        return booked

    async with engine.worker():
        sequence = await engine.start_sequence(order, Number(n=1))
        assert await sequence.result(timeout=10) == Number(n=7)
    assert calls == ["charge", "book"]
    assert len(await engine.list_attempts(sequence.id)) == 2


def plain() -> Any:
    return {"a": [1, 2.5, None, True, "x"], "b": {"c": -1}}


def model() -> Number:
    return Number(n=1)


def models() -> list[Number]:
    return [Number(n=1), Number(n=2)]


def pair() -> tuple[int, str]:
    return 1, "x"


def instant() -> datetime:
    return datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def amount() -> Decimal:
    return Decimal("12.30")


def point() -> Point:
    return Point(1, 0.1)


def perhaps() -> Number | None:
    return None


def nothing() -> None: ...


def enum() -> Colour:
    return Colour.red


async def later() -> set[date]:
    return {date(2026, 1, 2)}


def big() -> int:
    return 2**80


class Reader:
    def __call__(self) -> list[UUID]:
        return [UUID(int=5)]

    def read(self) -> bytes:
        return b"abc"


VALUES: list[tuple[Callable[[], Any], object]] = [
    (plain, None),
    (model, None),
    (models, None),
    (pair, None),
    (instant, None),
    (amount, None),
    (point, None),
    (perhaps, None),
    (nothing, None),
    (enum, None),
    (later, None),
    (big, None),
    (Reader(), None),
    (Reader().read, None),
    (partial(pow, 2, 10), None),
    (partial(models), None),
    (lambda: 3, None),
    (lambda: Number(n=1), Number),
    (lambda: later(), set[date]),  # noqa: PLW0108 - it has no annotation
]


@pytest.mark.parametrize(("fn", "result"), VALUES, ids=lambda each: getattr(each, "__name__", type(each).__name__))
async def test_a_value_comes_back_as_it_was(engine: Engine, fn: Callable[[], Any], result: object) -> None:
    seen: list[Any] = []

    @engine.job_type(backoff=0)
    async def keep(job: Job[Number]) -> None:
        seen.append(await job.step("value", fn, result=result))
        if job.attempt == 1:
            raise ValueError("again")

    async with engine.worker():
        await (await engine.start_sequence(keep, Number(n=1))).result(timeout=10)
    first, second = seen
    assert first == second
    assert type(first) is type(second)


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda: (1, 2), "would not come back"),
        (lambda: Number(n=1), "would not come back"),
        (lambda: Colour.red, "would not come back"),
        (lambda: {1: "a"}, "would not come back"),
        (lambda: float("nan"), "nan cannot be stored"),
        (lambda: "a\x00b", "NUL"),
        (object, "cannot be written"),
        (lambda: "x" * 2_000_000, "bytes of JSON"),
    ],
)
async def test_a_value_that_would_not_come_back_fails_the_job_at_once(engine: Engine, fn: Callable[[], Any], why: str) -> None:
    ran: list[int] = []

    @engine.job_type(backoff=0)
    async def keep(job: Job[Number]) -> None:
        ran.append(job.attempt)
        with pytest.raises(InvalidStepError, match="step 'value'"):
            await job.step("value", fn)
        await job.step("again", fn)

    async with engine.worker():
        with pytest.raises(SequenceFailedError, match=why) as failed:
            await (await engine.start_sequence(keep, Number(n=1))).result(timeout=10)
    assert (failed.value.reason, failed.value.error["type"], ran) == ("validation", "InvalidStepError", [1])


async def test_a_type_that_pydantic_cannot_write_is_refused_before_the_step_runs(engine: Engine) -> None:
    async def connection() -> psycopg.AsyncConnection[Any]:
        raise AssertionError("it must not run")

    @engine.job_type
    async def keep(job: Job[Number]) -> None:
        with pytest.raises(UsageError, match="cannot be kept"):
            await job.step("connection", connection)

    async with engine.worker():
        await (await engine.start_sequence(keep, Number(n=1))).result(timeout=10)


async def test_started_sequences_come_back_as_handles(engine: Engine) -> None:
    seen: list[tuple[JobSequence[Number], dict[str, JobSequence[Number]], list[JobSequence[Number]]]] = []

    @engine.job_type
    async def page(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type(backoff=0)
    async def book(job: Job[Number]) -> None:
        one = await job.step("one", lambda: engine.start_sequence(page, Number(n=1)))
        several = await job.step("several", lambda: engine.start_sequences([page(Number(n=n)) for n in range(3)]))

        async def named() -> dict[str, JobSequence[Number]]:
            return {"cover": one}

        seen.append((one, await job.step("named", named), several))
        if job.attempt == 1:
            raise ValueError("again")

    async with engine.worker(drain=True):
        await engine.start_sequence(book, Number(n=1))
    (first, first_named, first_several), (second, second_named, second_several) = seen
    assert isinstance(second, JobSequence)
    assert (first, first_named, first_several) == (second, second_named, second_several)
    assert second.type == "page"
    assert await second.result(timeout=10) == Number(n=1)
    assert [(await each.result(timeout=10)).n for each in second_several] == [0, 1, 2]


async def test_steps_without_names_are_told_apart_by_the_order_of_their_calls(engine: Engine) -> None:
    calls: list[int] = []

    def take(n: int) -> int:
        calls.append(n)
        return n

    @engine.job_type(backoff=0)
    async def add(job: Job[Number]) -> Numbers:
        one = await job.step(lambda: take(1))
        two, three = await asyncio.gather(job.step(lambda: take(2)), job.step(lambda: take(3)))
        if job.attempt == 1:
            raise ValueError("again")
        return Numbers(all=[one, two, three])

    async with engine.worker():
        assert (await (await engine.start_sequence(add, Number(n=1))).result(timeout=10)).all == [1, 2, 3]
    assert calls == [1, 2, 3]


async def test_a_failed_step_runs_again_and_what_it_raises_is_the_handlers(engine: Engine) -> None:
    calls: list[int] = []

    @engine.job_type(backoff=0)
    async def ask(job: Job[Number]) -> Number:
        def flaky() -> int:
            calls.append(job.attempt)
            if job.attempt == 1:
                raise ConnectionError("no answer")
            return 5

        return Number(n=await job.step("ask", flaky))

    async with engine.worker():
        assert (await (await engine.start_sequence(ask, Number(n=1))).result(timeout=10)).n == 5
    assert calls == [1, 2]


async def test_where_a_step_may_not_be(engine: Engine) -> None:
    errors: list[QueuertError] = []

    @engine.job_type
    async def wrong(job: Job[Number]) -> Number:
        async def inner() -> None:
            await job.step("inner", nothing)

        for phase in (job.prepare, job.finalize):
            with pytest.raises(PhaseError, match="cannot be part of a phase") as refused:
                async with phase():
                    await job.step("inside", nothing)
            errors.append(refused.value)
        with pytest.raises(PhaseError, match="not into its step 'outer'"):
            await job.step("outer", inner)
        await job.step("twice", nothing)
        with pytest.raises(UsageError, match="'twice' is there twice"):
            await job.step("twice", nothing)
        with pytest.raises(UsageError, match="the limit is 200"):
            await job.step("x" * 201, nothing)
        async with job.finalize():
            pass
        return job.input

    async with engine.worker():
        assert (await (await engine.start_sequence(wrong, Number(n=3))).result(timeout=10)).n == 3
    assert len(errors) == 2


async def test_a_step_of_an_attempt_that_has_lost_its_job_is_not_kept(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    raised: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @engine.job_type
    async def slow(job: Job[Number]) -> None:
        await db.execute("update queuert.live_job set epoch = epoch + 1")
        try:
            await job.step("late", nothing)
        except LeaseLostError as error:
            raised.set_result(error)
            raise

    async with engine.worker():
        await engine.start_sequence(slow, Number(n=1))
        async with asyncio.timeout(10):
            assert "lease_lost" in str(await raised)
    row = await (await db.execute("select memo from queuert.live_job")).fetchone()
    assert row == (None,)


async def test_a_retried_failure_does_not_repeat_its_steps(engine: Engine) -> None:
    calls: list[int] = []
    broken = True

    def pack() -> int:
        calls.append(1)
        return 9

    @engine.job_type(max_attempts=1)
    async def ship(job: Job[Number]) -> Number:
        kept = await job.step("pack", pack)
        if broken:
            raise ValueError("the truck is gone")
        return Number(n=kept)

    async with engine.worker():
        sequence = await engine.start_sequence(ship, Number(n=1))
        with pytest.raises(SequenceFailedError):
            await sequence.result(timeout=10)
        broken = False
        await engine.retry_sequences([sequence.id])
        assert (await sequence.result(timeout=10)).n == 9
    assert calls == [1]


async def test_a_retry_with_another_input_begins_anew(engine: Engine) -> None:
    seen: list[object] = []

    @engine.job_type(max_attempts=1)
    async def ship(job: Job[Number]) -> None:
        seen.append(await job.step("read", lambda: job.input.n))
        seen.append(await job.wait_for_event("address"))
        if job.input.n == 1:
            raise ValueError("no such number")

    async with engine.worker():
        sequence = await engine.start_sequence(ship, Number(n=1))
        await engine.send_event(sequence, "address", "here")
        with pytest.raises(SequenceFailedError):
            await sequence.result(timeout=10)
        await engine.retry_sequences([sequence.id], new_input=Number(n=2))
        await sequence.result(timeout=10)
    assert seen == [1, "here", 2, "here"]


async def test_only_a_failed_job_keeps_its_memo(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    @engine.job_type
    async def last(job: Job[Number]) -> None:
        await job.step("kept", nothing)

    @engine.job_type(max_attempts=1)
    async def first(job: Job[Number]) -> Continuation[None]:
        await job.step("kept", nothing)
        if job.input.n:
            raise ValueError
        return continue_with(last, Number(n=0))

    async with engine.worker(drain=True):
        await engine.start_sequences([first(Number(n=0)), first(Number(n=1))])
    found = await (await db.execute("select outcome, memo is not null from queuert.finished_job order by outcome")).fetchall()
    assert found == [("completed", False), ("continued", False), ("failed", True)]


@pytest.mark.parametrize("how", [{}, {"delay": 0.01}], ids=["handed off", "claimed again"])
async def test_the_next_job_of_a_sequence_has_steps_of_its_own(engine: Engine, how: ContinueOptions) -> None:
    ran: list[int] = []

    @engine.job_type
    async def count(job: Job[Number]) -> Number | Continuation[Number]:
        await job.step("note", lambda: ran.append(job.input.n))
        await job.sleep(0.01)
        if job.input.n == 3:
            return job.input
        return continue_with(count, Number(n=job.input.n + 1), **how)

    async with engine.worker():
        await (await engine.start_sequence(count, Number(n=1))).result(timeout=10)
    assert ran == [1, 2, 3]


async def test_a_changed_step_is_told_and_not_guessed(engine: Engine) -> None:
    @engine.job_type(backoff=0)
    async def change(job: Job[Number]) -> None:
        if job.attempt == 1:
            await job.step("value", lambda: "text")
            raise ValueError("again")
        await job.step("value", model)

    async with engine.worker():
        sequence = await engine.start_sequence(change, Number(n=1))
        with pytest.raises(SequenceFailedError, match="give the changed step another name") as failed:
            await sequence.result(timeout=10)
    assert (failed.value.reason, failed.value.error["type"]) == ("validation", NotRepeatableError.__name__)


async def test_steps_are_found_when_a_conflict_runs_the_handler_again_within_its_attempt(engine: Engine) -> None:
    runs: list[int] = []
    ran: list[int] = []

    def four() -> int:
        ran.append(1)
        return 4

    @engine.job_type
    async def conflicting(job: Job[Number]) -> Number:
        runs.append(job.attempt)
        value = await job.step(four)
        async with job.finalize() as tx:
            if len(runs) == 1:
                await tx.execute("do $$ begin raise exception using errcode = '40001'; end $$")
            return Number(n=value)

    async with engine.worker():
        assert (await (await engine.start_sequence(conflicting, Number(n=1))).result(timeout=10)).n == 4
    assert (runs, ran) == ([1, 1], [1])


async def test_another_process_goes_on_where_one_has_stopped(engine: Engine, dsn: str) -> None:
    jobs = JobTypes()
    ran: list[str] = []
    stuck = asyncio.Event()

    @jobs.job_type
    async def travel(job: Job[Number]) -> Number:
        await job.step("leave", lambda: ran.append("leave"))
        if not stuck.is_set():
            stuck.set()
            await asyncio.Event().wait()
        return job.input

    one, two = Engine(dsn, jobs), Engine(dsn, jobs)
    async with one, two:
        worker = await one.worker().start()
        sequence = await one.start_sequence(travel, Number(n=1))
        await stuck.wait()
        await worker.stop(0)
        async with two.worker():
            await two.sequence(travel, sequence.id).result(timeout=10)
    assert ran == ["leave"]


async def test_a_def_handler_has_the_same_calls_and_its_steps_run_in_its_thread(engine: Engine) -> None:
    threads: set[str] = set()
    ran: list[str] = []

    @engine.job_type
    async def square(job: Job[Number]) -> Number:
        return Number(n=job.input.n**2)

    @engine.job_type(backoff=0)
    def report(job: SyncJob[Number]) -> Number:
        threads.add(threading.current_thread().name)

        def fetch() -> Number:
            threads.add(threading.current_thread().name)
            ran.append("fetch")
            return Number(n=2)

        fetched = job.step("fetch", fetch)
        assert job.step(partial(models)) == models()
        job.progress(50)
        job.sleep(0.01)
        other = engine.sequence(square, UUID(str(job.wait_for_event("other", type=str))))
        (squared,) = job.wait_for([other])
        with pytest.raises(PhaseError, match="not into its step"):
            job.step("outer", lambda: job.sleep(1))
        job.on_commit(lambda: ran.append(f"commit off the loop: {threading.current_thread() is not threading.main_thread()}"))
        if job.attempt == 1:
            raise ValueError("again")
        return Number(n=fetched.n + squared.output.n)

    async with engine.worker(poll_interval=60):
        sequence = await engine.start_sequence(report, Number(n=1))
        await engine.send_event(sequence, "other", str((await engine.start_sequence(square, Number(n=5))).id))
        assert (await sequence.result(timeout=10)).n == 27
    assert ran == ["fetch", "commit off the loop: True"]
    assert all(name.startswith("queuert handler") for name in threads)


async def test_a_batch_has_no_steps(engine: Engine) -> None:
    @engine.batch_type("batch", size=10)
    async def batch(jobs: Sequence[Job[Number]]) -> Sequence[Number]:
        for job in jobs:
            with pytest.raises(PhaseError, match="a batch of them"):
                await job.step("one", nothing)
            with pytest.raises(PhaseError, match="a batch of them"):
                await job.sleep(1)
        return [job.input for job in jobs]

    async with engine.worker():
        sequence = await engine.start_sequence(batch, Number(n=5))
        assert (await sequence.result(timeout=10)).n == 5
