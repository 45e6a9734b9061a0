"""What a worker does for as long as it works: each part in a task of its own, begun again whatever happens in it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import psycopg

logger = logging.getLogger("queuert_py.worker")
Part: TypeAlias = Callable[[], Awaitable[None]]
LASTING = ("plain", "settle", "edges")
"""The parts that write: they go on while the worker stops."""


class Loops:
    """The parts by their names. `stopping`: does the worker stop? Then what fails is not begun again, but for what writes."""

    def __init__(self, parts: Mapping[str, Part], stopping: Callable[[], bool]) -> None:
        self._parts = parts
        self._stopping = stopping
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self) -> None:
        for name in self._parts:
            self._begin(name)

    def _begin(self, name: str) -> None:
        self._tasks[name] = asyncio.create_task(self.keep(name, self._parts[name]), name=f"queuert {name}")

    @property
    def cut_off(self) -> bool:
        """Has somebody else cancelled them? That is how an event loop ends: it cancels every task, those of handlers as well."""
        return any(task.cancelling() for task in self._tasks.values())

    async def last(self, name: str, timeout: float) -> None:
        """Wait for the end of a part, then see to it that those that write go on to the last, even if they were cut off."""
        if name in self._tasks:
            await asyncio.wait([self._tasks[name]], timeout=timeout)
        for each in [each for each in LASTING if each in self._tasks and self._tasks[each].cancelling()]:
            await asyncio.wait([self._tasks[each]])
            self._begin(each)

    async def end(self) -> None:
        """Cancel all of them."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def keep(self, name: str, part: Part) -> None:
        """Keep a part running, whatever happens in it: a bug is logged, and tried again after 0.1 s, then twice as long each time, at most
        30 s; from the beginning once it has worked for longer than it paused."""
        failures, pause = -1, 0.0
        while not self._stopping() or name in LASTING:
            begun = time.monotonic()
            try:
                await part()
                return
            except (psycopg.Error, OSError) as error:  # reconnecting is paced by the health: while it is down nothing gets here
                logger.debug("%s interrupted: %s", name, error)
                await asyncio.sleep(0.05 + 0.1 * random.random())
                continue
            except Exception:
                logger.exception("the worker's %s loop failed; it goes on", name)
            failures = 0 if time.monotonic() - begun > pause else failures + 1
            pause = min(30.0, 0.1 * 2 ** min(failures, 9)) * (0.5 + random.random() / 2)
            await asyncio.sleep(pause)


def interrupt(error: KeyboardInterrupt) -> None:
    """Have whoever runs the event loop get it: not from the task that it hit, which has something else to say."""

    def throw() -> None:
        raise error

    asyncio.get_running_loop().call_soon(throw)
