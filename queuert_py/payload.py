"""Payloads on their way to PostgreSQL and back: dumped, checked to be storable, and read again as what was declared."""

from __future__ import annotations

import logging
import math
import re
import traceback
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, cast
from zlib import crc32

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, SchemaSerializer, from_json, to_json

from queuert_py.errors import QueuertError

logger = logging.getLogger("queuert_py.engine")
MAX_PAYLOAD = 1024 * 1024
_ERROR_TEXT = 10_000
_SEAL = "~q1:"
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_NO_NUL = "a NUL character cannot be stored: remove it, or use bytes in base64."


class Codec(Protocol):
    """Changes payloads on their way to the database and back: encrypts, compresses. `decode(encode(data)) == data`."""

    def encode(self, data: bytes, /) -> bytes: ...
    def decode(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Wire:
    """How payloads travel: their most bytes of JSON, and the codec they are stored with (as one JSON string)."""

    limit: int = MAX_PAYLOAD
    codec: Codec | None = None

    def seal(self, text: str) -> str:
        """A payload's JSON as it is stored."""
        return text if self.codec is None else f'"{_SEAL}{b64encode(self.codec.encode(text.encode())).decode()}"'

    def open(self, text: str) -> str:
        """The JSON of a stored payload. What was stored without a codec is as it is."""
        if self.codec is None or not text.startswith(f'"{_SEAL}'):
            return text
        return self.codec.decode(b64decode(text[1 + len(_SEAL) : -1])).decode()

    def opened(self, value: Any) -> Any:
        """As `open`, for a payload of a row, as text or parsed; one that the codec cannot open stays as it is: others are read with it."""
        try:
            if isinstance(value, str) and value.startswith(_SEAL):
                return from_json(self.open(f'"{value}"'))
            return self.open(value) if isinstance(value, str) else value
        except Exception as error:
            logger.error("a stored payload cannot be opened by the codec: %s: %s", type(error).__name__, error)
            return value


class Sealed(ValueError):  # noqa: N818 - becomes an ending with the reason validation, or the error of one waiter
    """A stored payload that this engine cannot open."""


def refuse_sealed(text: str) -> str:
    """A payload as the store gave it. Sealed, if it could not be opened."""
    if text.startswith(f'"{_SEAL}'):
        raise Sealed("the stored payload is sealed: this engine has no codec, or one with another key.")
    return text


PLAIN = Wire()


class Unstorable(Exception):  # noqa: N818 - becomes the caller's InvalidInputError or the handler's InvalidOutputError
    """A value that PostgreSQL could not give back as it is: where, what, and the way out."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


def dump(model: type[BaseModel], value: BaseModel, name: str, limit: int = MAX_PAYLOAD, context: Any = None) -> str:
    """The value as JSON, proved to come back: `Unstorable` names the field that would not. `name` is the root of its path.

    Refused: what the model itself refuses on reading back, NaN and infinities (jsonb has none; pydantic writes null for them), NUL and
    lone surrogates (22P05), more than `limit` bytes.
    """
    return _dump(model.__pydantic_serializer__, model.__pydantic_validator__, value, name, limit, context)[0]


def dump_any(adapter: TypeAdapter[Any], value: Any, name: str, limit: int = MAX_PAYLOAD) -> tuple[str, Any]:
    """As `dump`, for a value of any type; with what comes back."""
    return _dump(adapter.serializer, adapter.validator, value, name, limit, None)


def _dump(serializer: SchemaSerializer, validator: Any, value: Any, name: str, limit: int, context: Any) -> tuple[str, Any]:
    try:
        data = serializer.to_json(value, context=context, warnings=False)
    except (PydanticSerializationError, UnicodeError, ValueError) as error:
        _find(value, name)
        raise Unstorable(name, f"cannot be written as JSON ({error}).") from error
    if b"null" in data or b"\\u0000" in data or b"NaN" in data or b"Infinity" in data or b"*****" in data:
        _find(value, name)
        if _NUL.search(data):
            raise Unstorable(name, _NO_NUL)
    if len(data) > limit:
        raise Unstorable(
            name, f"{len(data):,} bytes of JSON, the limit is {limit:,}: store it elsewhere and pass a reference (or raise max_payload)."
        )
    try:
        back = validator.validate_json(data)
    except ValidationError as error:
        raise Unstorable(*_first(error, name)) from error
    return data.decode(), back


def _first(error: ValidationError, name: str) -> tuple[str, str]:
    first = error.errors(include_url=False, include_input=False)[0]
    return ".".join([name, *map(str, first["loc"])]), f"{first['msg']} (the model {error.title} refuses it)."


def explain(error: ValidationError, name: str) -> str:
    """All that a model refuses, a line each, by the field's path."""
    rows = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join([name, *map(str, row['loc'])])}: {row['msg']}" for row in rows)


def _find(value: Any, path: str) -> None:  # noqa: PLR0912 - a table of cases
    """Raise Unstorable for the first value below that PostgreSQL could not give back."""
    match value:
        case float() if not math.isfinite(value):
            raise Unstorable(path, f"{value} cannot be stored: use None, or a string.")
        case str() if "\x00" in value:
            raise Unstorable(path, _NO_NUL)
        case str() if any("\ud800" <= character <= "\udfff" for character in value):
            raise Unstorable(path, "a lone surrogate cannot be stored: decode the text properly, or use bytes in base64.")
        case BaseModel():
            for field, inner in value:
                _find(inner, f"{path}.{field}")
        case Mapping():
            for key, inner in cast("Mapping[object, object]", value).items():
                _find(key, f"{path} (a key)")
                _find(inner, f"{path}.{key}")
        case str() | bytes():
            return
        case Collection():
            for number, inner in enumerate(cast("Collection[object]", value)):
                _find(inner, f"{path}.{number}")
        case _ if hasattr(value, "get_secret_value"):
            raise Unstorable(path, "a secret would be stored as asterisks: pass a reference to it.")
        case _ if is_dataclass(value) and not isinstance(value, type):
            for each in fields(value):
                _find(getattr(value, each.name, None), f"{path}.{each.name}")
        case _:
            return


def word(value: object, name: str, most: int) -> str:
    """A text column of the caller's (key, queue, tag): storable, not empty, at most `most` bytes. Unstorable otherwise."""
    if not isinstance(value, str) or not value:
        raise Unstorable(name, f"{value!r}: a non-empty string is needed.")
    _find(value, name)
    if len(value.encode()) > most:
        raise Unstorable(name, f"{len(value.encode())} bytes, the limit is {most}: use a digest of it.")
    return value


def clean(text: str, limit: int = _ERROR_TEXT) -> str:
    """A text that can be stored whatever it holds: the failure path must not fail. Kept: its end, where the cause stands."""
    safe = text.replace("\x00", "\ufffd").encode("utf-8", "backslashreplace").decode()
    return safe if len(safe) <= limit else "…" + safe[-limit:]


def error_json(error: BaseException) -> str:
    """An exception as JSON: type, message, traceback (10 kB, without locals), and attrs that are plain values."""
    plain = {key: value for key, value in vars(error).items() if isinstance(value, (str, int, bool)) and not key.startswith("_")}
    attrs = {clean(key, 100): _shown(value, 500) for key, value in plain.items()}
    if isinstance(error, QueuertError):
        attrs["code"] = error.code
    shown = {
        "type": clean(type(error).__name__, 200),
        "message": _shown(error, _ERROR_TEXT),
        "traceback": _traceback(error),
        "attrs": attrs,
    }
    return to_json(shown).decode()


def _shown(value: object, limit: int) -> str:
    """A value's text, whatever its __str__ does."""
    try:
        return clean(str(value), limit)
    except Exception:
        return "(its text could not be made)"


def _traceback(error: BaseException) -> str:
    try:
        return clean("".join(traceback.format_exception(error)))
    except Exception:
        return "(its traceback could not be made)"


def note_json(kind: str, message: str) -> str:
    """As error_json, where there is no exception: a lost worker, a timeout."""
    return to_json({"type": kind, "message": clean(message), "traceback": "", "attrs": {}}).decode()


def digest(text: str) -> int:
    """A stable number of a text (the lane of a key)."""
    return crc32(text.encode())
