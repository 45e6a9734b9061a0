"""Connections that heal: what is idempotent is run again after a fault that may pass, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from queuert_py.errors import ConfigurationError, DatabaseUnavailableError
from queuert_py.postgres.calls import Call
from queuert_py.postgres.database import Database, Link, fault_of

Connection = AsyncConnection[Any]
ONE: Call[int] = Call(b"select 1", {}, lambda row: int(row[0]))


@pytest.fixture
async def healing(dsn: str) -> AsyncIterator[Database]:
    database = Database(dsn, pool_size=3)
    await database.open()
    yield database
    await database.close()


async def terminate_others(db: Connection) -> int:
    cursor = await db.execute(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_a_statement_after_every_backend_was_terminated_is_answered(healing: Database, db: Connection) -> None:
    for _ in range(3):
        assert await terminate_others(db) > 0
        assert await healing.run(ONE) == [1]


async def test_work_whose_backend_is_terminated_under_it_is_run_again(healing: Database, db: Connection) -> None:
    pids: list[int] = []

    async def work(connection: Connection) -> int:
        pids.append(connection.info.backend_pid)
        if len(pids) < 3:
            await db.execute("select pg_terminate_backend(%s, 5000)", [pids[-1]])
        cursor = await connection.execute("select 7")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    assert await healing.retrying(work) == 7
    assert len(set(pids)) == 3


async def test_many_at_once_all_heal(healing: Database, db: Connection) -> None:
    async def often() -> list[int]:
        return [each for _ in range(5) for each in await healing.run(ONE)]

    async def killer() -> None:
        for _ in range(5):
            await terminate_others(db)

    answers, *_ = await asyncio.gather(asyncio.gather(*(often() for _ in range(5))), killer())
    assert answers == [[1] * 5] * 5


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (psycopg.errors.SerializationFailure, 6),
        (psycopg.errors.DeadlockDetected, 6),
        (psycopg.errors.UniqueViolation, 1),
        (psycopg.errors.UndefinedTable, 1),
        (ZeroDivisionError, 1),
    ],
)
async def test_how_often_a_fault_is_tried(healing: Database, error: type[Exception], tries: int) -> None:
    tried: list[int] = []

    async def work(connection: Connection) -> None:
        tried.append(1)
        raise error("made up")

    with pytest.raises((error, DatabaseUnavailableError)):
        await healing.retrying(work)
    assert len(tried) == tries


async def test_when_it_does_not_pass_the_error_names_the_place_and_no_secret(healing: Database) -> None:
    async def work(connection: Connection) -> None:
        raise psycopg.errors.SerializationFailure("made up")

    with pytest.raises(DatabaseUnavailableError, match=r"PostgreSQL at .*/queuert_test_\w+ cannot be used: made up"):
        await healing.retrying(work)


async def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    database = Database("postgresql://someone:hunter2@127.0.0.1:1/nowhere")
    with pytest.raises(DatabaseUnavailableError, match=r"PostgreSQL at 127\.0\.0\.1:1/nowhere") as refused:
        await database.open()
    await database.close()
    assert "hunter2" not in str(refused.value)


def test_a_dsn_that_cannot_be_read_is_told() -> None:
    with pytest.raises(ConfigurationError, match="the DSN cannot be read"):
        Database("postgresql://[nowhere")


async def test_the_engines_connections_pin_their_plans(healing: Database) -> None:
    connection = await healing.connect("test")
    async with connection:
        for setting, value in [("enable_seqscan", "off"), ("plan_cache_mode", "force_generic_plan"), ("jit", "off")]:
            cursor = await connection.execute(f"show {setting}".encode())
            assert await cursor.fetchone() == (value,)
        assert connection.autocommit


async def test_a_link_makes_its_connection_again_and_lets_its_users_take_turns(healing: Database, db: Connection) -> None:
    link = Link(healing, "test")
    first = (await link.connection()).info.backend_pid
    assert await asyncio.gather(*(link.run(ONE) for _ in range(10))) == [[1]] * 10
    await db.execute("select pg_terminate_backend(%s, 5000)", [first])
    with pytest.raises(psycopg.OperationalError):
        await link.run(ONE)
    assert await link.run(ONE) == [1]
    assert (await link.connection()).info.backend_pid != first
    await link.close()


async def test_a_link_whose_user_is_cancelled_is_clean_for_the_next(healing: Database, db: Connection) -> None:
    link = Link(healing, "test")
    slow = asyncio.create_task(link.run(Call(b"select pg_sleep(60)", {}, lambda row: row)))
    asleep = "select 1 from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
    while await (await db.execute(asleep)).fetchone() is None:
        assert not slow.done()
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert await link.run(ONE) == [1]
    await link.close()


async def test_own_settings_of_a_dsn_win_over_the_defaults(dsn: str) -> None:
    conninfo = Database(make_conninfo(dsn, application_name="mine")).conninfo
    assert "application_name=mine" in conninfo
    assert "target_session_attrs=read-write" in conninfo


@pytest.mark.parametrize("error", [ValueError(), KeyError(), asyncio.CancelledError()], ids=repr)
def test_what_is_no_database_error_has_no_fault(error: BaseException) -> None:
    assert fault_of(error) is None


async def test_a_cancelled_wait_for_a_pool_connection_ends(healing: Database) -> None:
    """Whenever the cancellation comes, before the connection does or in the very same tick."""
    go_on = asyncio.Event()

    async def hold() -> None:
        async with healing.connection():
            await go_on.wait()

    async def take() -> None:
        async with healing.connection():
            await asyncio.Event().wait()

    for ticks in range(12):
        go_on.clear()
        holding = [asyncio.create_task(hold()) for _ in range(3)]
        while healing._pool is None or healing._pool.get_stats().get("pool_available") or healing._pool.get_stats()["pool_size"] < 3:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(take())
        while not healing._pool.get_stats().get("requests_waiting"):
            await asyncio.sleep(0)
        go_on.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        waiting.cancel()
        done, _ = await asyncio.wait([waiting], timeout=10)
        assert done, f"cancelled {ticks} ticks after the connection was given back, it goes on"
        await asyncio.gather(*holding)
