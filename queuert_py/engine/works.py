"""Working: workers in this process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from queuert_py.decisions.backoff import seconds
from queuert_py.engine.core import Core
from queuert_py.errors import ConfigurationError
from queuert_py.job import Tx
from queuert_py.runtime.settings import Settings
from queuert_py.runtime.worker import WorkerContext
from queuert_py.values import Duration


class Works(Core[Tx]):
    """The verbs that run handlers in this process."""

    def worker(
        self,
        *,
        concurrency: int = 100,
        queues: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        lease: Duration = 30.0,
        poll_interval: Duration | tuple[float, float] = (1.0, 60.0),
        shutdown_timeout: Duration = 30.0,
        grace: Duration = 5.0,
        drain: bool = False,
        name: str = "worker",
    ) -> WorkerContext:
        """A worker in this process: `async with engine.worker():`, or `worker = await engine.worker().start()`.

        concurrency: handlers at once. queues, types: what it serves (default: every type with a handler, their queues and "default").
        lease: how long a silent worker keeps its jobs (30 s, renewed every third). poll_interval: busy and idle seconds between looks
        when no hint comes. shutdown_timeout: how long handlers may go on at the end; grace: what a cancelled handler has to clean up.
        drain: end by itself when nothing is due and nothing runs (what is scheduled, or waits for its retry, stays).
        """
        if concurrency < 1:
            raise ConfigurationError(f"concurrency={concurrency}: at least 1.")
        poll = poll_interval if isinstance(poll_interval, tuple) else (seconds(poll_interval), seconds(poll_interval))
        settings = Settings(
            concurrency=concurrency,
            queues=queues,
            types=types,
            lease=timedelta(seconds=seconds(lease)),
            poll_interval=poll,
            shutdown_timeout=seconds(shutdown_timeout),
            grace=seconds(grace),
            drain=drain,
            name=name,
        )
        return WorkerContext(self, settings)
