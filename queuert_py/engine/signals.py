"""Events, for sequences whose handlers wait for them."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from queuert_py import memo, options
from queuert_py.engine.starts import Starts
from queuert_py.ids import uuid7
from queuert_py.job import Tx
from queuert_py.joining import ForeignTx
from queuert_py.postgres import signals
from queuert_py.postgres.listener import hint
from queuert_py.postgres.plans import carry_out
from queuert_py.sequence import SequenceRef


class Signals(Starts[Tx]):
    """The verbs that tell a sequence something."""

    async def send_event(self, sequence: SequenceRef, name: str, payload: object = None, /, *, tx: Tx | ForeignTx | None = None) -> bool:
        """Send an event to an unfinished sequence: `await job.wait_for_event(name)` gives its payload, now or when the handler gets there.

        sequence: a handle or an id. name: up to 200 bytes; the first event of a name is kept for all jobs of the sequence, the next ones
        change nothing. payload: a pydantic model or plain JSON values. tx: the caller's transaction: sent if and only if it commits.
        Returns whether it was taken: False if there is one of that name already, or the sequence has ended. InvalidInputError,
        UsageError, SequenceNotFoundError, DatabaseUnavailableError. While a handler's own transaction holds the job, it waits for its end;
        SequenceBusyError when that does not come for half a minute.
        """
        within = await self._within(tx)
        options.words(name, "the name of an event", 200)
        id, by = str(options.identifier(sequence, "sequence")), uuid7()
        event = memo.event(payload, name, by, self.wire)
        database = await self._db()
        store = database.store
        if within.carrier is not None:
            return (await carry_out(signals.send_in(store, database.channel, id, name, event, by), within.carrier)).taken

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
