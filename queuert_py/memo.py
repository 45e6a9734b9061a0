"""The memo of a job: what it keeps across its attempts, as JSON, and how the values of steps are written into it and read back.

steps      {name: {"value": …} or {"handle": …}}   what each step returned
sleeps     {name: instant, or true}                when each sleep ends; true: ended early
deadlines  {name: instant, or true}                until when an event is waited for; true: it did not come
events     {name: {"payload": …, "by": …}}         what was sent to the sequence; the only part that its next job inherits
waits      {name: [ids]}                           the sequences of each wait_for
waiting    name of an event, sleeping: of a sleep  why the job is scheduled just now
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic_core import from_json, to_json

from queuert_py import payload
from queuert_py.errors import InvalidEventError, InvalidInputError, InvalidStepError, NotRepeatableError, UsageError
from queuert_py.sequence import JobSequence

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
FindHandle = Callable[[str, str], JobSequence[Any]]
"""Makes a handle of a job type's name and an id."""


@dataclass(slots=True)
class Memo:
    """What a job had kept when it was claimed, and what this attempt has added."""

    steps: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    sleeps: dict[str, str | bool] = field(default_factory=dict[str, str | bool])
    deadlines: dict[str, str | bool] = field(default_factory=dict[str, str | bool])
    events: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    waits: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    @classmethod
    def read(cls, text: str | None) -> Memo:
        """From the claim's JSON; None: nothing yet."""
        if text is None:
            return cls()
        known: dict[str, Any] = from_json(text)
        return cls(**{section: known[section] for section in cls.__slots__ if section in known})

    def add(self, section: str, name: str, entry: str) -> None:
        """What has just been kept."""
        getattr(self, section)[name] = from_json(entry)


def passed(until: str | bool, run_at: datetime) -> bool:
    """Is this over? A claimed job's run_at has come, by the database's clock: no other clock is asked."""
    return until is True or (isinstance(until, str) and datetime.fromisoformat(until) <= run_at)


# --- the values of steps


def adapter_of(fn: Callable[[], Any], result: Any) -> TypeAdapter[Any]:
    """How the value of a step is written and read: by `result`, else by the function's return annotation, else as plain JSON.

    UsageError when pydantic cannot read and write that type.
    """
    wanted = _annotation(fn) if result is None else result
    try:
        return _adapter(wanted)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, TypeError) as error:
        raise UsageError(f"a step that returns {wanted!r} cannot be kept: return something that pydantic can write ({error}).") from None


def _adapter(wanted: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(wanted)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return TypeAdapter(wanted)


@functools.lru_cache(maxsize=512)
def _cached_adapter(wanted: Any) -> TypeAdapter[Any]:
    return _ANY if wanted is Any else TypeAdapter(wanted)


def _annotation(fn: Callable[[], Any]) -> Any:
    fn = inspect.unwrap(fn)
    while isinstance(fn, functools.partial):
        fn = inspect.unwrap(cast("functools.partial[Any]", fn).func)
    if not (inspect.isfunction(fn) or inspect.ismethod(fn)):
        fn = getattr(fn, "__call__", fn)  # noqa: B004 - its annotations are wanted
    if "return" not in getattr(fn, "__annotations__", {}):
        return Any
    try:
        found = get_type_hints(fn)["return"]
    except (NameError, TypeError) as error:
        raise UsageError(f"the return annotation of {_name(fn)} cannot be read ({error}): pass result=Type.") from None
    if get_origin(found) in (Awaitable, Coroutine):
        found = get_args(found)[-1]
    return found


def _name(fn: Callable[[], Any]) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)


def keep(value: Any, adapter: TypeAdapter[Any], name: str, wire: payload.Wire) -> str:
    """The entry of a step's value. InvalidStepError when it would not come back equal."""
    handle = _handle(value)
    if handle is not None:
        return to_json({"handle": handle}).decode()
    where = f"the value of step {name!r}"
    try:
        text, back = payload.dump_any(adapter, value, where, wire.limit)
    except payload.Unstorable as error:
        raise InvalidStepError(f"{error} Annotate what the step returns, or pass result=Type.") from error
    if not _equal(back, value, declared=adapter is not _ANY):
        raise InvalidStepError(
            f"{where} would not come back as it is: {payload.clean(repr(value), 200)} became {payload.clean(repr(back), 200)}. "
            "Annotate what the step returns, or pass result=Type."
        )
    return f'{{"value":{wire.seal(text)}}}'


def _equal(back: Any, value: Any, *, declared: bool) -> bool:
    try:
        return bool(back == value) and (declared or type(back) is type(value))
    except Exception:
        return False


def recall(entry: Mapping[str, Any], adapter: TypeAdapter[Any], name: str, find: FindHandle, wire: payload.Wire = payload.PLAIN) -> Any:
    """The value of a step that ran in an earlier attempt. NotRepeatableError when it is of another type by now."""
    if "handle" in entry:
        return _handles(entry["handle"], find)
    try:
        return adapter.validator.validate_json(wire.open(to_json(entry["value"]).decode()))
    except ValidationError as error:
        raise NotRepeatableError(
            f"what step {name!r} returned in an earlier attempt is not what it returns now ({payload.explain(error, 'value')}): "
            "give the changed step another name."
        ) from error


def _handle(value: Any) -> Any:
    """How handles are kept: one, or a list, tuple or dict of nothing else. None for any other value."""
    match value:
        case JobSequence():
            known = cast("JobSequence[Any]", value)
            return {"type": known.type, "id": str(known.id), "deduplicated": known.deduplicated}
        case list() | tuple():
            several = cast("list[Any] | tuple[Any, ...]", value)
            kept = [_handle(each) for each in several]
            return {"tuple" if isinstance(value, tuple) else "list": kept} if kept and all(kept) else None
        case dict():
            named = {key: _handle(each) for key, each in cast("dict[Any, Any]", value).items()}
            return {"dict": named} if named and all(named.values()) and all(isinstance(key, str) for key in named) else None
        case _:
            return None


def _handles(kept: Mapping[str, Any], find: FindHandle) -> Any:
    if "id" in kept:
        handle = find(kept["type"], kept["id"])
        handle.deduplicated = kept["deduplicated"]
        return handle
    if "dict" in kept:
        return {key: _handles(each, find) for key, each in kept["dict"].items()}
    several = [_handles(each, find) for each in kept.get("list", kept.get("tuple", ()))]
    return tuple(several) if "tuple" in kept else several


# --- the payloads of events


def event(value: Any, name: str, by: str, wire: payload.Wire) -> str:
    """The entry of an event. InvalidInputError names what PostgreSQL could not give back."""
    where = f"the payload of event {name!r}"
    try:
        adapter = _ANY if value is None else _adapter(type(value))
        text, _ = payload.dump_any(adapter, value, where, wire.limit)
    except payload.Unstorable as error:
        raise InvalidInputError(str(error), path=error.path) from error
    except PydanticSchemaGenerationError as error:
        raise InvalidInputError(f"{where} is {type(value).__name__}: send a pydantic model, or plain values.") from error
    return f'{{"by":"{by}","payload":{wire.seal(text)}}}'


def event_payload(text: str, type: Any, name: str) -> Any:
    """The payload of an event, as `type` (None: as plain JSON). InvalidEventError."""
    if type is None:
        return from_json(text)
    try:
        return _adapter(type).validator.validate_json(text)
    except ValidationError as error:
        raise InvalidEventError(f"event {name!r} came with another payload: {payload.explain(error, 'payload')}.", event=name) from error


# --- progress


def progress(percent: object, message: object) -> str:
    """How far a job is, as JSON. UsageError for what is no number."""
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or math.isnan(percent):
        raise UsageError(f"progress({percent!r}): a number from 0 to 100.")
    if message is not None and not isinstance(message, str):
        raise UsageError(f"progress({percent!r}, {message!r}): the message is a text.")
    shown = None if message is None else payload.clean(message[:500])
    return to_json({"percent": min(100.0, max(0.0, float(percent))), **({} if shown is None else {"message": shown})}).decode()
