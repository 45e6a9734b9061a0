"""Running a handler without a database: what it keeps is kept in memory, and time passes when it waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, NoReturn, cast
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from queuert_py import payload
from queuert_py.decisions.phases import Kind
from queuert_py.errors import InvalidInputError, UsageError
from queuert_py.ids import uuid7
from queuert_py.job import In, Job, SyncConnection, current
from queuert_py.job_types import InternalJobType, Out
from queuert_py.runtime.callbacks import Callback, call_back
from queuert_py.runtime.durable import Durable, Found
from queuert_py.runtime.handling import run_alone
from queuert_py.sequence import BlockerEnding, Collected, JobSequence, Outputs
from queuert_py.testing.given import ending_of, model_of
from queuert_py.values import Abort, Block, BlockerPolicy, Continuation, LiveJob, Suspended

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


async def run_handler(
    job_type: InternalJobType[In, Out],
    input: In,
    *,
    attempt: int = 1,
    overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    events: Mapping[str, object] | None = None,
) -> Out | Continuation[Out]:
    """Run a job type's handler once, with no database, and give what it returned: an output, or a Continuation to look into.

    As in a worker, the input is what comes back from its JSON, and what is returned must be what the annotations declare. Blocker fields of
    the input: `finished(output)`, or `failed(…)`. A `def` handler runs in a thread, also one with isolation="process"; a batch has this
    job alone. `job.step` keeps in memory; where the handler sleeps or waits time passes at once, and it runs again from its first line as
    it would in a worker. `on_commit` callbacks are called at the end; `progress` goes nowhere.

    attempt: the number that `job.attempt` shows (from 1). overrides: what makes a dependency instead, `{get_db: fake_db}`. events: what
    `job.wait_for_event` finds, payloads by name; one that is not there has not come when its timeout is over.
    Retry, Snooze, Fail and any other exception of the handler are raised. No retries, no timeout, no middleware. InvalidInputError,
    InvalidOutputError; UsageError when the handler opens a phase, or waits for what cannot come: that takes a database.
    """
    if job_type.handler is None:
        raise UsageError(f"job type {job_type.name!r} has no handler here: import the module that implements it.")
    blockers = Collected()
    text = job_type.dump_input(input, blockers=blockers)
    outputs = Outputs({str(id): ending_of(id) or BlockerEnding(None) for id in blockers.ids})
    try:
        checked = job_type.load_input(text, outputs)
    except ValidationError as error:
        raise InvalidInputError(f"{job_type.name!r} refuses its input: {payload.explain(error, 'input')}.", type=job_type.name) from error
    running = Alone(job_type, text, attempt, events or {})
    before = current.set(running)
    try:
        value = await _run(job_type, checked, running, overrides or {})
    finally:
        current.reset(before)
    if isinstance(value, Continuation):
        following = cast("Continuation[Out]", value)
        following.job_type.dump_input(following.input, blockers=Collected())
    else:
        job_type.dump_output(value)
    await call_back(running.callbacks)
    return cast("Out | Continuation[Out]", value)


async def _run(
    job_type: InternalJobType[Any, Any], input: BaseModel, running: Alone, overrides: Mapping[Callable[..., Any], Callable[..., Any]]
) -> Any:
    """What the handler returns in the end: each time it waits for something, again from its first line."""
    while True:
        running.begin()
        try:
            value = await run_alone(job_type, Job[Any, Any](running, input), running, overrides)
        except Suspended:
            pass
        else:
            if running.durable.suspension is None:
                return value
        running.pass_time()


class Alone:
    """An attempt that no worker runs. It is its own keeper of what outlasts an attempt."""

    abort_reason: Abort | None = None
    shutting_down = False
    in_phase = over = False
    completing = False
    place = None
    wire = payload.PLAIN

    def __init__(self, job_type: InternalJobType[Any, Any], text: str, attempt: int, events: Mapping[str, object]) -> None:
        blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
        known: dict[str, Any] = {
            "lane": 0,
            "sequence_id": str(uuid7()),
            "position": 0,
            "epoch": 0,
            "type": job_type.name,
            "input": text,
            "attempt": attempt,
            "crash_count": 0,
            "begun": True,
            "watched": False,
            "blocker_count": 0,
            "queue": "default",
            "priority": 0,
            "run_at": _EPOCH,
            "expired": False,
        }
        self.row = LiveJob(**{**blank, **known})
        self.policy: BlockerPolicy = job_type.options.get("on_blocker_failure", "hold")
        self._events = events
        self._memo: dict[str, dict[str, Any]] = {}
        self.begin()

    def begin(self) -> None:
        """The handler runs from its first line."""
        self.row = self.row._replace(memo=to_json(self._memo).decode())
        self.durable = Durable(self)
        self.state: dict[str, Any] = {}
        self.callbacks: list[Callback] = []

    def pass_time(self) -> None:
        """What the handler waits for is over. UsageError when it is something that will not come by itself."""
        waits = self.durable.suspension
        if waits is None or isinstance(waits, Block):
            raise UsageError(f"{self.row.type!r} waits for sequences that have not ended: give it finished(output), or use a database.")
        if waits.event and waits.after is None and waits.at is None:
            raise UsageError(f"{self.row.type!r} waits for the event {waits.name!r}: run_handler(…, events={{{waits.name!r}: …}}).")
        section, over = ("deadlines", _EPOCH.isoformat()) if waits.event else ("sleeps", True)
        self._memo.setdefault(section, {})[waits.name] = over

    # --- what a job needs of its attempt

    @property
    def origin(self) -> LiveJob:
        return self.row

    def on_commit(self, callback: Callback) -> None:
        self.callbacks.append(callback)

    def progress(self, progress: str) -> None:
        """Nobody looks."""

    def sync_tx(self) -> SyncConnection:
        raise UsageError("no phase is open.")

    def started(self, places: Sequence[tuple[int, str, int, str]], key: tuple[str, str] | None) -> None:
        """Nothing holds a key."""

    def carrier_for(self, tx: object) -> NoReturn:
        """Asked by whatever writes: that would be in the engine's own database."""
        raise self._without_database(f"{self.row.type!r} starts or changes sequences: that")

    def phase(self, kind: Kind) -> AbstractAsyncContextManager[Any]:
        raise self._without_database(f"{kind}() of {self.row.type!r}")

    def _without_database(self, what: str) -> UsageError:
        return UsageError(
            f"{what} needs a database, run_handler() has none: run the job with the fixture `queuert`, "
            "or on `async with Engine.embedded(ephemeral=True)` with a worker (a real PostgreSQL, gone after the test)."
        )

    # --- what is kept

    def refusal(self) -> str | None:
        """Something may always be kept here."""
        return None

    async def save(self, section: str, name: str, value: str) -> bool:
        self._memo.setdefault(section, {})[name] = from_json(value)
        return True

    async def read_event(self, name: str) -> str | None:
        return to_json(self._events[name]).decode() if name in self._events else None

    async def read_endings(self, ids: Sequence[str]) -> Found:
        return {id: (ending_of(UUID(id)), id) for id in ids}

    async def closes_ring(self, ids: Sequence[str]) -> bool:
        return False

    def find(self, type: str, id: str) -> JobSequence[Any]:
        raise UsageError(f"a started sequence ({type}) as the value of a step needs a database: use the fixture `queuert`.")

    def model(self, type: str, name: str) -> type[BaseModel] | None:
        return model_of(UUID(type))
