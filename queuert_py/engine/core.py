"""What the parts of the facade share: the database, opening and closing, and what workers ask for."""

from __future__ import annotations

import asyncio
import builtins
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast, overload

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from queuert_py import failing, options
from queuert_py.annotations import Contract
from queuert_py.dependencies import Override, read
from queuert_py.embedded import Server, open_server
from queuert_py.errors import ConfigurationError, InvalidContinuationError, InvalidInputError, SchemaError, UsageError
from queuert_py.ids import uuid7
from queuert_py.job import Database, Running, Tx, current
from queuert_py.job_types import InternalJobType, JobTypes, job_type_of
from queuert_py.joining import carrier_for
from queuert_py.payload import Codec, Wire
from queuert_py.postgres import database as postgres
from queuert_py.postgres import migrate as migrations
from queuert_py.postgres.health import Health
from queuert_py.postgres.listener import Listener, Notifier
from queuert_py.postgres.plans import Carrier
from queuert_py.postgres.store import Store, quoted
from queuert_py.runtime.dispatch import Dispatch
from queuert_py.runtime.waiters import Waiters
from queuert_py.runtime.worker import Worker
from queuert_py.sequence import Collected, JobSequence, ResultSource
from queuert_py.values import Continuation, ContinueOptions, LiveJob, Step

T = TypeVar("T")
DSN_VARIABLE = "QUEUERT_DSN"
SQLALCHEMY_URL = re.compile(r"\w+\+\w+://")


@dataclass(frozen=True, slots=True)
class Within:
    """What a call is made in: a handler's code (`running`), and a transaction of the caller's (`carrier`), which may be the phase's of
    that handler (`own`)."""

    running: Running | None
    carrier: Carrier | None
    own: bool


class Core(JobTypes[Tx]):
    """An engine without its verbs. See Engine."""

    def __init__(
        self,
        db: Any,
        registries: tuple[Any, ...],
        *,
        schema: str,
        pool_size: int,
        max_payload: int,
        pooler: bool = False,
        codec: Codec | None = None,
    ) -> None:
        super().__init__()
        _check(schema=schema, pool_size=pool_size, max_payload=max_payload, pooler=pooler, codec=codec)
        for registry in registries:
            self.mount(registry)
        self.wire = Wire(max_payload, codec)
        self._wrapper: Database[Any] | None = None
        self._source: str | AsyncConnectionPool[Any] | None = None
        self._embedded: tuple[Path | None, bool] | None = None
        if db is None:
            db = os.environ.get(DSN_VARIABLE)
        if isinstance(db, str) and not db.strip():
            raise ConfigurationError(f"the DSN is empty: write postgresql://user:password@host:port/database, here or in {DSN_VARIABLE}.")
        if isinstance(db, str) and SQLALCHEMY_URL.match(db):
            raise ConfigurationError(
                "Engine() was given a URL as SQLAlchemy writes it: Engine(SqlAlchemy(url)) gives handlers sessions; for psycopg's "
                "connections write postgresql://user:password@host:port/database."
            )
        if isinstance(db, (str, AsyncConnectionPool)):
            self._source = db
        elif hasattr(db, "transaction") and hasattr(db, "conninfo"):
            self._wrapper, self._source = db, db.conninfo
        elif not isinstance(db, EmbeddedDatabase):
            raise ConfigurationError(
                f"Engine() needs a database: a DSN as its argument or in {DSN_VARIABLE}, a psycopg AsyncConnectionPool, "
                "SqlAlchemy(…) for an AsyncEngine of SQLAlchemy's, or Engine.embedded() for a PostgreSQL of its own"
                f"{'' if db is None else f' (not {type(db).__name__})'}."
            )
        else:
            self._embedded = (db.path, db.ephemeral)
        self._schema = schema
        self._pool_size = pool_size
        self._pooler = pooler
        self._server: Server | None = None
        self._database: postgres.Database | None = None
        self._opening: asyncio.Lock | None = None
        self._making: asyncio.Lock | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[Worker] = []
        self._events = Dispatch()

    # --- opening and closing

    async def open(self, *, migrate: bool | None = None) -> None:
        """Connect, and check the schema. An empty one is made (embedded: also brought up to date).

        migrate: True applies what is missing, False never does. DatabaseUnavailableError, SchemaError (with the command that repairs
        it), EmbeddedError; NameError when a handler's annotations cannot be resolved; UsageError when it is open on another event loop.
        """
        self._on_its_loop()
        self.loop = asyncio.get_running_loop()
        lock = self._opening = self._opening or asyncio.Lock()
        try:
            async with lock:
                if lock is self._opening:
                    await self._open(migrate)
                    return
        finally:
            if self._database is None:
                self.loop = None
        await self.open(migrate=migrate)  # it was closed meanwhile, and others may be opening it by another lock

    async def _open(self, migrate: bool | None) -> None:
        if self._database is None:
            self.validate()
            if self._embedded is not None and self._server is None:
                path, ephemeral = self._embedded
                self._server = await asyncio.to_thread(open_server, path, ephemeral=ephemeral)
                self._source = self._server.dsn
            assert self._source is not None  # noqa: S101
            database = postgres.Database(self._source, schema=self._schema, pool_size=self._pool_size, pooler=self._pooler)
            try:
                await database.open()
                await self._check_schema(database, migrate)
            except BaseException:
                await database.close()
                raise
            database.inside = self._inside
            self._database, self.loop = database, asyncio.get_running_loop()
            self._listener = Listener(database)
            self._notifier = Notifier(database)
            self._events.connect(self._notifier.send)
            self._waiters = Waiters(database, lambda: self._listener, lambda: bool(self._workers))

    async def _check_schema(self, database: postgres.Database, migrate: bool | None) -> None:
        async with database.connection() as connection:
            done = await migrations.applied(connection, self._schema)
            missing = migrations.pending(done, self._schema)
            if missing and (migrate or (migrate is None and (not done or self._embedded is not None))):
                await migrations.migrate(connection, self._schema)
            elif missing:
                names = ", ".join(each.name for each in missing)
                raise SchemaError(f"schema {self._schema!r} lacks {names}: run `queuert migrate`.")
            made = await migrations.settings_of(connection, self._schema)
            database.store = Store(self._schema, int(made.get("lanes", 1)), virtual="clock" in made, wire=self.wire)

    async def migrate(self, *, lanes: int = 1) -> list[str]:
        """Make the schema, or bring it up to date; the names of what was applied. lanes: fixed by the first call (1 to 256)."""
        if self._database is None and self._embedded is None and self._source is not None:
            database = postgres.Database(self._source, schema=self._schema, pool_size=1, pooler=self._pooler)
            try:
                await database.open()
                async with database.connection() as connection:
                    return await migrations.migrate(connection, self._schema, lanes=lanes)
            finally:
                await database.close()
        await self.open(migrate=True)
        return []

    async def close(self) -> None:
        """Stop this engine's workers, wait for those that stop already, then give up every connection. It may be opened again.

        Where the event loop on which it was open has ended, its connections go with that. UsageError when it is open on another one.
        """
        if self.loop is not None and self.loop.is_closed():
            server = self._server
            self._forget()
            if server is not None:
                await asyncio.to_thread(server.close)
        self._on_its_loop()
        while self._workers:
            await self._workers[0].stop()
        lock = self._opening = self._opening or asyncio.Lock()
        async with lock:
            if lock is not self._opening:  # it was closed meanwhile
                return
            if self._database is not None:
                await self._events.stop()
                await self._waiters.stop()
                await self._notifier.stop()
                await self._listener.stop()
                database, self._database = self._database, None
                await database.close()
            if self._server is not None:
                server, self._server = self._server, None
                await asyncio.to_thread(server.close)
            self._opening = self._making = self.loop = None

    def _on_its_loop(self) -> None:
        """UsageError in another event loop than the one on which the engine is open."""
        if self.loop is None or self.loop is asyncio.get_running_loop():
            return
        if self.loop.is_closed():
            raise UsageError("the engine was left open on an event loop that has ended: use `async with engine` there, or close it first.")
        raise UsageError("the engine is open on another event loop (by `engine.sync`, or in another thread): close it there first.")

    def _forget(self) -> list[object]:
        """In a forked process: be as if never opened. What was open, to be kept and never closed: its sockets are the parent's as well."""
        opened: list[object] = [self._database, self._server, self._opening, self.loop, *self._workers]
        if self._database is not None:
            opened += [self._listener, self._notifier, self._waiters]
        self._database = self._server = self._opening = self._making = self.loop = None
        self._workers = []
        return opened

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def validate(self) -> None:
        """Check that every declaration can be read: annotations resolve, models are models. Called by `open` and by workers."""
        for job_type in self:
            _ = job_type.contract
        failing.check(self)

    def __repr__(self) -> str:
        return f"<Engine {self._schema!r}, {len(self.names())} job types, {'open' if self._database else 'not open'}>"

    @property
    def health(self) -> Health:
        """The health monitor: `report`, `check()`, `on_change(callback)`."""
        if self._database is None:
            raise ConfigurationError("the engine is not open: use `async with engine`.")
        return self._database.health

    # --- tests

    @overload
    def override(self, provide: Callable[..., Coroutine[Any, Any, T]], /) -> Override[T]: ...
    @overload
    def override(self, provide: Callable[..., AsyncGenerator[T, Any]], /) -> Override[T]: ...
    @overload
    def override(self, provide: Callable[..., AsyncIterator[T]], /) -> Override[T]: ...
    @overload
    def override(self, provide: Callable[..., Generator[T, Any, Any]], /) -> Override[T]: ...
    @overload
    def override(self, provide: Callable[..., Iterator[T]], /) -> Override[T]: ...
    @overload
    def override(self, provide: Callable[..., T], /) -> Override[T]: ...
    def override(self, provide: Callable[..., Any], /) -> Any:
        """`with engine.override(get_db).by(fake_db):`: inside the block, this engine's workers make `Depends(get_db)` by `fake_db`."""
        read(provide, "override()")
        return Override[Any](provide, self.overrides)

    # --- what workers ask for

    @property
    def database(self) -> postgres.Database:
        assert self._database is not None  # noqa: S101 - workers exist on open engines only
        return self._database

    @property
    def listener(self) -> Listener:
        return self._listener

    @property
    def notifier(self) -> Notifier:
        return self._notifier

    @property
    def events(self) -> Dispatch:
        return self._events

    @property
    def waiters(self) -> Waiters:
        return self._waiters

    def job_types(self) -> JobTypes[Any]:
        return self

    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None:
        return None if self._wrapper is None else self._wrapper.transaction(connection)

    def find(self, type: str, id: str) -> JobSequence[Any]:
        """A handle that a step has kept: of any type, declared here or not."""
        return JobSequence[Any](id, type, cast("ResultSource", self), self.get(type).contract if self.has(type) else None)

    def _type(self, given: Any, call: str) -> InternalJobType[Any, Any]:
        """The job type that a call was given, by itself or by its name. UsageError, UnknownJobTypeError."""
        return self.get(given) if isinstance(given, str) else job_type_of(given, call)

    def _expected(self, job_type: InternalJobType[Any, Any], output: Any, call: str) -> Contract:
        """What a handle that was made by name returns: what its type declares, as far as it is an `output`. UsageError if it never is."""
        contract = job_type.contract if output is None else job_type.contract.narrowed(output)
        if contract is None:
            raise UsageError(f"{call}: output={getattr(output, '__name__', output)}, but {job_type.name!r} returns {job_type.contract}.")
        return contract

    def model(self, type: str, name: str) -> builtins.type[BaseModel] | None:
        """The model of this name that a job type returns."""
        return self.get(type).contract.outputs.get(name) if self.has(type) else None

    def joined(self, worker: Worker) -> None:
        self._workers.append(worker)

    def left(self, worker: Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)

    def step_for(self, continuation: Continuation[Any], row: LiveJob) -> Step:
        """Check a continuation and dump it. Raises what is the handler's fault."""
        known = self.get(continuation.job_type.name)
        before = self.get(row.type).contract if self.has(row.type) else known.contract
        if not before.covers(known.contract):
            raise InvalidContinuationError(f"{row.type!r} returns {before}, it cannot continue with {known.name!r}: {known.contract}.")
        blockers = Collected()
        try:
            text = known.dump_input(continuation.input, self.wire, blockers)
        except InvalidInputError as error:
            raise InvalidContinuationError(str(error), **error.details) from error.__cause__
        options.known(continuation.options, ContinueOptions.__annotations__)
        delay, at = options.when(continuation.options)
        return Step(
            job_id=uuid7(),
            type=known.name,
            queue=known.options.get("queue"),
            input=text,
            delay=delay,
            at=at,
            priority=options.priority(continuation.options["priority"]) if "priority" in continuation.options else None,
            max_attempts=None,
            timeout=options.span(known.options.get("timeout"), "timeout"),
            blockers=list(map(str, blockers.ids)),
            on_blocker_failure=known.options.get("on_blocker_failure", "hold"),
        )

    def _mine(self, running: Running | None) -> Running | None:
        """The handler that runs this code, if it is one of this database's: what another engine's does is no business of ours. None for
        what a handler has left running behind it."""
        if running is None or running.over:
            return None
        if running.place is None:
            return running
        return running if self._database is not None and running.place == self._database.place else None

    def _inside(self) -> bool:
        """Is this the code of a handler's phase, which has a connection of the pool already?"""
        running = self._mine(current.get())
        return running is not None and running.in_phase

    async def _handler(self) -> Running | None:
        """As `_mine`, of the handler that runs this code."""
        running = current.get()
        if running is not None and running.place is not None:
            await self._db()
        return self._mine(running)

    async def _within(self, tx: Any) -> Within:
        """UsageError for a phase without its transaction, and for what is no transaction; PhaseError for one of a phase that is over."""
        running = await self._handler()
        if running is not None and running.in_phase and tx is None:
            raise UsageError("inside a phase this must be part of its transaction: pass tx=tx.")
        own = None if running is None else running.carrier_for(tx)
        return Within(running, own or carrier_for(tx, native=self._wrapper is not None), own is not None)

    async def _db(self) -> postgres.Database:
        self._on_its_loop()
        if self._database is None:
            await self.open()
        return self.database


def _check(**given: Any) -> None:
    """What an engine is made with. ConfigurationError."""
    if not isinstance(given["schema"], str):
        raise ConfigurationError(f"schema={given['schema']!r}: a name is needed.")
    quoted(given["schema"])
    for name in ("pool_size", "max_payload"):
        if type(given[name]) is not int or given[name] < 1:
            raise ConfigurationError(f"{name}={given[name]!r}: an integer, at least 1.")
    if not isinstance(given["pooler"], bool):
        raise ConfigurationError(f"pooler={given['pooler']!r}: True or False.")
    codec = given["codec"]
    if codec is not None and not (callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None))):
        raise ConfigurationError(f"codec={codec!r}: an object with encode(data) and decode(data) is needed.")


class EmbeddedDatabase:
    """Asks for a PostgreSQL of the engine's own."""

    def __init__(self, path: Path | None, ephemeral: bool) -> None:
        self.path, self.ephemeral = path, ephemeral
