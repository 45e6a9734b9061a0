"""The facade: declare, start, await, look, change, work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, overload

from psycopg_pool import AsyncConnectionPool

from queuert_py import payload
from queuert_py.engine.controls import Controls
from queuert_py.engine.core import DSN_VARIABLE, EmbeddedDatabase
from queuert_py.engine.signals import Signals
from queuert_py.engine.sync import SyncEngine
from queuert_py.engine.waits import Waits
from queuert_py.engine.watches import Watches
from queuert_py.engine.works import Works
from queuert_py.job import Connection, Database, Tx
from queuert_py.job_types import JobTypes
from queuert_py.payload import Codec

__all__ = ["DSN_VARIABLE", "Engine"]


class Engine(Signals[Tx], Controls[Tx], Works[Tx], Waits[Tx], Watches[Tx]):
    """Typed sequences on one PostgreSQL schema.

    db: a DSN, a psycopg `AsyncConnectionPool`, or a Database; without it the DSN in QUEUERT_DSN. registries: JobTypes to mount.
    schema: where the tables are. pool_size: connections for handlers and callers (10). max_payload: bytes of JSON (1 MiB).
    codec: encrypts or compresses inputs, outputs and what handlers memoise (errors, keys and tags are stored as they are).
    pooler: the DSN leads through a transaction pooler (PgBouncer): nothing is left in a session. Made for `run_once` and for starting;
    a worker works, but only polls, and is missed at the end of its lease only.
    Opens at `async with engine` or at first use, and is bound to that event loop. `sync`: its verbs for code without an event loop.
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
        codec: Codec | None = None,
        pooler: bool = False,
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
        codec: Codec | None = None,
        pooler: bool = False,
    ) -> None: ...
    def __init__(
        self,
        db: Any = None,
        /,
        *registries: Any,
        schema: str = "queuert",
        pool_size: int = 10,
        max_payload: int = payload.MAX_PAYLOAD,
        codec: Codec | None = None,
        pooler: bool = False,
    ) -> None:
        super().__init__(db, registries, schema=schema, pool_size=pool_size, max_payload=max_payload, pooler=pooler, codec=codec)
        self.sync = SyncEngine(self)

    @classmethod
    def embedded(cls, *registries: JobTypes[Connection], path: str | Path | None = None, ephemeral: bool = False) -> Engine[Connection]:
        """An engine on a real PostgreSQL of its own, with nothing installed (extra `embedded`).

        Persistent by default: one for the project (the folder of pyproject.toml, or `path`), shared by all its processes. ephemeral: a
        fresh one that goes with its last process, without fsync: for tests and demos. EmbeddedError says what is missing.
        """
        return Engine(cast("str", EmbeddedDatabase(Path(path) if path is not None else None, ephemeral)), *registries)
