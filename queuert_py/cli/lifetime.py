"""Signals, and the pipe by which a worker learns that its supervisor has gone: the first asks it to stop, the second ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType

from queuert_py.cli.trouble import SIGNALLED, STUCK

PARENT_VARIABLE = "QUEUERT_PARENT_FD"
"""The read end of the supervisor's pipe; nothing is ever written to it: its end of file is the message."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """A wish to stop, as an event of the running loop; `reason` says who had it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.reason = ""

    @property
    def wanted(self) -> bool:
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        """From any thread, or a signal handler."""
        if not self.reason:
            self.reason = reason
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


@contextlib.contextmanager
def on_signals(stop: Stop, at_once: Callable[[int], None]) -> Generator[None]:
    """SIGTERM and SIGINT: the first asks `stop`, the next calls `at_once`. Also while the event loop is blocked."""

    def handle(number: int, _: FrameType | None) -> None:
        if stop.wanted and stop.reason != PARENT_GONE:
            at_once(number)
        elif stop.wanted:
            stop.reason = signal.Signals(number).name  # the supervisor asked already: a first signal says no more than that
        else:
            stop.ask(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


PARENT_GONE = "the supervisor's end"


def watch_parent(stop: Stop) -> None:
    """Ask `stop` when the supervisor closes its pipe: to stop this worker, or because it is dead."""
    given = os.environ.pop(PARENT_VARIABLE, "")
    if not given:
        return
    handle = int(given)
    os.set_inheritable(handle, False)

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(handle, 1)
        stop.ask(PARENT_GONE)

    threading.Thread(target=wait, name="queuert parent", daemon=True).start()


def end_now(number: int) -> None:
    """The second signal: nothing more is written; other workers see at once that this one is gone, and take its jobs."""
    os.write(2, b"second signal: ending now; other workers take over the jobs\n")
    os._exit(SIGNALLED + number)


@contextlib.contextmanager
def deadline(seconds: float) -> Generator[None]:
    """End the process when the block takes longer, whatever blocks it."""

    def end() -> None:
        print(f"not stopped within {seconds:.0f} s: ending now; other workers take over the jobs", file=sys.stderr, flush=True)
        os._exit(STUCK)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
