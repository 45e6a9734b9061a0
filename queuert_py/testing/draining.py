"""Running everything that is due, in this process, until nothing is left to run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from queuert_py import Engine
from queuert_py.errors import ResultTimeoutError
from queuert_py.options import span
from queuert_py.testing.clock import VirtualClock
from queuert_py.values import Duration, Ran, Summary

MOST = 1_000_000


async def drain(
    engine: Engine[Any],
    /,
    *,
    through: Duration | None = None,
    queues: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    timeout: Duration = 60.0,
) -> Summary:
    """Run everything that is due, and what comes of it, until nothing is left to run; say what ran.

    through: go on for so long on the virtual clock, from one due time to the next: what is delayed, sleeps or waits for its retry runs,
    too, in its order; the clock stands at the end of it then. Without it such jobs stay. queues, types: only these (default: all).
    ResultTimeoutError when it takes longer than `timeout` (60 s of real time): something starts itself over and over.
    """
    loop = asyncio.get_running_loop()
    limit = span(timeout, "timeout", positive=True) or timedelta(0)
    end = loop.time() + limit.total_seconds()
    clock = VirtualClock(engine)
    until = None if through is None else await clock.now() + (span(through, "through") or timedelta(0))
    claimed = reaped = 0
    ran: list[Ran] = []
    while True:
        left = max(0.001, end - loop.time())
        done = await engine.run_once(limit=MOST, budget=left, queues=queues, types=types)
        claimed, reaped, ran = claimed + done.claimed, reaped + done.reaped, [*ran, *done.ran]
        if loop.time() >= end:
            busy = ", ".join(dict.fromkeys(each.type for each in done.ran[-20:])) or "nothing"
            raise ResultTimeoutError(
                f"drain() has run {len(ran)} attempts in {limit.total_seconds():g} s and is not done; at last: {busy}."
            )
        if until is None:
            return Summary(claimed, reaped, done.available, tuple(ran))
        due = await clock.next_due()
        await clock.advance_to(until if due is None else min(due, until))
        if due is None or due > until:
            return Summary(claimed, reaped, done.available, tuple(ran))
