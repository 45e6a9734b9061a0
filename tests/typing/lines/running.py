"""What runs a handler: `def` handlers, dependencies, batches, processes and middleware."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, assert_type

from pydantic import BaseModel

from queuert_py import Continuation, Depends, Engine, InternalJobType, Job, JobType, JobTypes, SyncJob, continue_with
from queuert_py.job import Connection, SyncConnection
from queuert_py.middleware import Middleware
from queuert_py.testing import run_handler


class Order(BaseModel):
    number: int


class Parcel(BaseModel):
    weight: float


class Refusal(BaseModel):
    why: str


class Db:
    def find(self, number: int) -> float:
        return 1.0


shop = JobTypes()
last = InternalJobType[Order, Parcel]("last")


# --- `def` handlers


@shop.job_type
def bare(job: SyncJob[Order]) -> Parcel:
    assert_type(job.input, Order)
    assert_type(job.aborted, bool)
    with job.prepare() as tx:
        assert_type(tx, SyncConnection)
        row = tx.execute("select 1").fetchone()
        row[0]  # E
    assert_type(job.step("weigh", lambda: 1.0), float)
    job.step("weigh", 1.0)  # E
    job.sleep(3)
    job.sleep("3")  # E
    job.progress(50, "half")
    with job.finalize() as tx:
        await_it = tx.execute("select 1")
        await_it.fetchall()
        return Parcel(weight=1)


assert_type(bare, JobType[Order, Parcel])


@shop.job_type("refused", timeout=3)
def refused(job: SyncJob[Order]) -> Parcel | Refusal | None:
    return None


assert_type(refused, JobType[Order, Parcel | Refusal | None])


@shop.job_type("branch", isolation="process")
def branch(job: SyncJob[Order]) -> Refusal | Continuation[Parcel]:
    return continue_with(last, job.input)


assert_type(branch, JobType[Order, Refusal | Parcel])


@shop.job_type("onward", internal=True)
def onward(job: SyncJob[Order]) -> Continuation[Parcel]:
    return continue_with(last, job.input)


assert_type(onward, InternalJobType[Order, Parcel])


@shop.handler(last)
def implement(job: SyncJob[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.handler(last)  # E
def implement_wrongly(job: SyncJob[Order]) -> Refusal:
    return Refusal(why="")


@shop.handler(last)  # E
def implement_with_job(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.job_type  # E
def with_job(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.job_type  # E
async def async_with_sync_job(job: SyncJob[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.job_type  # E
def returns_number(job: SyncJob[Order]) -> int:
    return 1


@shop.job_type("fork", isolation="fork")  # E
def forked(job: SyncJob[Order]) -> Parcel:
    return Parcel(weight=1)


async def wrong_phase(job: SyncJob[Order], other: Job[Order]) -> None:
    async with job.prepare():  # E
        pass
    with other.prepare():  # E
        pass


# --- dependencies


def get_db() -> Db:
    return Db()


async def get_db_async() -> Db:
    return Db()


def open_db() -> Iterator[Db]:
    yield Db()


async def open_db_async() -> AsyncIterator[Db]:
    yield Db()


async def generate_db() -> AsyncGenerator[Db]:
    yield Db()


assert_type(Depends(get_db), Db)
assert_type(Depends(get_db_async), Db)
assert_type(Depends(open_db), Db)
assert_type(Depends(open_db_async), Db)
assert_type(Depends(generate_db), Db)
assert_type(Depends(Db), Db)


@shop.job_type("needs")
async def needs(job: Job[Order], a: Db = Depends(get_db), b: Db = Depends(open_db_async)) -> Parcel:
    return Parcel(weight=a.find(1))


@shop.job_type("needs-in-thread")
def needs_in_thread(job: SyncJob[Order], db: Db = Depends(open_db)) -> Parcel:
    return Parcel(weight=db.find(1))


assert_type(needs, JobType[Order, Parcel])
assert_type(needs_in_thread, JobType[Order, Parcel])


async def needs_other(job: Job[Order], db: str = Depends(get_db)) -> Parcel:  # E
    return Parcel(weight=1)


@shop.job_type("without-depends")  # E
async def without_depends(job: Job[Order], db: Db) -> Parcel:
    return Parcel(weight=1)


Depends(3)  # E
Depends()  # E


async def tests() -> None:
    assert_type(await run_handler(needs, Order(number=1), overrides={get_db: Db}), Parcel | Continuation[Parcel])
    await run_handler(needs, Order(number=1), overrides={"get_db": Db})  # E


# --- batches


@shop.batch_type("pack", size=10)
async def pack(jobs: Sequence[Job[Order]]) -> list[Parcel]:
    return [Parcel(weight=job.input.number) for job in jobs]


@shop.batch_type("pack-some", size=10, max_attempts=3)
async def pack_some(jobs: Sequence[Job[Order]], db: Db = Depends(get_db)) -> Sequence[Parcel | Exception]:
    return [ValueError() for _ in jobs]


assert_type(pack, JobType[Order, Parcel])
assert_type(pack_some, JobType[Order, Parcel])


@shop.batch_type("no-size")  # E
async def no_size(jobs: Sequence[Job[Order]]) -> list[Parcel]:
    return []


@shop.batch_type("one", size=10)  # E
async def one(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.batch_type("one-outcome", size=10)  # E
async def one_outcome(jobs: Sequence[Job[Order]]) -> Parcel:
    return Parcel(weight=1)


@shop.batch_type("no-coroutine", size=10)  # E
def no_coroutine(jobs: Sequence[Job[Order]]) -> list[Parcel]:
    return []


# --- middleware


class Timing(Middleware):
    @asynccontextmanager
    async def around_attempt(self, job: Job[Any, Any]) -> AsyncGenerator[None]:
        yield

    @asynccontextmanager
    async def finalize(self, job: Job[Any, Any], tx: Connection) -> AsyncGenerator[None]:
        await tx.execute("select 1")
        yield


class Session:
    """A unit of work of some other library."""


class OfSessions(Middleware[Session]):
    @asynccontextmanager
    async def prepare(self, job: Job[Any, Any], tx: Session) -> AsyncGenerator[None]:
        yield


class Any_(Middleware[object]):
    @asynccontextmanager
    async def around_attempt(self, job: Job[Any, Any]) -> AsyncGenerator[None]:
        yield


class NotEntered(Middleware):
    async def around_attempt(self, job: Job[Any, Any]) -> None:  # E
        pass


engine = Engine("postgresql://")
engine.use(Timing(), Any_())
shop.use(Any_())
engine.use(OfSessions())  # E
engine.use(Timing)  # E
JobTypes[Session]().use(OfSessions(), Any_())
JobTypes[Session]().use(Timing())  # E


@engine.job_type("strict", requires=(Timing,))
async def strict(job: Job[Order]) -> None: ...


@engine.job_type("stricter", requires=Timing)  # E
async def stricter(job: Job[Order]) -> None: ...


with engine.override(get_db, open_db):
    pass
engine.override(get_db)  # E
