"""Middleware: around every attempt, and in the transactions of its phases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Depends, Engine, Fail, Job, JobTypes, SyncJob
from queuert_py.errors import ConfigurationError, SequenceFailedError, UsageError
from queuert_py.job import Connection
from queuert_py.middleware import Middleware


class In(BaseModel):
    n: int = 0


class Out(BaseModel):
    n: int = 0


class Broken(Exception):
    """The handler's own failure."""


log: list[str] = []


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    log.clear()


class Noting(Middleware):
    """Writes down where it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    @asynccontextmanager
    async def _note(self, what: str) -> AsyncGenerator[None]:
        log.append(f"+{self.name} {what}")
        try:
            yield
        except BaseException as error:
            log.append(f"{self.name} {what} met {type(error).__name__}")
            raise
        finally:
            log.append(f"-{self.name} {what}")

    @asynccontextmanager
    async def around_attempt(self, job: Job[Any, Any]) -> AsyncGenerator[None]:
        async with self._note("attempt"):
            yield

    @asynccontextmanager
    async def prepare(self, job: Job[Any, Any], tx: Connection) -> AsyncGenerator[None]:
        async with self._note("prepare"):
            yield

    @asynccontextmanager
    async def finalize(self, job: Job[Any, Any], tx: Connection) -> AsyncGenerator[None]:
        async with self._note("finalize"):
            yield


async def opened() -> AsyncIterator[str]:
    log.append("+dependency")
    yield "opened"
    log.append("-dependency")


async def run(engine: Engine, name: str = "work") -> Any:
    async with engine.worker():
        sequence = await engine.start_sequence(name, {})
        return await sequence.result(timeout=20)


ORDER = [
    *("+outer attempt", "+inner attempt", "+dependency"),
    *("+outer prepare", "+inner prepare", "prepare", "-inner prepare", "-outer prepare"),
    *("+outer finalize", "+inner finalize", "finalize", "-inner finalize", "-outer finalize"),
    *("-dependency", "-inner attempt", "-outer attempt"),
]


async def test_the_first_one_used_is_the_outermost_in_every_place(engine: Engine) -> None:
    engine.use(Noting("outer"), Noting("inner"))

    @engine.job_type
    async def work(job: Job[In], dependency: str = Depends(opened)) -> None:
        async with job.prepare():
            log.append("prepare")
        async with job.finalize():
            log.append("finalize")

    await run(engine)
    assert log == ORDER


async def test_it_stands_around_a_def_handler_in_just_the_same_way(engine: Engine) -> None:
    engine.use(Noting("outer"), Noting("inner"))

    @engine.job_type
    def work(job: SyncJob[In], dependency: str = Depends(opened)) -> None:
        with job.prepare():
            log.append("prepare")
        with job.finalize():
            log.append("finalize")

    await run(engine)
    assert log == ORDER


async def test_atomic_is_prepare_and_finalize(engine: Engine) -> None:
    engine.use(Noting("m"))

    @engine.job_type
    async def work(job: Job[In]) -> None:
        async with job.atomic():
            log.append("atomic")

    await run(engine)
    assert log == ["+m attempt", "+m prepare", "+m finalize", "atomic", "-m finalize", "-m prepare", "-m attempt"]


async def test_it_writes_in_the_handlers_own_transaction_and_is_rolled_back_with_it(
    engine: Engine, db: psycopg.AsyncConnection[Any]
) -> None:
    await db.execute("create table audit (type text, n int)")

    class Audit(Middleware):
        @asynccontextmanager
        async def finalize(self, job: Job[Any, Any], tx: Connection) -> AsyncGenerator[None]:
            yield
            await tx.execute("insert into audit values (%s, %s)", [job.type, job.input.n])

    engine.use(Audit())

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize():
            if job.input.n == 2:
                return
        raise Broken

    @engine.job_type("threaded", max_attempts=1)
    def threaded(job: SyncJob[In]) -> None:
        with job.finalize() as tx:
            tx.execute("insert into audit values ('handler', %s)", [job.input.n])

    await engine.start_sequences([work(In(n=1)), work(In(n=2)), threaded(In(n=3))])
    async with engine.worker(drain=True):
        pass
    found = await (await db.execute("select type, n from audit order by n, type")).fetchall()
    assert found == [("work", 2), ("handler", 3), ("threaded", 3)]


async def test_an_error_in_a_phase_rolls_it_back_and_reaches_the_handler(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    await db.execute("create table effect (what text)")

    class Veto(Middleware):
        @asynccontextmanager
        async def finalize(self, job: Job[Any, Any], tx: Connection) -> AsyncGenerator[None]:
            yield
            raise Broken("not like this")

    engine.use(Veto())

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> Out:
        try:
            async with job.finalize() as tx:
                await tx.execute("insert into effect values ('lost')")
        except Broken:
            log.append("met")
        return Out(n=1)

    assert await run(engine) == Out(n=1)
    assert log == ["met"]
    assert await (await db.execute("select * from effect")).fetchall() == []


async def test_an_exception_that_it_holds_back_in_a_phase_still_rolls_it_back(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    await db.execute("create table effect (what text)")

    class Quiet(Middleware):
        @asynccontextmanager
        async def finalize(self, job: Job[Any, Any], tx: Connection) -> AsyncGenerator[None]:
            try:
                yield
            except Broken:
                log.append("held back")

    engine.use(Quiet())

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In]) -> None:
        async with job.finalize() as tx:
            await tx.execute("insert into effect values ('half')")
            raise Broken

    with pytest.raises(SequenceFailedError, match="Broken"):
        await run(engine)
    assert log == ["held back"]
    assert await (await db.execute("select * from effect")).fetchall() == []


async def test_around_an_attempt_it_may_put_another_exception_in_the_place_of_one_but_hold_none_back(engine: Engine) -> None:
    class Translates(Middleware[Any]):
        @asynccontextmanager
        async def around_attempt(self, job: Job[Any, Any]) -> AsyncGenerator[None]:
            try:
                yield
            except KeyError as error:
                raise Fail("there is no such thing") from error
            except Broken:
                log.append("held back")

    engine.use(Translates())

    @engine.job_type(max_attempts=2, backoff=0)
    async def work(job: Job[In]) -> None:
        log.append(f"run {job.attempt}")
        raise KeyError(3) if job.input.n else Broken

    async with engine.worker():
        final = await engine.start_sequence(work, In(n=1))
        with pytest.raises(SequenceFailedError, match="there is no such thing"):
            await final.result(timeout=20)
        assert log == ["run 1"]
        tried = await engine.start_sequence(work, In(n=0))
        with pytest.raises(SequenceFailedError, match="Broken"):
            await tried.result(timeout=20)
        assert log == ["run 1", "run 1", "held back", "run 2", "held back"]


async def test_what_it_raises_after_a_success_fails_the_attempt_unless_that_has_committed(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    class FailsLate(Middleware[Any]):
        @asynccontextmanager
        async def around_attempt(self, job: Job[Any, Any]) -> AsyncGenerator[None]:
            yield
            raise Broken("late")

    engine.use(FailsLate())

    @engine.job_type(max_attempts=1)
    async def returns(job: Job[In]) -> Out:
        return Out(n=1)

    @engine.job_type(max_attempts=1)
    async def commits(job: Job[In]) -> Out:
        async with job.finalize():
            return Out(n=2)

    with pytest.raises(SequenceFailedError, match="late"):
        await run(engine, "returns")
    assert await run(engine, "commits") == Out(n=2)
    assert "failed after the commit" in caplog.text


async def test_it_meets_the_cancellation_of_an_attempt_whose_time_is_over(engine: Engine) -> None:
    engine.use(Noting("m"))

    @engine.job_type(timeout=0.1, max_attempts=1)
    async def work(job: Job[In]) -> None:
        await asyncio.Event().wait()

    with pytest.raises(SequenceFailedError, match="timeout"):
        await run(engine)
    assert log == ["+m attempt", "m attempt met CancelledError", "-m attempt"]


async def test_what_it_sets_in_the_context_is_there_in_handlers_of_both_kinds_and_their_dependencies(engine: Engine) -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    class Tenant(Middleware[Any]):
        @asynccontextmanager
        async def around_attempt(self, job: Job[Any, Any]) -> AsyncGenerator[None]:
            before = tenant.set(f"tenant {job.input.n}")
            job.state["tenant"] = job.input.n
            yield
            tenant.reset(before)

    engine.use(Tenant())

    @engine.job_type("asynchronous")
    async def asynchronous(job: Job[In], name: str = Depends(tenant.get)) -> None:
        log.append(f"{name}, {tenant.get()}, {job.state}")

    @engine.job_type("threaded")
    def threaded(job: SyncJob[In], name: str = Depends(tenant.get)) -> None:
        log.append(f"{name}, {tenant.get()}, {job.state}")

    await engine.start_sequences([asynchronous(In(n=1)), threaded(In(n=2))])
    async with engine.worker(drain=True):
        pass
    assert sorted(log) == ["tenant 1, tenant 1, {'tenant': 1}", "tenant 2, tenant 2, {'tenant': 2}"]


async def test_that_of_a_registry_stands_around_its_own_job_types_within_that_of_the_engine(engine: Engine) -> None:
    jobs, others = JobTypes(), JobTypes()
    jobs.use(Noting("registry"))
    engine.use(Noting("engine"))

    @jobs.job_type
    async def mine(job: Job[In]) -> None:
        log.append("mine")

    @others.job_type
    async def other(job: Job[In]) -> None:
        log.append("other")

    engine.mount(jobs)
    engine.mount(others)
    await run(engine, "mine")
    assert log == ["+engine attempt", "+registry attempt", "mine", "-registry attempt", "-engine attempt"]
    log.clear()
    await run(engine, "other")
    assert log == ["+engine attempt", "other", "-engine attempt"]


async def test_a_worker_does_not_start_without_the_middleware_that_a_job_type_requires(engine: Engine) -> None:
    @engine.job_type(requires=(Noting,))
    async def work(job: Job[In]) -> None:
        log.append("work")

    with pytest.raises(ConfigurationError, match=r"job type 'work' requires the middleware Noting: engine.use\(Noting\("):
        await engine.worker().start()
    engine.use(Noting("there"))
    await run(engine)
    assert log == ["+there attempt", "work", "-there attempt"]


def test_what_is_no_middleware_cannot_be_used() -> None:
    wrong: Any = Noting
    with pytest.raises(UsageError, match="an object of a subclass"):
        JobTypes().use(wrong)
