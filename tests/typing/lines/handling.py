"""Inside a handler: its job, the transactions of its phases, what it waits for, and testing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID


from pydantic import BaseModel
from typing_extensions import assert_type

from queuert_py import Blocker, Continuation, Engine, Fail, Job, JobSequence, JobTypes, Retry, Snooze, continue_with
from queuert_py.job import Connection
from queuert_py.testing import run_handler


class Page(BaseModel):
    url: str


class Text(BaseModel):
    words: int


class Gone(BaseModel):
    code: int


jobs = JobTypes()


# --- the job and its phases


@jobs.job_type
async def fetch(job: Job[Page]) -> Text | Gone:
    assert_type(job.input, Page)
    assert_type(job.id, UUID)
    assert_type(job.sequence_id, UUID)
    assert_type(job.attempt, int)
    assert_type(job.aborted, bool)
    async with job.prepare() as tx:
        assert_type(tx, Connection)
        cursor = await tx.execute("select 1, 'a'")
        row = await cursor.fetchone()
        row[0]  # E
        assert row is not None
        number, letter = row
        print(number + 1, letter.upper(), row[0] + 1)
    async with job.prepare(mode="staged") as tx:
        assert_type(tx, Connection)
    async with job.finalize() as tx:
        assert_type(tx, Connection)
        return Text(words=1)


@jobs.job_type
async def fetch_at_once(job: Job[Page]) -> Text:
    async with job.prepare(mode="atomic") as tx:
        assert_type(tx, Connection)
        return Text(words=1)


@jobs.job_type
async def fetch_atomic(job: Job[Page]) -> Text:
    async with job.atomic() as tx:
        assert_type(tx, Connection)
        return Text(words=1)


@jobs.job_type
async def misuse(job: Job[Page]) -> None:
    job.input.adress  # E
    job.sequence  # E
    async with job.prepare(mode="atomc"):  # E
        pass
    async with job.prepare("atomic"):  # E
        pass
    async with job.finalise():  # E
        pass
    with job.finalize():  # E
        pass
    async with job.finalize() as tx:
        await tx.exec("select 1")  # E
    async with job.atomic(mode="atomic"):  # E
        pass
    async with job.finalize:  # E
        pass
    job.attempt = 3  # E


@jobs.job_type
async def signals(job: Job[Page]) -> None:
    if job.attempt == 1:
        raise Retry("busy", after=timedelta(seconds=3))
    if job.attempt == 2:
        raise Snooze(at=datetime.now(UTC))
    if job.attempt == 3:
        raise Retry("busy", afterwards=3)  # E
    if job.attempt == 4:
        raise Snooze(after="a while")  # E
    raise Fail("never")


# --- waiting for other sequences


class Book(BaseModel):
    cover: Blocker[Text]
    pages: list[Blocker[Text]]
    appendix: Blocker[Text | Gone] | None = None
    by_name: Mapping[str, Blocker[Text]] = {}
    any_order: Sequence[Blocker[Text]] = ()


class Bound(BaseModel):
    words: int


@jobs.job_type
async def bind(job: Job[Book]) -> Bound:
    assert_type(job.input.cover, Blocker[Text])
    assert_type(job.input.cover.output, Text)
    assert_type([page.output.words for page in job.input.pages], list[int])
    if job.input.appendix is not None:
        assert_type(job.input.appendix.output, Text | Gone)
        job.input.appendix.output.words  # E
    job.input.cover.words  # E
    await job.input.cover.result()  # E
    return Bound(words=job.input.cover.output.words)


async def write(engine: Engine, text: JobSequence[Text], gone: JobSequence[Gone], either: Blocker[Text | Gone], id: UUID) -> None:
    Book(cover=text, pages=[text, text])
    Book(cover=text, pages=[], appendix=gone)
    Book(cover=text, pages=[], appendix=either, any_order=[text], by_name={"a": text})
    Book(cover=engine.sequence(fetch_atomic, id), pages=[])
    Book(cover=text, pages=[], any_order=await engine.start_sequences([fetch_atomic(Page(url="")), fetch_atomic(Page(url=""))]))

    Book(cover=gone, pages=[])  # E
    Book(cover=either, pages=[])  # E
    Book(cover=Text(words=1), pages=[])  # E
    Book(cover=await text.result(), pages=[])  # E
    Book(cover=text, pages=[gone])  # E
    Book(cover=text, pages=text)  # E
    Book(cover=text)  # E
    Book(cover=text, pages=[], appendix=fetch)  # E
    Book(cover=id, pages=[])  # E
    continue_with(bind, Book(cover=text, pages=[], appendix=fetch_atomic(Page(url=""))))  # E


# --- returning


@jobs.job_type
async def onward(job: Job[Page]) -> Text | Continuation[Bound]:
    return continue_with(fetch_atomic, job.input)  # E


@jobs.job_type
async def not_awaited(job: Job[Page]) -> Text:
    return fetch_atomic(job.input)  # E


@jobs.job_type
async def in_finalize(job: Job[Page]) -> Text | Continuation[Text]:
    async with job.finalize():
        if job.attempt > 3:
            return Gone(code=410)  # E
        return continue_with(fetch_atomic, job.input, delay=timedelta(minutes=1))


# --- testing


async def test() -> None:
    assert_type(await run_handler(fetch, Page(url="")), Text | Gone | Continuation[Text | Gone])
    assert_type(await run_handler(fetch_atomic, Page(url=""), attempt=2), Text | Continuation[Text])
    await run_handler(fetch, Text(words=1))  # E
    await run_handler(fetch, {"url": ""})  # E
    await run_handler("fetch", Page(url=""))  # E
    await run_handler(fetch, Page(url=""), attemp=2)  # E
