"""What outlasts an attempt: steps that are not repeated, sleeps and waits that hold no slot. See `queuert_py.memo` for what is kept.

A handler that waits ends by `Suspended`: its job goes back, uncharged, and the handler runs again from its first line when the time (the
event, the sequences) has come. What it did in steps it finds done.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, Protocol, cast

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from queuert_py import memo, options
from queuert_py.errors import (
    BlockerCycleError,
    EventTimeoutError,
    InvalidOutputError,
    LeaseLostError,
    NotRepeatableError,
    PhaseError,
    SequenceNotFoundError,
    UsageError,
)
from queuert_py.ids import lane_of
from queuert_py.job_types import InternalJobType
from queuert_py.payload import Wire
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database
from queuert_py.runtime.callbacks import Callback
from queuert_py.sequence import Blocker, BlockerEnding, JobSequence, model_named, read_output
from queuert_py.values import Block, BlockerPolicy, Duration, LiveJob, Suspend, Suspended

in_step: ContextVar[str | None] = ContextVar("queuert_step", default=None)
"""The step whose function this code runs in."""

Found = Mapping[str, tuple[BlockerEnding | None, str | None]]
"""How sequences ended (None: not yet), and the type of their last job, by id. What does not exist is not in it."""


class Keeper(Protocol):
    """Where an attempt keeps things: the job's row, or memory in a test without a database."""

    @property
    def row(self) -> LiveJob: ...
    @property
    def policy(self) -> BlockerPolicy: ...
    @property
    def wire(self) -> Wire: ...
    def refusal(self) -> str | None:
        """Why nothing may be kept just now."""
        ...

    async def save(self, section: str, name: str, value: str) -> bool:
        """Keep an entry at once; False: a wait is not over, since its event has come. LeaseLostError."""
        ...

    async def read_event(self, name: str) -> str | None:
        """The payload of an event that has come since the claim. LeaseLostError."""
        ...

    async def read_endings(self, ids: Sequence[str]) -> Found: ...
    async def closes_ring(self, ids: Sequence[str]) -> bool: ...
    def find(self, type: str, id: str) -> JobSequence[Any]: ...
    def model(self, type: str, name: str) -> type[BaseModel] | None: ...


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that is to run, or (`done`) has run in an earlier attempt."""

    name: str
    adapter: TypeAdapter[Any]
    done: bool = False
    value: Any = None


class Durable:
    """The durable calls of one attempt's handler. `suspension`: what it waits for, once it does."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._memo = memo.Memo.read(keeper.row.memo)
        self._names: dict[str, set[str]] = {}
        self.suspension: Suspend | Block | None = None

    def restart(self) -> None:
        """The handler begins again within its attempt: names are counted anew."""
        self._names.clear()

    # --- steps

    async def step(self, name: str | None, fn: Callable[[], Any], result: Any) -> Any:
        """See `Job.step`."""
        begun = self.begin(name, fn, result)
        if begun.done:
            return begun.value
        token = in_step.set(begun.name)
        try:
            value = fn()
            if inspect.isawaitable(value):
                value = await value
        finally:
            in_step.reset(token)
        await self.end(begun, value)
        return value

    def begin(self, name: str | None, fn: Callable[[], Any], result: Any) -> Begun:
        """The first half of a step: its value, if it has one; else its function is to be run, with `in_step` set."""
        self._check("step()")
        named = self._name("step", name)
        adapter = memo.adapter_of(fn, result)
        entry = self._memo.steps.get(named)
        if entry is None:
            return Begun(named, adapter)
        return Begun(named, adapter, done=True, value=memo.recall(entry, adapter, named, self._keeper.find, self._keeper.wire))

    async def end(self, begun: Begun, value: Any) -> None:
        """The second half: keep what it returned."""
        entry = memo.keep(value, begun.adapter, begun.name, self._keeper.wire)
        await self._keeper.save("steps", begun.name, entry)
        self._memo.add("steps", begun.name, entry)

    # --- waiting

    async def sleep(self, duration: Duration | None, until: datetime | None, name: str | None) -> None:
        """See `Job.sleep`."""
        self._check("sleep()")
        span, at = options.span(duration, "duration"), options.due(until, "until")
        if (span is None) == (at is None):
            raise UsageError("sleep() takes a duration, or until=: one of them.")
        named = self._name("sleep", name)
        known, now = self._memo.sleeps.get(named), self._keeper.row.run_at
        if known is None:
            if span or (at is not None and at > now):
                self._suspend(Suspend(named, after=span, at=at))
        elif not memo.passed(known, now):
            self._suspend(Suspend(named, at=datetime.fromisoformat(str(known))))

    async def wait_for_event(self, name: str, timeout: Duration | None, type: Any) -> Any:
        """See `Job.wait_for_event`."""
        self._check("wait_for_event()")
        options.words(name, "the name of an event", 200)
        limit = options.span(timeout, "timeout", positive=True)
        deadline = self._memo.deadlines.get(name)
        if deadline is True:
            raise _timed_out(name)
        event = self._memo.events.get(name)
        if event is not None:
            return memo.event_payload(self._keeper.wire.open(to_json(event["payload"]).decode()), type, name)
        text = await self._keeper.read_event(name)
        if text is None and deadline is None:
            self._suspend(Suspend(name, event=True, after=limit))
        if text is None and not memo.passed(deadline or False, self._keeper.row.run_at):
            self._suspend(Suspend(name, event=True, at=datetime.fromisoformat(str(deadline))))
        if text is None and await self._keeper.save("deadlines", name, "true"):
            self._memo.add("deadlines", name, "true")
            raise _timed_out(name)
        text = text or await self._keeper.read_event(name)
        self._memo.add("events", name, f'{{"payload":{text}}}')
        return memo.event_payload(self._keeper.wire.open(text or "null"), type, name)

    async def wait_for(self, blockers: Iterable[Blocker[Any]], name: str | None) -> list[Blocker[Any]]:
        """See `Job.wait_for`."""
        self._check("wait_for()")
        wanted: list[Any] = options.several(blockers, "wait_for()", "started sequences")
        if not all(isinstance(each, Blocker) for each in wanted):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError("wait_for() takes started sequences: what start_sequence() or engine.sequence(type, id) returned.")
        named = self._name("wait_for", name)
        ids = list(dict.fromkeys(str(each.id) for each in wanted))
        before = self._memo.waits.get(named)
        if before is not None and set(before) != set(ids):
            raise NotRepeatableError(
                f"wait_for {named!r} waits for other sequences than when the handler ran before: start them in a step "
                "(await job.step(…, lambda: engine.start_sequences(…))), so that they are started once."
            )
        if not ids:
            return wanted
        if self._keeper.row.sequence_id in ids:
            raise BlockerCycleError(f"wait_for {named!r}: the sequence would wait for itself.", id=self._keeper.row.sequence_id)
        found = await self._keeper.read_endings(ids)
        missing = [id for id in ids if id not in found]
        if missing:
            raise SequenceNotFoundError(f"wait_for {named!r}: sequence {', '.join(missing)} does not exist.", ids=missing)
        endings = {id: ending for id, (ending, _) in found.items() if ending is not None}
        enough = all(id in endings and (endings[id].outcome == "completed" or self._keeper.policy == "ignore") for id in ids)
        if not enough:
            if before is None and await self._keeper.closes_ring(ids):
                raise BlockerCycleError(f"wait_for {named!r}: one of the sequences waits for this one.", id=self._keeper.row.sequence_id)
            self._suspend(Block(ids, named, self._keeper.policy))
        for each in wanted:
            self._fill(each, endings[str(each.id)], found[str(each.id)][1])
        return wanted

    def _fill(self, blocker: Blocker[Any], ending: BlockerEnding, last_type: str | None) -> None:
        def read(ending: BlockerEnding) -> Any:
            name = ending.output_type
            if name is None:
                return None
            contract = blocker._contract if isinstance(blocker, JobSequence) else None
            model = model_named(contract, name, lambda name: self._keeper.model(last_type or "", name))
            if model is None:
                raise InvalidOutputError(f"sequence {blocker.id} returned a {name}, which its handle does not declare.")
            return read_output(ending, {name: model})

        blocker._fill(ending, read)

    # --- what all of them share

    def _check(self, call: str) -> None:
        if self.suspension is not None:
            raise Suspended(f"the handler is suspended ({self.suspension.name}): {call} comes too late.")
        refusal = self._keeper.refusal()
        if refusal is not None:
            raise PhaseError(f"{call} {refusal}")
        if in_step.get() is not None:
            raise PhaseError(f"{call} belongs to the handler, not into its step {in_step.get()!r}.")

    def _name(self, kind: str, name: str | None) -> str:
        """The name under which it is found again: by default its number among the calls of its kind."""
        used = self._names.setdefault(kind, set())
        named = f"#{len(used) + 1}" if name is None else options.words(name, f"the name of a {kind}", 200)
        if named in used:
            raise UsageError(f"{kind} {named!r} is there twice: by its name a {kind} is found again, give each its own.")
        used.add(named)
        return named

    def _suspend(self, verdict: Suspend | Block) -> NoReturn:
        self.suspension = verdict
        raise Suspended(f"the job waits ({verdict.name}); its handler runs again from the first line")


def _timed_out(name: str) -> EventTimeoutError:
    return EventTimeoutError(f"event {name!r} has not come in time.", event=name)


class Home(Protocol):
    """What keeping needs of the worker."""

    @property
    def database(self) -> Database: ...
    @property
    def wire(self) -> Wire: ...
    def find(self, type: str, id: str) -> JobSequence[Any]:
        """A handle."""
        ...

    def model(self, type: str, name: str) -> type[BaseModel] | None:
        """An output model of a job type, by its name."""
        ...

    def progress(self, job: LiveJob, progress: str) -> None: ...


class Holder(Protocol):
    """The attempt, as its keeper sees it."""

    writing: bool
    row: LiveJob
    job_type: InternalJobType[Any, Any]

    @property
    def host(self) -> Home: ...
    @property
    def in_phase(self) -> bool: ...
    async def lost(self) -> LeaseLostError: ...


class RowKeeper:
    """Keeps in the job's row, by statements of their own that match the attempt's epoch."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    @property
    def row(self) -> LiveJob:
        return self._holder.row

    @property
    def policy(self) -> BlockerPolicy:
        return self._holder.job_type.options.get("on_blocker_failure", "hold")

    @property
    def wire(self) -> Wire:
        return self._holder.host.wire

    def refusal(self) -> str | None:
        if self._holder.writing:
            return "comes after the handler's return."
        if self._holder.in_phase:
            return "cannot be part of a phase, whose transaction would stay open meanwhile: call it before the block, or after it."
        return None

    async def save(self, section: str, name: str, value: str) -> bool:
        database = self._holder.host.database
        if await database.run(database.store.save_memo(self.row, section, name, value)):
            return True
        if section == "deadlines" and await self.read_event(name) is not None:
            return False
        raise await self._holder.lost()

    async def read_event(self, name: str) -> str | None:
        database, row = self._holder.host.database, self.row
        found = await database.run(database.store.read_event(row.lane, row.sequence_id, name))
        if not found or found[0][0] != row.epoch:
            raise await self._holder.lost()
        return found[0][2]

    async def read_endings(self, ids: Sequence[str]) -> Found:
        database = self._holder.host.database
        found = await database.run(database.store.read_results(self._parts(ids)))
        return {
            id: (None if outcome is None else BlockerEnding(outcome, output, output_type, to_json(error).decode() if error else None), type)
            for id, watched, outcome, _, output, output_type, error, type in found
            if outcome is not None or watched is not None
        }

    async def closes_ring(self, ids: Sequence[str]) -> bool:
        database = self._holder.host.database
        return bool(await database.run(database.store.find_cycle(self._parts(ids), self.row.lane, self.row.sequence_id)))

    def find(self, type: str, id: str) -> JobSequence[Any]:
        return self._holder.host.find(type, id)

    def model(self, type: str, name: str) -> type[BaseModel] | None:
        return self._holder.host.model(type, name)

    def _parts(self, ids: Sequence[str]) -> list[str]:
        lanes = self._holder.host.database.store.lanes
        return [rows.sequence_row(id, lane_of(id, lanes)) for id in ids]


class Keeps:
    """The part of an attempt that is about more than its own run: made when it is first asked for."""

    __slots__ = ("_durable", "_state", "callbacks")

    def __init__(self) -> None:
        self._durable: Durable | None = None
        self._state: dict[str, Any] | None = None
        self.callbacks: list[Callback] | None = None

    @property
    def durable(self) -> Durable:
        if self._durable is None:
            self._durable = Durable(RowKeeper(cast("Holder", self)))
        return self._durable

    @property
    def suspension(self) -> Suspend | Block | None:
        """What the handler waits for, once it has said so: whatever it does afterwards."""
        return None if self._durable is None else self._durable.suspension

    @property
    def state(self) -> dict[str, Any]:
        if self._state is None:
            self._state = {}
        return self._state

    def on_commit(self, callback: Callback) -> None:
        self.callbacks = [*(self.callbacks or ()), callback]

    def restart(self) -> None:
        """The handler begins again within this attempt."""
        self.callbacks = self._state = None
        if self._durable is not None:
            self._durable.restart()

    def take_callbacks(self, since: int = 0) -> list[Callback]:
        """Those registered after the first `since`; they are forgotten."""
        taken = (self.callbacks or [])[since:]
        if taken:
            self.callbacks = (self.callbacks or [])[:since]
        return taken
