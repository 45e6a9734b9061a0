"""How a worker works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from queuert_py import options
from queuert_py.errors import ConfigurationError, UsageError
from queuert_py.job_types import InternalJobType, JobTypes


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


def checked(
    *,
    concurrency: Any,
    queues: Any,
    types: Any,
    lease: Any,
    grace: Any,
    name: Any,
    poll_interval: Any = (1.0, 60.0),
    shutdown_timeout: Any = 30.0,
    drain: bool = False,
) -> Settings:
    """The settings of a worker as a user gives them. ConfigurationError."""
    try:
        return Settings(
            concurrency=options.count(concurrency, "concurrency"),
            queues=_queues(queues),
            types=_names(types, "types", 200),
            lease=options.needed(lease, "lease", positive=True),
            poll_interval=_pair(poll_interval),
            shutdown_timeout=options.needed(shutdown_timeout, "shutdown_timeout").total_seconds(),
            grace=options.needed(grace, "grace").total_seconds(),
            drain=drain,
            name=options.words(name, "name", 200),
        )
    except UsageError as error:
        raise ConfigurationError(f"a worker cannot work like this: {error}") from None


def _names(value: Any, name: str, most: int) -> list[str] | None:
    return None if value is None else [options.words(each, name, most) for each in options.several(value, name, "names")]


def _queues(value: Any) -> list[str] | None:
    names = _names(value, "queues", 40)
    if names == []:
        raise UsageError(f"queues={value!r}: at least one, or None for those of its job types.")
    return names


def _pair(value: Any) -> tuple[float, float]:
    both = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value, value)
    if len(both) != 2:
        raise UsageError(f"poll_interval={value!r}: seconds, or two of them, busy and idle.")
    busy, idle = (options.needed(each, "poll_interval", positive=True).total_seconds() for each in both)
    return busy, idle


def types_of(settings: Settings, declared: JobTypes[Any]) -> dict[str, InternalJobType[Any, Any]]:
    """What a worker serves, by name. UnknownJobTypeError; ConfigurationError for a type, or all of them, without a handler here."""
    named = list(declared) if settings.types is None else [declared.get(name) for name in settings.types]
    mute = [each.name for each in named if each.handler is None]
    served = {each.name: each for each in named if each.handler is not None}
    if (mute and settings.types is not None) or not served:
        which = f"job type {', '.join(mute)} without a handler" if mute and settings.types else "no job type to run"
        raise ConfigurationError(f"this worker has {which}: decorate a handler with @engine.job_type, or import the module that does.")
    return served


def queues_of(settings: Settings, types: dict[str, InternalJobType[Any, Any]]) -> list[str]:
    """From where it takes them: by default "default", and the queues that its types name."""
    own = dict.fromkeys(["default", *(each.options.get("queue", "default") for each in types.values())])
    return list(own if settings.queues is None else settings.queues)
