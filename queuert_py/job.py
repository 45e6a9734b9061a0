"""What a handler holds: its job, its input, and the phases in which it may write."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Generic, Literal, Protocol, TypeAlias
from uuid import UUID

from psycopg import AsyncConnection
from pydantic import BaseModel
from typing_extensions import TypeVar

from queuert_py.decisions.phases import Kind
from queuert_py.values import Abort, LiveJob


class Row(Protocol):
    """A row as psycopg's tuple and dict factories make it. Not Any: mypy gives up on overloads whose argument holds an Any."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


Connection: TypeAlias = AsyncConnection[Row]
"""What `tx` is when the engine is built on a DSN or a psycopg pool."""

In = TypeVar("In", bound=BaseModel)
Tx = TypeVar("Tx", default=Connection)
Tx_co = TypeVar("Tx_co", covariant=True)


class Database(Protocol[Tx_co]):
    """What an engine can be built on besides a DSN or a psycopg pool: gives handlers transactions of another kind (a session)."""

    @property
    def conninfo(self) -> str:
        """Where the database is, for the engine's own connections."""
        ...

    def transaction(self, connection: AsyncConnection[Any], /) -> AbstractAsyncContextManager[Tx_co]:
        """Wrap the engine's open transaction for one phase of a handler. It must neither commit nor roll back."""
        ...


class Running(Protocol):
    """What a Job needs of the attempt that runs it."""

    @property
    def row(self) -> LiveJob: ...
    @property
    def abort_reason(self) -> Abort | None: ...
    @property
    def shutting_down(self) -> bool: ...
    @property
    def in_phase(self) -> bool: ...
    def connection_of(self, tx: object) -> AsyncConnection[Any] | None: ...
    def phase(self, kind: Kind) -> AbstractAsyncContextManager[Any]: ...


current: ContextVar[Running | None] = ContextVar("queuert_current", default=None)
"""The attempt in whose task (or a child of it) this code runs."""

_log = logging.getLogger("queuert_py.job")


class Job(Generic[In, Tx]):
    """One attempt at one job, as its handler sees it."""

    __slots__ = ("_input", "_running")

    def __init__(self, running: Running, input: In) -> None:
        self._running = running
        self._input = input

    @property
    def input(self) -> In:
        """The input, validated again on pickup; Blocker fields have their outputs."""
        return self._input

    @property
    def id(self) -> UUID:
        """The job's id; that of a sequence's first job is the sequence's."""
        row = self._running.row
        return UUID(row.job_id or row.sequence_id)

    @property
    def sequence_id(self) -> UUID:
        return UUID(self._running.row.sequence_id)

    @property
    def root_id(self) -> UUID:
        """The first sequence of the tree that this one was started from."""
        row = self._running.row
        return UUID(row.root_id or row.sequence_id)

    @property
    def origin_id(self) -> UUID | None:
        """The job that created this one: the one before it in the sequence, or the one whose handler started the sequence."""
        origin = self._running.row.origin_id
        return UUID(origin) if origin else None

    @property
    def type(self) -> str:
        return self._running.row.type

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._running.row.attempt

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this job: give it to external services so that a repeat is recognised."""
        return str(self.id)

    @property
    def abort_reason(self) -> Abort | None:
        """Why the handler is being cancelled, if it is."""
        return self._running.abort_reason

    @property
    def aborted(self) -> bool:
        """Is the handler being cancelled? For code that cannot be interrupted and looks by itself."""
        return self._running.abort_reason is not None

    @property
    def shutting_down(self) -> bool:
        """Is the worker stopping? The handler has until its `shutdown_timeout`."""
        return self._running.shutting_down

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry job, sequence, type and attempt (in `extra`)."""
        return logging.LoggerAdapter(
            _log, {"job_id": str(self.id), "sequence_id": str(self.sequence_id), "job_type": self.type, "attempt": self.attempt}
        )

    def prepare(self, *, mode: Literal["staged", "atomic"] = "staged") -> AbstractAsyncContextManager[Tx]:
        """A short transaction of its own, committed at the end of the block; several may follow one another.

        mode="atomic" is `atomic()`. PhaseError where a phase may not be opened; LeaseLostError when the job is no longer this attempt's.
        """
        return self._running.phase("prepare" if mode == "staged" else "atomic")

    def finalize(self) -> AbstractAsyncContextManager[Tx]:
        """The transaction in which the job completes: what the handler returns is written in it, and it commits after the return.

        Between the end of the block and the return a statement through it is an error. An exception rolls everything back.
        """
        return self._running.phase("finalize")

    def atomic(self) -> AbstractAsyncContextManager[Tx]:
        """prepare and finalize in one transaction."""
        return self._running.phase("atomic")
