"""Running a handler with what stands around it: middleware, dependencies, and the place where it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from queuert_py.annotations import Shape
from queuert_py.dependencies import Provide, Provided, call_here, leave
from queuert_py.errors import ConfigurationError
from queuert_py.job import Job, Running, SyncJob
from queuert_py.job_types import InternalJobType, JobTypes
from queuert_py.middleware import Middleware, attempt_hooks
from queuert_py.runtime.batches import Batches
from queuert_py.runtime.processes import Processes, where
from queuert_py.runtime.threads import Bridge, Threads

if TYPE_CHECKING:
    from queuert_py.runtime.attempt import Attempt


class Surroundings:
    """What the handlers of one worker run in."""

    def __init__(self, registry: JobTypes[Any], types: Mapping[str, InternalJobType[Any, Any]]) -> None:
        self.middleware: dict[str, Sequence[Middleware[Any]]] = {name: registry.middleware_of(each) for name, each in types.items()}
        self.overrides: Mapping[Provide, Provide] = registry.overrides
        self.context = copy_context()
        """What each handler begins with: whoever ends, and so makes room for another, passes nothing on to it."""
        self.threads = Threads()
        self.processes = Processes()
        self._batches = Batches(self)
        for name, job_type in types.items():
            _check_required(job_type, self.middleware[name])
            if job_type.shape is not None and job_type.shape.how == "process":
                where(job_type)

    def around(self, attempt: Attempt, job: Job[Any, Any]) -> Handling | None:
        """What is to run for this attempt; None: the bare handler, nothing stands around it."""
        job_type = attempt.job_type
        shape, middleware = job_type.shape, self.middleware[job_type.name]
        attempt.middleware = middleware
        if shape is None or (shape.how == "async" and not shape.needs and not middleware):
            return None
        apart = partial(self.processes.run, job_type, attempt.row, attempt.endings, attempt.begin_clock) if shape.how == "process" else None
        return Handling(job_type, job, attempt, self, lambda: attempt.abort_reason is not None and not attempt.detached, apart)

    def begin(self, attempt: Attempt) -> None:
        """Have it run: by itself, or with others in a batch."""
        shape = attempt.job_type.shape
        if shape is not None and shape.how == "batch":
            self._batches.add(attempt)
        else:
            attempt.task = asyncio.get_running_loop().create_task(attempt.run(), context=self.context.copy())
        attempt.keep_deadline()
        if shape is None or shape.how != "process":  # there the clock begins when there is a processor for it
            attempt.begin_clock()

    async def close(self) -> None:
        """End what is idle."""
        self.threads.close()
        await self.processes.close()


def _check_required(job_type: InternalJobType[Any, Any], middleware: Sequence[Middleware[Any]]) -> None:
    for kind in job_type.options.get("requires", ()):
        if not any(isinstance(each, kind) for each in middleware):
            raise ConfigurationError(
                f"job type {job_type.name!r} requires the middleware {kind.__name__}: "
                f"engine.use({kind.__name__}(…)) before its worker starts."
            )


class Handling:
    """One run of a handler. holds_on: is it to go on waiting for a thread although its task was cancelled? apart: runs it in a process."""

    def __init__(
        self,
        job_type: InternalJobType[Any, Any],
        job: Job[Any, Any],
        running: Running,
        within: Surroundings,
        holds_on: Callable[[], bool],
        apart: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        assert job_type.handler is not None  # noqa: S101 - only types with handlers are run
        assert job_type.shape is not None  # noqa: S101
        self._job_type = job_type
        self._handler = job_type.handler
        self._shape: Shape = job_type.shape
        self._job = job
        self._running = running
        self._within = within
        self._holds_on = holds_on
        self._apart = apart
        self._opened: list[AbstractAsyncContextManager[Any]] = []
        self._bridge: Bridge | None = None

    async def run(self) -> Any:
        """What the handler returns. `close` must follow, whatever happens here."""
        for hook in attempt_hooks(self._within.middleware.get(self._job_type.name, ())):
            manager = hook(self._job)
            await manager.__aenter__()
            self._opened.append(manager)
        if self._apart is not None:
            return await self._apart()
        if self._shape.how in ("async", "batch"):
            given = await self._provided(call_here, {Job: self._job}).values(self._shape.needs)
            if self._shape.how == "async":
                return await self._handler(self._job, **given)
            (outcome,) = await self._handler([self._job], **given)  # a batch that no worker has gathered
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        bridge = self._bridge = Bridge(self._within.threads, self._holds_on)
        job = SyncJob[Any](self._running, self._job.input, bridge)
        given = await self._provided(bridge.run, {Job: self._job, SyncJob: job}).values(self._shape.needs)
        return await bridge.run(partial(self._handler, job, **given))

    @property
    def left_behind(self) -> bool:
        """Does its thread go on although nobody waits for it any more?"""
        return self._bridge is not None and self._bridge.over

    def _provided(self, call: Any, jobs: Mapping[Any, Any]) -> Provided:
        return Provided(jobs, call, self._opened, self._within.overrides)

    async def close(self, error: BaseException | None) -> BaseException | None:
        """Leave everything in reverse order. `error`: how the run ended; what stands for it at the end. Never raises; once is enough."""
        error = await leave(self._opened, error)
        if self._bridge is not None:
            self._bridge.end()
        return error


async def run_alone(job_type: InternalJobType[Any, Any], job: Job[Any, Any], running: Running, overrides: Mapping[Provide, Provide]) -> Any:
    """What a handler returns that no worker runs: without middleware, and in this process. Raises what comes out of it."""
    within = Surroundings(JobTypes(), {})
    within.overrides = overrides
    handling = Handling(job_type, job, running, within, lambda: False)
    value, error = None, None
    try:
        value = await handling.run()
    except BaseException as raised:
        error = raised
    error = await handling.close(error)
    await within.close()
    if error is not None:
        raise error
    return value
