"""Sending an event to a sequence: what the statements do together."""

from __future__ import annotations

from typing import NamedTuple

from queuert_py.errors import SequenceNotFoundError
from queuert_py.ids import lane_of
from queuert_py.postgres import rows
from queuert_py.postgres.listener import hint
from queuert_py.postgres.plans import Plan
from queuert_py.postgres.store import Store


class Sent(NamedTuple):
    """What became of an event: whether it was taken, and the place of the job that it wakes."""

    taken: bool
    woken: tuple[int, str, int, str] | None = None


def send(store: Store, id: str, name: str, event: str, by: str) -> Plan[Sent]:
    """Keep an event in its sequence, unless it has one of that name. `by`: this call, so that its repeat is recognised.

    SequenceNotFoundError.
    """
    lane = lane_of(id, store.lanes)
    for lane_, queue, priority, type_, waits in (yield store.send_event(lane, id, name, event)):
        return Sent(True, (lane_, queue, priority, type_) if waits else None)
    for _, sender, _ in (yield store.read_event(lane, id, name)):
        return Sent(sender == by)
    for _, watched, outcome, *_ in (yield store.read_results([rows.sequence_row(id, lane)])):
        if watched is None and outcome is None:
            raise SequenceNotFoundError(f"sequence {id} does not exist: was its start committed?", id=id)
    return Sent(False)


def send_in(store: Store, channel: str, id: str, name: str, event: str, by: str) -> Plan[Sent]:
    """As `send`, in a caller's transaction, with the hint as part of it."""
    sent = yield from send(store, id, name, event, by)
    if sent.woken is not None:
        lane, queue, priority, _ = sent.woken
        yield store.notify(channel, [hint(lane, queue, priority)])
    return sent
