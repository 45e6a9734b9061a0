"""Starting sequences, their handles and their results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, overload

from pydantic import BaseModel
from typing_extensions import TypeVar, Unpack

from queuert_py import options
from queuert_py.engine.callbacks import call_when_done
from queuert_py.engine.looks import Looks
from queuert_py.errors import QueuertError, ResultTimeoutError, UsageError
from queuert_py.job import In, Tx
from queuert_py.job_types import JobType, Out, job_type_of
from queuert_py.joining import ForeignTx
from queuert_py.postgres.listener import hint
from queuert_py.postgres.starts import Own
from queuert_py.results import error_of, output_of
from queuert_py.runtime.waiters import Ended
from queuert_py.sequence import JobSequence, SequenceRef
from queuert_py.starting import Batch, Unregistered
from queuert_py.values import Duration, Request, StartOptions

A = TypeVar("A", bound=BaseModel | None)
B = TypeVar("B", bound=BaseModel | None)
C = TypeVar("C", bound=BaseModel | None)
D = TypeVar("D", bound=BaseModel | None)
E = TypeVar("E", bound=BaseModel | None)


class Starts(Looks[Tx]):
    """The verbs that start sequences and wait for them."""

    @overload
    async def start_sequence(self, request: Request[Out], /, *, tx: Tx | ForeignTx | None = None) -> JobSequence[Out]: ...
    @overload
    async def start_sequence(
        self, job_type: JobType[In, Out], /, input: In, *, tx: Tx | ForeignTx | None = None, **how: Unpack[StartOptions]
    ) -> JobSequence[Out]: ...
    @overload
    async def start_sequence(
        self,
        job_type: str,
        /,
        input: BaseModel | Mapping[str, object],
        *,
        output: type[Out],
        tx: Tx | ForeignTx | None = None,
        **how: Unpack[StartOptions],
    ) -> JobSequence[Out]: ...
    @overload
    async def start_sequence(
        self, job_type: str, /, input: BaseModel | Mapping[str, object], *, tx: Tx | ForeignTx | None = None, **how: Unpack[StartOptions]
    ) -> JobSequence[Any]: ...
    async def start_sequence(
        self, job_type: Any, /, input: Any = None, *, output: Any = None, tx: Any = None, **how: Unpack[StartOptions]
    ) -> Any:
        """Start a sequence, by its job type and input or by a Request; returns its handle as soon as it is committed.

        job_type: a JobType, or its name (then `output=Model` types the result: UsageError when it never is one). input: its model; a
        mapping is validated, by name only. how: StartOptions. tx: the caller's transaction, of the engine's kind or wrapped by `join`: the
        sequence exists if and only if that commits.
        Raises, before anything is written: InvalidInputError (names the field), UnknownJobTypeError, NotStartableError, UsageError;
        DuplicateIdError; DatabaseUnavailableError; SequenceBusyError where somebody's open transaction keeps the key from being looked at.
        """
        if isinstance(job_type, Request):
            if input is not None or output is not None or how:
                raise UsageError("start_sequence(): a Request has its input and its options in it: only tx= goes beside it.")
            return (await self.start_sequences([cast("Request[Any]", job_type)], tx=tx))[0]
        found = self._type(job_type, "start_sequence()")
        contract = self._expected(found, output, "start_sequence()")
        handle = (await self._start([Request(found, input, how)], tx))[0]
        handle._contract = contract
        return handle

    async def start_unregistered(
        self, name: str, /, input: Mapping[str, object], *, tx: Tx | ForeignTx | None = None, **how: Unpack[StartOptions]
    ) -> JobSequence[Any]:
        """Start a sequence of a job type that is declared elsewhere: for producers without its models, by name, with plain JSON values.

        The input is checked when a worker takes it up (what its model refuses fails with the reason `validation`); here only that it can
        be stored. A name that is declared here is started as by `start_sequence`. The handle's result is the output as plain JSON values.
        """
        if self.has(name):
            return await self.start_sequence(name, input, tx=tx, **how)
        return (await self._start([Request(Unregistered(name), cast("Any", input), how)], tx))[0]

    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B]], /, *, tx: Tx | ForeignTx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B]]: ...
    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B], Request[C]], /, *, tx: Tx | ForeignTx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B], JobSequence[C]]: ...
    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B], Request[C], Request[D]], /, *, tx: Tx | ForeignTx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B], JobSequence[C], JobSequence[D]]: ...
    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B], Request[C], Request[D], Request[E]], /, *, tx: Tx | ForeignTx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B], JobSequence[C], JobSequence[D], JobSequence[E]]: ...
    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[Out], ...], /, *, tx: Tx | ForeignTx | None = None
    ) -> tuple[JobSequence[Out], ...]: ...
    @overload
    async def start_sequences(self, requests: Iterable[Request[Out]], /, *, tx: Tx | ForeignTx | None = None) -> list[JobSequence[Out]]: ...
    async def start_sequences(self, requests: Any, /, *, tx: Any = None) -> Any:
        """Start any number of sequences at once, all or none; handles in the order of the requests ([] for []). By COPY where it can.

        Inside the batch, too, the first of a key wins. Annotate mixed lists (`list[Request[A | B]]`) or pass a tuple, which gives a tuple
        (of two to five: each its own type).
        Raises as `start_sequence`, with the number of the request.
        """
        given = options.several(requests, "start_sequences()", "requests")
        for each in given:
            if not isinstance(each, Request):
                raise UsageError(f"start_sequences(): {each!r} is no Request: call a job type with an input, `resize(Image(…))`.")
            job_type_of(cast("Request[Any]", each).job_type, "start_sequences()")
        handles = await self._start(given, tx)
        return tuple(handles) if isinstance(requests, tuple) else handles

    async def _start(self, requests: Sequence[Request[Any]], tx: Any) -> list[JobSequence[Any]]:
        within = await self._within(tx)
        running = within.running
        if not requests:
            return []
        database = await self._db()
        origin = None if running is None else running.origin
        batch = Batch(requests, lanes=database.store.lanes, wire=self.wire, origin=origin, get=self.get)
        own = Own(running.row, running.completing) if running is not None and within.own else None
        outcomes = await batch.write(database, within.carrier, own)
        if running is not None and own is not None:
            places = [(*place, start.fields["type"]) for place, start in batch.hints.items()]
            running.started(places, own.released)
        if within.carrier is None:
            self._wake(batch)
            if self._events.wanted:
                for event in batch.events(outcomes):
                    self._events.emit(event)
        return batch.handles(outcomes, self)

    def _wake(self, batch: Batch) -> None:
        """Work has come: the workers of this engine know at once, the others by a hint (unless one here takes it at once)."""
        hints: list[str] = []
        single = len(batch.starts) == 1
        for (lane, queue, priority), start in batch.hints.items():
            taken = False
            for worker in self._workers:
                if worker.serves(queue, start.fields["type"]):
                    taken = taken or (single and worker.has_room() and not start.fields.keys() & {"delay", "at"})
                    worker.wake(lane, queue, priority, 0)
            if not taken:
                hints.append(hint(lane, queue, priority))
        self._notifier.send(hints)

    # --- handles and results

    @overload
    def sequence(self, job_type: JobType[In, Out], id: SequenceRef, /) -> JobSequence[Out]: ...
    @overload
    def sequence(self, job_type: str, id: SequenceRef, /, *, output: type[Out]) -> JobSequence[Out]: ...
    def sequence(self, job_type: Any, id: SequenceRef, /, *, output: Any = None) -> Any:
        """A handle from an id (another request, another process): no round trip, no check that it exists. A Blocker, too.

        output: what it returns, for a job type by name. UsageError when that type never returns it; UnknownJobTypeError.
        """
        found = self._type(job_type, "sequence()")
        return JobSequence[Any](options.identifier(id), found.name, self, self._expected(found, output, "sequence()"))

    async def _result_of(self, sequence: JobSequence[Any], timeout: Duration | None) -> Any:
        """See `JobSequence.result`."""
        if await self._handler() is not None:
            raise UsageError("result() inside a handler would hold its slot: make the sequence a Blocker of the next job (continue_with).")
        limit = options.span(timeout, "timeout")
        await self._db()
        id, seconds = str(sequence.id), None if limit is None else limit.total_seconds()
        try:
            async with asyncio.timeout(seconds):
                ended = sequence._ended or await self._waiters.wait(id)
                sequence._ended = None
        except TimeoutError:
            found = await self._waiters.last_look([id], seconds or 0)
            if id not in found:
                raise await self._late(sequence, timeout) from None
            ended = found[id]
        return await self._answer(sequence, ended)

    async def _late(self, sequence: JobSequence[Any], timeout: Duration | None) -> ResultTimeoutError:
        """With the last error, if there is one and the database says so soon."""
        last = ""
        with contextlib.suppress(QueuertError, TimeoutError):
            async with asyncio.timeout(1):
                error = (await self.get_sequence(sequence.id)).error
                last = f"; its last error: {error['type']}: {error['message']}" if error else ""
        return ResultTimeoutError(
            f"sequence {sequence.id} ({sequence.type}) has not ended within {timeout} s; it goes on{last}. "
            f"`queuert why {sequence.id}` says why.",
            sequence_id=sequence.id,
        )

    async def _answer(self, sequence: JobSequence[Any], ended: Ended) -> Any:
        """What a waiter is given: an output, or the error that says why there is none."""
        if ended.outcome == "completed":
            return output_of(sequence, ended, self.model)
        attempts = await self.list_attempts(sequence.id) if ended.outcome == "failed" else []
        raise error_of(sequence, ended, attempts)

    def _when_done(self, sequence: JobSequence[Any], callback: Callable[[Any], object]) -> Callable[[], None]:
        """See `JobSequence.add_done_callback`."""

        async def wait() -> Ended:
            await self._db()
            return await self._waiters.wait(str(sequence.id))

        return call_when_done(wait, sequence, callback)
