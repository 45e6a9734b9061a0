"""What happens when a job fails: retried or not, when, and what answers a failure for good."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel
from typing_extensions import Unpack

from queuert_py import Blocker, Continuation, Engine, Fail, InternalJobType, Job, JobType, JobTypes, continue_with, exponential
from queuert_py.control import DeadLetter, Failure
from queuert_py.errors import DeclarationError, ResultTimeoutError, SequenceFailedError, UsageError
from queuert_py.job import Connection
from queuert_py.job_types import JobOptions
from tests.engine.kit import Number, Runs

Db = AsyncConnection[tuple[Any, ...]]


class Undone(BaseModel):
    why: str


async def wait_of(engine: Engine, db: Db, sequence: Any) -> float:
    """Seconds between the last failed attempt and the next one."""
    cursor = await db.execute(
        "select extract(epoch from l.run_at - a.finished_at)::float8 from queuert.live_job l"
        " join queuert.attempt_log a using (sequence_id) where l.sequence_id = %s order by a.epoch desc limit 1",
        [sequence.id],
    )
    row = await cursor.fetchone()
    assert row is not None
    return float(row[0])


# --- which errors are tried again


async def test_only_what_retry_on_names_is_tried_again(engine: Engine) -> None:
    @engine.job_type(backoff=0, max_attempts=3, retry_on=(OSError, LookupError), no_retry_on=(KeyError,))
    async def picky(job: Job[Number]) -> Number:
        raise {0: OSError("o"), 1: ValueError("v"), 2: KeyError("k"), 3: IndexError("i")}[job.input.n]

    sequences = await engine.start_sequences([picky(Number(n=n)) for n in range(4)])
    async with engine.worker(drain=True):
        pass
    assert [(await engine.get_sequence(each.id)).attempt for each in sequences] == [3, 1, 1, 3]


async def test_a_timeout_is_tried_again_whatever_retry_on_says(engine: Engine) -> None:
    @engine.job_type(backoff=0, max_attempts=2, retry_on=(KeyError,), timeout=0.05)
    async def slow(job: Job[Number]) -> Number:
        await asyncio.Event().wait()
        raise AssertionError

    sequence = await engine.start_sequence(slow, Number(n=1))
    async with engine.worker(drain=True):
        pass
    record = await engine.get_sequence(sequence.id)
    assert (record.attempt, record.reason) == (2, "timeout")


# --- when


def hundreds(attempt: int) -> float:
    return 100 * attempt


def minutes(attempt: int) -> timedelta:
    return timedelta(minutes=attempt)


def divided(attempt: int) -> float:
    return attempt / 0


def words(attempt: int) -> str:
    return "soon"


def float_nan(attempt: int) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("backoff", "least", "most"),
    [
        (20, 15, 20),
        (timedelta(seconds=40), 30, 40),
        (hundreds, 75, 100),
        (exponential(8, 60), 6, 8),
        (minutes, 45, 60),
    ],
    ids=["fixed", "timedelta", "callable", "exponential", "callable-timedelta"],
)
async def test_the_wait_is_the_job_types(engine: Engine, db: Db, backoff: Any, least: float, most: float) -> None:
    @engine.job_type(backoff=backoff)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError

    sequence = await engine.start_sequence(fail, Number(n=1))
    async with engine.worker(drain=True):
        pass
    assert least - 0.1 <= await wait_of(engine, db, sequence) <= most + 0.1


@pytest.mark.parametrize("broken", [divided, words, float_nan])
async def test_a_backoff_that_raises_or_says_no_number_counts_as_the_default(engine: Engine, db: Db, broken: Any) -> None:
    @engine.job_type(backoff=broken)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError

    sequence = await engine.start_sequence(fail, Number(n=1))
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(sequence.id)).status == "scheduled"
    assert 7.4 <= await wait_of(engine, db, sequence) <= 10.1


async def test_a_start_may_say_its_own_wait_and_the_next_job_has_its_types_again(engine: Engine, db: Db) -> None:
    @engine.job_type(internal=True, backoff=100)
    async def second(job: Job[Number]) -> Number:
        raise ValueError

    @engine.job_type(backoff=1000)
    async def first(job: Job[Number]) -> Continuation[Number]:
        if job.attempt == 1:
            raise ValueError
        return continue_with(second, job.input)

    sequence = await engine.start_sequence(first, Number(n=1), backoff=40)
    async with engine.worker(drain=True):
        pass
    assert 29.9 <= await wait_of(engine, db, sequence) <= 40.1
    await engine.trigger([sequence.id])
    async with engine.worker(drain=True):
        pass
    assert 74.9 <= await wait_of(engine, db, sequence) <= 100.1


async def test_wrong_waits_are_named(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    for wrong in (-1, "soon", None, hundreds):
        with pytest.raises(UsageError, match="backoff="):
            await engine.start_sequence(note, Number(n=1), backoff=wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- on_failed


class Trip(BaseModel):
    seat: int


class Booked(BaseModel):
    seat: int


class Refund(BaseModel):
    seat: int
    why: str


class Desk:
    """A booking that fails, and its compensation."""

    def __init__(self, engine: Engine, **options: Unpack[JobOptions]) -> None:
        self.failures: list[Failure] = []

        @engine.job_type(internal=True)
        async def refund(job: Job[Refund]) -> Undone:
            return Undone(why=job.input.why)

        async def undo(failure: Failure) -> Continuation[Undone] | None:
            self.failures.append(failure)
            if failure.input["seat"] < 0:
                return None
            refunded = Refund(seat=failure.input["seat"], why=f"{failure.reason}: {failure.error['message']}")
            return continue_with(refund, refunded, delay=0.1 if failure.reason == "timeout" else 0)

        how: JobOptions = {"max_attempts": 1, "on_failed": undo, **options}

        @engine.job_type(**how)
        async def book(job: Job[Trip]) -> Booked | Continuation[Undone]:
            if job.input.seat in (7, 8):
                await asyncio.Event().wait()
            raise ValueError(f"seat {job.input.seat} is taken")

        self.refund: InternalJobType[Refund, Undone] = refund
        self.book: JobType[Trip, Booked | Undone] = book


async def test_a_compensating_job_goes_on_in_its_place_and_the_failure_is_logged(engine: Engine) -> None:
    desk = Desk(engine, max_attempts=2, backoff=0)
    sequence = await engine.start_sequence(desk.book, Trip(seat=3), tags=["t"])
    async with engine.worker():
        assert await sequence.result(timeout=10) == Undone(why="error: seat 3 is taken")
    assert len(desk.failures) == 1
    failure = desk.failures[0]
    assert (failure.sequence_id, failure.job_id, failure.type, failure.position) == (sequence.id, sequence.id, "book", 0)
    assert (failure.attempt, failure.reason, failure.input, failure.error["type"]) == (2, "error", {"seat": 3}, "ValueError")
    assert [job.status for job in await engine.list_jobs(sequence.id)] == ["continued", "completed"]
    assert [(each.attempt, each.outcome) for each in await engine.list_attempts(sequence.id)] == [(1, "error"), (2, "failed")]


async def test_none_lets_it_fail(engine: Engine) -> None:
    desk = Desk(engine)
    sequence = await engine.start_sequence(desk.book, Trip(seat=-1))
    async with engine.worker():
        with pytest.raises(SequenceFailedError, match="seat -1 is taken"):
            await sequence.result(timeout=10)
    assert len(desk.failures) == 1


async def test_a_def_is_called_in_a_thread(engine: Engine) -> None:
    threads: list[str] = []

    @engine.job_type(internal=True)
    async def cleanup(job: Job[Number]) -> Number:
        return job.input

    def undo(failure: Failure) -> Continuation[Number]:
        threads.append(threading.current_thread().name)
        return continue_with(cleanup, Number(n=failure.attempt))

    @engine.job_type(on_failed=undo)
    async def fail(job: Job[Number]) -> Number:
        raise Fail("no")

    sequence = await engine.start_sequence(fail, Number(n=5))
    async with engine.worker():
        assert (await sequence.result(timeout=10)).n == 1
    assert threads != [threading.main_thread().name]


@pytest.mark.parametrize("how", ["raises", "returns something else", "continues with what is refused"])
async def test_an_on_failed_that_fails_lets_the_job_fail(engine: Engine, how: str, caplog: pytest.LogCaptureFixture) -> None:
    @engine.job_type(internal=True)
    async def cleanup(job: Job[Number]) -> Number:
        return job.input

    async def undo(failure: Failure) -> Any:
        match how:
            case "raises":
                raise LookupError("no idea")
            case "returns something else":
                return Number(n=1)
            case _:
                return continue_with(cleanup, Number.model_construct(n="x"))

    @engine.job_type(max_attempts=1, on_failed=undo)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError("the first error")

    sequence = await engine.start_sequence(fail, Number(n=5))
    with caplog.at_level(logging.ERROR):
        async with engine.worker():
            with pytest.raises(SequenceFailedError, match="the first error"):
                await sequence.result(timeout=10)
    assert "on_failed failed itself" in caplog.text


async def test_it_answers_a_timeout_and_a_deadline_and_the_compensation_has_none(engine: Engine) -> None:
    desk = Desk(engine, timeout=0.05)
    sequence = await engine.start_sequence(desk.book, Trip(seat=7))
    async with engine.worker():
        assert (await sequence.result(timeout=10)).why.startswith("timeout: ")  # type: ignore[union-attr]
    other = await engine.start_sequence(desk.book, Trip(seat=8), deadline=0.05, timeout=None)
    async with engine.worker():
        assert "deadline" in (await other.result(timeout=10)).why  # type: ignore[union-attr]


async def test_it_answers_a_deadline_that_passes_while_nobody_works(engine: Engine) -> None:
    desk = Desk(engine)
    sequence = await engine.start_sequence(desk.book, Trip(seat=7), delay=3600, deadline=0.01)
    async with engine.worker():
        assert "deadline" in (await sequence.result(timeout=10)).why  # type: ignore[union-attr]
    assert [failure.reason for failure in desk.failures] == ["timeout"]


async def test_it_answers_an_input_that_is_refused(engine: Engine, db: Db) -> None:
    desk = Desk(engine)
    sequence = await engine.start_sequence(desk.book, Trip(seat=3))
    await db.execute("""update queuert.live_job set input = '{"seat": 3, "spare": {}}'::jsonb - 'seat' || '{"seat": [1]}'""")
    async with engine.worker():
        with pytest.raises(SequenceFailedError):
            await sequence.result(timeout=10)
    assert [failure.reason for failure in desk.failures] == ["validation"]


class Needs(BaseModel):
    number: Blocker[Number]


async def test_it_answers_a_blocker_that_failed(engine: Engine) -> None:
    reasons: list[tuple[str, object]] = []

    @engine.job_type(internal=True)
    async def cleanup(job: Job[Number]) -> Number:
        return job.input

    async def undo(failure: Failure) -> Continuation[Number]:
        reasons.append((failure.reason, failure.error["attrs"]))
        return continue_with(cleanup, Number(n=0))

    @engine.job_type(max_attempts=1)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError("out of paper")

    @engine.job_type(on_blocker_failure="fail", on_failed=undo)
    async def wait(job: Job[Needs]) -> Number:
        return job.input.number.output

    blocker = await engine.start_sequence(fail, Number(n=1))
    before = await engine.start_sequence(wait, Needs(number=blocker))
    async with engine.worker():
        assert (await before.result(timeout=10)).n == 0
        after = await engine.start_sequence(wait, Needs(number=blocker))
        assert (await after.result(timeout=10)).n == 0
    error = {"type": "ValueError", "message": "out of paper"}
    why = {"id": str(blocker.id), "type": "fail", "outcome": "failed", "error": error}
    assert reasons == [("blocker_failed", why)] * 2


async def test_it_answers_a_job_that_kills_its_workers(engine: Engine, db: Db) -> None:
    desk = Desk(engine)
    sequence = await engine.start_sequence(desk.book, Trip(seat=3), max_attempts=None)
    await db.execute(
        "update queuert.live_job set crash_count = 4, attempt = 5, begun = true, leased_by = 'dead', leased_at = clock_timestamp(),"
        " leased_until = clock_timestamp() - interval '1 hour'"
    )
    async with engine.worker():
        assert "poison" in (await sequence.result(timeout=20)).why  # type: ignore[union-attr]
    assert [failure.reason for failure in desk.failures] == ["poison"]


async def test_it_answers_max_steps_by_one_step_more(engine: Engine) -> None:
    reasons: list[str] = []

    async def undo(failure: Failure) -> Continuation[Undone]:
        reasons.append(failure.reason)
        return continue_with(undone, Refund(seat=1, why=failure.reason))

    @engine.job_type(internal=True, max_steps=2, max_attempts=1, on_failed=undo)
    async def undone(job: Job[Refund]) -> Undone:
        if len(reasons) == 1:
            return Undone(why=job.input.why)
        raise ValueError

    loop = JobType[Number, Number | Undone]("loop", max_steps=2, on_failed=undo)

    @engine.handler(loop)
    async def again(job: Job[Number]) -> Number | Undone | Continuation[Number | Undone]:
        return continue_with(loop, job.input)

    sequence = await engine.start_sequence(loop, Number(n=1))
    async with engine.worker():
        assert await sequence.result(timeout=10) == Undone(why="max_steps")
        other = await engine.start_sequence(loop, Number(n=1))
        with pytest.raises(SequenceFailedError):
            await other.result(timeout=10)
    assert reasons == ["max_steps", "max_steps", "error"], "the compensation may not be compensated for ever"


async def test_a_job_that_succeeds_or_is_cancelled_is_not_answered(engine: Engine, runs: Runs) -> None:
    answered: list[Failure] = []

    async def undo(failure: Failure) -> None:
        answered.append(failure)

    @engine.job_type(on_failed=undo)
    async def hold(job: Job[Number]) -> Number:
        if job.input.n:
            await runs.hold(job)
        return job.input

    good, bad = [await engine.start_sequence(hold, Number(n=n)) for n in range(2)]
    async with engine.worker():
        await good.result(timeout=10)
        await runs.begun.wait()
        await engine.cancel_sequences([bad.id])
        await runs.ended.wait()
    assert answered == []


async def test_what_on_failed_starts_is_started_from_outside(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async def undo(failure: Failure) -> None:
        await engine.start_sequence(note, Number(n=9))

    @engine.job_type(max_attempts=1, on_failed=undo)
    async def fail(job: Job[Number]) -> Number:
        async with job.finalize():
            raise ValueError

    sequence = await engine.start_sequence(fail, Number(n=1))
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(sequence.id)).status == "failed"
    assert [each.status for each in await engine.list_sequences(type="note")] == ["completed"]


# --- dead letters by type


async def test_a_dead_letter_is_started_with_the_failure(engine: Engine) -> None:
    letters: list[DeadLetter] = []

    @engine.job_type(queue="letters", priority=3)
    async def bury(job: Job[DeadLetter]) -> None:
        letters.append(job.input)

    @engine.job_type(max_attempts=1, dead_letter=bury)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError("broken")

    sequence = await engine.start_sequence(fail, Number(n=5), correlation_id="c", tags=["t"])
    async with engine.worker(drain=True):
        pass
    assert [(letter.sequence_id, letter.type, letter.reason, letter.input) for letter in letters] == [
        (sequence.id, "fail", "error", {"n": 5})
    ]
    assert letters[0].error["message"] == "broken"
    record = (await engine.list_sequences(type="bury"))[0]
    assert (record.correlation_id, record.tags, (await engine.list_jobs(record.id))[0].queue) == ("c", ["t"], "letters")
    assert (await engine.get_sequence(sequence.id)).status == "failed"


async def test_a_compensated_failure_has_no_dead_letter_and_one_that_is_not_has_one(engine: Engine) -> None:
    letters: list[int] = []

    @engine.job_type
    async def bury(job: Job[DeadLetter]) -> None:
        letters.append(job.input.input["n"])  # type: ignore[index, call-overload, arg-type]  # pyright: ignore

    @engine.job_type(internal=True)
    async def cleanup(job: Job[Number]) -> Number:
        return job.input

    def undo(failure: Failure) -> Continuation[Number] | None:
        return continue_with(cleanup, Number(n=1)) if failure.input["n"] else None

    @engine.job_type(max_attempts=1, on_failed=undo, dead_letter=bury)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError

    await engine.start_sequences([fail(Number(n=n)) for n in range(2)])
    async with engine.worker(drain=True):
        pass
    assert letters == [0]


async def test_a_compensating_job_whose_blocker_is_gone_leaves_the_dead_letter(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    letters: list[object] = []

    @engine.job_type
    async def bury(job: Job[DeadLetter]) -> None:
        letters.append(job.input.error["type"])

    @engine.job_type(internal=True)
    async def cleanup(job: Job[Needs]) -> Number:
        return job.input.number.output

    def undo(failure: Failure) -> Continuation[Number]:
        return continue_with(cleanup, Needs(number=Blocker(uuid4())))

    @engine.job_type(max_attempts=1, on_failed=undo, dead_letter=bury)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError

    sequence = await engine.start_sequence(fail, Number(n=1))
    async with engine.worker(drain=True):
        pass
    assert letters == ["ValueError"]
    assert (await engine.get_sequence(sequence.id)).reason == "error"
    assert "what on_failed goes on with cannot be had" in caplog.text


async def test_a_failure_that_is_not_written_starts_no_dead_letter(engine: Engine, runs: Runs) -> None:
    @engine.job_type
    async def bury(job: Job[DeadLetter]) -> None: ...

    answered = asyncio.Event()

    async def undo(failure: Failure) -> None:
        answered.set()
        await runs.go_on.wait()

    @engine.job_type(max_attempts=1, on_failed=undo, dead_letter=bury)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError

    sequence = await engine.start_sequence(fail, Number(n=1))
    async with engine.worker() as worker:
        await answered.wait()
        await engine.cancel_sequences([sequence.id])
        runs.go_on.set()
        async with asyncio.timeout(10):
            await worker.drained()
    assert await engine.list_sequences(type="bury") == []
    assert (await engine.get_sequence(sequence.id)).status == "cancelled"


async def test_what_cannot_answer_is_refused_when_it_is_mounted(dsn: str) -> None:
    async def unfit(**options: Unpack[JobOptions]) -> str:
        jobs: JobTypes[Connection] = JobTypes()

        @jobs.job_type(**options)
        async def fail(job: Job[Number]) -> Number:
            return job.input

        with pytest.raises(DeclarationError) as refused:
            await Engine(dsn, jobs).open()
        return str(refused.value)

    strange: Any = JobType[Number, Number]("strange")
    word: Any = "strange"
    with pytest.raises(DeclarationError, match="on_failed=3: a function is needed"):
        JobType[Number, Number]("x", on_failed=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert "a job type is needed" in await unfit(dead_letter=word)
    assert "mount its registry" in await unfit(dead_letter=strange)

    jobs: JobTypes[Connection] = JobTypes()
    jobs.add(strange, JobType[Number, Number]("y", dead_letter=strange))
    with pytest.raises(DeclarationError, match="its input is Number"):
        await Engine(dsn, jobs).open()


# --- with a codec


class Mirror:
    """Stands for an encryption."""

    def encode(self, data: bytes, /) -> bytes:
        return data[::-1]

    def decode(self, data: bytes, /) -> bytes:
        return data[::-1]


async def test_what_is_stored_sealed_is_seen_plain_by_all_who_answer_a_failure(dsn: str) -> None:
    letters: list[Any] = []
    seen: list[Any] = []
    async with Engine(dsn, codec=Mirror()) as engine:

        @engine.job_type
        async def bury(job: Job[DeadLetter]) -> None:
            letters.append(job.input.input)

        def look(failure: Failure) -> None:
            seen.append(failure.input)

        @engine.job_type(max_attempts=1, on_failed=look, dead_letter=bury)
        async def fail(job: Job[Number]) -> Number:
            if job.input.n < 10:
                raise ValueError
            return job.input

        def repair(failure: Failure) -> Number:
            return Number(n=failure.input["n"] + 10)

        failed, waiting = await engine.start_sequences([fail(Number(n=1)), fail(Number(n=2), delay=3600)])
        async with engine.worker(drain=True):
            pass
        assert (seen, letters) == ([{"n": 1}], [{"n": 1}])
        await engine.retry_sequences([failed.id], new_input=repair)
        await engine.complete_sequence(waiting.id, lambda job: Number(n=job.input.n), job_type=fail)
        async with engine.worker():
            assert [(await each.result(timeout=10)).n for each in (failed, waiting)] == [11, 2]


# --- what is logged


async def test_every_failed_attempt_is_logged_with_its_error_and_where_it_came_from(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @engine.job_type(max_attempts=2, backoff=0)
    async def misspelt(job: Job[Number]) -> None:
        _ = job.inptu  # type: ignore[attr-defined]  # pyright: ignore

    sequence = await engine.start_sequence(misspelt, Number(n=1))
    async with engine.worker(drain=True):
        pass
    found = [record for record in caplog.records if record.name == "queuert_py.worker" and record.levelno >= logging.WARNING]
    error = "AttributeError: 'Job' object has no attribute 'inptu'"
    assert [record.getMessage() for record in found] == [
        f"sequence {sequence.id} (misspelt): attempt 1 failed, the next one at once: {error}",
        f"sequence {sequence.id} (misspelt): attempt 2 failed for good (error): {error}",
    ]
    assert all(record.exc_info is not None and record.exc_info[0] is AttributeError for record in found)


async def test_a_result_that_is_late_says_the_last_error(engine: Engine) -> None:
    @engine.job_type(backoff=3600)
    async def broken(job: Job[Number]) -> None:
        raise ValueError("no such account")

    sequence = await engine.start_sequence(broken, Number(n=1))
    with pytest.raises(ResultTimeoutError) as late:
        await sequence.result(timeout=0)
    assert str(late.value) == f"sequence {sequence.id} (broken) has not ended within 0 s; it goes on. `queuert why {sequence.id}` says why."
    async with engine.worker(drain=True):
        pass
    with pytest.raises(ResultTimeoutError, match=r"it goes on; its last error: ValueError: no such account\. `queuert why"):
        await sequence.result(timeout=0)


# --- a job type without a handler: nobody takes its jobs, so nobody could bury them


async def test_what_waits_for_an_approval_fails_at_its_deadline(engine: Engine) -> None:
    approval = JobType[Number, Number]("approval")
    engine.add(approval)

    @engine.job_type
    async def asks(job: Job[Number]) -> Continuation[Number]:
        return continue_with(approval, job.input)

    sequences = await engine.start_sequences([asks(Number(n=1), deadline=0.5), approval(Number(n=2), deadline=0.5)])
    async with engine.worker():
        for each in sequences:
            with pytest.raises(SequenceFailedError) as failed:
                await each.result(timeout=20)
            assert (failed.value.reason, failed.value.error["type"]) == ("timeout", "DeadlineExceeded")


async def test_what_waits_for_an_approval_fails_with_its_blocker(engine: Engine) -> None:
    approval = JobType[Needs, Number]("approval", on_blocker_failure="fail")
    engine.add(approval)

    @engine.job_type(max_attempts=1)
    async def fail(job: Job[Number]) -> Number:
        raise ValueError("out of paper")

    blocker = await engine.start_sequence(fail, Number(n=1))
    waiting = await engine.start_sequence(approval, Needs(number=blocker))
    async with engine.worker():
        with pytest.raises(SequenceFailedError) as failed:
            await waiting.result(timeout=20)
    assert failed.value.reason == "blocker_failed"


async def test_a_failure_that_is_to_be_answered_waits_for_a_worker_that_can(engine: Engine, dsn: str) -> None:
    async def answer(failure: Failure) -> None:
        answered.append(failure.reason)

    answered: list[str] = []
    engine.add(JobType[Number, Number]("work", on_failed=answer))

    @engine.job_type
    async def other(job: Job[Number]) -> None: ...

    other_engine = Engine(dsn)
    work = JobType[Number, Number]("work", on_failed=answer)

    @other_engine.handler(work)
    async def implement(job: Job[Number]) -> Number:
        return job.input

    sequence = await engine.start_sequence("work", Number(n=1), deadline=0.001)
    async with engine.worker() as worker:
        assert worker._mute() == []
        async with other_engine, other_engine.worker():
            with pytest.raises(SequenceFailedError, match="timeout"):
                await sequence.result(timeout=20)
    assert answered == ["timeout"]
