"""An event loop in a thread of its own: where an engine lives that is used from code without one."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future


class LoopThread:
    """Runs an event loop until it is stopped. A daemon: a script that ends without closing it is not held."""

    def __init__(self) -> None:
        ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(_live(ready)), name="queuert sync", daemon=True)
        self._thread.start()
        self.loop, self._stopped = ready.result()

    def stop(self) -> None:
        """Cancel what still runs on it, and wait for its end. Idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()


async def _live(ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    stopped = asyncio.Event()
    ready.set_result((asyncio.get_running_loop(), stopped))
    await stopped.wait()
