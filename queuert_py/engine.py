"""The facade: declare, start, await, look, retry, work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast, overload
from uuid import UUID

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel
from typing_extensions import TypeVar, Unpack

from queuert_py import options, payload
from queuert_py.decisions.backoff import seconds
from queuert_py.embedded import Server, open_server
from queuert_py.errors import (
    ConfigurationError,
    ResultTimeoutError,
    SchemaError,
    SequenceNotFoundError,
    UsageError,
)
from queuert_py.ids import lane_of, uuid7
from queuert_py.job import Connection, Database, In, Tx, current
from queuert_py.job_types import InternalJobType, JobType, JobTypes, Out
from queuert_py.postgres import database as postgres
from queuert_py.postgres import migrate as migrations
from queuert_py.postgres import rows
from queuert_py.postgres.listener import Listener, Notifier, hint
from queuert_py.postgres.store import together
from queuert_py.results import error_of, output_of
from queuert_py.runtime.settings import Settings
from queuert_py.runtime.waiters import Waiters
from queuert_py.runtime.worker import Worker, WorkerContext
from queuert_py.sequence import Collected, JobSequence
from queuert_py.starting import Batch, connection_of
from queuert_py.values import (
    AttemptRecord,
    Continuation,
    ContinueOptions,
    Duration,
    JobRecord,
    LiveJob,
    Request,
    SequenceRecord,
    StartOptions,
    Status,
    Step,
)

A = TypeVar("A", bound=BaseModel | None)
B = TypeVar("B", bound=BaseModel | None)
C = TypeVar("C", bound=BaseModel | None)
D = TypeVar("D", bound=BaseModel | None)
E = TypeVar("E", bound=BaseModel | None)
DSN_VARIABLE = "QUEUERT_DSN"


class Engine(JobTypes[Tx]):
    """Typed sequences on one PostgreSQL schema.

    db: a DSN, a psycopg `AsyncConnectionPool`, or a Database; without it the DSN in QUEUERT_DSN. registries: JobTypes to mount.
    schema: where the tables are. pool_size: connections for handlers and callers (10). max_payload: bytes of JSON (1 MiB).
    Opens at `async with engine` or at first use, and is bound to that event loop.
    """

    @overload
    def __init__(
        self: Engine[Connection],
        db: str | AsyncConnectionPool[Any] | None = None,
        /,
        *registries: JobTypes[Connection],
        schema: str = "queuert",
        pool_size: int = 10,
        max_payload: int = payload.MAX_PAYLOAD,
    ) -> None: ...
    @overload
    def __init__(
        self,
        db: Database[Tx],
        /,
        *registries: JobTypes[Tx],
        schema: str = "queuert",
        pool_size: int = 10,
        max_payload: int = payload.MAX_PAYLOAD,
    ) -> None: ...
    def __init__(
        self, db: Any = None, /, *registries: Any, schema: str = "queuert", pool_size: int = 10, max_payload: int = payload.MAX_PAYLOAD
    ) -> None:
        super().__init__()
        for registry in registries:
            self.mount(registry)
        self.max_payload = max_payload
        self._wrapper: Database[Any] | None = None
        self._source: str | AsyncConnectionPool[Any] | None = None
        self._embedded: tuple[Path | None, bool] | None = None
        if db is None:
            db = os.environ.get(DSN_VARIABLE)
        if isinstance(db, (str, AsyncConnectionPool)):
            self._source = db
        elif hasattr(db, "transaction") and hasattr(db, "conninfo"):
            self._wrapper, self._source = db, db.conninfo
        elif not isinstance(db, _Embedded):
            raise ConfigurationError(
                f"Engine() needs a database: a DSN as its argument or in {DSN_VARIABLE}, a psycopg AsyncConnectionPool, "
                f"or Engine.embedded() for a PostgreSQL of its own{'' if db is None else f' (not {type(db).__name__})'}."
            )
        else:
            self._embedded = (db.path, db.ephemeral)
        self._schema = schema
        self._pool_size = pool_size
        self._server: Server | None = None
        self._database: postgres.Database | None = None
        self._opening: asyncio.Lock | None = None
        self._workers: list[Worker] = []

    @classmethod
    def embedded(cls, *registries: JobTypes[Connection], path: str | Path | None = None, ephemeral: bool = False) -> Engine[Connection]:
        """An engine on a real PostgreSQL of its own, with nothing installed (extra `embedded`).

        Persistent by default: one for the project (the folder of pyproject.toml, or `path`), shared by all its processes. ephemeral: a
        fresh one that goes with its last process, without fsync: for tests and demos. EmbeddedError says what is missing.
        """
        return Engine(cast("str", _Embedded(Path(path) if path is not None else None, ephemeral)), *registries)

    # --- opening and closing

    async def open(self, *, migrate: bool | None = None) -> None:
        """Connect, and check the schema. An empty one is made (embedded: also brought up to date).

        migrate: True applies what is missing, False never does. DatabaseUnavailableError, SchemaError (with the command that repairs
        it), EmbeddedError; NameError when a handler's annotations cannot be resolved.
        """
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._database is not None:
                return
            self.validate()
            if self._embedded is not None and self._server is None:
                path, ephemeral = self._embedded
                self._server = await asyncio.to_thread(open_server, path, ephemeral=ephemeral)
                self._source = self._server.dsn
            assert self._source is not None  # noqa: S101
            database = postgres.Database(self._source, schema=self._schema, pool_size=self._pool_size)
            try:
                await database.open()
                await self._check_schema(database, migrate)
            except BaseException:
                await database.close()
                raise
            self._database = database
            self._listener = Listener(database)
            self._notifier = Notifier(database)
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
            database.store.lanes = await migrations.lanes_of(connection, self._schema)

    async def migrate(self, *, lanes: int = 1) -> list[str]:
        """Make the schema, or bring it up to date; the names of what was applied. lanes: fixed by the first call (1 to 256)."""
        if self._database is None and self._embedded is None and self._source is not None:
            database = postgres.Database(self._source, schema=self._schema, pool_size=1)
            try:
                await database.open()
                async with database.connection() as connection:
                    return await migrations.migrate(connection, self._schema, lanes=lanes)
            finally:
                await database.close()
        await self.open(migrate=True)
        return []

    async def close(self) -> None:
        """Stop this engine's workers, then give up every connection. It may be opened again."""
        for worker in list(self._workers):
            await worker.stop()
        if self._database is not None:
            await self._waiters.stop()
            await self._notifier.stop()
            await self._listener.stop()
            database, self._database = self._database, None
            await database.close()
        if self._server is not None:
            server, self._server = self._server, None
            await asyncio.to_thread(server.close)
        self._opening = None

    async def __aenter__(self) -> Engine[Tx]:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def validate(self) -> None:
        """Check that every declaration can be read: annotations resolve, models are models. Called by `open` and by workers."""
        for job_type in self:
            _ = job_type.contract

    def __repr__(self) -> str:
        return f"<Engine {self._schema!r}, {len(self.names())} job types, {'open' if self._database else 'not open'}>"

    # --- starting

    @overload
    async def start_sequence(
        self, job_type: JobType[In, Out], /, input: In, *, tx: Tx | None = None, **how: Unpack[StartOptions]
    ) -> JobSequence[Out]: ...
    @overload
    async def start_sequence(
        self,
        job_type: str,
        /,
        input: BaseModel | Mapping[str, object],
        *,
        output: type[Out],
        tx: Tx | None = None,
        **how: Unpack[StartOptions],
    ) -> JobSequence[Out]: ...
    @overload
    async def start_sequence(
        self, job_type: str, /, input: BaseModel | Mapping[str, object], *, tx: Tx | None = None, **how: Unpack[StartOptions]
    ) -> JobSequence[Any]: ...
    async def start_sequence(self, job_type: Any, /, input: Any, *, output: Any = None, tx: Any = None, **how: Unpack[StartOptions]) -> Any:
        """Start a sequence; returns its handle as soon as it is committed.

        job_type: a JobType, or its name (then `output=Model` types the result). input: its model; a mapping is validated, by name only.
        how: StartOptions. tx: the caller's transaction (of the engine's kind): the sequence exists if and only if that commits.
        Raises, before anything is written: InvalidInputError (names the field), UnknownJobTypeError, NotStartableError, UsageError;
        DuplicateIdError; DatabaseUnavailableError.
        """
        found = self.get(job_type) if isinstance(job_type, str) else job_type
        handles = await self._start([Request(found, input, how)], tx)
        return handles[0]

    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B]], /, *, tx: Tx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B]]: ...
    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B], Request[C]], /, *, tx: Tx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B], JobSequence[C]]: ...
    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B], Request[C], Request[D]], /, *, tx: Tx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B], JobSequence[C], JobSequence[D]]: ...
    @overload
    async def start_sequences(  # type: ignore[overload-overlap]
        self, requests: tuple[Request[A], Request[B], Request[C], Request[D], Request[E]], /, *, tx: Tx | None = None
    ) -> tuple[JobSequence[A], JobSequence[B], JobSequence[C], JobSequence[D], JobSequence[E]]: ...
    @overload
    async def start_sequences(self, requests: Iterable[Request[Out]], /, *, tx: Tx | None = None) -> list[JobSequence[Out]]: ...
    async def start_sequences(self, requests: Any, /, *, tx: Any = None) -> Any:
        """Start any number of sequences at once, all or none; handles in the order of the requests ([] for []). By COPY where it can.

        Inside the batch, too, the first of a key wins. Annotate mixed lists (`list[Request[A | B]]`) or pass a tuple of two to five.
        Raises as `start_sequence`, with the number of the request.
        """
        handles = await self._start(list(requests), tx)
        return tuple(handles) if isinstance(requests, tuple) else handles

    async def _start(self, requests: Sequence[Request[Any]], tx: Any) -> list[JobSequence[Any]]:
        running = current.get()
        if running is not None and running.in_phase and tx is None:
            raise UsageError("a start inside a phase must be part of its transaction: pass tx=tx.")
        own = running.connection_of(tx) if running is not None and tx is not None else None
        connection = own or connection_of(tx)
        if not requests:
            return []
        database = await self._db()
        origin = None if running is None else running.row
        batch = Batch(requests, lanes=database.store.lanes, limit=self.max_payload, origin=origin, get=self.get)
        outcomes = await batch.write(database, connection)
        if connection is None:
            self._wake(batch)
        return batch.handles(outcomes, self)

    def _wake(self, batch: Batch) -> None:
        """Work has come: the workers of this engine know at once, the others by a hint (unless one here takes it at once)."""
        hints: list[str] = []
        single = len(batch.starts) == 1
        for (lane, queue, priority), start in batch.hints.items():
            taken = False
            for worker in self._workers:
                if worker.serves(queue, start.fields["type"]):
                    taken = taken or (single and worker.has_room() and not start.fields.keys() & {"delay", "at"})
                    worker.wake(lane, queue, priority, 0)
            if not taken:
                hints.append(hint(lane, queue, priority))
        self._notifier.send(hints)

    # --- handles and results

    @overload
    def sequence(self, job_type: JobType[In, Out], id: UUID, /) -> JobSequence[Out]: ...
    @overload
    def sequence(self, job_type: str, id: UUID, /, *, output: type[Out]) -> JobSequence[Out]: ...
    def sequence(self, job_type: Any, id: UUID, /, *, output: Any = None) -> Any:
        """A handle from an id (another request, another process): no round trip, no check that it exists. A Blocker, too."""
        found: InternalJobType[Any, Any] = self.get(job_type) if isinstance(job_type, str) else job_type
        return JobSequence[Any](id, found.name, self, found.contract.outputs)

    async def result_of(self, sequence: JobSequence[Any], timeout: Duration | None) -> Any:
        """See `JobSequence.result`."""
        if current.get() is not None:
            raise UsageError("result() inside a handler would hold its slot: make the sequence a Blocker of the next job (continue_with).")
        await self._db()
        limit = None if timeout is None else seconds(timeout)
        try:
            async with asyncio.timeout(limit):
                ended = await self._waiters.wait(str(sequence.id))
        except TimeoutError:
            raise ResultTimeoutError(
                f"sequence {sequence.id} ({sequence.type}) has not ended within {limit} s; it goes on.", sequence_id=str(sequence.id)
            ) from None
        if ended.outcome == "completed":
            return output_of(sequence, ended, self._model)
        attempts = await self.list_attempts(sequence.id) if ended.outcome == "failed" else []
        raise error_of(sequence, ended, attempts)

    def _model(self, type: str, name: str) -> type[BaseModel] | None:
        """The output of the last job's own type, for handles made by name whose first type does not declare it."""
        return self.get(type).contract.outputs.get(name) if self.has(type) else None

    # --- looking

    async def get_sequence(self, id: UUID, /) -> SequenceRecord:
        """Where a sequence stands. SequenceNotFoundError."""
        database = await self._db()
        found = await database.run(database.store.read_sequence(lane_of(id, database.store.lanes), id))
        if not found:
            raise SequenceNotFoundError(f"sequence {id} does not exist.")
        return found[0]

    async def list_sequences(
        self, *, status: Status | None = None, type: str | None = None, key: str | None = None, limit: int = 100
    ) -> list[SequenceRecord]:
        """Sequences, newest first (failed ones: those that failed last)."""
        database = await self._db()
        if status == "failed":
            return await database.run(database.store.list_failed(type=type, key=key, limit=limit))
        return await database.run(database.store.list_sequences(status=status, type=type, key=key, limit=limit))

    async def list_jobs(self, id: UUID, /) -> list[JobRecord]:
        """The jobs of a sequence, in order; [] when it does not exist."""
        database = await self._db()
        return await database.run(database.store.list_jobs(lane_of(id, database.store.lanes), id))

    async def list_attempts(self, id: UUID, /) -> list[AttemptRecord]:
        """The attempts of a sequence that did not succeed, oldest first."""
        database = await self._db()
        return await database.run(database.store.list_attempts(lane_of(id, database.store.lanes), id))

    async def retry_sequences(self, ids: Iterable[UUID], /) -> list[UUID]:
        """Run failed sequences again from the job that failed, with all attempts; those that were (not failed, or key taken: left)."""
        database = await self._db()
        parts = [rows.sequence_row(str(id), lane_of(id, database.store.lanes)) for id in ids]

        async def work(connection: AsyncConnection[Any]) -> list[tuple[int, str, str, int, str]]:
            async with connection.transaction():
                revived = await database.store.revive_failed(parts).on(connection)
                moved = [rows.sequence_row(id, lane) for lane, id, *_ in revived]
                await together(connection, database.store.move_failed(moved))
                return revived

        revived = await database.retrying(work)
        for worker in self._workers:
            worker.look()
        self._notifier.send(hint(lane, queue, priority) for lane, _, queue, priority, _ in revived)
        return [UUID(id) for _, id, *_ in revived]

    @property
    def health(self) -> postgres.Health:
        """The health monitor: `report`, `check()`, `on_change(callback)`."""
        if self._database is None:
            raise ConfigurationError("the engine is not open: use `async with engine`.")
        return self._database.health

    # --- working

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
    def waiters(self) -> Waiters:
        return self._waiters

    def job_types(self) -> JobTypes[Any]:
        return self

    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None:
        return None if self._wrapper is None else self._wrapper.transaction(connection)

    def joined(self, worker: Worker) -> None:
        self._workers.append(worker)

    def left(self, worker: Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)

    def step_for(self, continuation: Continuation[Any], row: LiveJob) -> Step:
        """Check a continuation and dump it. Raises what is the handler's fault."""
        known = self.get(continuation.job_type.name)
        blockers = Collected()
        text = known.dump_input(continuation.input, self.max_payload, blockers)
        if blockers.ids:
            raise UsageError(f"{known.name!r}: inputs with Blocker fields cannot be continued with yet.")
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
        )

    async def _db(self) -> postgres.Database:
        if self._database is None:
            await self.open()
        return self.database


class _Embedded:
    def __init__(self, path: Path | None, ephemeral: bool) -> None:
        self.path, self.ephemeral = path, ephemeral
