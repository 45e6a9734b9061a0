"""Events, for sequences whose handlers wait for them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from queuert_py import memo, options
from queuert_py.engine.starts import Starts
from queuert_py.errors import UsageError
from queuert_py.ids import uuid7
from queuert_py.job import Tx, current
from queuert_py.joining import ForeignTx, connection_of
from queuert_py.postgres import signals
from queuert_py.postgres.listener import hint
from queuert_py.postgres.plans import carry_out
from queuert_py.sequence import Blocker


class Signals(Starts[Tx]):
    """The verbs that tell a sequence something."""

    async def send_event(
        self, sequence: Blocker[Any] | UUID, name: str, payload: object = None, /, *, tx: Tx | ForeignTx | None = None
    ) -> bool:
        """Send an event to an unfinished sequence: `await job.wait_for_event(name)` gives its payload, now or when the handler gets there.

        sequence: a handle or an id. name: up to 200 bytes; the first event of a name is kept for all jobs of the sequence, the next ones
        change nothing. payload: a pydantic model or plain JSON values. tx: the caller's transaction: sent if and only if it commits.
        Returns whether it was taken: False if there is one of that name already, or the sequence has ended. InvalidInputError,
        UsageError, SequenceNotFoundError, DatabaseUnavailableError. While a handler's own transaction holds the job, it waits for its end.
        """
        running = current.get()
        if running is not None and running.in_phase and tx is None:
            raise UsageError("an event sent inside a phase must be part of its transaction: pass tx=tx.")
        mine = running.connection_of(tx) if running is not None and tx is not None else None
        connection = mine or connection_of(tx, native=self._wrapper is not None)
        options.words(name, "the name of an event", 200)
        id, by = str(sequence.id if isinstance(sequence, Blocker) else options.identifier(sequence, "sequence")), uuid7()
        event = memo.event(payload, name, by, self.wire)
        database = await self._db()
        store = database.store
        if connection is not None:
            return (await carry_out(signals.send_in(store, database.channel, id, name, event, by), connection)).taken

        async def work(connection: AsyncConnection[Any]) -> signals.Sent:
            return await carry_out(signals.send(store, id, name, event, by), connection)

        sent = await database.retrying(work)
        if sent.woken is not None:
            lane, queue, priority, type_ = sent.woken
            for worker in self._workers:
                if worker.serves(queue, type_):
                    worker.wake(lane, queue, priority, 0)
            self._notifier.send([hint(lane, queue, priority)])
        return sent.taken
