"""The function start_sequence of the schema: sequences started by triggers, and by languages without this package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from pydantic import BaseModel

from queuert_py import Engine, Job, JobType
from queuert_py.errors import InvalidInputError, SequenceFailedError, UsageError
from queuert_py.ids import lane_of
from queuert_py.payload import digest
from tests.engine.kit import until_blocked

Connection = psycopg.AsyncConnection[Any]


class Order(BaseModel):
    id: int
    city: str = "Ulm"


class Shipped(BaseModel):
    order: int


Ship = JobType[Order, Shipped]("ship")


@pytest.fixture
async def engine(dsn: str) -> AsyncIterator[Engine]:
    engine = Engine(dsn)

    @engine.job_type
    async def ship(job: Job[Order]) -> Shipped:
        return Shipped(order=job.input.id)

    async with engine:
        yield engine


@pytest.fixture
async def orders(db: Connection) -> None:
    """A table of the application's, whose new rows start sequences."""
    await db.execute("create table orders (id int primary key, city text not null)")
    await db.execute(
        """
        create function ship_it() returns trigger language plpgsql as $$
        begin
            perform queuert.start_sequence('ship', to_jsonb(new), key => 'order-' || new.id, tags => array['orders', new.city]);
            return new;
        end $$
        """
    )
    await db.execute("create trigger ship after insert on orders for each row execute function ship_it()")


async def start(db: Connection, arguments: str, values: list[Any] | None = None) -> UUID:
    row = await (await db.execute(b"select queuert.start_sequence(" + arguments.encode() + b")", values)).fetchone()
    assert row is not None
    id: UUID = row[0]
    return id


@pytest.mark.usefixtures("orders")
async def test_a_trigger_starts_what_a_worker_runs(engine: Engine, db: Connection) -> None:
    async with engine.worker(poll_interval=3600):
        while engine.listener.deaf:
            await asyncio.sleep(0)
        await db.execute("insert into orders values (1, 'Bonn'), (2, 'Köln')")  # the hint comes with the commit
        started = await engine.list_sequences(type="ship")
        outputs = [await engine.sequence("ship", each.id, output=Shipped).result(timeout=20) for each in started]
    assert sorted(each.order for each in outputs) == [1, 2]
    assert {(each.key, tuple(each.tags)) for each in started} == {("order-1", ("orders", "Bonn")), ("order-2", ("orders", "Köln"))}


async def test_workers_are_told_by_the_commit(db: Connection, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as listening:
        await listening.execute("listen queuert_queuert")
        async with db.transaction():
            await start(db, "'ship', '{}', key => 'k', queue => 'slow', priority => -10")
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                await other.execute("notify queuert_queuert, 'before the commit'")
        await start(db, "'ship', '{}', key => 'k', queue => 'slow'")  # nothing new: nobody is told
        await db.execute("notify queuert_queuert, 'the end'")
        heard = [each.payload async for each in listening.notifies(timeout=20, stop_after=3)]
    assert heard == ["before the commit", "q:0:-10:slow", "the end"]


@pytest.mark.usefixtures("orders")
async def test_a_rollback_takes_it_with_it(engine: Engine, db: Connection) -> None:
    async with db.transaction(force_rollback=True):
        await db.execute("insert into orders values (1, 'Bonn')")
    assert await engine.list_sequences() == []


async def test_a_key_finds_its_holder_as_in_python(engine: Engine, db: Connection) -> None:
    first = await start(db, "'ship', '{\"id\": 1}', key => 'k'")
    assert await start(db, "'ship', '{\"id\": 2}', key => 'k'") == first
    by_name = await engine.start_sequence("ship", {"id": 3}, key="k")
    assert (by_name.id, by_name.deduplicated) == (first, True)
    other = await engine.start_sequence("ship", {"id": 4}, key="l")
    assert await start(db, "'ship', '{\"id\": 5}', key => 'l'") == other.id
    await engine.cancel_sequences([first])
    assert await start(db, "'ship', '{\"id\": 6}', key => 'k'") != first


async def test_a_key_that_another_transaction_holds_is_waited_for(engine: Engine, db: Connection, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as one, await psycopg.AsyncConnection.connect(dsn) as two:
        first = await start(one, "'ship', '{\"id\": 1}', key => 'k'")
        waiting = asyncio.create_task(start(two, "'ship', '{\"id\": 2}', key => 'k'"))
        await until_blocked(engine)
        await one.rollback()
        second = await waiting
        assert second != first
        await two.commit()
    assert [each.id for each in await engine.list_sequences()] == [second]


async def test_a_holder_that_ends_between_two_looks_leaves_its_key(engine: Engine, db: Connection, dsn: str) -> None:
    """A gate behind the insert, which has found the key held; the holder ends there, so that the look for it finds nobody."""
    await db.execute(
        "create function gate() returns trigger language plpgsql as 'begin perform pg_advisory_xact_lock(7); return null; end'"
    )
    first = await start(db, "'ship', '{\"id\": 1}', key => 'k'")
    await db.execute("create trigger gate after insert on queuert.live_job for each statement execute function gate()")
    try:
        async with await psycopg.AsyncConnection.connect(dsn) as two:
            await db.execute("select pg_advisory_lock(7)")
            waiting = asyncio.create_task(start(two, "'ship', '{\"id\": 2}', key => 'k'"))
            await until_blocked(engine)
            await engine.cancel_sequences([first])
            await db.execute("select pg_advisory_unlock(7)")
            second = await waiting
    finally:
        await db.execute("drop trigger gate on queuert.live_job")
    assert second != first
    assert (await engine.get_sequence(second)).status == "pending"


async def test_every_argument_has_its_place(engine: Engine, db: Connection) -> None:
    id = await start(
        db,
        "'ship', '{\"id\": 7}', delay => '1 hour', queue => 'slow', priority => 20, "
        "correlation_id => 'c', tags => '{a,b}', max_attempts => 3",
    )
    found = await engine.get_sequence(id)
    (job,) = await engine.list_jobs(id)
    assert (found.status, found.correlation_id, list(found.tags), found.input) == ("scheduled", "c", ["a", "b"], {"id": 7})
    assert (job.queue, job.priority) == ("slow", 20)
    row = await (
        await db.execute("select max_attempts, root_id, job_id, extract(epoch from run_at - created_at) from queuert.live_job")
    ).fetchone()
    assert row is not None
    assert row[:3] == (3, id, id)
    assert 3590 < row[3] < 3610


async def test_no_tags_are_none(db: Connection, engine: Engine) -> None:
    id = await start(db, "'ship', '{}', tags => '{}'")
    assert await (await db.execute("select tags from queuert.live_job")).fetchone() == (None,)
    assert not (await engine.get_sequence(id)).tags


async def test_its_ids_are_uuids_of_version_7_that_sort_by_time(db: Connection, engine: Engine) -> None:
    ids = [await start(db, "'ship', '{}'") for _ in range(3)]
    for id in ids:
        assert (id.version, id.variant) == (7, UUID(int=0x8 << 60).variant)
    times = [id.int >> 80 for id in ids]
    assert times == sorted(times)
    row = await (await db.execute("select extract(epoch from clock_timestamp()) * 1000")).fetchone()
    assert row is not None
    assert abs(times[0] - row[0]) < 60_000


async def test_with_lanes_everything_lies_where_python_looks_for_it(fresh_database: Callable[[], str]) -> None:
    dsn = fresh_database()
    engine = Engine(dsn)
    engine.add(Ship)
    await engine.migrate(lanes=4)
    keys = ["a", "order-1", "ü and 🙂", "x" * 500]
    async with engine, await psycopg.AsyncConnection.connect(dsn, autocommit=True) as db:
        lanes: set[int] = set()
        for key in keys:
            id = await start(db, "'ship', '{\"id\": 1}', key => %s", [key])
            assert lane_of(id, 4) == digest(f"ship\n{key}") % 4
            again = await engine.start_sequence(Ship, Order(id=2), key=key)
            assert (again.id, again.deduplicated) == (id, True)
        for _ in range(40):
            lanes.add(lane_of(await start(db, "'ship', '{\"id\": 1}'"), 4))
        rows = await (await db.execute("select lane, sequence_id from queuert.live_job")).fetchall()
    assert len(rows) == 44
    assert all(lane == lane_of(id, 4) for lane, id in rows)
    assert lanes == {0, 1, 2, 3}


async def test_what_the_model_refuses_fails_at_pickup(engine: Engine, db: Connection) -> None:
    id = await start(db, "'ship', '{\"id\": \"many\"}'")
    async with engine.worker():
        with pytest.raises(SequenceFailedError) as failed:
            await engine.sequence("ship", id, output=Shipped).result(timeout=20)
    assert failed.value.reason == "validation"


async def test_an_internal_type_cannot_be_started_by_its_mere_name(engine: Engine, db: Connection, dsn: str) -> None:
    runs: list[int] = []

    @engine.job_type(internal=True)
    async def inner(job: Job[Order]) -> Shipped:
        runs.append(job.input.id)
        return Shipped(order=job.input.id)

    async with Engine(dsn) as producer, engine.worker():
        by_sql = await start(db, "'inner', '{\"id\": 1}'")
        by_name = await producer.start_unregistered("inner", {"id": 2})
        for id in (by_sql, by_name.id):
            with pytest.raises(SequenceFailedError, match="internal") as failed:
                await engine.sequence("inner", id, output=Shipped).result(timeout=20)
            assert failed.value.reason == "validation"
    assert runs == []


@pytest.mark.parametrize(
    "arguments",
    [
        "'ship', '{}', tags => array[null, 'a']",
        "'ship', '{}', tags => array['']",
        "'ship', '{}', tags => array[['a', 'b']]",
        "'ship', '{}', tags => array[repeat('x', 201)]",
        "'', '{}'",
        "null, '{}'",
        "'ship', null",
        "'ship', '{}', key => ''",
        "'ship', '{}', key => repeat('x', 513)",
        "'ship', '{}', correlation_id => ''",
        "'ship', '{}', queue => repeat('x', 41)",
        "'ship', '{}', queue => null",
        "'ship', '{}', priority => 32768",
        "'ship', '{}', max_attempts => 0",
        "'ship', '{}', delay => '-1 second'",
        "'ship', '{}', delay => '9000 years'",
    ],
)
async def test_what_python_refuses_is_refused(db: Connection, arguments: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="start_sequence: "):
        await start(db, arguments)


async def test_a_user_with_few_rights_can_call_it(db: Connection, dsn: str, engine: Engine) -> None:
    """The rights that the migration names are enough; with `security definer` none are needed."""
    role = sql.Identifier(f"producer_{uuid4().hex[:8]}")

    async def starts() -> UUID:
        async with db.transaction():
            await db.execute(sql.SQL("set local role {}").format(role))
            return await start(db, "'ship', '{\"id\": 1}', key => 'k'")

    await db.execute(sql.SQL("create role {}").format(role))
    try:
        await db.execute(sql.SQL("grant usage on schema queuert to {}").format(role))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await starts()
        await db.execute("alter function queuert.start_sequence security definer")
        first = await starts()
        await db.execute("alter function queuert.start_sequence security invoker")
        await db.execute(sql.SQL("grant select, insert on queuert.live_job to {}").format(role))
        await db.execute(sql.SQL("grant select on queuert.setting to {}").format(role))
        assert await starts() == first
    finally:
        await db.execute("alter function queuert.start_sequence security invoker")
        await db.execute(sql.SQL("drop owned by {}").format(role))
        await db.execute(sql.SQL("drop role {}").format(role))


# --- the same from Python, without the models


async def test_a_producer_without_the_models_starts_by_name(engine: Engine, dsn: str) -> None:
    producer = Engine(dsn)
    async with producer, engine.worker():
        sequence = await producer.start_unregistered("ship", {"id": 5}, tags=["a"])
        assert await sequence.result(timeout=20) == {"order": 5}
        refused = await producer.start_unregistered("ship", {"id": "many"})
        with pytest.raises(SequenceFailedError) as failed:
            await refused.result(timeout=20)
    assert failed.value.reason == "validation"
    assert (await engine.get_sequence(sequence.id)).tags == ["a"]


async def test_a_name_that_is_declared_here_is_checked_here(engine: Engine) -> None:
    with pytest.raises(InvalidInputError, match=r"input\.id"):
        await engine.start_unregistered("ship", {"id": "many"})
    sequence = await engine.start_unregistered("ship", {"id": 1}, delay=3600)
    assert (await engine.get_sequence(sequence.id)).status == "scheduled"


async def test_what_cannot_be_stored_is_refused_by_its_field(dsn: str) -> None:
    producer = Engine(dsn, max_payload=1000)
    wrong: Any
    async with producer:
        for wrong, path in (
            ({"a": [1, float("nan")]}, r"a\.1"),
            ({"a": "\x00"}, "NUL"),
            ({"a": "x" * 2000}, "bytes of JSON"),
            ([1], "list given"),
        ):
            with pytest.raises(InvalidInputError, match=path):
                await producer.start_unregistered("ship", wrong)
        with pytest.raises(UsageError, match="unknown option"):
            await producer.start_unregistered("ship", {}, prioritty=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        assert await producer.list_sequences() == []
