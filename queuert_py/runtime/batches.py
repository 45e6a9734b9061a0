"""Batches: one call of a handler for several jobs, each with a lease, a fence, a time limit and an outcome of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, cast

from queuert_py.dependencies import Provided, call_here, leave
from queuert_py.errors import InvalidOutputError, PhaseError
from queuert_py.job import Job, current
from queuert_py.job_types import InternalJobType
from queuert_py.middleware import attempt_hooks
from queuert_py.runtime.loops import interrupt
from queuert_py.values import Abort, Continuation, LiveJob

if TYPE_CHECKING:
    from queuert_py.runtime.attempt import Attempt
    from queuert_py.runtime.handling import Surroundings

logger = logging.getLogger("queuert_py.worker")
Opened = list[AbstractAsyncContextManager[Any]]


class Batches:
    """Gathers what one claim has brought. It waits for nothing else: a call has the jobs that were there at this moment."""

    def __init__(self, within: Surroundings) -> None:
        self._within = within
        self._gathered: dict[str, list[Attempt]] = {}

    def add(self, attempt: Attempt) -> None:
        """Run it with the others of its type."""
        name = attempt.job_type.name
        if name not in self._gathered:
            asyncio.get_running_loop().call_soon(self._run, name, context=self._within.context.copy())
        self._gathered.setdefault(name, []).append(attempt)

    def _run(self, name: str) -> None:
        gathered = self._gathered.pop(name)
        job_type = gathered[0].job_type
        attempts = [each for each in gathered if not each.detached]
        size = job_type.shape.size if job_type.shape is not None else 1
        for first in range(0, len(attempts), size):
            Batch(job_type, attempts[first : first + size], self._within)


class Batch:
    """One call. For what runs in it, it is the attempt; but it has no job of its own."""

    shutting_down = False
    in_phase = False
    completing = False
    origin = None

    def __init__(self, job_type: InternalJobType[Any, Any], attempts: Sequence[Attempt], within: Surroundings) -> None:
        self._job_type = job_type
        self._attempts = attempts
        self._within = within
        self._open: dict[Attempt, Opened] = {}
        self._interrupt: KeyboardInterrupt | None = None
        self.abort_reason: Abort | None = None
        self.state: dict[str, Any] = {}
        self._task = asyncio.get_running_loop().create_task(self._run())
        for attempt in attempts:
            attempt.batch, attempt.task = self, self._task

    # --- what the package asks the running attempt for

    @property
    def row(self) -> LiveJob:
        return self._attempts[0].row

    @property
    def over(self) -> bool:
        return all(attempt.writing for attempt in self._attempts)

    @property
    def place(self) -> tuple[object, ...]:
        return self._attempts[0].place

    def carrier_for(self, tx: object) -> None:
        """No transaction."""

    def __getattr__(self, name: str) -> Any:
        raise PhaseError(f"{name} belongs to one job, and this handler has a batch of them: return one outcome per job.")

    # --- running

    async def _run(self) -> None:
        current.set(cast("Any", self))
        try:
            await self._handle()
        except BaseException as error:  # nothing of ours should fail, but then nothing may be left without an end
            for attempt in self._attempts:
                if not attempt.writing:
                    attempt.conclude(None, error)
        if self._interrupt is not None:
            interrupt(self._interrupt)

    async def _handle(self) -> None:
        jobs: dict[Attempt, Job[Any, Any]] = {}
        for attempt in self._attempts:
            job = None if attempt.detached else attempt.load()
            if job is not None and await self._enter(attempt, job):
                jobs[attempt] = job
        over = all(attempt.abort_reason is not None for attempt in jobs)
        outcomes: Iterable[Any] = [None] * len(jobs) if over else await self._outcomes(list(jobs.values()))
        for attempt, outcome in reversed(list(zip(jobs, outcomes, strict=True))):
            error: BaseException | None = outcome if isinstance(outcome, BaseException) else None
            if attempt.detached or over:
                error = asyncio.CancelledError(attempt.abort_reason)
            self._conclude(attempt, outcome, await leave(self._open[attempt], error))

    async def _enter(self, attempt: Attempt, job: Job[Any, Any]) -> bool:
        """Enter the middleware of one job; one that fails there fails alone."""
        attempt.middleware = self._within.middleware[self._job_type.name]
        opened = self._open[attempt] = []
        try:
            for hook in attempt_hooks(attempt.middleware):
                manager = hook(job)
                await manager.__aenter__()
                opened.append(manager)
        except BaseException as error:
            self._conclude(attempt, None, await leave(opened, error))
            return False
        return True

    async def _outcomes(self, jobs: Sequence[Job[Any, Any]]) -> Iterable[Any]:
        """One per job. What the handler, or a dependency, raises is the outcome of each."""
        assert self._job_type.handler is not None  # noqa: S101 - only types with handlers are run
        assert self._job_type.shape is not None  # noqa: S101
        opened: Opened = []
        outcomes: Sequence[Any] = ()
        failure: BaseException | None = None
        try:
            given = await Provided({}, call_here, opened, self._within.overrides).values(self._job_type.shape.needs)
            outcomes = await self._job_type.handler(jobs, **given)
            self._check(outcomes, len(jobs))
        except BaseException as error:
            failure = error
            self._interrupt = error if isinstance(error, KeyboardInterrupt) else None
        failure = await leave(opened, failure)
        return outcomes if failure is None else [failure] * len(jobs)

    def _check(self, outcomes: Any, wanted: int) -> None:
        found = len(outcomes) if isinstance(outcomes, Sequence) else type(outcomes).__name__  # pyright: ignore[reportUnknownArgumentType]
        if found != wanted:
            raise InvalidOutputError(
                f"the handler of {self._job_type.name!r} returned {found} outcomes for {wanted} jobs: return one per job, in their order.",
                type=self._job_type.name,
            )

    def _conclude(self, attempt: Attempt, outcome: object, error: BaseException | None) -> None:
        if attempt.detached:
            return
        if error is None and isinstance(outcome, Continuation):
            error = InvalidOutputError(f"the batch handler of {self._job_type.name!r} returned a Continuation: it can only return outputs.")
        attempt.conclude(cast("object", outcome), error)

    # --- aborting

    def dropped(self, grace: float) -> None:
        """One of the jobs is not to be written any more, or the worker stops. Without any left to go on for the handler is cancelled; one
        that ignores it is left alone. Jobs that are given back since the worker stops are so when the handler has ended."""
        left = [attempt for attempt in self._attempts if attempt.abort_reason is None and not attempt.writing]
        if self._task.done() or left or self.abort_reason is not None:
            return
        self.abort_reason = next(attempt.abort_reason for attempt in reversed(self._attempts) if attempt.abort_reason is not None)
        self._task.cancel(self.abort_reason)
        loop = asyncio.get_running_loop()
        loop.call_later(grace / 2, self._task.cancel, self.abort_reason)
        loop.call_later(grace, self._given_up)

    def _given_up(self) -> None:
        if not self._task.done():
            logger.error("the batch handler of %s ignores cancellation (%s); detached", self._job_type.name, self.abort_reason)
            for attempt in self._attempts:
                attempt.detach()
