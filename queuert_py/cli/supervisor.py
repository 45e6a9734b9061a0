"""N worker processes, each restarted when it dies, with growing pauses when it keeps dying.

The children are fresh Python processes, not forks. Each holds the read end of a pipe of which this process alone has the write end:
closing it asks the child to stop, and the kernel closes it when the supervisor dies, be it by SIGKILL. So no signal is forwarded for a
graceful stop, and one that init or a terminal sends to the whole group is each child's first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import queuert_py
from queuert_py.cli import lifetime
from queuert_py.cli.trouble import OK, SETUP, SIGNALLED, STUCK, USAGE

ROOT = Path(queuert_py.__file__).resolve().parent.parent
"""Where this package is imported from."""
logger = logging.getLogger("queuert_py.cli")
FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
HEALTHY = 60.0
"""Seconds after which a child that dies counts as the first to die."""
HOPELESS = (USAGE, SETUP)
"""Exit codes of a first start that no restart repairs."""


def restart_after(crashes: int) -> float:
    """Seconds before a child is started again that died for the n-th time (from 1) without a healthy minute in between."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(crashes - 1, 20)))


def crashes_after(crashes: int, lived: float) -> int:
    """The count, after one more death."""
    return 1 if lived >= HEALTHY else crashes + 1


def ending(code: int) -> str:
    """An exit code of subprocess in words."""
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def command(app: str, app_dir: str, arguments: Sequence[str]) -> list[str]:
    """`queuert worker` as a command of this very Python. The folder it runs in is not put on the import path, except where the package
    itself is found through it."""
    safe = [] if Path.cwd().resolve() == ROOT else ["-P"]
    return [sys.executable, *safe, "-m", "queuert_py.cli", "worker", app, f"--app-dir={app_dir}", *arguments]


class Child:
    """A worker process, and the pipe that keeps it going."""

    def __init__(self, line: Sequence[str], environment: Mapping[str, str] | None = None, output: int | None = None) -> None:
        theirs, self._ours = os.pipe()
        env = {**os.environ, **(environment or {}), lifetime.PARENT_VARIABLE: str(theirs)}
        try:
            self.process = subprocess.Popen(  # noqa: S603
                line, env=env, pass_fds=(theirs,), stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
            )
        except BaseException:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)
        self.pid = self.process.pid

    def ask_to_stop(self) -> None:
        ours, self._ours = self._ours, -1
        if ours >= 0:
            os.close(ours)

    def kill(self) -> None:
        self.process.kill()

    async def ended(self) -> int:
        """Wait for its end; the exit code, minus the signal's number when one killed it. By a thread of its own: there may be many."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def wait() -> None:
            self.process.wait()
            with contextlib.suppress(RuntimeError):  # the loop has ended first
                loop.call_soon_threadsafe(over.set)

        threading.Thread(target=wait, name=f"queuert child {self.pid}", daemon=True).start()
        await over.wait()
        self.ask_to_stop()
        return self.process.wait()


class Supervisor:
    """Runs `processes` workers until asked to stop or, with `drain`, until each has found nothing more to do."""

    def __init__(
        self, app: str, app_dir: str, processes: int, arguments: Sequence[str], longest_stop: float, *, drain: bool = False
    ) -> None:
        self._command = command(app, app_dir, arguments)
        self._processes = processes
        self._longest_stop = longest_stop
        self._drain = drain
        self._children: dict[int, Child] = {}
        self._code = OK

    async def run(self) -> int:
        """The exit code: 0; 8 when a child had to be killed at the end; a child's own when its first start was hopeless."""
        self._stop = lifetime.Stop()
        with lifetime.on_signals(self._stop, self._end_now):
            tending = [asyncio.create_task(self._tend(number)) for number in range(1, self._processes + 1)]
            stopping = asyncio.create_task(self._stop_all())
            await asyncio.gather(*tending)
            stopping.cancel()
        return self._code

    async def _tend(self, number: int) -> None:
        """Keep one worker going."""
        crashes, restarts = 0, 0
        while not self._stop.wanted:
            begun = time.monotonic()
            child = self._children[number] = Child(self._command)
            logger.info("worker %d started, pid %d", number, child.pid)
            code = await child.ended()
            del self._children[number]
            if self._is_over(code):
                return
            if code in HOPELESS and restarts == 0:
                self._code = code
                self._stop.ask("a worker that cannot start")
                return
            restarts += 1
            crashes = crashes_after(crashes, time.monotonic() - begun)
            wait = restart_after(crashes)
            logger.warning("worker %d (pid %d) %s: started again in %.1f s", number, child.pid, ending(code), wait)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stop.wait()

    def _is_over(self, code: int) -> bool:
        return self._stop.wanted or (self._drain and code == OK)

    async def _stop_all(self) -> None:
        """Once asked: all children stop by themselves, or are killed after the longest time that takes."""
        await self._stop.wait()
        logger.info("stopping %d worker(s) (%s)", len(self._children), self._stop.reason)
        for child in self._children.values():
            child.ask_to_stop()
        await asyncio.sleep(self._longest_stop + 1)
        for child in self._children.values():
            logger.error("pid %d has not stopped within %.0f s: killed", child.pid, self._longest_stop + 1)
            child.kill()
            self._code = STUCK

    def _end_now(self, number: int) -> None:
        """The second signal: kill the children, leave no one waiting."""
        for child in self._children.values():
            child.kill()
        os.write(2, b"second signal: workers killed; others take over the jobs\n")
        os._exit(SIGNALLED + number)
