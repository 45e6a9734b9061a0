"""The epoch fence, by all interleavings of finish, reap and renew, statement by statement over real connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from queuert_py.postgres import rows
from queuert_py.postgres.calls import together
from queuert_py.postgres.store import Store
from queuert_py.values import Delay, Ending, LiveJob
from tests.faults.kit import Facts

Step: TypeAlias = Callable[[AsyncConnection[Any]], Awaitable[None]]
EPOCH = 41
WORKER = "worker-1"


class Case:
    """One live job, leased to a worker, and what its attempt, a reaper and the worker's heartbeat do with it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        known: dict[str, Any] = {"lane": 0, "sequence_id": str(uuid4()), "position": 0, "epoch": EPOCH, "type": "work"}
        blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
        self.job = LiveJob(**{**blank, **known})
        self.found: list[tuple[Any, ...]] = []
        self.xid = ""
        self.owned = True
        self.completed = False
        self.reaped = False

    async def make(self, facts: Facts) -> None:
        await facts.rows(
            "insert into queuert.live_job (sequence_id, job_id, root_id, sequence_type, type, input, leased_by, leased_at,"
            " leased_until, epoch, attempt, begun) select %(id)s::uuid, %(id)s::uuid, %(id)s::uuid, 'work', 'work', '{}',"
            " %(worker)s, clock_timestamp(), clock_timestamp(), %(epoch)s, 1, true",
            {"id": self.job.sequence_id, "worker": WORKER, "epoch": EPOCH},
        )

    def finish(self) -> list[Step]:
        """An attempt's own transaction: fence, the handler's write, the ending that fails in SQL when it is not ours, COMMIT."""

        async def fence(connection: AsyncConnection[Any]) -> None:
            await connection.execute("begin isolation level read committed")
            found = await self.store.fence_job(self.job).on(connection)
            self.owned = bool(found)
            if found:
                self.xid = found[0][1]
                await connection.execute("insert into effect (sequence_id, what) values (%s, 'work')", [self.job.sequence_id])

        async def end(connection: AsyncConnection[Any]) -> None:
            if self.owned:
                ending = Ending("completed", "null")
                try:
                    await together(
                        connection, self.store.end_jobs([rows.end_row(self.job, ending)]), self.store.assert_written(self.job, self.xid)
                    )
                except psycopg.errors.DivisionByZero:
                    self.owned = False

        async def commit(connection: AsyncConnection[Any]) -> None:
            await connection.execute("commit" if self.owned else "rollback")
            self.completed = self.owned

        return [fence, end, commit]

    def reap(self) -> list[Step]:
        async def lock(connection: AsyncConnection[Any]) -> None:
            await connection.execute("begin isolation level read committed")
            self.found = await self.store.lock_lost([WORKER], 10).on(connection)

        async def give_back(connection: AsyncConnection[Any]) -> None:
            if self.found:
                delay = rows.delay_row(self.job, Delay(None, outcome="lost"))
                self.reaped = bool(await self.store.delay_jobs([delay]).on(connection))

        async def commit(connection: AsyncConnection[Any]) -> None:
            await connection.execute("commit")

        return [lock, give_back, commit]

    def renew(self) -> list[Step]:
        async def renew(connection: AsyncConnection[Any]) -> None:
            await self.store.renew_leases([rows.held_row(self.job, begun=True)], timedelta(seconds=30)).on(connection)

        return [renew]

    async def violation(self, facts: Facts) -> str | None:
        """What is wrong afterwards, if anything is."""
        id = {"id": self.job.sequence_id}
        effects = await facts.one("select count(*) from effect where sequence_id = %(id)s", id)
        live = await facts.rows("select epoch, leased_by from queuert.live_job where sequence_id = %(id)s", id)
        finished = await facts.rows("select epoch from queuert.finished_job where sequence_id = %(id)s", id)
        if self.completed and self.reaped:
            return "completed by an attempt whose job was taken back"
        if effects != int(self.completed):
            return f"{effects} effects, completed={self.completed}"
        if finished != ([(EPOCH,)] if self.completed else []):
            return f"history says {finished}, completed={self.completed}"
        wanted = [] if self.completed else [(EPOCH + 1, None) if self.reaped else (EPOCH, WORKER)]
        return None if live == wanted else f"the live row is {live}, wanted {wanted}"


def schedules(lengths: Sequence[int]) -> Iterator[list[int]]:
    """All orders in which the steps of the programs can be begun."""
    if not any(lengths):
        yield []
    for number, left in enumerate(lengths):
        if left:
            for rest in schedules([*lengths[:number], left - 1, *lengths[number + 1 :]]):
                yield [number, *rest]


class Player:
    """Plays programs by a schedule: the next step begins when the last one is done, or is blocked by a lock."""

    def __init__(self, connections: Sequence[AsyncConnection[Any]], facts: Facts) -> None:
        self._connections = connections
        self._facts = facts

    async def play(self, programs: Sequence[list[Step]], schedule: Sequence[int]) -> None:
        running: list[asyncio.Task[None] | None] = [None] * len(programs)
        queues = [list(program) for program in programs]
        for number in schedule:
            before, step = running[number], queues[number].pop(0)
            running[number] = asyncio.ensure_future(self._after(before, step, self._connections[number]))
            await self._settle(running[number], self._connections[number])
        await asyncio.gather(*(task for task in running if task is not None))

    @staticmethod
    async def _after(before: asyncio.Task[None] | None, step: Step, connection: AsyncConnection[Any]) -> None:
        if before is not None:
            await before
        await step(connection)

    async def _settle(self, task: asyncio.Task[None] | None, connection: AsyncConnection[Any]) -> None:
        assert task is not None
        while True:
            done, _ = await asyncio.wait([task], timeout=0.01)
            if done:
                return
            if await self._facts.one("select cardinality(pg_blocking_pids(%(pid)s))", {"pid": connection.info.backend_pid}):
                return


async def violations(dsn: str, facts: Facts, store: Store, *, first_only: bool) -> tuple[int, list[str]]:
    """Play all schedules; how many, and what was wrong."""
    found: list[str] = []
    played = 0
    connections = [await AsyncConnection.connect(dsn, autocommit=True) for _ in range(3)]
    try:
        for schedule in schedules([3, 3, 1]):
            case = Case(store)
            await case.make(facts)
            try:
                await Player(connections, facts).play([case.finish(), case.reap(), case.renew()], schedule)
                wrong = await case.violation(facts)
            except psycopg.Error as error:
                wrong = str(error)
                for connection in connections:
                    await connection.rollback()
            await facts.rows("delete from queuert.live_job; delete from effect")
            played += 1
            if wrong:
                found.append(f"{schedule}: {wrong}")
                if first_only:
                    break
    finally:
        for connection in connections:
            await connection.close()
    return played, found


def without_epochs(store: Store, names: Sequence[str]) -> Store:
    """The same statements, but not matching on the epoch."""
    mutant = Store(store.schema, store.lanes)
    changed = dict(mutant._sql)
    for name in names:
        text, count = re.subn(rb"\w+\.epoch = (%\(epoch\)s|\w+\.epoch)(?! \+)", b"true", changed[name])
        assert count, f"{name} has no epoch predicate"
        changed[name] = text
    mutant._sql = changed
    return mutant


async def test_the_epoch_fence_holds_in_every_interleaving(dsn: str, facts: Facts) -> None:
    played, found = await violations(dsn, facts, Store("queuert"), first_only=False)
    assert played == 140
    assert found == []


@pytest.mark.parametrize("names", [("fence_job", "end_jobs", "assert_written"), ("renew_leases",)])
async def test_without_the_epoch_the_interleavings_show_it(names: tuple[str, ...], dsn: str, facts: Facts) -> None:
    _, found = await violations(dsn, facts, without_epochs(Store("queuert"), names), first_only=True)
    assert found
