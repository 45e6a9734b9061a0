"""The options of declarations, starts and continuations, checked: what is wrong is named before anything is written."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, cast, get_args
from uuid import UUID

from queuert_py import payload
from queuert_py.decisions.backoff import seconds
from queuert_py.errors import DeclarationError, UsageError
from queuert_py.sequence import Blocker
from queuert_py.values import EARLIEST, LATEST, ContinueOptions, Dedup, StartOptions, storable

LONGEST = timedelta(days=36_500)
MOST_ATTEMPTS = 2**31 - 1
NO_LIMIT = "0 seconds"
"""The timeout of a job whose start has lifted that of its type; null is the type's."""


def known(options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Refuse names that are not options: a misspelt one must not be ignored."""
    names = list(allowed)
    unknown = sorted(options.keys() - set(names))
    if unknown:
        raise UsageError(f"unknown option {', '.join(unknown)}: known are {', '.join(names)}.")


def span(value: Any, name: str, *, positive: bool = False) -> timedelta | None:
    """A duration: a timedelta or seconds, not negative, at most a hundred years."""
    if value is None:
        return None
    given = isinstance(value, (int, float, timedelta)) and not isinstance(value, bool)
    number = seconds(value) if given else math.nan
    if not (0 <= number <= LONGEST.total_seconds()) or (positive and number == 0):
        raise UsageError(f"{name}={value!r}: a timedelta or seconds is needed, {'more than 0' if positive else 'not negative'}.")
    return timedelta(seconds=number)


def needed(value: Any, name: str, *, positive: bool = False) -> timedelta:
    """A duration that must be given."""
    found = span(value, name, positive=positive)
    if found is None:
        raise UsageError(f"{name}=None: a timedelta or seconds is needed.")
    return found


def instant(value: Any, name: str) -> datetime | None:
    """An aware datetime, to compare with."""
    if value is not None and (not isinstance(value, datetime) or value.tzinfo is None):
        raise UsageError(f"{name}={value!r}: an aware datetime is needed, like datetime.now(timezone.utc) + timedelta(hours=1).")
    return value


def due(value: Any, name: str) -> datetime | None:
    """An aware datetime that is stored: one that Python can read back in every time zone."""
    found = instant(value, name)
    if found is not None and not storable(found):
        raise UsageError(f"{name}={value!r}: an instant from {EARLIEST:%Y-%m-%d} to {LATEST:%Y-%m-%d} (UTC) is needed.")
    return found


def priority(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 32_767:
        raise UsageError(f"priority={value!r}: an integer from -32767 to 32767, higher first.")
    return value


def attempts(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_ATTEMPTS):
        raise UsageError(f"max_attempts={value!r}: at least 1, or None for ever.")
    return value


def words(value: Any, name: str, most: int) -> str:
    """A text that names something: not empty, storable, at most `most` bytes."""
    try:
        return payload.word(value, name, most)
    except payload.Unstorable as error:
        raise UsageError(str(error)) from None


def text(value: Any, name: str) -> str | None:
    """What a filter compares with."""
    if value is not None and (not isinstance(value, str) or "\x00" in value):
        raise UsageError(f"{name}={value!r}: a text is needed.")
    return value


def one_of(value: Any, name: str, literal: Any) -> Any:
    """One of the words of a Literal, or None."""
    if value is not None and value not in get_args(literal):
        raise UsageError(f"{name}={value!r}: one of {', '.join(get_args(literal))}.")
    return value


def count(value: Any, name: str) -> int:
    """How many: at least one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={value!r}: an integer is needed.")
    if value < 1:
        raise UsageError(f"{name}={value!r}: at least 1.")
    return value


def several(value: Any, call: str, wanted: str) -> list[Any]:
    """The items of what was given as a list, or as anything else that can be gone through. A text is one thing, not its letters."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise UsageError(f"{call} takes a list of {wanted}, not {value!r}.")
    return list(cast("Iterable[Any]", value))


def uuid(value: Any, name: str = "id") -> UUID:
    if not isinstance(value, UUID):
        raise UsageError(f"{name}={value!r}: a uuid.UUID is needed, like `sequence.id`.")
    return value


def identifier(value: Any, name: str = "id") -> UUID:
    """The id of a sequence that is given by its handle or its id."""
    return value.id if isinstance(value, Blocker) else uuid(value, name)


def identifiers(sequences: Any) -> list[str]:
    """The ids of several, each once, as texts."""
    return list(dict.fromkeys(str(identifier(each)) for each in several(sequences, "this call", "handles or ids")))


def bare(function: Any, call: str) -> None:
    """A function that can be called without arguments."""
    if not callable(function):
        raise UsageError(f"{call} takes a function without arguments, not {function!r}.")
    try:
        inspect.signature(function, follow_wrapped=False).bind()
    except TypeError as error:
        raise UsageError(f"{call} takes a function without arguments, like `lambda: send(mail)` ({error}): {function!r}.") from None
    except ValueError:  # a builtin that does not tell
        return


def when(options: StartOptions | ContinueOptions) -> tuple[timedelta | None, datetime | None]:
    """delay and at: not both."""
    delay, at = span(options.get("delay"), "delay"), due(options.get("at"), "at")
    if delay is not None and at is not None:
        raise UsageError("delay= and at= are both given: give one.")
    return delay, at


def declaration(name: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """The options of a job type. DeclarationError."""
    checks: dict[str, Callable[[Any], object]] = {
        "queue": lambda value: words(value, "queue", 40),
        "priority": priority,
        "max_attempts": attempts,
        "timeout": lambda value: span(value, "timeout", positive=True),
        "expires": lambda value: span(value, "expires", positive=True),
        "backoff": _backoff,
        "retry_on": lambda value: _exceptions(value, "retry_on"),
        "no_retry_on": lambda value: _exceptions(value, "no_retry_on"),
        "max_steps": lambda value: count(value, "max_steps"),
        "isolation": _isolation,
        "requires": _classes,
        "deadline": lambda value: span(value, "deadline", positive=True),
        "on_blocker_failure": _policy,
        "on_failed": _callback,
        "dead_letter": lambda value: None,
    }
    try:
        known(options, allowed)
        for option, value in options.items():
            checks[option](value)
    except UsageError as error:
        raise DeclarationError(f"job type {name!r}: {error}") from None


def _backoff(value: Any) -> None:
    try:
        _ = callable(value) or span(value, "backoff")
    except UsageError:
        raise UsageError(f"backoff={value!r}: a timedelta or seconds, exponential(…), or a function of the attempt's number.") from None


def _isolation(value: Any) -> None:
    if value not in ("thread", "process"):
        raise UsageError(f"isolation={value!r}: 'thread' or 'process'.")


def _classes(value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(each, type) for each in cast("tuple[Any, ...]", value)):
        raise UsageError(f"requires={value!r}: a tuple of middleware classes is needed.")


def _exceptions(value: Any, name: str) -> None:
    given = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (None,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in given):
        raise UsageError(f"{name}={value!r}: a tuple of exception classes is needed.")


def _policy(value: Any) -> None:
    if value not in ("hold", "fail", "ignore"):
        raise UsageError(f"on_blocker_failure={value!r}: one of 'hold', 'fail', 'ignore'.")


def _callback(value: Any) -> None:
    if value is not None and not callable(value):
        raise UsageError(f"on_failed={value!r}: a function is needed, `def undo(failure: Failure) -> Continuation[Out] | None`.")


def dedup(options: StartOptions) -> Dedup | None:
    """The key of a start, checked: `key=` is short for a Dedup."""
    given: Any = options.get("dedup")
    key = options.get("key")
    if given is None:
        return None if key is None else Dedup(words(key, "key", 512))
    if key is not None:
        raise UsageError("key= and dedup= are both given: a Dedup has the key in it. Give one.")
    if not isinstance(given, Dedup):
        raise UsageError(f"dedup={given!r}: a Dedup is needed, like Dedup('key', scope='all').")
    words(given.key, "key", 512)
    if given.scope not in ("incomplete", "all") or given.on_match not in ("return", "raise", "replace"):
        raise UsageError(f"{given}: scope is 'incomplete' or 'all', on_match 'return', 'raise' or 'replace'.")
    window = span(given.window, "window", positive=True)
    if window is not None and given.scope != "all":
        raise UsageError(f"{given}: a window counts finished sequences: add scope='all'.")
    if given.delay is not None and given.on_match != "replace":
        raise UsageError(f"{given}: only a start that replaces the one before it can put it off: Dedup.debounce(key, delay).")
    if given.delay is not None and (options.get("delay") is not None or options.get("at") is not None):
        raise UsageError("a debounce has its own delay: give no delay= or at= beside it.")
    return given


def start(declared: Mapping[str, Any], options: StartOptions) -> tuple[dict[str, Any], UUID | None]:
    """The columns of a start that are not its input, and the caller's own id. `declared`: the job type's options."""
    fields: dict[str, Any] = {"queue": declared.get("queue", "default"), "priority": declared.get("priority", 0)}
    if not options and not declared.keys() & {"timeout", "expires", "deadline"}:
        return fields, None
    known(options, StartOptions.__annotations__)
    if "queue" in options:
        fields["queue"] = words(options["queue"], "queue", 40)
    if "priority" in options:
        fields["priority"] = priority(options["priority"])
    keyed = dedup(options)
    if keyed is not None:
        fields["key"] = keyed.key
    if options.get("correlation_id") is not None:
        fields["correlation_id"] = words(options.get("correlation_id"), "correlation_id", 512)
    tags: Any = options.get("tags")
    if tags is not None:
        if not isinstance(tags, (str, list, tuple, set, frozenset)):
            raise UsageError(f"tags={tags!r}: a list of words is needed.")
        fields["tags"] = [words(tag, "tags", 200) for tag in ([tags] if isinstance(tags, str) else tags)]  # pyright: ignore[reportUnknownVariableType]
    if "backoff" in options:
        given = span(options["backoff"], "backoff")
        if given is None:
            raise UsageError("backoff=None: a timedelta or seconds is needed; leave it out for the job type's.")
        fields["backoff"] = given.total_seconds()
    if "max_attempts" in options:
        fields["max_attempts"] = attempts(options["max_attempts"]) or 0
    _times(fields, options, declared)
    own_id: Any = options.get("id")
    if own_id is not None and fields.get("key") is not None:
        raise UsageError("id= and key= are both given: a key chooses the row's place itself. Give one.")
    return fields, None if own_id is None else uuid(own_id)


def _times(fields: dict[str, Any], options: StartOptions, declared: Mapping[str, Any]) -> None:
    delay, at = when(options)
    timeout = span(options.get("timeout", declared.get("timeout")), "timeout", positive=True)
    keyed: Any = options.get("dedup")
    if keyed is not None and keyed.delay is not None:
        delay = span(keyed.delay, "delay")
    spans = {"delay": delay, "timeout": timeout}
    for name in ("expires", "deadline"):
        limit: Any = options.get(name, declared.get(name))
        if isinstance(limit, datetime):
            fields[f"{name}_at"] = due(limit, name).isoformat()  # type: ignore[union-attr]
        else:
            spans[name] = span(limit, name, positive=True)
    for name, value in spans.items():
        if value is not None:
            fields[name] = f"{value.total_seconds():.6f} seconds"
    if "timeout" in options and timeout is None:
        fields["timeout"] = NO_LIMIT
    if at is not None:
        fields["at"] = at.isoformat()
