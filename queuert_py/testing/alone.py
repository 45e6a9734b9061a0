"""For the tests of handlers: run one without a database, or, where it writes, on a real and ephemeral PostgreSQL.

`run_handler` needs no database at all; a handler with phases runs on `Engine.embedded(jobs, ephemeral=True)`, with a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, cast

from pydantic import ValidationError

from queuert_py import payload
from queuert_py.decisions.phases import Kind
from queuert_py.errors import InvalidInputError, UsageError
from queuert_py.ids import uuid7
from queuert_py.job import In, Job, SyncConnection, current
from queuert_py.job_types import InternalJobType, Out
from queuert_py.runtime.handling import run_alone
from queuert_py.values import Abort, Continuation, LiveJob

__all__ = ["run_handler"]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


async def run_handler(
    job_type: InternalJobType[In, Out],
    input: In,
    *,
    attempt: int = 1,
    overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> Out | Continuation[Out]:
    """Run a job type's handler once, with no database, and give what it returned: an output, or a Continuation to look into.

    As in a worker, the input is what comes back from its JSON, and what is returned must be what the annotations declare.
    attempt: the number that `job.attempt` shows (from 1). overrides: what makes a dependency instead: `{get_db: fake_db}`. A `def` handler
    runs in a thread, also one with isolation="process"; a batch has this job alone. Retry, Snooze, Fail and any other exception of the handler
    are raised. No retries, no timeout, no middleware. InvalidInputError, InvalidOutputError; UsageError when the handler opens a phase: that takes a database.
    """
    if job_type.handler is None:
        raise UsageError(f"job type {job_type.name!r} has no handler here: import the module that implements it.")
    text = job_type.dump_input(input)
    try:
        checked = job_type.load_input(text)
    except ValidationError as error:
        raise InvalidInputError(f"{job_type.name!r} refuses its input: {payload.explain(error, 'input')}.", type=job_type.name) from error
    running = _Alone(job_type.name, text, attempt)
    before = current.set(running)
    try:
        value = await run_alone(job_type, Job[Any, Any](running, checked), running, overrides or {})
    finally:
        current.reset(before)
    if isinstance(value, Continuation):
        following = cast("Continuation[Out]", value)
        following.job_type.dump_input(following.input)
        return following
    job_type.dump_output(value)
    return cast("Out", value)


class _Alone:
    """An attempt that no worker runs."""

    abort_reason: Abort | None = None
    shutting_down = False
    in_phase = False
    completing = False

    def __init__(self, name: str, text: str, attempt: int) -> None:
        blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
        known: dict[str, Any] = {
            "lane": 0,
            "sequence_id": str(uuid7()),
            "position": 0,
            "epoch": 0,
            "type": name,
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

    @property
    def origin(self) -> LiveJob:
        return self.row

    def sync_tx(self) -> SyncConnection:
        raise UsageError("no phase is open.")

    def started(self, places: Sequence[tuple[int, str, int, str]], key: str | None) -> None:
        """Nothing holds a key."""

    def connection_of(self, tx: object) -> None:
        """No transaction, no connection."""

    def phase(self, kind: Kind) -> AbstractAsyncContextManager[Any]:
        raise UsageError(
            f"{kind}() of {self.row.type!r} needs a database, run_handler() has none: start the job on "
            "`async with Engine.embedded(ephemeral=True)` with a worker (a real PostgreSQL, gone after the test)."
        )
