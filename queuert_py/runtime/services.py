"""What workers need of the engine that made them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from psycopg import AsyncConnection

from queuert_py.job_types import JobTypes
from queuert_py.postgres.database import Database
from queuert_py.postgres.listener import Listener, Notifier
from queuert_py.runtime.waiters import Waiters
from queuert_py.values import Continuation, LiveJob, Step


class Services(Protocol):
    """What a worker needs of its engine."""

    @property
    def database(self) -> Database: ...
    @property
    def listener(self) -> Listener: ...
    @property
    def notifier(self) -> Notifier: ...
    @property
    def waiters(self) -> Waiters: ...
    @property
    def max_payload(self) -> int: ...
    def job_types(self) -> JobTypes[Any]: ...
    def step_for(self, continuation: Continuation[Any], row: LiveJob) -> Step: ...
    def wrap(self, connection: AsyncConnection[Any]) -> AbstractAsyncContextManager[Any] | None: ...
    def joined(self, worker: Any) -> None: ...
    def left(self, worker: Any) -> None: ...


class Opens(Services, Protocol):
    """An engine that may not be open yet."""

    async def open(self) -> None: ...
    def validate(self) -> None: ...
