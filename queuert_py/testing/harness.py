"""Binding an application's engine to the database of a test."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from anyio.from_thread import BlockingPortal, start_blocking_portal

from queuert_py import Engine, JobTypes
from queuert_py.errors import ConfigurationError
from queuert_py.job import Connection, Tx
from queuert_py.testing.databases import Scratch

T = TypeVar("T")


class Harness:
    """The fixture `queuert`. Call it with what is tested: the application's engine, or registries.

    `async with queuert(app.engine) as engine:` the very engine of the application, bound to the test's clean database inside the block, so
    that code which uses it by its name meets that database, too; `async with queuert(jobs) as engine:` a new engine with these registries.
    In a `def` test: `with queuert(app.engine) as engine:`, and `queuert.run(…)` waits for what is awaited elsewhere.
    """

    def __init__(self, database: Scratch) -> None:
        self._database = database
        self._portals: list[BlockingPortal] = []

    @property
    def dsn(self) -> str:
        """Where the test's database is, for connections of your own."""
        return self._database.dsn

    @overload
    def __call__(self, app: Engine[Tx], /) -> Bound[Tx]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, app: JobTypes[Connection], /, *registries: JobTypes[Connection]) -> Bound[Connection]: ...
    def __call__(self, app: Any, /, *registries: Any) -> Bound[Any]:
        engine: Any = app if isinstance(app, Engine) else Engine(self.dsn, app, *registries)  # pyright: ignore[reportUnknownVariableType]
        return Bound(engine, self._database, self._portals)

    def run(self, awaitable: Awaitable[T], /) -> T:
        """In a `def` test, inside `with queuert(…)`: wait for a coroutine, in the event loop of the engine."""
        if not self._portals:
            raise ConfigurationError("queuert.run(…) belongs inside `with queuert(…) as engine:`; in an `async def` test use await.")

        async def wait() -> T:
            return await awaitable

        return self._portals[-1].call(wait)


class Bound(Generic[Tx]):
    """An engine that is open on the test's database inside the block: `async with`, or `with` in a `def` test."""

    def __init__(self, engine: Engine[Tx], database: Scratch, portals: list[BlockingPortal]) -> None:
        self._engine = engine
        self._database = database
        self._portals = portals
        self._portal: AbstractContextManager[BlockingPortal] | None = None

    async def __aenter__(self) -> Engine[Tx]:
        engine = self._engine
        if engine._database is not None:
            raise ConfigurationError("this engine is open already: close it before it is bound to the test's database.")
        self._database.prepare(engine._schema)
        self._before = engine._source, engine._embedded
        engine._source, engine._embedded = self._database.dsn, None
        try:
            await engine.open()
        except BaseException:
            engine._source, engine._embedded = self._before
            raise
        return engine

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._engine.close()
        finally:
            self._engine._source, self._engine._embedded = self._before

    def __enter__(self) -> Engine[Tx]:
        self._portal = start_blocking_portal("asyncio")
        portal = self._portal.__enter__()
        try:
            engine = portal.call(self.__aenter__)
        except BaseException:
            self._portal.__exit__(None, None, None)
            raise
        self._portals.append(portal)
        return engine

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._portal is not None  # noqa: S101
        portal = self._portals.pop()
        try:
            portal.call(self.__aexit__)
        finally:
            self._portal.__exit__(None, None, None)
