"""How a worker works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Settings:
    """See `Engine.worker`. Times in seconds, but for the lease; poll_interval: busy, idle; batch: the most jobs of one claim."""

    concurrency: int = 100
    queues: Sequence[str] | None = None
    types: Sequence[str] | None = None
    lease: timedelta = timedelta(seconds=30)
    poll_interval: tuple[float, float] = (1.0, 60.0)
    shutdown_timeout: float = 30.0
    grace: float = 5.0
    batch: int = 100
    drain: bool = False
    name: str = "worker"
