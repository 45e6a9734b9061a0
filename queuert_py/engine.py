"""The facade: declare, start, await, look, retry, work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast, overload
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel
from typing_extensions import TypeVar, Unpack

from queuert_py import payload
from queuert_py.decisions.backoff import seconds
from queuert_py.embedded import Server, open_server
from queuert_py.errors import (
    ConfigurationError,
    InvalidInputError,
    InvalidOutputError,
    NotStartableError,
    ResultTimeoutError,
    SchemaError,
    SequenceCancelledError,
    SequenceExpiredError,
    SequenceFailedError,
    SequenceNotFoundError,
    UsageError,
)
from queuert_py.ids import lane_of, uuid7
from queuert_py.job import Connection, In, Tx, current
from queuert_py.job_types import InternalJobType, JobType, JobTypes, Out
from queuert_py.postgres import database as postgres
from queuert_py.postgres import migrate as migrations
from queuert_py.postgres import rows, starts
from queuert_py.postgres.listener import Listener, Notifier
from queuert_py.postgres.store import together
from queuert_py.runtime.waiters import Ended, Waiters
from queuert_py.runtime.worker import Settings, Worker
from queuert_py.sequence import Collected, JobSequence
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

Tx_co = TypeVar("Tx_co", covariant=True)
A = TypeVar("A", bound=BaseModel | None)
B = TypeVar("B", bound=BaseModel | None)
C = TypeVar("C", bound=BaseModel | None)
D = TypeVar("D", bound=BaseModel | None)
E = TypeVar("E", bound=BaseModel | None)
DSN_VARIABLE = "QUEUERT_DSN"
PRIORITIES = {"low": -10, "default": 0, "high": 10, "critical": 20}


class Database(Protocol[Tx_co]):
    """What an engine can be built on besides a DSN or a psycopg pool: gives handlers transactions of another kind (a session)."""

    @property
    def conninfo(self) -> str:
        """Where the database is, for the engine's own connections."""
        ...

    def transaction(self, connection: AsyncConnection[Any], /) -> AbstractAsyncContextManager[Tx_co]:
        """Wrap the engine's open transaction for one phase of a handler. It must neither commit nor roll back."""
        ...


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
            self._waiters = Waiters(database, lambda: self._listener)

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
        self, job_type: JobType[In, Out], /, input: In, *, tx: Tx | None = None, **options: Unpack[StartOptions]
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
        **options: Unpack[StartOptions],
    ) -> JobSequence[Out]: ...
    @overload
    async def start_sequence(
        self, job_type: str, /, input: BaseModel | Mapping[str, object], *, tx: Tx | None = None, **options: Unpack[StartOptions]
    ) -> JobSequence[Any]: ...
    async def start_sequence(
        self, job_type: Any, /, input: Any, *, output: Any = None, tx: Any = None, **options: Unpack[StartOptions]
    ) -> Any:
        """Start a sequence; returns its handle as soon as it is committed.

        job_type: a JobType, or its name (then `output=Model` types the result). input: its model; a mapping is validated, by name only.
        options: StartOptions. tx: the caller's transaction (of the engine's kind): the sequence exists if and only if that commits.
        Raises, before anything is written: InvalidInputError (names the field), UnknownJobTypeError, NotStartableError, UsageError;
        DuplicateIdError; DatabaseUnavailableError.
        """
        found = self.get(job_type) if isinstance(job_type, str) else job_type
        handles = await self._start([Request(found, input, options)], tx)
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
        connection = self._connection_of(tx)
        if not requests:
            return []
        lanes = (await self._db()).store.lanes
        origin = None if running is None else running.row
        prepared: list[starts.Start] = []
        firsts: dict[tuple[str, str], int] = {}
        places: list[int] = []
        for number, request in enumerate(requests):
            start = self._prepare(request, lanes, origin, number if len(requests) > 1 else None)
            place = firsts.setdefault((request.job_type.name, start.key), len(prepared)) if start.key else len(prepared)
            places.append(place)
            if place == len(prepared):
                prepared.append(start)
        database = await self._db()
        hints = {(each.lane, each.fields["queue"], each.fields["priority"]): each for each in prepared}
        if connection is not None:
            outcomes = await starts.start_in(database, connection, prepared, [_hint(*place) for place in hints])
        else:
            outcomes = await starts.start(database, prepared)
            self._wake(hints)
        handles: list[JobSequence[Any]] = []
        seen: set[int] = set()
        for request, place in zip(requests, places, strict=True):
            id, found = outcomes[place]
            outputs = request.job_type.contract.outputs
            handles.append(JobSequence(id, request.job_type.name, self, outputs, deduplicated=found or place in seen))
            seen.add(place)
        return handles

    def _wake(self, places: Mapping[tuple[int, str, int], starts.Start]) -> None:
        """Work has come: the workers of this engine know at once, the others by a hint (unless one here takes it at once)."""
        hints: list[str] = []
        for (lane, queue, priority), start in places.items():
            taken = False
            for worker in self._workers:
                if worker.serves(queue, start.fields["type"]):
                    taken = taken or (worker.has_room() and len(places) == 1 and "delay" not in start.fields and "at" not in start.fields)
                    worker.wake(lane, queue, priority, 0)
            if not taken:
                hints.append(_hint(lane, queue, priority))
        self._notifier.send(hints)

    def _prepare(self, request: Request[Any], lanes: int, origin: LiveJob | None, number: int | None) -> starts.Start:
        """Check a request and dump it; nothing is written before all are checked."""
        job_type, options = request.job_type, request.options
        which = "" if number is None else f" (request {number})"
        known = self.get(job_type.name)
        if known is not job_type:
            raise UsageError(f"{job_type.name!r} is another job type than the one mounted on this engine{which}: mount its registry.")
        if not job_type.startable:
            raise NotStartableError(
                f"{job_type.name!r} is internal{which}: only continue_with reaches it. Start the type that leads to it."
            )
        blockers = Collected()
        try:
            text = job_type.dump_input(request.input, self.max_payload, blockers)
        except InvalidInputError as error:
            raise InvalidInputError(f"{error}{which}", **error.details) from error.__cause__
        if blockers.ids:
            raise UsageError(f"{job_type.name!r}: inputs with Blocker fields cannot be started yet{which}.")
        fields, own_id = _fields(job_type, options)
        key = fields.get("key")
        if own_id is not None:
            id = str(own_id)
        elif key is not None and lanes > 1:
            id = uuid7(low=payload.digest(f"{job_type.name}\n{key}") % lanes)
        else:
            id = uuid7()
        fields["lane"], fields["sequence_id"] = lane_of(id, lanes), id
        if origin is not None:
            fields["root_id"] = origin.root_id or origin.sequence_id
            fields["origin_id"] = origin.job_id or origin.sequence_id
            if origin.correlation_id is not None:
                fields.setdefault("correlation_id", origin.correlation_id)
            if origin.tags:
                fields.setdefault("tags", list(origin.tags))
        return starts.Start(id, fields["lane"], fields, text, key, own_id is not None)

    def _connection_of(self, tx: Any) -> AsyncConnection[Any] | None:
        if tx is None:
            return None
        running = current.get()
        mine = getattr(running, "connection_of", None)
        connection = mine(tx) if mine is not None else None
        connection = connection or tx
        if not isinstance(connection, AsyncConnection):
            raise UsageError(f"tx={type(tx).__name__}: a psycopg AsyncConnection with an open transaction is needed.")
        if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            raise UsageError("tx= has no open transaction: use it inside `async with connection.transaction():`.")
        return cast("AsyncConnection[Any]", connection)

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
            ended = await asyncio.wait_for(self._waiters.wait(str(sequence.id)), limit)
        except TimeoutError:
            raise ResultTimeoutError(
                f"sequence {sequence.id} ({sequence.type}) has not ended within {limit} s; it goes on.", sequence_id=str(sequence.id)
            ) from None
        return await self._read(sequence, ended)

    async def _read(self, sequence: JobSequence[Any], ended: Ended) -> Any:
        name = f"sequence {sequence.id} ({sequence.type})"
        match ended.outcome:
            case "completed":
                return self._output(sequence, ended)
            case "cancelled":
                raise SequenceCancelledError(f"{name} was cancelled.")
            case "expired":
                raise SequenceExpiredError(f"{name} was not started before it expired.")
            case None:
                raise SequenceNotFoundError(f"{name} does not exist: it was deleted, or its start was not committed.")
            case _:
                pass
        attempts = await self.list_attempts(sequence.id)
        error = cast("dict[str, Any]", ended.error or {})
        what = f"{error.get('type', 'error')}: {error.get('message', '')}".strip()
        raise SequenceFailedError(
            f"{name} failed in {ended.type!r} ({ended.reason}) after {len(attempts)} attempt(s): {what}\n"
            f"`queuert show {sequence.id}` shows it, `queuert retry {sequence.id}` runs it again.",
            sequence_id=sequence.id,
            reason=ended.reason or "error",
            error=error,
            attempts=attempts,
        )

    def _output(self, sequence: JobSequence[Any], ended: Ended) -> Any:
        if ended.output_type is None:
            return None
        model = (sequence._outputs or {}).get(ended.output_type) or self._model(ended)
        if model is None:
            raise InvalidOutputError(f"sequence {sequence.id} returned a {ended.output_type}, which {sequence.type!r} does not declare.")
        return model.__pydantic_validator__.validate_json(ended.output or "null")

    def _model(self, ended: Ended) -> type[BaseModel] | None:
        """The output of the last job's own type: by name only, when the first does not declare it."""
        last = self._types.get(ended.type or "")
        return last.contract.outputs.get(ended.output_type or "") if last is not None else None

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
        """Sequences, newest first."""
        database = await self._db()
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
            worker._look()
        self._notifier.send(_hint(lane, queue, priority) for lane, _, queue, priority, _ in revived)
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
    ) -> _WorkerContext:
        """A worker in this process: `async with engine.worker():`, or `worker = await engine.worker().start()`.

        concurrency: handlers at once. queues, types: what it serves (default: every type with a handler, their queues and "default").
        lease: how long a silent worker keeps its jobs (30 s, renewed every third). poll_interval: busy and idle seconds between looks
        when no hint comes. shutdown_timeout: how long handlers may go on at the end; grace: what a cancelled handler has to clean up.
        drain: end by itself when nothing is left to do.
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
        return _WorkerContext(self, settings)

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
        job_type = continuation.job_type
        known = self.get(job_type.name)
        blockers = Collected()
        text = known.dump_input(continuation.input, self.max_payload, blockers)
        if blockers.ids:
            raise UsageError(f"{job_type.name!r}: inputs with Blocker fields cannot be continued with yet.")
        delay, at = _when(continuation.options)
        options = known.options
        limit = options.get("timeout")
        return Step(
            job_id=uuid7(),
            type=known.name,
            queue=options.get("queue"),
            input=text,
            delay=delay,
            at=at,
            priority=continuation.options.get("priority"),
            max_attempts=None,
            timeout=None if limit is None else timedelta(seconds=seconds(limit)),
        )

    async def _db(self) -> postgres.Database:
        if self._database is None:
            await self.open()
        return self.database


class _Embedded:
    def __init__(self, path: Path | None, ephemeral: bool) -> None:
        self.path, self.ephemeral = path, ephemeral


class _WorkerContext:
    """A worker to be: opens the engine, then starts it."""

    def __init__(self, engine: Engine[Any], settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._worker: Worker | None = None

    async def start(self) -> Worker:
        await self._engine.open()
        self._engine.validate()
        self._worker = Worker(self._engine, self._settings)
        await self._worker.start()
        return self._worker

    async def __aenter__(self) -> Worker:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._worker is not None:
            if self._settings.drain and kind is None:
                await self._worker.drained()
            await self._worker.stop()


def _hint(lane: int, queue: str, priority: int) -> str:
    return f"q:{lane}:{priority}:{queue}"


def _when(options: StartOptions | ContinueOptions) -> tuple[timedelta | None, datetime | None]:
    """delay and at, checked: not both, not negative, aware."""
    delay, at = options.get("delay"), options.get("at")
    if delay is not None and at is not None:
        raise UsageError("delay= and at= are both given: give one.")
    if at is not None:
        _aware(at, "at")
    if delay is None:
        return None, at
    span = seconds(delay)
    if not 0 <= span < 1e10:
        raise UsageError(f"delay={delay!r}: a timedelta or seconds, not negative.")
    return timedelta(seconds=span), at


def _aware(value: datetime, name: str) -> None:
    if value.tzinfo is None:
        raise UsageError(f"{name}={value!r}: an aware datetime is needed, for example datetime.now(timezone.utc) + timedelta(hours=1).")


def _fields(job_type: InternalJobType[Any, Any], options: StartOptions) -> tuple[dict[str, Any], UUID | None]:
    """The columns of a start that are not its input, checked; and the caller's own id."""
    declared = job_type.options
    unknown = options.keys() - StartOptions.__annotations__.keys()
    if unknown:
        raise UsageError(f"unknown option {', '.join(sorted(unknown))}: known are {', '.join(StartOptions.__annotations__)}.")
    fields: dict[str, Any] = {
        "type": job_type.name,
        "queue": options.get("queue", declared.get("queue", "default")),
        "priority": options.get("priority", declared.get("priority", 0)),
    }
    if not options and "timeout" not in declared and "expires" not in declared:
        return fields, None
    try:
        payload.word(fields["queue"], "queue", 40)
        for name, most in (("key", 512), ("correlation_id", 512)):
            value = options.get(name)
            if value is not None:
                fields[name] = payload.word(value, name, most)
        tags = options.get("tags")
        if tags:
            fields["tags"] = [payload.word(tag, "tags", 200) for tag in ([tags] if isinstance(tags, str) else tags)]
    except payload.Unstorable as error:
        raise UsageError(str(error)) from None
    if isinstance(fields["priority"], bool) or not isinstance(fields["priority"], int) or abs(fields["priority"]) > 32_767:
        raise UsageError(f"priority={fields['priority']!r}: an integer from -32767 to 32767, higher first.")
    _times(fields, options, job_type)
    if "max_attempts" in options:
        most_ = options["max_attempts"]
        if most_ is not None and most_ < 1:
            raise UsageError(f"max_attempts={most_}: at least 1, or None for ever.")
        fields["max_attempts"] = most_ or 0
    own_id: Any = options.get("id")
    if own_id is not None and fields.get("key") is not None:
        raise UsageError("id= and key= are both given: a key chooses the row's place itself. Give one.")
    if own_id is not None and not isinstance(own_id, UUID):
        raise UsageError(f"id={own_id!r}: a uuid.UUID is needed.")
    return fields, own_id


def _times(fields: dict[str, Any], options: StartOptions, job_type: InternalJobType[Any, Any]) -> None:
    delay, at = _when(options)
    if delay is not None:
        fields["delay"] = f"{delay.total_seconds():.6f} seconds"
    if at is not None:
        fields["at"] = at.isoformat()
    timeout = options.get("timeout", job_type.options.get("timeout"))
    if timeout is not None:
        fields["timeout"] = f"{seconds(timeout):.6f} seconds"
    expires = options.get("expires", job_type.options.get("expires"))
    if isinstance(expires, datetime):
        _aware(expires, "expires")
        fields["expires_at"] = expires.isoformat()
    elif expires is not None:
        fields["expires"] = f"{seconds(expires):.6f} seconds"
