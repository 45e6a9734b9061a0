"""`Depends`: what a handler is given beside its job, made once per attempt and always closed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Depends, Engine, Job, JobTypes, Retry, SyncJob
from queuert_py.errors import DeclarationError, SequenceFailedError
from queuert_py.testing import run_handler


class In(BaseModel):
    n: int = 0


class Out(BaseModel):
    text: str = ""


class Other(BaseModel):
    m: int = 0


class Db:
    def __init__(self, name: str = "db") -> None:
        self.name = name


class Broken(Exception):
    """The handler's own failure."""


log: list[str] = []


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    log.clear()


def value() -> Db:
    log.append("value")
    return Db("value")


async def coroutine() -> Db:
    await asyncio.sleep(0)
    return Db("coroutine")


def generator() -> Iterator[Db]:
    log.append("+generator")
    try:
        yield Db("generator")
    except BaseException as error:
        log.append(f"generator met {type(error).__name__}")
        raise
    finally:
        log.append("-generator")


async def async_generator(below: Db = Depends(generator)) -> AsyncIterator[Db]:
    log.append("+async_generator")
    try:
        yield Db(f"async_generator on {below.name}")
    except BaseException as error:
        log.append(f"async_generator met {type(error).__name__}")
        raise
    finally:
        await asyncio.sleep(0)
        log.append("-async_generator")


class Settings:
    def __init__(self, db: Db = Depends(value)) -> None:
        self.name = f"settings of {db.name}"


class Callable_:
    async def __call__(self) -> Db:
        return Db("called")


called = Callable_()


# --- every kind, in every kind of handler


async def test_a_provider_may_be_a_function_a_coroutine_a_generator_or_a_class() -> None:
    jobs = JobTypes()

    @jobs.job_type
    async def work(
        job: Job[In],
        a: Db = Depends(value),
        b: Db = Depends(coroutine),
        c: Db = Depends(generator),
        d: Db = Depends(async_generator),
        e: Settings = Depends(Settings),
        f: Db = Depends(called),
        plain: int = 7,
    ) -> Out:
        log.append("handler")
        return Out(text="; ".join([*(each.name for each in (a, b, c, d, e, f)), str(plain)]))

    result = await run_handler(work, In())
    assert result == Out(text="value; coroutine; generator; async_generator on generator; settings of value; called; 7")
    assert log == ["value", "+generator", "+async_generator", "handler", "-async_generator", "-generator"], "each once, closed in reverse"


async def test_a_def_handler_gets_them_too_and_def_providers_run_in_its_thread(engine: Engine) -> None:
    threads: dict[str, int] = {}

    def here(name: str) -> None:
        threads[name] = threading.get_ident()

    def session() -> Iterator[Db]:
        here("opened")
        yield Db("sqlite")
        here("closed")

    async def client(session: Db = Depends(session)) -> AsyncIterator[Db]:
        here("async opened")
        async with asyncio.timeout(30):  # entered and left by one task
            yield Db(f"client on {session.name}")
        here("async closed")

    @engine.job_type
    def work(job: SyncJob[In], client: Db = Depends(client), session: Db = Depends(session)) -> Out:
        here("handler")
        return Out(text=client.name)

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        assert await sequence.result(timeout=20) == Out(text="client on sqlite")
    main = threading.get_ident()
    assert threads["opened"] == threads["handler"] == threads["closed"] != main
    assert threads["async opened"] == threads["async closed"] == main


def hidden_coroutine() -> Coroutine[Any, Any, Db]:
    return coroutine()


def hidden_generator() -> Iterator[Db]:
    return generator()


def hidden_async_generator() -> AsyncIterator[Db]:
    return async_generator(Db("below"))


def told(a: Db = Depends(hidden_coroutine), b: Db = Depends(hidden_generator), c: Db = Depends(hidden_async_generator)) -> str:
    return f"{a.name}; {b.name}; {c.name}"


async def test_a_provider_may_return_a_call_of_another_as_its_types_say() -> None:
    @JobTypes().job_type
    async def work(job: Job[In], names: str = Depends(told)) -> Out:
        return Out(text=names)

    @JobTypes().job_type("threaded")
    def sync_work(job: SyncJob[In], names: str = Depends(told)) -> Out:
        return Out(text=names)

    for job_type in (work, sync_work):
        log.clear()
        assert await run_handler(job_type, In()) == Out(text="coroutine; generator; async_generator on below")
        assert log == ["+generator", "+async_generator", "-async_generator", "-generator"]


async def test_a_provider_may_take_the_job() -> None:
    def named(job: Job[In]) -> str:
        return f"{job.type} {job.input.n}"

    def named_in_thread(job: SyncJob[In]) -> str:
        return f"{job.type} {job.input.n}"

    @JobTypes().job_type("asynchronous")
    async def work(job: Job[In], name: str = Depends(named)) -> Out:
        return Out(text=name)

    @JobTypes().job_type("threaded")
    def sync_work(job: SyncJob[In], name: str = Depends(named_in_thread)) -> Out:
        return Out(text=name)

    assert await run_handler(work, In(n=3)) == Out(text="asynchronous 3")
    assert await run_handler(sync_work, In(n=4)) == Out(text="threaded 4")


# --- closing


@pytest.mark.parametrize("error", [Broken(), Retry(after=0), asyncio.CancelledError(), KeyboardInterrupt()], ids=repr)
async def test_they_are_closed_with_the_handlers_exception_whatever_it_is(error: BaseException) -> None:
    @JobTypes().job_type
    async def work(job: Job[In], db: Db = Depends(async_generator)) -> Out:
        raise error

    with pytest.raises(type(error)):
        await run_handler(work, In())
    name = type(error).__name__
    assert log[-4:] == [f"async_generator met {name}", "-async_generator", f"generator met {name}", "-generator"]


async def test_they_are_closed_when_a_later_one_cannot_be_made() -> None:
    def fails(db: Db = Depends(generator)) -> Db:
        raise Broken

    @JobTypes().job_type
    async def work(job: Job[In], db: Db = Depends(fails)) -> Out:
        raise AssertionError

    with pytest.raises(Broken):
        await run_handler(work, In())
    assert log == ["+generator", "generator met Broken", "-generator"]


async def test_an_exception_that_a_provider_holds_back_still_fails_the_attempt() -> None:
    def quiet() -> Iterator[Db]:
        try:
            yield Db()
        except Broken:
            log.append("held back")

    @JobTypes().job_type
    async def work(job: Job[In], below: Db = Depends(generator), db: Db = Depends(quiet)) -> Out:
        raise Broken

    with pytest.raises(Broken):
        await run_handler(work, In())
    assert log == ["+generator", "held back", "generator met Broken", "-generator"], "and those below meet it as well"


async def test_what_fails_while_closing_fails_the_attempt_and_the_others_are_closed(engine: Engine) -> None:
    async def fails_at_the_end() -> AsyncIterator[Db]:
        yield Db()
        raise Broken("not closed")

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In], below: Db = Depends(generator), db: Db = Depends(fails_at_the_end)) -> Out:
        return Out()

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        with pytest.raises(SequenceFailedError, match="Broken"):
            await sequence.result(timeout=20)
    assert log == ["+generator", "generator met Broken", "-generator"]


async def test_with_a_finalize_they_are_closed_after_its_commit_and_what_fails_then_is_logged(
    engine: Engine, db: psycopg.AsyncConnection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    await db.execute("create table effect (what text)")
    seen: list[int] = []

    async def looks() -> AsyncIterator[Db]:
        yield Db()
        seen.append((await (await db.execute("select 1 from effect")).fetchall())[0][0])
        raise Broken("too late to matter")

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In], db: Db = Depends(looks)) -> Out:
        async with job.finalize() as tx:
            await tx.execute("insert into effect values ('done')")
            return Out(text="done")

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        assert await sequence.result(timeout=20) == Out(text="done")
    assert seen == [1]
    assert "failed after the commit" in caplog.text


async def test_one_that_ignores_the_grace_after_the_commit_does_not_keep_the_slot(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    let_go = asyncio.Event()

    async def stubborn() -> AsyncIterator[Db]:
        yield Db()
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    @engine.job_type
    async def work(job: Job[In], db: Db = Depends(stubborn)) -> Out:
        async with job.finalize():
            return Out(text="done")

    async with engine.worker(concurrency=1, grace=0.1):
        for _ in range(2):
            assert await (await engine.start_sequence(work, In())).result(timeout=20) == Out(text="done")
        let_go.set()
    assert "what stands around its handler ignores cancellation; detached" in caplog.text


async def test_when_the_commit_fails_they_meet_its_error(engine: Engine, db: psycopg.AsyncConnection[Any]) -> None:
    await db.execute("create table effect (n int unique deferrable initially deferred)")

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In], db: Db = Depends(generator)) -> Out:
        async with job.finalize() as tx:
            await tx.execute("insert into effect values (1), (1)")
            return Out()

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        with pytest.raises(SequenceFailedError, match="UniqueViolation"):
            await sequence.result(timeout=20)
    assert log == ["+generator", "generator met UniqueViolation", "-generator"]


async def test_a_cancelled_handler_closes_them_within_its_grace(engine: Engine) -> None:
    started = asyncio.Event()

    @engine.job_type
    async def work(job: Job[In], db: Db = Depends(async_generator)) -> Out:
        started.set()
        await asyncio.Event().wait()
        return Out()

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        await started.wait()
        await engine.cancel_sequences([sequence.id])
    assert log[-4:] == ["async_generator met CancelledError", "-async_generator", "generator met CancelledError", "-generator"]


async def test_a_run_that_is_repeated_at_once_gets_fresh_ones(engine: Engine) -> None:
    runs: list[Db] = []

    @engine.job_type(max_attempts=1)
    async def work(job: Job[In], db: Db = Depends(generator)) -> Out:
        runs.append(db)
        async with job.finalize() as tx:
            if len(runs) < 2:
                await tx.execute("do $$ begin raise exception 'made up' using errcode = '40001'; end $$")
            return Out()

    async with engine.worker():
        sequence = await engine.start_sequence(work, In())
        await sequence.result(timeout=20)
    assert runs[0] is not runs[1]
    assert log == ["+generator", "generator met SerializationFailure", "-generator", "+generator", "-generator"]


# --- context variables

tenant: ContextVar[str] = ContextVar("tenant", default="-")
request: ContextVar[str] = ContextVar("request", default="-")


def of_a_tenant() -> Iterator[str]:
    token = tenant.set("acme")
    yield tenant.get()
    log.append(tenant.get())
    tenant.reset(token)


async def of_a_request(name: str = Depends(of_a_tenant)) -> AsyncIterator[str]:
    token = request.set(f"request of {name}")
    yield request.get()
    request.reset(token)


def context() -> str:
    return f"{tenant.get()}, {request.get()}"


async def test_what_providers_set_in_the_context_is_there_for_the_handler_and_until_they_are_closed(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def in_the_loop(job: Job[In], name: str = Depends(of_a_request)) -> Out:
        return Out(text=f"{context()}; in a step {await job.step('one', context)}")

    async with engine.worker():
        sequence = await engine.start_sequence(in_the_loop, In())
        assert await sequence.result(timeout=20) == Out(text="acme, request of acme; in a step acme, request of acme")
    assert log == ["acme"]


async def test_so_it_is_in_a_thread_and_the_next_handler_of_the_thread_sees_nothing_of_it(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    def in_a_thread(job: SyncJob[In], name: str = Depends(of_a_request)) -> Out:
        before = job.step("one", context)
        tenant.set("other")
        return Out(text=f"{before}; then {job.step('two', context)}")

    @engine.job_type(max_attempts=1)
    def after_it(job: SyncJob[In]) -> Out:
        return Out(text=context())

    async with engine.worker(concurrency=1):
        sequence = await engine.start_sequence(in_a_thread, In())
        assert await sequence.result(timeout=20) == Out(text="acme, request of acme; then other, request of acme")
        assert log == ["other"]
        assert await (await engine.start_sequence(after_it, In())).result(timeout=20) == Out(text="-, -")


# --- in tests


async def test_run_handler_takes_something_else_in_their_place() -> None:
    def fake(settings: Settings = Depends(Settings)) -> Iterator[Db]:
        yield Db(f"fake with {settings.name}")
        log.append("-fake")

    @JobTypes().job_type
    async def work(job: Job[In], db: Db = Depends(async_generator)) -> Out:
        return Out(text=db.name)

    assert await run_handler(work, In(), overrides={async_generator: fake}) == Out(text="fake with settings of value")
    assert log == ["value", "-fake"]


async def test_an_engine_overrides_them_for_its_workers(engine: Engine) -> None:
    @engine.job_type
    async def work(job: Job[In], db: Db = Depends(coroutine)) -> Out:
        return Out(text=db.name)

    async with engine.worker():
        with engine.override(coroutine).by(lambda: Db("fake")):
            faked = await engine.start_sequence(work, In())
            assert await faked.result(timeout=20) == Out(text="fake")
        real = await engine.start_sequence(work, In())
        assert await real.result(timeout=20) == Out(text="coroutine")


async def test_overrides_nest_and_hold_for_the_types_of_mounted_registries(dsn: str) -> None:
    jobs = JobTypes()

    @jobs.job_type
    async def work(job: Job[In], db: Db = Depends(coroutine)) -> Out:
        return Out(text=db.name)

    async def inner(settings: Settings = Depends(Settings)) -> AsyncIterator[Db]:
        yield Db(f"inner with {settings}")

    async with Engine(dsn, jobs) as engine:
        with engine.override(coroutine).by(lambda: Db("outer")):
            with engine.override(coroutine).by(inner):
                assert (await engine.run(work, In())).text.startswith("inner with")
            assert await engine.run(work, In()) == Out(text="outer")
        assert await engine.run(work, In()) == Out(text="coroutine")


async def test_an_override_is_checked_when_it_is_made(engine: Engine) -> None:
    def needs(x: int) -> Db:
        return Db(str(x))

    with pytest.raises(DeclarationError, match=r"override of coroutine: Depends\('fake'\): a function or a class is needed"):
        engine.override(coroutine).by("fake")  # type: ignore[arg-type] # pyright: ignore
    with pytest.raises(DeclarationError, match=r"the parameter 'x' of its provider .*needs has nothing to give it"):
        engine.override(coroutine).by(needs)
    with pytest.raises(DeclarationError, match=r"override\(\): Depends\(3\)"):
        engine.override(3)  # type: ignore[call-overload] # pyright: ignore


# --- what cannot be declared


def takes_anything(request: object) -> Db:
    return Db()


def takes_two_jobs(job: Job[In], again: Job[In]) -> Db:
    return Db()


def nested(db: Db = Depends(takes_anything)) -> Db:
    return db


def takes_sync_job(job: SyncJob[In]) -> Db:
    return Db()


async def with_takes_anything(job: Job[In], db: Db = Depends(takes_anything)) -> Out: ...  # type: ignore[empty-body]
async def with_two_jobs(job: Job[In], db: Db = Depends(takes_two_jobs)) -> Out: ...  # type: ignore[empty-body]
async def with_nested(job: Job[In], db: Db = Depends(nested)) -> Out: ...  # type: ignore[empty-body]
async def with_no_function(job: Job[In], db: Any = Depends(3)) -> Out: ...  # type: ignore[empty-body, call-overload] # pyright: ignore
async def with_sync_job(job: Job[In], db: Db = Depends(takes_sync_job)) -> Out: ...  # type: ignore[empty-body]
async def without_depends(job: Job[In], db: Db) -> Out: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (with_takes_anything, "the parameter 'request' of its provider takes_anything has nothing to give it: a default, Depends"),
        (with_two_jobs, "the parameter 'again' of its provider takes_two_jobs"),
        (with_nested, "the parameter 'request' of its provider takes_anything"),
        (with_no_function, r"Depends\(3\): a function or a class is needed"),
        (with_sync_job, "annotate the job of its provider takes_sync_job as Job"),
        (without_depends, r"not 2; whatever else it needs has a default, like `= Depends\(fn\)`"),
    ],
)
def test_a_dependency_that_cannot_be_given_is_refused_at_the_declaration(handler: Callable[..., Awaitable[Out]], says: str) -> None:
    declare: Any = JobTypes().job_type
    with pytest.raises(DeclarationError, match=says) as refused:
        declare(handler)
    assert repr(handler.__name__) in str(refused.value)
