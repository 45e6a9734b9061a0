"""Completing a sequence's current job from outside: hold it, ask, write; once, however often a lost connection has it tried again."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, cast
from uuid import UUID

from pydantic import BaseModel

from queuert_py.control import Declined, OpenJob
from queuert_py.errors import InvalidOutputError, SequenceMovedError, UsageError
from queuert_py.job_types import InternalJobType
from queuert_py.joining import ForeignTx
from queuert_py.payload import Wire
from queuert_py.postgres import blocking, controls
from queuert_py.postgres.controls import Changes, Held
from queuert_py.postgres.database import Database
from queuert_py.postgres.plans import carry_out
from queuert_py.values import Continuation, Ending, LiveJob, Step


class Engine(Protocol):
    """What is asked of the engine."""

    wire: Wire

    def get(self, name: str) -> InternalJobType[Any, Any]: ...
    def step_for(self, continuation: Continuation[Any], row: LiveJob) -> Step: ...


class Completion:
    """One call of `complete_sequence`: what it wants, and what its earlier tries have done."""

    def __init__(self, engine: Engine, id: str, outcome: Any, job_type: InternalJobType[Any, Any] | None, position: int) -> None:
        self._engine = engine
        self._id = id
        self._outcome = outcome
        self._job_type = job_type
        self._position = position
        self._tried: tuple[Held, Changes] | None = None

    async def on(self, database: Database, connection: Any, tx: object) -> Changes | None:
        """Hold the job, ask, write. None when it was declined."""
        store = database.store
        if self._tried is not None and await carry_out(controls.written(store, self._tried[0]), connection):
            return self._tried[1]
        held = await carry_out(controls.hold(store, self._id, self._position), connection)
        if self._job_type is not None and held.type != self._job_type.name:  # maybe gone on to a type that is not known here
            message = f"the current job of sequence {self._id} is a {held.type!r}, not a {self._job_type.name!r}: look at it again."
            raise SequenceMovedError(message, position=held.position, type=held.type)
        known = self._engine.get(held.type)
        if self._job_type is not None and known is not self._job_type:
            raise UsageError(f"complete_sequence(): job_type= is another {held.type!r} than the one that is declared on this engine.")
        value = await self._answer(held, known, tx)
        if isinstance(value, Declined):
            return None
        verdict = self._verdict(value, held, known)
        blockers = verdict.blockers if isinstance(verdict, Step) else ()
        plan = partial(controls.complete, store, held, verdict)
        changes = await blocking.marking(database, lambda: carry_out(plan(), connection), blockers, patience=blocking.PATIENCE_INSIDE)
        self._tried = held, changes
        return changes

    async def _answer(self, held: Held, known: InternalJobType[Any, Any], tx: object) -> object:
        if not callable(self._outcome) or isinstance(self._outcome, BaseModel):
            return self._outcome
        ids = UUID(held.sequence_id), UUID(held.job_id)
        job: OpenJob[Any] = OpenJob(
            *ids,
            held.type,
            held.position,
            held.attempt,
            held.running,
            held.created_at,
            lambda: known.load_input(held.input),
        )
        given = [job, tx.transaction if isinstance(tx, ForeignTx) else tx][: _parameters(self._outcome)]
        value = self._outcome(*given)
        return await cast("Awaitable[object]", value) if inspect.isawaitable(value) else value

    def _verdict(self, value: object, held: Held, known: InternalJobType[Any, Any]) -> Ending | Step:
        engine = self._engine
        if not isinstance(value, Continuation):
            try:
                return Ending("completed", *known.dump_output(value, engine.wire))
            except InvalidOutputError as error:
                ways = f"an output of {known.name!r} ({known.contract}), continue_with(…), or job.decline() is needed"
                given, why = type(value).__name__, error.__cause__
                what = f"this {given} cannot be stored ({why})" if why else f"{given} given"
                raise UsageError(f"complete_sequence(): {what}: {ways}.") from error
        most = known.options.get("max_steps", 10_000)
        if held.position + 1 >= most:
            raise UsageError(f"sequence {self._id} has reached max_steps ({most}) of {held.type!r}: complete it with an output.")
        row: LiveJob = held.job()
        return engine.step_for(cast("Continuation[Any]", value), row)


def _parameters(function: Callable[..., object]) -> int:
    """How many positional arguments it takes, at most the two that there are."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(2, sum(each.kind in kinds for each in inspect.signature(function).parameters.values()))
