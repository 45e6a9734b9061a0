"""Callbacks on the end of a sequence: see `JobSequence.add_done_callback`."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from queuert_py.runtime.waiters import Ended
from queuert_py.sequence import JobSequence

logger = logging.getLogger("queuert_py.waiters")
_CALLBACKS: set[asyncio.Task[None]] = set()
"""Held here, or they could be collected before they are called."""


def call_when_done(
    wait: Callable[[], Awaitable[Ended]], sequence: JobSequence[Any], callback: Callable[[Any], object]
) -> Callable[[], None]:
    """Call it with the handle once `wait` says how the sequence ended; a function that takes it back."""

    async def call() -> None:
        sequence._ended = await wait()
        try:
            value = callback(sequence)
            if inspect.isawaitable(value):
                await value
        except Exception:
            logger.exception("a callback of sequence %s failed", sequence.id)

    task = asyncio.get_running_loop().create_task(call(), name="queuert done", context=contextvars.Context())
    _CALLBACKS.add(task)
    task.add_done_callback(_ended)

    def take_back() -> None:
        task.cancel()

    return take_back


def _ended(task: asyncio.Task[None]) -> None:
    _CALLBACKS.discard(task)
    if not task.cancelled() and task.exception() is not None:
        logger.error("a callback was not called: %s", task.exception())
