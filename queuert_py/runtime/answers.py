"""What answers a failure for good: a compensating job in its place, or a dead letter with it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

from queuert_py.failing import dead_letter_row, failure_of
from queuert_py.job import current
from queuert_py.runtime.attempt import Attempt
from queuert_py.values import Continuation, Delay, Ending, Step, Verdict

logger = logging.getLogger("queuert_py.worker")
LIMIT = 60.0
"""Seconds in which `on_failed` must have answered."""


class Answers:
    """`put` takes the verdict, as it stands then, to be written."""

    def __init__(self, put: Callable[[Attempt, Verdict], None]) -> None:
        self._put = put
        self._asked: set[asyncio.Task[None]] = set()

    def take(self, attempt: Attempt, ending: Ending) -> bool:
        """Is there an answer to be had, once for a job? It is put when it is there."""
        if ending.outcome != "failed" or not attempt.job_type.policy.answered or attempt.answered:
            return False
        attempt.answered = True
        task = asyncio.get_running_loop().create_task(self._ask(attempt, ending), name="queuert on_failed")
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        return True

    async def _ask(self, attempt: Attempt, ending: Ending) -> None:
        current.set(None)  # it is no part of the attempt: what it starts is started from outside
        try:
            verdict: Verdict = await self._compensation(attempt, ending) or self.unanswered(attempt, ending)
        except asyncio.CancelledError:  # with everything else, as the event loop ends: it is to be answered another time
            verdict = Delay(None, charged=False, outcome="released")
        self._put(attempt, verdict)

    async def _compensation(self, attempt: Attempt, ending: Ending) -> Step | None:
        on_failed = attempt.job_type.options.get("on_failed")
        if on_failed is None:
            return None
        try:
            failure = failure_of(attempt.row, ending, attempt.host.wire)
            async with asyncio.timeout(LIMIT):
                value: object = (
                    on_failed(failure) if inspect.iscoroutinefunction(on_failed) else await asyncio.to_thread(on_failed, failure)
                )
                if inspect.isawaitable(value):
                    value = await cast("Awaitable[object]", value)
            if value is None:
                return None
            if not isinstance(value, Continuation):
                raise TypeError(f"on_failed returned {type(value).__name__}: a Continuation (continue_with) or None is needed")
            step = attempt.host.step_for(cast("Continuation[Any]", value), attempt)
        except (Exception, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # from outside, not its own
                raise
            logger.exception("sequence %s (%s): on_failed failed itself; so has the job", attempt.row.sequence_id, attempt.row.type)
            return None
        return replace(step, failure=ending) if isinstance(step, Step) else None

    def unanswered(self, attempt: Attempt, ending: Ending) -> Ending:
        """As if there had been no compensating job: with its dead letter."""
        letters = attempt.job_type.options.get("dead_letter")
        if letters is None:
            return ending
        lanes, wire = attempt.host.database.store.lanes, attempt.host.wire
        try:
            failure = failure_of(attempt.row, ending, wire)
            return replace(ending, dead_letter=dead_letter_row(letters, attempt.row, failure, lanes=lanes, wire=wire))
        except Exception:
            told = attempt.row.sequence_id, attempt.row.type
            logger.exception("sequence %s (%s): its failure could not be answered; it has failed", *told)
            return ending
