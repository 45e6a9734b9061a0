"""The interleaver: operations on connections of their own, each statement of which waits for its turn.

Who is next is a choice, and all choices are explored, depth first; each schedule begins with the same rows. A statement that blocks is
found by what it waits for (pg_blocking_pids), and the others go on. A statement can also be held between its snapshot and its locks: a
function in it waits for an advisory lock, while others run and commit.

Left out are only schedules that differ from one that was run by the order of two steps which cannot notice each other (footprints.py; what
need not be tried again is handed down in sleep sets).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from queuert_py.postgres.calls import BEGIN, COMMIT, Call, plain
from queuert_py.postgres.database import Database
from queuert_py.postgres.store import Store
from tests.interleave.footprints import LOCKS, Footprint, Kind, Step, places_of

Row = TypeVar("Row")
ROLLBACK = plain("rollback")
GATES = 4711
"""The class of the advisory locks by which statements are held."""
BRIEF = 0.002
"""Seconds before it is asked what a statement waits for: only to save the question."""
STUCK = 10.0
"""Seconds after which a statement that neither ends nor waits for anybody counts as hanging."""
_SET_UP = """
create schema if not exists interleave;
create or replace function interleave.gate(value anyelement) returns anyelement language plpgsql volatile as $$
begin
    perform pg_advisory_lock_shared(4711, pg_backend_pid());
    perform pg_advisory_unlock_shared(4711, pg_backend_pid());
    return value;
end $$;
create or replace function interleave.check_epoch() returns trigger language plpgsql as $$
begin
    if new.epoch < old.epoch or (new.epoch = old.epoch and new.leased_by is distinct from old.leased_by) then
        raise exception 'epoch of % went from % (%) to % (%)', old.sequence_id, old.epoch, old.leased_by, new.epoch, new.leased_by;
    end if;
    return new;
end $$;
alter table queuert.live_job set (autovacuum_enabled = off);
alter table queuert.finished_job set (autovacuum_enabled = off);
alter table queuert.job_blocker set (autovacuum_enabled = off);
create or replace trigger check_epoch before update on queuert.live_job for each row execute function interleave.check_epoch();
"""
_GATE = {verb: f"select pg_advisory_{verb}(%s, pid) from unnest(%s::int[]) pid".encode() for verb in ("lock", "unlock")}
_UNTOUCHED = "select pg_current_xact_id_if_assigned() is null"
_BLOCKING = "select pid, pg_blocking_pids(pid) from unnest(%s::int[]) pid"


class Choice(NamedTuple):
    """Who is next; `held`: its statement is to stop at the gate."""

    actor: int
    held: bool


class Stuck(Exception):
    """Nobody can go on, or a statement neither ends nor waits."""


class GatedStore(Store):
    """The statements; those that lock or write call the gate once they have their snapshot. `changes` (name: old, new) break some."""

    def __init__(self, schema: str, changes: Mapping[str, tuple[str, str]] | None = None) -> None:
        super().__init__(schema)
        texts = dict(self._sql)
        for name, (old, new) in (changes or {}).items():
            if old not in texts[name].decode():
                raise ValueError(f"{name} does not contain {old!r} any more: mend this mutation")
            texts[name] = texts[name].replace(old.encode(), new.encode())
        self._sql = {name: _gated(text) for name, text in texts.items()}


def _kind(reads: bool, alone: bool) -> Kind:
    return "read" if reads else "commit" if alone else "write"


def _gated(sql: bytes) -> bytes:
    if not LOCKS.search(sql) or b"pg_advisory" in sql:
        return sql
    for place in (rb"%\((?:rows|scans)\)s::jsonb", rb"%\(lanes\)s::smallint\[\]", rb"%\(lane\)s::smallint"):
        if re.search(place, sql):
            return re.sub(place, rb"interleave.gate(\g<0>)", sql, count=1)
    return sql


class Actor:
    """One operation. A Carrier for plans: `run` is a statement, in the open transaction or by itself."""

    def __init__(self, lab: Lab, number: int, name: str, main: AsyncConnection[Any], aside: AsyncConnection[Any]) -> None:
        self._lab = lab
        self.number = number
        self.name = name
        self._main = main
        self._aside = aside
        self.aside = _Aside(self)
        self.state: Literal["busy", "ready", "gated", "blocked", "parked", "done"] = "busy"
        self.pid: int | None = None
        """Of the connection on which a statement is under way."""
        self.step = Step("", "read")
        self.gated = False
        """Does the statement that is next call the gate?"""
        self.seen = 0
        """How many transactions of others had ended when it stopped."""
        self.looked = -1
        """How many had, when it last looked again for want of anybody else."""
        self.ended = 0
        """How many of its own have."""
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._go = asyncio.Event()
        self._open = False
        self._touched: Footprint = frozenset()

    @property
    def others(self) -> int:
        """How many transactions of others have ended."""
        return self._lab.commits - self.ended

    @property
    def session(self) -> object:
        return self._main

    async def run(self, call: Call[Row]) -> list[Row]:
        """A statement, when it is its turn."""
        return await self._statement(call, self._main, alone=not self._open)

    async def apart(self, call: Call[Row]) -> list[Row]:
        """A statement by itself, on another connection."""
        return await self._statement(call, self._aside, alone=True)

    async def _statement(self, call: Call[Row], connection: AsyncConnection[Any], *, alone: bool) -> list[Row]:
        name, reads, undo = self._lab.name_of(call), not LOCKS.search(call.sql), call.sql.startswith(b"rollback to")
        step = Step(name, "write", self._touched) if undo else Step(name, _kind(reads, alone), places_of(name, call))
        if not alone:
            self._touched |= step.places
        await self._turn(step, gated=b"interleave.gate" in call.sql)
        return await self._send(call, connection, publishes=undo or (alone and not reads))

    async def _send(self, call: Call[Row], connection: AsyncConnection[Any], *, publishes: bool) -> list[Row]:
        self.pid = connection.info.backend_pid
        try:
            return await call.on(connection)
        finally:
            self.pid = None
            self.state = "busy"
            if publishes:
                self._lab.commits += 1
                self.ended += 1
            self._lab.changed.set()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """BEGIN is seen by nobody and has no turn; COMMIT and ROLLBACK have."""
        await self._lab.begin.on(self._main)
        self._open, self._touched = True, frozenset()
        try:
            yield
        except Exception:
            await self._end(ROLLBACK, "write")
            raise
        await self._end(COMMIT, "commit")

    async def _end(self, call: Call[Any], kind: Kind) -> None:
        idle = await self._left_nothing()
        await self._turn(Step(call.sql.decode(), "read") if idle else Step(call.sql.decode(), kind, self._touched))
        self._open = False
        await self._send(call, self._main, publishes=not idle)

    async def _left_nothing(self) -> bool:
        """Without a transaction id no row was written or locked: nobody notices how it ends."""
        if ("ring", "write") in self._touched or self._main.info.transaction_status == TransactionStatus.INERROR:
            return False
        cursor = await self._main.execute(_UNTOUCHED)
        return bool((await cursor.fetchall())[0][0])

    async def park(self) -> None:
        """Somebody holds what this needs: again when another has committed or rolled back."""
        self.seen = self.others
        self._go.clear()
        self.state = "parked"
        self._lab.changed.set()
        await self._go.wait()

    async def _turn(self, step: Step, *, gated: bool = False) -> None:
        self.step, self.gated = step, gated
        self._go.clear()
        self.state = "ready"
        self._lab.changed.set()
        await self._go.wait()

    def go(self) -> None:
        self.state = "busy"
        self._go.set()


class _Aside:
    """What `Database.aside` is to `blocking.marking`: each further time, only when something has changed."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._used = False

    async def retrying(self, call: Call[Row]) -> list[Row]:
        if self._used:
            await self._actor.park()
        self._used = True
        return await self._actor.apart(call)


Operation = Callable[[Actor], Awaitable[Any]]


@dataclass(slots=True)
class Node:
    """A point of a schedule: what could be chosen, what was, and what need not be because its order makes no difference."""

    options: Mapping[Choice, Step]
    sleep: frozenset[Choice]
    chosen: Choice
    tried: set[Choice] = field(default_factory=set[Choice])

    def advance(self) -> bool:
        """On to the next choice, if there is one."""
        self.tried.add(self.chosen)
        left = [choice for choice in self.options if choice not in self.sleep and choice not in self.tried]
        if left:
            self.chosen = left[0]
        return bool(left)

    def below(self) -> frozenset[Choice]:
        """What may sleep after this choice: it was tried before it, and its order against it makes no difference."""
        step = self.options[self.chosen]
        return frozenset(
            each
            for each in self.sleep | self.tried
            if each.actor != self.chosen.actor and each in self.options and step.commutes(self.options[each])
        )


class Lab:
    """Connections for up to three operations, one to watch them, and one schedule after the other."""

    def __init__(self, dsn: str) -> None:
        self._database = Database(dsn)
        self._names: dict[bytes, str] = {}
        self._connections: list[AsyncConnection[Any]] = []
        self.changed = asyncio.Event()
        self.commits = 0
        self.actors: list[Actor] = []
        self.trace: list[str] = []
        self.schedules = 0
        self.begin: Call[Any] = BEGIN
        self.strayed = 0
        """How often the same choices led elsewhere."""
        self._held: list[Actor] = []

    async def __aenter__(self) -> Lab:
        self.monitor = await self._database.connect("monitor")
        await self.monitor.execute(_SET_UP.encode(), prepare=False)
        await self.monitor.execute(b"set synchronous_commit = off")
        self._connections += [await self._connect() for _ in range(6)]
        return self

    async def _connect(self) -> AsyncConnection[Any]:
        connection = await self._database.connect("actor")
        await connection.execute(b"set deadlock_timeout = '20ms'")
        await connection.execute(b"set synchronous_commit = off")
        return connection

    async def __aexit__(self, *_: object) -> None:
        for connection in [*self._connections, self.monitor]:
            await connection.close()

    def learn(self, store: Store) -> None:
        """The names of its statements, for traces."""
        self._names.update({text: name for name, text in store._sql.items()})

    async def vacuum(self) -> None:
        """Clear away what earlier schedules have left."""
        await self.monitor.execute(b"vacuum queuert.live_job, queuert.finished_job, queuert.job_blocker, queuert.attempt_log")

    def name_of(self, call: Call[Any]) -> str:
        return self._names.get(call.sql, call.sql.decode()[:40])

    # --- one schedule

    async def play(self, operations: Mapping[str, Operation], path: list[Node], holds: int) -> bool:
        """Run the operations by the choices of `path`, then by the first that there are, which are added to it.

        holds: how many statements may be held. False: the schedule repeats one that was run. Raises Stuck.
        """
        self.commits, self.trace, self._held = 0, [], []
        self.schedules += 1
        self.actors = [Actor(self, number, name, *self._connections[2 * number : 2 * number + 2]) for number, name in enumerate(operations)]
        tasks = [
            asyncio.create_task(self._carry(actor, operation)) for actor, operation in zip(self.actors, operations.values(), strict=True)
        ]
        try:
            return await self._schedule(path, holds)
        finally:
            if any(not task.done() for task in tasks):
                await self._abandon(tasks)

    async def _carry(self, actor: Actor, operation: Operation) -> None:
        try:
            actor.outcome = await operation(actor)
        except Exception as error:
            actor.error = error
        finally:
            actor.state = "done"
            self.changed.set()

    async def _schedule(self, path: list[Node], holds: int) -> bool:
        depth, new, held = 0, True, 0
        asleep: frozenset[Choice] = frozenset()
        while True:
            await self._settle()
            for actor in [each for each in self._held if each.state in ("ready", "parked", "done")]:  # it met no row, and no gate
                await self._gate("unlock", actor)
            options = self._options(holds - held)
            if not options:
                return new
            if depth < len(path):
                if path[depth].options != options:  # another plan, after a vacuum, may look at nothing where the last one met the gate
                    self.strayed += 1
                    path[depth:] = [Node(options, frozenset(), next(iter(options)))]
            elif new:
                awake = [choice for choice in options if choice not in asleep]
                if awake:
                    path.append(Node(options, asleep, awake[0]))
                else:
                    new = False  # everything from here on was run in another order
            choice = path[depth].chosen if depth < len(path) else next(iter(options))
            asleep = path[depth].below() if depth < len(path) else frozenset()
            depth += 1
            held += choice.held
            await self._perform(choice)

    def _options(self, holds: int) -> dict[Choice, Step]:
        """Who can be next. One that is held goes on after another's commit, or if nobody else can; so does one that is parked."""
        options: dict[Choice, Step] = {}
        going = [actor for actor in self.actors if actor.state != "done"]
        for actor in going:
            if actor.state == "ready" or (actor.state == "gated" and actor.others > actor.seen):
                options[Choice(actor.number, False)] = actor.step
            if actor.state == "ready" and actor.gated and holds > 0 and len(going) > 1:
                options[Choice(actor.number, True)] = actor.step._replace(kind="snap")
        if options or not going:
            return options
        gated = [actor for actor in going if actor.state == "gated"]
        if not gated:
            raise Stuck(", ".join(f"{actor.name} is {actor.state} at {actor.step.name}" for actor in going))
        return {Choice(actor.number, False): actor.step for actor in gated}

    async def _perform(self, choice: Choice) -> None:
        actor = self.actors[choice.actor]
        opened = actor.state == "gated"
        self.trace.append(f"{actor.name}: {actor.step.name}{' (held)' if choice.held else ' (goes on)' if opened else ''}")
        if opened:
            actor.state = "busy"
            await self._gate("unlock", actor)
            return
        if choice.held:
            actor.seen = actor.others
            await self._gate("lock", actor)
        actor.go()

    async def _gate(self, verb: Literal["lock", "unlock"], actor: Actor) -> None:
        await self.monitor.execute(_GATE[verb], (GATES, list(self._pids(actor))))
        self._held = [each for each in self._held if each is not actor] + ([actor] if verb == "lock" else [])

    # --- waiting until every statement has ended or is blocked

    async def _settle(self) -> None:
        before = -1
        async with asyncio.timeout(STUCK):
            while True:
                if self.commits != before:  # what was blocked may go on
                    before = self.commits
                    for actor in self.actors:
                        if actor.state == "blocked" or (actor.state == "parked" and actor.others > actor.seen):
                            self._rouse(actor)
                busy = [actor for actor in self.actors if actor.state == "busy"]
                if not busy:
                    if not self._unpark():
                        return
                    continue
                self.changed.clear()
                if any(actor.pid is None for actor in busy) or not await self._stopped(busy):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(BRIEF):
                            await self.changed.wait()

    def _rouse(self, actor: Actor) -> None:
        if actor.state == "parked":
            actor.go()
        actor.state = "busy"

    def _unpark(self) -> bool:
        """When nobody else can go on, those that wait for a change look again, once."""
        if any(actor.state in ("ready", "gated") for actor in self.actors):
            return False
        parked = [actor for actor in self.actors if actor.state == "parked" and actor.looked != actor.others]
        for actor in parked:
            actor.looked = actor.others
            self._rouse(actor)
        return bool(parked)

    async def _stopped(self, busy: Sequence[Actor]) -> bool:
        """Mark those that wait for somebody who will not go on by itself."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BRIEF):
                await self.changed.wait()
                return True
        asked = {actor.pid: actor for actor in self.actors if actor.pid is not None}
        cursor = await self.monitor.execute(_BLOCKING, (list(asked),))
        blocking: dict[int, list[int]] = {row[0]: row[1] for row in await cursor.fetchall()}
        monitor = self.monitor.info.backend_pid
        idle = {pid for actor in self.actors for pid in self._pids(actor) if actor.state not in ("busy", "blocked") and pid != actor.pid}

        def stays(pid: int, seen: frozenset[int]) -> bool:
            others = blocking.get(pid, [])
            return any(
                other == monitor or other in idle or (other in asked and other not in seen and stays(other, seen | {other}))
                for other in others
            )

        found = False
        for actor in busy:
            if actor.pid in blocking and actor.state == "busy" and stays(actor.pid, frozenset({actor.pid})):
                actor.state = "gated" if monitor in blocking[actor.pid] else "blocked"
                found = True
        return found

    def _pids(self, actor: Actor) -> tuple[int, int]:
        return actor._main.info.backend_pid, actor._aside.info.backend_pid

    async def _abandon(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """After a schedule that hangs: new connections."""
        pids = [pid for actor in self.actors for pid in self._pids(actor)]
        await self.monitor.execute(b"select pg_advisory_unlock_all()")
        await self.monitor.execute(b"select pg_terminate_backend(pid) from unnest(%s::int[]) pid", (pids,))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for number in range(len(pids)):
            with contextlib.suppress(psycopg.Error):
                await self._connections[number].close()
            self._connections[number] = await self._connect()
