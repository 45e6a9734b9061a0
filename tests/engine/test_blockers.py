"""Jobs that wait for other sequences: as fields of their input, on starts and on continuations."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Dedup, Engine, Fail, Job, JobSequence, JobType, continue_with
from queuert_py.errors import BlockerCycleError, BlockerError, BlockerFailedError, SequenceFailedError, SequenceNotFoundError, UsageError

TIMEOUT = 20


class Page(BaseModel):
    number: int


class Text(BaseModel):
    text: str


class Picture(BaseModel):
    url: str


class Book(BaseModel):
    pages: Sequence[Blocker[Text]]


class Shelf(BaseModel):
    """Blockers wherever a field can be."""

    cover: Blocker[Text]
    pages: list[Blocker[Text]] = []
    by_name: dict[str, Blocker[Text]] = {}
    maybe: Blocker[Text] | None = None
    books: list[Book] = []


class Count(BaseModel):
    count: int


class Parts:
    """Job types that the tests wait for and with."""

    def __init__(self, engine: Engine) -> None:
        self.gate = asyncio.Event()
        self.broken = False

        @engine.job_type
        async def page(job: Job[Page]) -> Text:
            if job.input.number < 0 and self.broken:
                raise Fail("a torn page")
            return Text(text=f"page {job.input.number}")

        @engine.job_type
        async def gated(job: Job[Page]) -> Text:
            await self.gate.wait()
            return Text(text=f"gated {job.input.number}")

        @engine.job_type
        async def bind(job: Job[Book]) -> Text:
            return Text(text=", ".join(page.output.text for page in job.input.pages))

        @engine.job_type(on_blocker_failure="fail")
        async def bind_or_fail(job: Job[Book]) -> Text:
            return Text(text=f"{len(job.input.pages)} pages")

        @engine.job_type(on_blocker_failure="ignore")
        async def bind_anyway(job: Job[Book]) -> Text:
            return Text(text=", ".join(str(page.outcome) for page in job.input.pages))

        self.page: JobType[Page, Text] = page
        self.gated: JobType[Page, Text] = gated
        self.bind: JobType[Book, Text] = bind
        self.bind_or_fail: JobType[Book, Text] = bind_or_fail
        self.bind_anyway: JobType[Book, Text] = bind_anyway


@pytest.fixture
def parts(engine: Engine) -> Parts:
    return Parts(engine)


async def status(engine: Engine, sequence: JobSequence[Any]) -> str:
    return (await engine.get_sequence(sequence.id)).status


async def test_a_job_waits_for_its_blockers_and_has_their_outputs(engine: Engine, parts: Parts) -> None:
    pages = await engine.start_sequences([parts.gated(Page(number=number)) for number in range(3)])
    book = await engine.start_sequence(parts.bind, Book(pages=pages))
    assert await status(engine, book) == "blocked"
    async with engine.worker():
        parts.gate.set()
        assert (await book.result(timeout=TIMEOUT)).text == "gated 0, gated 1, gated 2"


async def test_blockers_may_be_optional_and_stand_in_lists_dicts_and_nested_models(engine: Engine, parts: Parts) -> None:
    seen: list[Shelf] = []

    @engine.job_type
    async def fill(job: Job[Shelf]) -> Count:
        seen.append(job.input)
        return Count(count=1)

    one, two, three, four = await engine.start_sequences([parts.page(Page(number=number)) for number in range(4)])
    shelf = Shelf(cover=one, pages=[two], by_name={"a": three}, books=[Book(pages=[four, one])])
    async with engine.worker():
        await (await engine.start_sequence(fill, shelf)).result(timeout=TIMEOUT)
    found = seen[0]
    assert (found.cover.output.text, found.pages[0].output.text, found.by_name["a"].output.text) == ("page 0", "page 1", "page 2")
    assert [page.output.text for page in found.books[0].pages] == ["page 3", "page 0"]
    assert found.maybe is None


async def test_blockers_that_have_finished_already_count_as_done(engine: Engine, parts: Parts) -> None:
    async with engine.worker():
        pages = await engine.start_sequences([parts.page(Page(number=number)) for number in range(2)])
        for each in pages:
            await each.result(timeout=TIMEOUT)
        assert (await (await engine.start_sequence(parts.bind, Book(pages=pages))).result(timeout=TIMEOUT)).text == "page 0, page 1"


async def test_the_same_sequence_twice_is_one_to_wait_for_and_fills_both_places(
    engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any]
) -> None:
    page = await engine.start_sequence(parts.page, Page(number=7))
    book = await engine.start_sequence(parts.bind, Book(pages=[page, page]))
    row = await (await db.execute("select open_blockers, blocker_count from queuert.live_job where open_blockers > 0")).fetchone()
    assert row == (1, 1)
    async with engine.worker():
        assert (await book.result(timeout=TIMEOUT)).text == "page 7, page 7"


async def test_a_blocker_that_does_not_exist_is_refused_and_nothing_is_written(
    engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any]
) -> None:
    page = await engine.start_sequence(parts.page, Page(number=1))
    missing = engine.sequence(parts.page, uuid4())
    with pytest.raises(SequenceNotFoundError, match=str(missing.id)):
        await engine.start_sequence(parts.bind, Book(pages=[page, missing]))
    assert (await (await db.execute("select count(*) from queuert.live_job")).fetchone()) == (1,)


async def test_a_blocker_of_another_output_than_the_field_declares_fails_the_job_as_invalid(engine: Engine, parts: Parts) -> None:
    @engine.job_type
    async def draw(job: Job[Page]) -> Picture:
        return Picture(url="x")

    picture: JobSequence[Any] = await engine.start_sequence(draw, Page(number=1))
    async with engine.worker():
        book = await engine.start_sequence(parts.bind, Book(pages=[picture]))
        with pytest.raises(SequenceFailedError, match="Picture") as failed:
            await book.result(timeout=TIMEOUT)
    assert failed.value.reason == "validation"


async def test_a_thousand_blockers_are_one_job_s_most(engine: Engine, parts: Parts) -> None:
    pages = await engine.start_sequences([parts.page(Page(number=number)) for number in range(1001)])
    with pytest.raises(BlockerError, match="1,001 blockers, the limit is 1,000"):
        await engine.start_sequence(parts.bind, Book(pages=pages))
    async with engine.worker():
        book = await engine.start_sequence(parts.bind, Book(pages=pages[:1000]))
        assert (await book.result(timeout=TIMEOUT)).text.count("page") == 1000


# --- on continuations, and inside a handler


async def test_a_continuation_waits_for_blockers(engine: Engine, parts: Parts) -> None:
    @engine.job_type
    async def fan_out(job: Job[Page]) -> Continuation[Text]:
        pages = await engine.start_sequences([parts.page(Page(number=number)) for number in range(job.input.number)])
        return continue_with(parts.bind, Book(pages=pages))

    async with engine.worker():
        assert (await (await engine.start_sequence(fan_out, Page(number=3))).result(timeout=TIMEOUT)).text == "page 0, page 1, page 2"


@pytest.mark.parametrize("phase", ["finalize", "atomic"])
async def test_fan_out_and_fan_in_are_one_transaction(engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any], phase: str) -> None:
    @engine.job_type(max_attempts=2, backoff=0)
    async def fan_out(job: Job[Page]) -> Continuation[Text]:
        async with job.finalize() if phase == "finalize" else job.atomic() as tx:
            pages = await engine.start_sequences([parts.page(Page(number=number)) for number in range(job.input.number)], tx=tx)
            if job.attempt == 1:
                raise ValueError("roll it all back")
            return continue_with(parts.bind, Book(pages=pages))

    async with engine.worker():
        sequence = await engine.start_sequence(fan_out, Page(number=3))
        assert (await sequence.result(timeout=TIMEOUT)).text == "page 0, page 1, page 2"
    count = await (await db.execute("select count(*) from queuert.sequence")).fetchone()
    assert count == (4,), "the pages of the attempt that failed were never there"


async def test_what_was_started_in_a_savepoint_of_the_same_transaction_can_be_waited_for(
    engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any]
) -> None:
    await engine.open()
    async with db.transaction():
        async with db.transaction():
            pages = await engine.start_sequences([parts.page(Page(number=1)), parts.page(Page(number=2))], tx=db)
        book = await engine.start_sequence(parts.bind, Book(pages=pages), tx=db)
    async with engine.worker():
        assert (await book.result(timeout=TIMEOUT)).text == "page 1, page 2"


async def test_a_handler_may_start_one_that_waits_for_its_own_sequence(engine: Engine, parts: Parts) -> None:
    after: list[JobSequence[Text]] = []

    @engine.job_type
    async def first(job: Job[Page]) -> Text:
        async with job.finalize() as tx:
            own = engine.sequence(first, job.sequence_id)
            after.append(await engine.start_sequence(parts.bind, Book(pages=[own]), tx=tx))
            return Text(text="first")

    async with engine.worker():
        await (await engine.start_sequence(first, Page(number=1))).result(timeout=TIMEOUT)
        assert (await after[0].result(timeout=TIMEOUT)).text == "first"


async def test_a_continuation_that_would_close_a_ring_fails_with_the_reason(engine: Engine, parts: Parts) -> None:
    waits: list[JobSequence[Text]] = []
    ready = asyncio.Event()

    @engine.job_type
    async def ring(job: Job[Page]) -> Text | Continuation[Text]:
        await ready.wait()
        return continue_with(parts.bind, Book(pages=waits))

    async with engine.worker():
        first: JobSequence[Text] = await engine.start_sequence(ring, Page(number=1))
        waits.append(await engine.start_sequence(parts.bind, Book(pages=[first])))
        ready.set()
        with pytest.raises(SequenceFailedError, match=BlockerCycleError.__name__) as failed:
            await first.result(timeout=TIMEOUT)
    assert failed.value.reason == "validation"


async def test_a_continuation_with_a_missing_blocker_fails_and_leaves_nothing(engine: Engine, parts: Parts) -> None:
    @engine.job_type
    async def careless(job: Job[Page]) -> Continuation[Text]:
        return continue_with(parts.bind, Book(pages=[engine.sequence(parts.page, uuid4())]))

    async with engine.worker():
        with pytest.raises(SequenceFailedError, match="does not exist") as failed:
            await (await engine.start_sequence(careless, Page(number=1))).result(timeout=TIMEOUT)
    assert failed.value.reason == "validation"


async def test_an_open_transaction_that_waits_for_one_sequence_holds_up_no_other(
    engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any]
) -> None:
    async with engine.worker():
        slow = await engine.start_sequence(parts.gated, Page(number=1))
        async with db.transaction():
            book = await engine.start_sequence(parts.bind, Book(pages=[slow]), tx=db)
            parts.gate.set()
            for number in range(3):
                await (await engine.start_sequence(parts.page, Page(number=number))).result(timeout=TIMEOUT)
        assert (await book.result(timeout=TIMEOUT)).text == "gated 1"


# --- blockers that fail


async def failed_page(engine: Engine, parts: Parts) -> JobSequence[Text]:
    parts.broken = True
    torn = await engine.start_sequence(parts.page, Page(number=-1))
    with pytest.raises(SequenceFailedError):
        await torn.result(timeout=TIMEOUT)
    return torn


@pytest.mark.parametrize("when", ["before", "after"])
async def test_hold_waits_on_until_the_failed_blocker_is_retried(engine: Engine, parts: Parts, when: str) -> None:
    async with engine.worker():
        if when == "before":
            torn = await failed_page(engine, parts)
            book = await engine.start_sequence(parts.bind, Book(pages=[torn]))
        else:
            parts.broken = True
            torn = await engine.start_sequence(parts.page, Page(number=-1))
            book = await engine.start_sequence(parts.bind, Book(pages=[torn]))
            with pytest.raises(SequenceFailedError):
                await torn.result(timeout=TIMEOUT)
        assert await status(engine, book) == "blocked"
        parts.broken = False
        await engine.retry_sequences([torn.id])
        assert (await book.result(timeout=TIMEOUT)).text == "page -1"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_fail_fails_with_the_blocker_and_names_it(engine: Engine, parts: Parts, when: str) -> None:
    async with engine.worker():
        fine = await engine.start_sequence(parts.gated, Page(number=1))
        if when == "before":
            torn = await failed_page(engine, parts)
            book = await engine.start_sequence(parts.bind_or_fail, Book(pages=[fine, torn]))
        else:
            parts.broken = True
            torn = await engine.start_sequence(parts.page, Page(number=-1), delay=3600)
            book = await engine.start_sequence(parts.bind_or_fail, Book(pages=[fine, torn]))
            await engine.trigger([torn.id])
        with pytest.raises(SequenceFailedError, match=str(torn.id)) as failed:
            await book.result(timeout=TIMEOUT)
        assert failed.value.reason == "blocker_failed"
        parts.gate.set()
        await fine.result(timeout=TIMEOUT)
        assert await status(engine, book) == "failed"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_ignore_counts_the_failed_blocker_as_done_and_tells(engine: Engine, parts: Parts, when: str) -> None:
    seen: list[Mapping[str, Any] | None] = []

    @engine.job_type(on_blocker_failure="ignore")
    async def look(job: Job[Book]) -> Text:
        (page,) = job.input.pages
        seen.append(page.error)
        with pytest.raises(BlockerFailedError, match="is failed"):
            _ = page.output
        return Text(text=str(page.outcome))

    async with engine.worker():
        if when == "before":
            book = await engine.start_sequence(look, Book(pages=[await failed_page(engine, parts)]))
        else:
            parts.broken = True
            torn = await engine.start_sequence(parts.page, Page(number=-1), delay=3600)
            book = await engine.start_sequence(look, Book(pages=[torn]))
            await engine.trigger([torn.id])
        assert (await book.result(timeout=TIMEOUT)).text == "failed"
    assert seen[0] is not None
    assert seen[0]["message"] == "a torn page"


async def test_a_blocker_that_was_ignored_and_is_retried_counts_only_once(
    engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any]
) -> None:
    async with engine.worker():
        slow = await engine.start_sequence(parts.gated, Page(number=1))
        torn = await failed_page(engine, parts)
        book = await engine.start_sequence(parts.bind_anyway, Book(pages=[slow, torn]))
        parts.broken = False
        await engine.retry_sequences([torn.id])
        await torn.result(timeout=TIMEOUT)
        assert await status(engine, book) == "blocked", "it still waits for the slow one"
        parts.gate.set()
        assert (await book.result(timeout=TIMEOUT)).text == "completed, completed"


async def test_a_failed_dependent_that_is_retried_counts_its_blockers_again(engine: Engine, parts: Parts) -> None:
    async with engine.worker():
        torn = await failed_page(engine, parts)
        book = await engine.start_sequence(parts.bind_or_fail, Book(pages=[torn]))
        with pytest.raises(SequenceFailedError):
            await book.result(timeout=TIMEOUT)
        await engine.retry_sequences([book.id])
        with pytest.raises(SequenceFailedError):
            await book.result(timeout=TIMEOUT)
        parts.broken = False
        await engine.retry_sequences([book.id, torn.id])
        assert (await book.result(timeout=TIMEOUT)).text == "1 pages"


async def test_a_failure_goes_on_to_dependents_of_dependents(engine: Engine, parts: Parts) -> None:
    async with engine.worker():
        torn = await failed_page(engine, parts)
        one = await engine.start_sequence(parts.bind_or_fail, Book(pages=[torn]))
        two = await engine.start_sequence(parts.bind_or_fail, Book(pages=[one]))
        with pytest.raises(SequenceFailedError) as failed:
            await two.result(timeout=TIMEOUT)
    assert failed.value.reason == "blocker_failed"


async def test_an_output_is_not_there_outside_the_handler_that_waited(engine: Engine, parts: Parts) -> None:
    page = await engine.start_sequence(parts.page, Page(number=1))
    with pytest.raises(UsageError, match=r"await sequence.result\(\)"):
        _ = page.output


# --- rings that only show later


class Maybe(BaseModel):
    on: Blocker[Text] | None = None


async def test_a_replacement_may_not_close_a_ring(engine: Engine, parts: Parts) -> None:
    @engine.job_type
    async def maybe(job: Job[Maybe]) -> Text:
        return Text(text="free" if job.input.on is None else job.input.on.output.text)

    first = await engine.start_sequence(maybe, Maybe(), key="k", delay=3600)
    after = await engine.start_sequence(maybe, Maybe(on=first))
    for blocker in (first, after):
        with pytest.raises(BlockerCycleError):
            await engine.start_sequence(maybe, Maybe(on=blocker), dedup=Dedup("k", on_match="replace"))
    await engine.trigger([first.id])
    async with engine.worker():
        assert (await after.result(timeout=TIMEOUT)).text == "free", "what was there before is as it was"


@pytest.mark.parametrize("own_transaction", [False, True])
async def test_a_retry_may_not_close_a_ring(engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any], own_transaction: bool) -> None:
    """While the dependent was failed, its blocker went on to wait for it."""
    behind: list[JobSequence[Text]] = []

    @engine.job_type
    async def first(job: Job[Page]) -> Text | Continuation[Text]:
        if not behind:
            raise Fail("nobody is behind yet")
        return continue_with(parts.bind, Book(pages=behind))

    async with engine.worker():
        blocker: JobSequence[Text] = await engine.start_sequence(first, Page(number=1))
        dependent = await engine.start_sequence(parts.bind_or_fail, Book(pages=[blocker]))
        with pytest.raises(SequenceFailedError):
            await dependent.result(timeout=TIMEOUT)
        behind.append(dependent)
        await engine.retry_sequences([blocker.id])
        async with asyncio.timeout(TIMEOUT):
            while await status(engine, blocker) != "blocked":
                await asyncio.sleep(0)
        if own_transaction:
            async with db.transaction():
                answer = await engine.retry_sequences([dependent.id], tx=db)
        else:
            answer = await engine.retry_sequences([dependent.id])
        assert answer == {dependent.id: "blocker_cycle"}
        assert await status(engine, dependent) == "failed", "nothing was changed"


async def test_a_blocker_that_came_without_the_model_fails_the_job_before_it_runs(engine: Engine, parts: Parts, dsn: str) -> None:
    page = await engine.start_sequence(parts.gated, Page(number=1))
    async with Engine(dsn) as producer:
        book = await producer.start_unregistered("bind", {"pages": [str(page.id)]})
    async with engine.worker():
        with pytest.raises(SequenceFailedError, match="never waited for this sequence") as failed:
            await engine.sequence(parts.bind, book.id).result(timeout=TIMEOUT)
        assert failed.value.reason == "validation"
        parts.gate.set()


async def test_retries_and_continuations_that_meet_do_not_deadlock(engine: Engine, parts: Parts, db: psycopg.AsyncConnection[Any]) -> None:
    """Both add edges to sequences that exist: the lock of the edges comes before the rows."""
    count = 30
    gate, begun = asyncio.Event(), asyncio.Semaphore(0)
    target: list[JobSequence[Text]] = []

    @engine.job_type
    async def joins(job: Job[Page]) -> Continuation[Text]:
        begun.release()
        await gate.wait()
        return continue_with(parts.bind, Book(pages=[target[job.input.number]]))

    async with engine.worker():
        torn = await failed_page(engine, parts)
        target.extend(await engine.start_sequences([parts.bind_or_fail(Book(pages=[torn])) for _ in range(count)]))
        await engine.wait_all(target, return_exceptions=True)
        waiting = await engine.start_sequences([joins(Page(number=number)) for number in range(count)])
        for _ in range(count):
            await begun.acquire()
        gate.set()
        before = await (await db.execute("select deadlocks from pg_stat_database where datname = current_database()")).fetchone()
        await asyncio.gather(*[engine.retry_sequences([each.id]) for each in target])
        await engine.cancel_sequences([each.id for each in waiting])
        after = await (await db.execute("select deadlocks from pg_stat_database where datname = current_database()")).fetchone()
    assert after == before


async def test_an_ignored_blocker_that_runs_again_keeps_nobody_from_running(engine: Engine, parts: Parts) -> None:
    runs: list[int] = []
    again, gate = asyncio.Event(), asyncio.Event()

    @engine.job_type(max_attempts=1)
    async def second_time(job: Job[Page]) -> Text:
        runs.append(1)
        if len(runs) == 1:
            raise Fail("once")
        again.set()
        await gate.wait()
        return Text(text="at last")

    async with engine.worker():
        ignored = await engine.start_sequence(second_time, Page(number=1))
        slow = await engine.start_sequence(parts.page, Page(number=2), delay=3600)
        book = await engine.start_sequence(parts.bind_anyway, Book(pages=[ignored, slow]))
        with pytest.raises(SequenceFailedError):
            await ignored.result(timeout=TIMEOUT)
        await engine.retry_sequences([ignored.id])
        await again.wait()
        await engine.trigger([slow.id])
        assert (await book.result(timeout=TIMEOUT)).text == "None, completed"
        gate.set()


# --- in transactions that see what was, not what is


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
async def test_a_fresh_transaction_with_a_snapshot_may_wait_for_blockers(
    engine: Engine, parts: Parts, dsn: str, level: psycopg.IsolationLevel
) -> None:
    page = await engine.start_sequence(parts.page, Page(number=1))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.set_isolation_level(level)
        async with connection.transaction():
            book = await engine.start_sequence(parts.bind, Book(pages=[page]), tx=connection)
    async with engine.worker():
        assert (await book.result(timeout=TIMEOUT)).text == "page 1"


async def test_a_snapshot_that_is_older_than_the_mark_says_to_begin_again(engine: Engine, parts: Parts, dsn: str) -> None:
    page = await engine.start_sequence(parts.page, Page(number=1))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        async with connection.transaction():
            await connection.execute("select count(*) from queuert.live_job")
            with pytest.raises(BlockerError, match="begin it again"):
                await engine.start_sequence(parts.bind, Book(pages=[page]), tx=connection)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_the_database_s_default_isolation_changes_nothing(
    parts: Parts, dsn: str, db: psycopg.AsyncConnection[Any], level: str
) -> None:
    name = db.info.dbname
    await db.execute(f"alter database {name} set default_transaction_isolation = '{level}'".encode())
    try:
        engine = Engine(dsn)
        here = Parts(engine)
        async with engine, engine.worker(), engine.worker():

            async def fan_in() -> str:
                pages = await engine.start_sequences([here.page(Page(number=number)) for number in range(5)])
                book = await engine.start_sequence(here.bind, Book(pages=pages))
                await engine.start_sequence(here.page, Page(number=0), key="k")
                return (await book.result(timeout=TIMEOUT)).text

            found = await asyncio.gather(*[fan_in() for _ in range(40)])
            assert set(found) == {"page 0, page 1, page 2, page 3, page 4"}
            id = uuid4()
            await (await engine.start_sequence(here.page, Page(number=1), id=id)).result(timeout=TIMEOUT)
            assert (await engine.start_sequence(here.page, Page(number=1), id=id)).deduplicated
    finally:
        await db.execute(f"alter database {name} reset default_transaction_isolation".encode())
