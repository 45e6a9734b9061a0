"""Waiting for several sequences at once."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import timedelta
from typing import Any, Literal, overload

from queuert_py import options
from queuert_py.engine.starts import A, B, C, D, E, Starts
from queuert_py.errors import QueuertError, ResultTimeoutError, UsageError
from queuert_py.job import Tx
from queuert_py.job_types import Out
from queuert_py.runtime.waiters import Ended
from queuert_py.sequence import JobSequence
from queuert_py.values import Duration


class Waits(Starts[Tx]):
    """The verbs that wait for several sequences."""

    @overload
    async def wait_all(  # type: ignore[overload-overlap]
        self,
        sequences: tuple[JobSequence[A], JobSequence[B]],
        /,
        *,
        timeout: Duration | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[A, B]: ...
    @overload
    async def wait_all(  # type: ignore[overload-overlap]
        self,
        sequences: tuple[JobSequence[A], JobSequence[B], JobSequence[C]],
        /,
        *,
        timeout: Duration | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[A, B, C]: ...
    @overload
    async def wait_all(  # type: ignore[overload-overlap]
        self,
        sequences: tuple[JobSequence[A], JobSequence[B], JobSequence[C], JobSequence[D]],
        /,
        *,
        timeout: Duration | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[A, B, C, D]: ...
    @overload
    async def wait_all(  # type: ignore[overload-overlap]
        self,
        sequences: tuple[JobSequence[A], JobSequence[B], JobSequence[C], JobSequence[D], JobSequence[E]],
        /,
        *,
        timeout: Duration | None = None,
        return_exceptions: Literal[False] = False,
    ) -> tuple[A, B, C, D, E]: ...
    @overload
    async def wait_all(  # type: ignore[overload-overlap]
        self, sequences: tuple[JobSequence[Out], ...], /, *, timeout: Duration | None = None, return_exceptions: Literal[False] = False
    ) -> tuple[Out, ...]: ...
    @overload
    async def wait_all(
        self, sequences: Iterable[JobSequence[Out]], /, *, timeout: Duration | None = None, return_exceptions: Literal[False] = False
    ) -> list[Out]: ...
    @overload
    async def wait_all(
        self, sequences: Iterable[JobSequence[Out]], /, *, timeout: Duration | None = None, return_exceptions: Literal[True]
    ) -> list[Out | QueuertError]: ...
    @overload
    async def wait_all(
        self, sequences: Iterable[JobSequence[Out]], /, *, timeout: Duration | None = None, return_exceptions: bool
    ) -> Sequence[Out | QueuertError]: ...
    async def wait_all(self, sequences: Any, /, *, timeout: Duration | None = None, return_exceptions: bool = False) -> Any:
        """The outputs of sequences, in their order, once all have ended; a tuple gives a tuple, one of two to five with each its own type.

        The first that did not complete raises, at once, what its `result()` raises; the others go on. return_exceptions: a list in which
        such errors stand where the outputs would. timeout: for all together; ResultTimeoutError says how many had not ended. UsageError
        inside a handler, where it would hold a slot.
        """
        several = await self._checked(sequences)
        limit = options.span(timeout, "timeout")
        tasks = [asyncio.ensure_future(self._result_of(each, None)) for each in several]
        try:
            if tasks:
                wait_for = asyncio.ALL_COMPLETED if return_exceptions else asyncio.FIRST_EXCEPTION
                await asyncio.wait(tasks, timeout=None if limit is None else limit.total_seconds(), return_when=wait_for)
                await self._last_look(tasks, several, limit)
            outcomes = [_outcome(task, each, timeout) for task, each in zip(tasks, several, strict=True)]
            late = [each for each in outcomes if isinstance(each, ResultTimeoutError)]
            failed = [each for each in outcomes if isinstance(each, BaseException) and not isinstance(each, ResultTimeoutError)]
            bugs = [each for each in failed if not isinstance(each, QueuertError)]
            for error in [*bugs, *([] if return_exceptions else failed)]:
                raise error
            if late and not return_exceptions:
                first = late[0].details
                raise ResultTimeoutError(
                    f"{len(late)} of {len(several)} sequences have not ended within {timeout} s, among them {first['sequence_id']} "
                    f"({first['type']}); they go on.",
                    sequence_ids=[each.details["sequence_id"] for each in late],
                )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return tuple(outcomes) if isinstance(sequences, tuple) and not return_exceptions else outcomes

    async def _last_look(self, tasks: list[asyncio.Task[Any]], several: list[JobSequence[Any]], limit: timedelta | None) -> None:
        """Those whose time is up before they were looked at are looked at once."""
        late = [number for number, task in enumerate(tasks) if not task.done()]
        if limit is None or not late or any(task.done() and task.exception() for task in tasks):
            return
        found = await self._waiters.last_look([str(several[number].id) for number in late], limit.total_seconds())
        for number in late:
            if (ended := found.get(str(several[number].id))) is not None:
                tasks[number].cancel()
                tasks[number] = asyncio.ensure_future(self._answer(several[number], ended))
        answered = [tasks[number] for number in late if str(several[number].id) in found]
        if answered:
            await asyncio.wait(answered)

    async def as_completed(
        self, sequences: Iterable[JobSequence[Out]], /, *, timeout: Duration | None = None
    ) -> AsyncIterator[JobSequence[Out]]:
        """The sequences in the order in which they end, however they end: `result()` of one that was just given answers without waiting,
        with its output or with the error that says why there is none.

        timeout: for all together; then ResultTimeoutError, the rest goes on. UsageError inside a handler.
        """
        several = await self._checked(sequences)
        limit = options.span(timeout, "timeout")
        await self._db()
        loop = asyncio.get_running_loop()
        seconds = None if limit is None else limit.total_seconds()
        until = None if seconds is None else loop.time() + seconds
        ended: asyncio.Queue[tuple[JobSequence[Out], asyncio.Future[Ended]]] = asyncio.Queue()
        futures = [(each, self._waiters.subscribe(str(each.id))) for each in several]
        for each, future in futures:
            future.add_done_callback(functools.partial(_put, ended, each))
        try:
            for number in range(len(several)):
                try:
                    async with asyncio.timeout_at(until):
                        sequence, future = await ended.get()
                except TimeoutError:
                    found = await self._waiters.last_look([str(each.id) for each, future in futures if not future.done()], seconds or 0)
                    for id, end in found.items():
                        self._waiters.deliver(id, end)
                    if not found and ended.empty():
                        raise ResultTimeoutError(
                            f"{len(several) - number} of {len(several)} sequences have not ended within {timeout} s; they go on."
                        ) from None
                    sequence, future = await ended.get()
                sequence._ended = future.result()
                yield sequence
        finally:
            for each, future in futures:
                self._waiters.leave(str(each.id), future)

    async def _checked(self, sequences: Any) -> list[JobSequence[Any]]:
        """Handles. UsageError for anything else, and inside a handler."""
        if await self._handler() is not None:
            raise UsageError("waiting for results inside a handler would hold its slot: use `await job.wait_for(sequences)`.")
        several = options.several(sequences, "this call", "handles")
        for each in several:
            if not isinstance(each, JobSequence):
                raise UsageError(f"{each!r} is no handle: await engine.start_sequence(…), or engine.sequence(type, id).")
        return several


def _put(
    ended: asyncio.Queue[tuple[JobSequence[Out], asyncio.Future[Ended]]], sequence: JobSequence[Out], future: asyncio.Future[Ended]
) -> None:
    ended.put_nowait((sequence, future))


def _outcome(task: asyncio.Task[Any], sequence: JobSequence[Any], timeout: Duration | None) -> Any:
    if not task.done():
        return ResultTimeoutError(
            f"sequence {sequence.id} ({sequence.type}) has not ended within {timeout} s; it goes on.",
            sequence_id=sequence.id,
            type=sequence.type,
        )
    return task.exception() or task.result()
