"""Opening the engine for a worker, and ending the worker with its block."""

from __future__ import annotations

from queuert_py.runtime.services import Opens
from queuert_py.runtime.settings import Settings
from queuert_py.runtime.worker import Worker


class WorkerContext:
    """A worker to be: opens the engine, then starts it."""

    def __init__(self, engine: Opens, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._worker = Worker(engine, settings)

    async def start(self) -> Worker:
        """ConfigurationError when it has been started before; what `open` raises, and what the worker raises."""
        await self._engine.open()
        self._engine.validate()
        await self._worker.start()
        return self._worker

    async def __aenter__(self) -> Worker:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._settings.drain and kind is None:
                await self._worker.drained()
        finally:
            await self._worker.stop()
