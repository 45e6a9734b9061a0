"""Working: workers in this process, sequences that run here, one round of work."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Context
from typing import Any, Literal, overload

from pydantic import BaseModel
from typing_extensions import Unpack

from queuert_py import options
from queuert_py.engine.starts import Starts
from queuert_py.errors import (
    InvalidInputError,
    MapStoppedError,
    QueuertError,
    SequenceCancelledError,
    SequenceExpiredError,
    SequenceFailedError,
    SequenceNotFoundError,
    UsageError,
)
from queuert_py.job import In, Tx
from queuert_py.job_types import JobType, Out, job_type_of
from queuert_py.postgres.starts import Outcome, Start
from queuert_py.runtime.context import WorkerContext
from queuert_py.runtime.here import Here, let_go, start_at, unrestricted
from queuert_py.runtime.once import Once
from queuert_py.runtime.settings import checked
from queuert_py.runtime.worker import Worker
from queuert_py.sequence import Collected
from queuert_py.starting import Batch
from queuert_py.values import Duration, Request, StartOptions, Summary


class Works(Starts[Tx]):
    """The verbs that run handlers in this process."""

    _here: Here | None = None

    def worker(
        self,
        *,
        concurrency: int = 100,
        queues: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        lease: Duration = 30.0,
        poll_interval: Duration | tuple[float, float] = (1.0, 60.0),
        shutdown_timeout: Duration = 30.0,
        grace: Duration = 5.0,
        drain: bool = False,
        name: str = "worker",
    ) -> WorkerContext:
        """A worker in this process: `async with engine.worker():`, or `worker = await engine.worker().start()`.

        concurrency: handlers at once. queues, types: what it serves (default: every type with a handler, their queues and "default").
        lease: how long a silent worker keeps its jobs (30 s, renewed every third). poll_interval: busy and idle seconds between looks
        when no hint comes. shutdown_timeout: how long handlers may go on at the end; grace: what a cancelled handler has to clean up.
        drain: end by itself when nothing is due and nothing runs (what is scheduled, or waits for its retry, stays).
        ConfigurationError for a setting that cannot be; UnknownJobTypeError, when it starts, for types that are not declared.
        """
        settings = checked(
            concurrency=concurrency,
            queues=queues,
            types=types,
            lease=lease,
            poll_interval=poll_interval,
            shutdown_timeout=shutdown_timeout,
            grace=grace,
            drain=drain,
            name=name,
        )
        return WorkerContext(self, settings)

    # --- one round

    async def run_once(
        self,
        *,
        limit: int = 100,
        budget: Duration = 30.0,
        concurrency: int = 100,
        queues: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        lease: Duration = 30.0,
        grace: Duration = 5.0,
    ) -> Summary:
        """One round of work, for a cron job or a serverless function: take back what is lost, claim, run, and say what became of it.

        limit: the most jobs it claims; a sequence that continues goes on in the same round. budget: how long it may take; what still
        runs then is cancelled, has `grace` to clean up, and is given back uncharged. It ends before when nothing is due any more.
        It leaves nothing in a session of the database (no LISTEN, no session lock): with `Engine(…, pooler=True)` a transaction pooler may
        be in between. Should this process die, its jobs are taken back when their `lease` ends. UsageError, and ConfigurationError as
        for `worker`.
        """
        options.count(limit, "limit")
        most = options.needed(budget, "budget", positive=True)
        settings = checked(concurrency=concurrency, queues=queues, types=types, lease=lease, grace=grace, name="once")
        await self._db()
        self.validate()
        return await Once(self, settings, limit).round(most.total_seconds())

    # --- chosen sequences

    @overload
    async def run(self, job_type: JobType[In, Out], /, input: In, **how: Unpack[StartOptions]) -> Out: ...
    @overload
    async def run(
        self, job_type: str, /, input: BaseModel | Mapping[str, object], *, output: type[Out], **how: Unpack[StartOptions]
    ) -> Out: ...
    @overload
    async def run(self, job_type: str, /, input: BaseModel | Mapping[str, object], **how: Unpack[StartOptions]) -> Any: ...
    async def run(self, job_type: Any, /, input: Any, *, output: Any = None, **how: Unpack[StartOptions]) -> Any:
        """Start a sequence, run it in this process, and return its output: a function call that survives a crash.

        Its first job is born leased to this process: no other worker can take it; the jobs after it run here too, where this process has
        their handlers. A failed attempt is retried by its policy, here or by any worker. Should this process die, any worker goes on.
        timeout= is that of each attempt, as everywhere among these options; the whole call is bounded by `async with asyncio.timeout(…)`.
        A cancelled caller gives back the job that it has started, unless somebody else here waits for it. As `start_sequence` (but
        delay=, at= and debounce, which contradict it) and `result`; UsageError where this process has no handler, or inside a handler,
        where it would hold a slot.
        """
        found = self._type(job_type, "run()")
        contract = self._expected(found, output, "run()")
        if await self._handler() is not None:
            raise UsageError(
                "run() inside a handler would hold its slot: continue_with the job, or make its sequence a Blocker of the next one."
            )
        dedup: Any = how.get("dedup")
        if how.get("delay") is not None or how.get("at") is not None or getattr(dedup, "delay", None) is not None:
            raise UsageError("run() runs it now: leave out delay=, at= and Dedup.debounce(), or use start_sequence().")
        if found.handler is None:
            raise UsageError(f"job type {found.name!r} has no handler in this process: import the module that implements it.")
        database = await self._db()
        request = Request(found, input, how)
        batch = Batch([request], lanes=database.store.lanes, wire=self.wire, origin=None, get=self.get)
        start = batch.check()[0]
        worker = await self._worker_for(start)

        def told(outcome: Outcome) -> None:
            if self._events.wanted:
                for event in batch.events([outcome]):
                    self._events.emit(event)

        handle = batch.handles([await start_at(worker, database, start, told)], self)[0]
        handle._contract = contract
        id = str(handle.id)
        try:
            with worker.wanting(id) if isinstance(worker, Here) else nullcontext():
                return await self._result_of(handle, None)
        except asyncio.CancelledError:
            if not handle.deduplicated and not self._waiters.awaits(id):  # it is nobody else's, and nobody else waits for it
                let_go(worker, id)
            raise

    async def _worker_for(self, start: Start) -> Worker:
        """A worker of this engine that serves everything and has room, else one for just this."""
        for worker in self._workers:
            if unrestricted(worker, start.fields["queue"], start.fields["type"]):
                return worker
        self._making = self._making or asyncio.Lock()
        async with self._making:
            if self._here is None or self._here.shutting_down or self._here not in self._workers:
                self.validate()
                here = Here(self)
                await asyncio.get_running_loop().create_task(here.start(), context=Context())  # its handlers are not the caller's alone
                self._here = here
            return self._here

    @overload
    async def map(
        self,
        job_type: JobType[In, Out],
        inputs: Iterable[In],
        /,
        *,
        concurrency: int = 3,
        stop_on_error: Literal[False] = False,
        **how: Unpack[StartOptions],
    ) -> list[Out | QueuertError]: ...
    @overload
    async def map(
        self,
        job_type: JobType[In, Out],
        inputs: Iterable[In],
        /,
        *,
        concurrency: int = 3,
        stop_on_error: Literal[True],
        **how: Unpack[StartOptions],
    ) -> list[Out]: ...
    async def map(
        self, job_type: Any, inputs: Iterable[Any], /, *, concurrency: int = 3, stop_on_error: bool = False, **how: Unpack[StartOptions]
    ) -> list[Any]:
        """`run` for each input, `concurrency` of them at a time; the outputs in the order of the inputs.

        A sequence that does not complete has its error (SequenceFailedError, …) in its place. stop_on_error: after the first one nothing
        more is started, what runs is awaited, and MapStoppedError tells what there is and what was not started. All inputs are checked
        before the first one starts. `how`: as `run`, for each of them; without key= and id=, which would make them one.
        """
        job_type_of(job_type, "map()")
        options.count(concurrency, "concurrency")
        if how.keys() & {"key", "id", "dedup"}:
            raise UsageError("map() starts a sequence for each input: key=, dedup= and id= would make them one.")
        given = options.several(inputs, "map()", "inputs")
        for number, input in enumerate(given):
            try:
                job_type.dump_input(input, self.wire, Collected())
            except InvalidInputError as error:
                raise InvalidInputError(f"{error} (input {number})", **error.details) from error.__cause__
        waiting = deque(range(len(given)))
        results: dict[int, Any] = {}
        errors: dict[int, QueuertError] = {}

        async def slot() -> None:
            while waiting and not (stop_on_error and errors):
                number = waiting.popleft()
                try:
                    results[number] = await self.run(job_type, given[number], **how)
                except (SequenceFailedError, SequenceCancelledError, SequenceExpiredError, SequenceNotFoundError) as error:
                    errors[number] = error

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(given))):
                    group.create_task(slot())
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        if stop_on_error and errors:
            first = next(iter(errors.values()))
            raise MapStoppedError(
                f"map() of {job_type.name!r} stopped: {len(errors)} of {len(given)} failed, {len(waiting)} were not started: {first}",
                results=results,
                errors=errors,
                not_started=list(waiting),
            ) from first
        return [errors[number] if number in errors else results[number] for number in range(len(given))]
