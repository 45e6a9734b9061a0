"""Starting sequences, their handles and their results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, overload
from uuid import UUID

from pydantic import BaseModel
from typing_extensions import TypeVar, Unpack

from queuert_py import options
from queuert_py.engine.callbacks import call_when_done
from queuert_py.engine.looks import Looks
from queuert_py.errors import ResultTimeoutError, UsageError
from queuert_py.job import In, Tx, current
from queuert_py.job_types import JobType, Out, job_type_of
from queuert_py.joining import ForeignTx, connection_of
from queuert_py.postgres.listener import hint
from queuert_py.postgres.starts import Own
from queuert_py.results import error_of, output_of
from queuert_py.runtime.waiters import Ended
from queuert_py.sequence import JobSequence
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
    async def start_sequence(self, job_type: Any, /, input: Any, *, output: Any = None, tx: Any = None, **how: Unpack[StartOptions]) -> Any:
        """Start a sequence; returns its handle as soon as it is committed.

        job_type: a JobType, or its name (then `output=Model` types the result). input: its model; a mapping is validated, by name only.
        how: StartOptions. tx: the caller's transaction, of the engine's kind or wrapped by `join`: the sequence exists if and only if that
        commits.
        Raises, before anything is written: InvalidInputError (names the field), UnknownJobTypeError, NotStartableError, UsageError;
        DuplicateIdError; DatabaseUnavailableError.
        """
        found = self._type(job_type, "start_sequence()")
        handles = await self._start([Request(found, input, how)], tx)
        return handles[0]

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
    async def start_sequences(self, requests: Iterable[Request[Out]], /, *, tx: Tx | ForeignTx | None = None) -> list[JobSequence[Out]]: ...
    async def start_sequences(self, requests: Any, /, *, tx: Any = None) -> Any:
        """Start any number of sequences at once, all or none; handles in the order of the requests ([] for []). By COPY where it can.

        Inside the batch, too, the first of a key wins. Annotate mixed lists (`list[Request[A | B]]`) or pass a tuple of two to five.
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
        running = current.get()
        if running is not None and running.in_phase and tx is None:
            raise UsageError("a start inside a phase must be part of its transaction: pass tx=tx.")
        mine = running.connection_of(tx) if running is not None and tx is not None else None
        connection = mine or connection_of(tx, native=self._wrapper is not None)
        if not requests:
            return []
        database = await self._db()
        origin = None if running is None else running.origin
        batch = Batch(requests, lanes=database.store.lanes, wire=self.wire, origin=origin, get=self.get)
        own = None if running is None or mine is None else Own(running.row, running.completing)
        outcomes = await batch.write(database, connection, own)
        if running is not None and own is not None:
            places = [(*place, start.fields["type"]) for place, start in batch.hints.items()]
            running.started(places, own.released[0] if own.released else None)
        if connection is None:
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
    def sequence(self, job_type: JobType[In, Out], id: UUID, /) -> JobSequence[Out]: ...
    @overload
    def sequence(self, job_type: str, id: UUID, /, *, output: type[Out]) -> JobSequence[Out]: ...
    def sequence(self, job_type: Any, id: UUID, /, *, output: Any = None) -> Any:
        """A handle from an id (another request, another process): no round trip, no check that it exists. A Blocker, too."""
        found = self._type(job_type, "sequence()")
        return JobSequence[Any](options.identifier(id), found.name, self, found.contract.outputs)

    async def result_of(self, sequence: JobSequence[Any], timeout: Duration | None) -> Any:
        """See `JobSequence.result`."""
        if current.get() is not None:
            raise UsageError("result() inside a handler would hold its slot: make the sequence a Blocker of the next job (continue_with).")
        limit = options.span(timeout, "timeout")
        await self._db()
        try:
            async with asyncio.timeout(None if limit is None else limit.total_seconds()):
                ended = sequence.ended or await self._waiters.wait(str(sequence.id))
                sequence.ended = None
        except TimeoutError:
            raise ResultTimeoutError(
                f"sequence {sequence.id} ({sequence.type}) has not ended within {timeout} s; it goes on.", sequence_id=str(sequence.id)
            ) from None
        if ended.outcome == "completed":
            return output_of(sequence, ended, self._model)
        attempts = await self.list_attempts(sequence.id) if ended.outcome == "failed" else []
        raise error_of(sequence, ended, attempts)

    def when_done(self, sequence: JobSequence[Any], callback: Callable[[Any], object]) -> Callable[[], None]:
        """See `JobSequence.add_done_callback`."""

        async def wait() -> Ended:
            await self._db()
            return await self._waiters.wait(str(sequence.id))

        return call_when_done(wait, sequence, callback)

    def _model(self, type: str, name: str) -> type[BaseModel] | None:
        """The output of the last job's own type, for handles made by name whose first type does not declare it."""
        return self.get(type).contract.outputs.get(name) if self.has(type) else None
