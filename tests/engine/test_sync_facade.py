"""engine.sync: the engine for code without an event loop; one implementation, whoever waits."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from queuert_py import Blocker, Dedup, Engine, Job, JobType, SyncJob, continue_with, join
from queuert_py.engine.sync import SyncEngine
from queuert_py.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    DuplicateKeyError,
    InvalidInputError,
    QueuertError,
    ResultTimeoutError,
    SequenceFailedError,
    SequenceNotFoundError,
    UnknownJobTypeError,
    UsageError,
)
from tests.engine.test_sqlalchemy import url_of


class Number(BaseModel):
    value: int


class After(BaseModel):
    first: Blocker[Number]


Double = JobType[Number, Number]("double")
Follow = JobType[After, Number]("follow")


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    """An engine that no event loop knows."""
    engine = Engine(dsn)
    engine.add(Double, Follow)
    yield engine
    engine.sync.close()


@pytest.fixture
def worker(dsn: str) -> Iterator[Engine]:
    """A worker on an event loop of its own."""
    engine = Engine(dsn)

    @engine.job_type
    async def double(job: Job[Number]) -> Number:
        if job.input.value < 0:
            raise ValueError("negative")
        return Number(value=2 * job.input.value)

    with running(engine):
        yield engine


@contextlib.contextmanager
def running(engine: Engine, **options: Any) -> Generator[asyncio.AbstractEventLoop]:
    """`async with engine.worker()` on an event loop in another thread."""
    started, done = threading.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def work() -> None:
        async with engine, engine.worker(**options):
            loops.append(asyncio.get_running_loop())
            started.set()
            while not done.is_set():
                await asyncio.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(asyncio.run, work())
        assert started.wait(30) or ended.result()
        try:
            yield loops[0]
        finally:
            done.set()
            ended.result()


def threads_of_engines() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "queuert sync"]


def test_start_and_result(engine: Engine, worker: Engine) -> None:
    sequence = engine.sync.start_sequence(Double, Number(value=21))
    assert engine.sync.result(sequence, timeout=20) == Number(value=42)
    assert engine.sync.get_sequence(sequence.id).status == "completed"
    by_name = engine.sync.start_sequence("double", {"value": 2}, output=Number)
    one, two = engine.sync.start_sequences((Double(Number(value=3)), Double(Number(value=4))))
    assert [engine.sync.result(each, timeout=20).value for each in (by_name, one, two)] == [4, 6, 8]


def test_errors_are_those_of_the_engine(engine: Engine, worker: Engine) -> None:
    with pytest.raises(UnknownJobTypeError):
        engine.sync.start_sequence("nothing", {})
    with pytest.raises(InvalidInputError, match=r"input\.value"):
        engine.sync.start_sequence("double", {"value": "many"})
    with pytest.raises(SequenceNotFoundError):
        engine.sync.get_sequence(UUID(int=1))
    with pytest.raises(ResultTimeoutError):
        engine.sync.result(engine.sync.start_sequence(Double, Number(value=1), delay=3600), timeout=0.01)
    failing = engine.sync.start_sequence(Double, Number(value=-1), max_attempts=1)
    with pytest.raises(SequenceFailedError, match="negative"):
        engine.sync.result(failing, timeout=20)


def test_looking_and_control(engine: Engine) -> None:
    one = engine.sync.start_sequence(Double, Number(value=1), delay=3600, tags=["a"])
    two = engine.sync.start_sequence(Double, Number(value=2), delay=3600)
    assert {each.id for each in engine.sync.list_sequences()} == {one.id, two.id}
    assert len(engine.sync.list_jobs(one.id)) == 1
    engine.sync.trigger([one.id])
    assert engine.sync.get_sequence(one.id).status == "pending"
    engine.sync.reschedule([one.id], delay=60)
    assert engine.sync.get_sequence(one.id).status == "scheduled"
    engine.sync.cancel_sequences([one.id])
    assert engine.sync.get_sequence(one.id).status == "cancelled"
    engine.sync.complete_sequence(two.id, Number(value=5))
    assert engine.sync.result(two) == Number(value=5)
    engine.sync.delete_sequences([one.id, two.id])
    assert engine.sync.list_sequences() == []
    assert engine.sync.count_failed() == 0
    assert engine.sync.retry_sequences([one.id])[one.id] == "not_found"


def test_it_has_every_verb_that_is_awaited() -> None:
    """`result_of` is `result` here; what iterates (`watch`, `as_completed`) and workers need an event loop."""
    awaited = {name for name, _ in inspect.getmembers(Engine, inspect.iscoroutinefunction) if not name.startswith("_")}
    there = {name for name in dir(SyncEngine) if not name.startswith("_")}
    assert awaited - there - {"result_of"} == set()
    assert there - awaited == {"result"}


def test_several_at_once(engine: Engine, worker: Engine) -> None:
    sequences = engine.sync.start_sequences([Double(Number(value=each)) for each in range(3)])
    assert engine.sync.wait_all(sequences, timeout=20) == [Number(value=0), Number(value=2), Number(value=4)]


def test_running_here(dsn: str) -> None:
    engine = Engine(dsn)

    @engine.job_type
    async def double(job: Job[Number]) -> Number:
        return Number(value=2 * job.input.value)

    with engine.sync as facade:
        assert facade.run(double, Number(value=2)) == Number(value=4)
        assert facade.map(double, [Number(value=1), Number(value=2)]) == [Number(value=2), Number(value=4)]
        facade.start_sequence(double, Number(value=3))
        assert facade.run_once().available == 0


def test_eight_threads_use_it_at_once_over_one_loop(engine: Engine, worker: Engine) -> None:
    gate = threading.Barrier(8)

    def use(number: int) -> list[int]:
        gate.wait()
        started = [engine.sync.start_sequence(Double, Number(value=100 * number + each)) for each in range(10)]
        return [engine.sync.result(each, timeout=30).value for each in started]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(use, range(8)))
    assert found == [[2 * (100 * number + each) for each in range(10)] for number in range(8)]
    assert len(threads_of_engines()) == 1


def test_it_opens_and_closes_as_a_context(dsn: str) -> None:
    engine = Engine(dsn)
    engine.add(Double)
    with engine.sync as facade:
        assert threads_of_engines()
        sequence = facade.start_sequence(Double, Number(value=1))
    assert threads_of_engines() == []
    with engine.sync:  # once more
        assert engine.sync.get_sequence(sequence.id).status == "pending"
    engine.sync.close()  # idempotent


def test_an_engine_that_is_open_on_a_running_loop_is_used_there(dsn: str) -> None:
    engine = Engine(dsn)

    @engine.job_type
    async def double(job: Job[Number]) -> Number:
        return Number(value=2 * job.input.value)

    with running(engine) as loop:
        assert engine.loop is loop
        assert engine.sync.result(engine.sync.start_sequence(double, Number(value=4)), timeout=20) == Number(value=8)
        engine.sync.close()  # leaves it to those who opened it
        assert engine.sync.count_failed() == 0
        assert threads_of_engines() == []
    assert engine.loop is None


def test_in_a_thread_with_an_event_loop_it_says_what_to_write(engine: Engine) -> None:
    async def wrong() -> None:
        engine.sync.list_sequences()

    with pytest.raises(UsageError, match="await engine"):
        asyncio.run(wrong())
    assert threads_of_engines() == []


def test_an_engine_that_sync_has_opened_cannot_be_opened_on_another_loop(engine: Engine) -> None:
    async def other() -> None:
        async with engine:
            raise AssertionError("opened twice")

    engine.sync.open()
    with pytest.raises(UsageError, match="another event loop"):
        asyncio.run(other())
    engine.sync.close()
    asyncio.run(engine.close())


def test_an_engine_left_open_on_an_ended_loop_says_so(engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.open())
    with pytest.raises(UsageError, match="an event loop that has ended"):
        engine.sync.list_sequences()
    loop.run_until_complete(engine.close())
    loop.close()


def test_a_database_that_is_not_there_is_an_error_and_may_come_later(dsn: str) -> None:
    engine = Engine("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailableError):
        engine.sync.open()
    engine.sync.close()


def test_a_call_ends_when_its_loop_does(engine: Engine) -> None:
    sequence = engine.sync.start_sequence(Double, Number(value=1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.sync.result, sequence)
        while not engine.sync._wait(lambda engine: asyncio.to_thread(engine.waiters.awaits, str(sequence.id)), None):
            pass
        engine.sync.close()
        with pytest.raises(QueuertError, match="closed while"):
            waiting.result(20)

    async def cancelled(_: object) -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConfigurationError, match="ended while this call waited"):
        engine.sync._wait(cancelled, None)


# --- transactions of the caller's


def test_a_sync_connection_is_a_transaction_as_it_is(engine: Engine, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        engine.sync.start_sequence(Double, Number(value=1), tx=connection)
        connection.rollback()
        assert engine.sync.list_sequences() == []
        first, _ = engine.sync.start_sequences((Double(Number(value=2), key="k"), Double(Number(value=3))), tx=connection)
        engine.sync.start_sequence(Follow, After(first=first), tx=connection)
    assert [each.input for each in engine.sync.list_sequences(type="double")] == [{"value": 3}, {"value": 2}]


def test_its_statements_run_in_the_calling_thread(engine: Engine, dsn: str) -> None:
    seen: set[str] = set()

    class Watched(psycopg.Connection[Any]):
        def wait(self, *args: Any, **more: Any) -> Any:
            seen.add(threading.current_thread().name)
            return super().wait(*args, **more)

    with Watched.connect(dsn) as connection:
        engine.sync.start_sequence(Double, Number(value=1), key="k", tx=connection)
    assert seen == {threading.current_thread().name}


def test_blockers_of_others_are_marked_apart(engine: Engine, dsn: str) -> None:
    """The blocker was not watched: it is marked by the engine's own connection, while the caller's transaction is open."""
    first = engine.sync.start_sequence(Double, Number(value=1))
    with psycopg.connect(dsn) as connection:
        second = engine.sync.start_sequence(Follow, After(first=first), tx=connection)
    assert engine.sync.get_sequence(second.id).status == "blocked"


def test_threads_on_one_connection_take_turns(engine: Engine, dsn: str) -> None:
    """Every second one meets a key that is held, and is undone: only what it has written itself."""
    engine.sync.start_sequence(Double, Number(value=100), key="held")

    def start(n: int) -> list[int]:
        pair = Double(Number(value=2 * n), key=f"first {n}"), Double(Number(value=2 * n + 1), dedup=Dedup("held", on_match="raise"))
        try:
            engine.sync.start_sequences(pair if n % 2 else pair[:1] * 2, tx=connection)
        except DuplicateKeyError:
            return []
        return [2 * n]

    with psycopg.connect(dsn) as connection, ThreadPoolExecutor(8) as pool:
        started = [value for values in pool.map(start, range(8)) for value in values]
    assert sorted(each.input["value"] for each in engine.sync.list_sequences()) == [*started, 100] == [0, 4, 8, 12, 100]


def test_what_is_no_handle_has_no_result(engine: Engine) -> None:
    wrong: Any = None
    with pytest.raises(UsageError, match="None is no handle"):
        engine.sync.result(wrong)


def test_a_session_of_sqlalchemy(engine: Engine, dsn: str) -> None:
    alchemy = create_engine(url_of(dsn))
    with Session(alchemy) as session, session.begin():
        engine.sync.start_sequence(Double, Number(value=1), tx=join(session))
        assert engine.sync.list_sequences() == []
    assert len(engine.sync.list_sequences()) == 1
    alchemy.dispose()


def test_an_async_transaction_is_refused(engine: Engine, dsn: str) -> None:
    async def joined() -> Any:
        connection = await psycopg.AsyncConnection.connect(dsn)
        try:
            with ThreadPoolExecutor(1) as pool:
                tx = join(connection)
                await asyncio.wrap_future(pool.submit(lambda: engine.sync.start_sequence(Double, Number(value=1), tx=tx)))
        finally:
            await connection.close()

    with pytest.raises(UsageError, match="await engine"):
        asyncio.run(joined())


def test_control_inside_the_callers_transaction(engine: Engine, dsn: str) -> None:
    sequence = engine.sync.start_sequence(Double, Number(value=1))
    with psycopg.connect(dsn) as connection:
        engine.sync.cancel_sequences([sequence.id], tx=connection)
        connection.rollback()
        assert engine.sync.get_sequence(sequence.id).status == "pending"
        engine.sync.cancel_sequences([sequence.id], tx=connection)
    assert engine.sync.get_sequence(sequence.id).status == "cancelled"


def test_a_statement_that_fails_raises_here_and_ends_nothing(engine: Engine, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            connection.execute("select 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            engine.sync.start_sequence(Double, Number(value=1), tx=connection)
        connection.rollback()
        engine.sync.start_sequence(Double, Number(value=1), tx=connection)
    assert len(engine.sync.list_sequences()) == 1


def test_a_handler_in_a_thread_starts_others_in_its_phase(dsn: str, engine: Engine) -> None:
    other = Engine(dsn)

    @other.job_type(backoff=0)
    def parent(job: SyncJob[Number]) -> Number:
        with pytest.raises(UsageError, match="hold its slot"):
            other.sync.result(other.sequence("child", job.sequence_id, output=Number))
        with job.finalize() as tx:
            with pytest.raises(UsageError, match="tx=tx"):
                other.sync.start_sequence(child, job.input)
            started = other.sync.start_sequence(child, job.input, tx=tx)
            if job.attempt == 1:
                raise ValueError("again")
            return Number(value=started.id.int % 7)

    @other.job_type
    async def child(job: Job[Number]) -> Number:
        return job.input

    with running(other):
        sequence = other.sync.start_sequence(parent, Number(value=1))
        other.sync.result(sequence, timeout=20)
        assert other.sync.get_sequence(sequence.id).attempt == 2
        (started,) = other.sync.list_sequences(type="child")
    assert started.root_id == sequence.id


def test_a_handler_in_a_thread_starts_its_successor_under_its_own_key(dsn: str) -> None:
    """The transaction of its phase is known to its attempt: the key is let go for the one that comes next."""
    engine = Engine(dsn)

    @engine.job_type
    def tick(job: SyncJob[Number]) -> Number:
        with job.finalize() as tx:
            if job.input.value < 3:
                started = engine.sync.start_sequence(tick, Number(value=job.input.value + 1), key="clock", tx=tx)
                assert not started.deduplicated
            return job.input

    with running(engine):
        sequence = engine.sync.start_sequence(tick, Number(value=1), key="clock")
        for value in (1, 2, 3):
            assert engine.sync.result(sequence, timeout=20).value == value
            started = list(reversed(engine.sync.list_sequences()))
            sequence = engine.sequence(tick, started[min(value, 2)].id)
        assert len(engine.sync.list_sequences()) == 3


# --- Django


@contextlib.contextmanager
def django_connection(dsn: str) -> Generator[Any]:
    """What `django.db.connections["joined"]` is in an application."""
    conf: Any = importlib.import_module("django.conf")
    if not conf.settings.configured:
        conf.settings.configure(DATABASES={}, USE_TZ=True)
        importlib.import_module("django").setup()
    db: Any = importlib.import_module("django.db")
    known = conninfo_to_dict(dsn)
    db.connections.databases["joined"] = {
        **db.connections.configure_settings({"default": {}})["default"],
        "ENGINE": "django.db.backends.postgresql",
        "NAME": known["dbname"],
        "USER": known["user"],
        "HOST": known["host"],
        "PORT": str(known.get("port") or ""),
    }
    connection = db.connections["joined"]
    try:
        yield connection
    finally:
        connection.close()
        del db.connections["joined"]


def test_a_django_view_starts_in_its_atomic_block(engine: Engine, dsn: str) -> None:
    atomic: Callable[..., Any] = importlib.import_module("django.db.transaction").atomic
    with django_connection(dsn) as connection:
        with pytest.raises(UsageError, match=r"transaction\.atomic\(\)"):
            join(connection)
        with contextlib.suppress(ZeroDivisionError), atomic(using="joined"):
            engine.sync.start_sequence(Double, Number(value=1), tx=join(connection))
            raise ZeroDivisionError
        assert engine.sync.list_sequences() == []
        with atomic(using="joined"):
            first = engine.sync.start_sequence(Double, Number(value=2), key="k", tx=join(connection))
            with contextlib.suppress(ZeroDivisionError), atomic(using="joined"):  # a savepoint
                engine.sync.start_sequence(Double, Number(value=3), tx=join(connection))
                raise ZeroDivisionError
            engine.sync.start_sequence(Follow, After(first=first), tx=join(connection))
            assert engine.sync.list_sequences() == []
    assert sorted(each.type for each in engine.sync.list_sequences()) == ["double", "follow"]


# --- processes


def run(code: str, dsn: str, *, interrupt_when: str | None = None) -> subprocess.CompletedProcess[str]:
    """A script of its own; interrupted (Ctrl-C) when it has printed a word."""
    head = """
        import os, signal, sys, threading
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that was started in the background ignores it
        from pydantic import BaseModel
        from queuert_py import Engine, JobType
        class Number(BaseModel): value: int
        Double = JobType[Number, Number]("double")
        engine = Engine()
        engine.add(Double)
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        env={**os.environ, "QUEUERT_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    before = ""
    if interrupt_when is not None:
        while interrupt_when not in before and (line := process.stdout.readline()):
            before += line
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess([], process.returncode, before + out, err)


def test_a_script_needs_no_close(dsn: str, engine: Engine) -> None:
    """What it has started is there, and workers are told before the process ends."""
    with psycopg.connect(dsn, autocommit=True) as listening:
        listening.execute("listen queuert_queuert")
        done = run("print(engine.sync.start_sequence(Double, Number(value=1)).deduplicated)", dsn)
        listening.execute("notify queuert_queuert, 'the script has ended'")
        heard = [each.payload for each in listening.notifies(timeout=20, stop_after=2)]
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert heard == ["q:0:0:default", "the script has ended"]
    assert len(engine.sync.list_sequences()) == 1


def test_ctrl_c_ends_a_call_and_the_engine_goes_on(dsn: str) -> None:
    done = run(
        """
        sequence = engine.sync.start_sequence(Double, Number(value=1))
        def tell():
            while not engine.waiters.awaits(str(sequence.id)):
                pass
            print("waiting", flush=True)
        threading.Thread(target=tell, daemon=True).start()
        try:
            engine.sync.result(sequence)
        except KeyboardInterrupt:
            print(engine.sync.get_sequence(sequence.id).status)
            print(engine.waiters.awaits(str(sequence.id)))
        """,
        dsn,
        interrupt_when="waiting",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "waiting\npending\nFalse\n", "")


def test_a_forked_process_has_an_engine_of_its_own(dsn: str, engine: Engine) -> None:
    done = run(
        """
        engine.sync.start_sequence(Double, Number(value=0))
        children = []
        for number in (1, 2):
            child = os.fork()
            if child == 0:
                engine.sync.start_sequence(Double, Number(value=number))
                assert [each.name for each in threading.enumerate()].count("queuert sync") == 1
                sys.exit(0)
            children.append(child)
        print([os.waitpid(child, 0)[1] for child in children])
        engine.sync.start_sequence(Double, Number(value=3))
        """,
        dsn,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 0]\n", "")
    assert sorted(each.input["value"] for each in engine.sync.list_sequences()) == [0, 1, 2, 3]


def test_continuations_are_values_here_as_well(engine: Engine) -> None:
    sequence = engine.sync.start_sequence(Double, Number(value=1))
    engine.sync.complete_sequence(sequence.id, continue_with(Double, Number(value=7)))
    assert engine.sync.get_sequence(sequence.id).steps == 2
