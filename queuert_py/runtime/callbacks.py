"""Callbacks of `job.on_commit`: run once what they are about is committed."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import TypeAlias

logger = logging.getLogger("queuert_py.worker")
Callback: TypeAlias = Callable[[], object]
"""Without arguments; what it returns is awaited if it can be."""


async def call_back(callbacks: Iterable[Callback]) -> None:
    """Run them in their order. What they raise is logged: the commit stands."""
    for callback in callbacks:
        try:
            value = callback()
            while inspect.isawaitable(value):
                value = await value
        except (Exception, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # from outside, not the callback's own
                raise
            logger.exception("a callback of on_commit failed")
