"""Payloads: a value is refused with the name of its field, or it comes back equal. Error texts are always storable."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, field_validator

from queuert_py import payload
from queuert_py.errors import LeaseLostError, UsageError
from queuert_py.payload import Unstorable


class Inner(BaseModel):
    text: str = ""
    ratio: float | None = None


class Colour(StrEnum):
    RED = "red"


@dataclass
class Point:
    x: float | None = None
    label: str = ""


class Everything(BaseModel):
    text: str = ""
    number: int = 0
    ratio: float | None = None
    flag: bool = False
    data: bytes = b""
    when: datetime | None = None
    day: date | None = None
    span: timedelta | None = None
    id: UUID | None = None
    price: Decimal | None = None
    items: list[str | float | None] = []
    table: dict[str, float | None] = {}
    pair: tuple[int, str] = (0, "")
    words: set[str] = set()
    inner: Inner | None = None
    inners: dict[str, list[Inner]] = {}
    colour: Colour | None = None
    point: Point = field(default_factory=Point)
    queue: deque[float | None] = deque()
    path: Path | None = None


MODEL = Everything
# Text with what JSON or PostgreSQL might stumble over in a good part of the examples.
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('\x00\ud800\udfff\\"\n\u2028\U0001f600'))) | st.sampled_from(
    ["\\u0000", "null", "NaN", "Infinity", "\\", "\\\\u0000", "\x00", "a\ud800"]
)
FLOAT = st.floats() | st.none()
SOON = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30))]))
VALUES = st.builds(
    Everything,
    text=TEXT,
    number=st.integers() | st.integers(-(10**400), 10**400),
    ratio=FLOAT,
    flag=st.booleans(),
    data=st.binary(),
    when=SOON | st.none(),
    day=st.dates() | st.none(),
    span=st.timedeltas(timedelta(days=-9999), timedelta(days=9999)) | st.none(),
    id=st.uuids() | st.none(),
    price=st.decimals(allow_nan=False, allow_infinity=False) | st.none(),
    items=st.lists(TEXT | FLOAT, max_size=3),
    table=st.dictionaries(TEXT, FLOAT, max_size=3),
    pair=st.tuples(st.integers(), TEXT),
    words=st.sets(TEXT, max_size=3),
    inner=st.builds(Inner, text=TEXT, ratio=FLOAT) | st.none(),
    inners=st.dictionaries(TEXT, st.lists(st.builds(Inner, text=TEXT, ratio=FLOAT), max_size=2), max_size=2),
    colour=st.sampled_from(Colour) | st.none(),
    point=st.builds(Point, x=FLOAT, label=TEXT),
    queue=st.lists(FLOAT, max_size=3).map(deque),
    path=TEXT.map(Path) | st.none(),
)


def holds_what_jsonb_cannot(text: str) -> bool:
    """NUL, lone surrogates and numbers that are none: looked for in the JSON as PostgreSQL would read it."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    def walk(value: Any) -> bool:
        match value:
            case str():
                return "\x00" in value or any("\ud800" <= each <= "\udfff" for each in value)
            case dict():
                return any(walk(key) or walk(inner) for key, inner in cast("dict[str, Any]", value).items())
            case list():
                return any(map(walk, cast("list[Any]", value)))
            case _:
                return False

    return walk(json.loads(text, parse_constant=refuse))


def dumped(value: Everything) -> tuple[str, str | None]:
    """The JSON, or the path of what was refused."""
    try:
        return "input", payload.dump(MODEL, value, "input")
    except Unstorable as refused:
        return refused.path, None


@settings(max_examples=300, deadline=None)
@given(VALUES)
@example(Everything(ratio=-0.0))
@example(Everything(ratio=5e-324, items=[1.7976931348623157e308, 0.1 + 0.2]))
@example(Everything(number=2**63, pair=(-(2**64), "")))
@example(Everything(text="\\u0000"))
@example(Everything(point=Point(x=math.nan)))
@example(Everything(point=Point(label="\x00")))
@example(Everything(queue=deque([math.inf])))
@example(Everything(path=Path("\x00")))
def test_a_value_is_refused_or_comes_back_equal(value: Everything) -> None:
    path, text = dumped(value)
    if text is None:
        assert path.startswith("input")
        return
    assert not holds_what_jsonb_cannot(text)
    assert MODEL.model_validate_json(text) == value


@pytest.mark.parametrize(
    ("value", "path", "why"),
    [
        (Everything(text="a\x00b"), "input.text", "NUL"),
        (Everything(text="\ud800"), "input.text", "surrogate"),
        (Everything(ratio=math.nan), "input.ratio", "nan"),
        (Everything(ratio=-math.inf), "input.ratio", "-inf"),
        (Everything(items=["fine", math.inf]), "input.items.1", "inf"),
        (Everything(table={"a": 1.0, "b": math.nan}), "input.table.b", "nan"),
        (Everything(table={"\x00": 1.0}), "input.table (a key)", "NUL"),
        (Everything(table={"\udfff": 1.0}), "input.table (a key)", "surrogate"),
        (Everything(pair=(1, "\x00")), "input.pair.1", "NUL"),
        (Everything(inner=Inner(text="\x00")), "input.inner.text", "NUL"),
        (Everything(inners={"k": [Inner(), Inner(ratio=math.nan)]}), "input.inners.k.1.ratio", "nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_stored_is_named(value: Everything, path: str, why: str) -> None:
    with pytest.raises(Unstorable) as refused:
        payload.dump(MODEL, value, "input")
    assert refused.value.path == path
    assert why in str(refused.value)
    assert str(refused.value).startswith(path)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Everything(point=Point(label="\x00")), "input.point.label"),
        (Everything(point=Point(x=math.nan)), "input.point.x"),
        (Everything(queue=deque([1.0, math.nan])), "input.queue.1"),
        (Everything(path=Path("\x00")), "input"),
    ],
    ids=["dataclass text", "dataclass number", "deque", "path"],
)
def test_it_is_found_in_every_kind_of_field(value: Everything, path: str) -> None:
    with pytest.raises(Unstorable) as refused:
        payload.dump(MODEL, value, "input")
    assert refused.value.path.startswith(path)


def test_bytes_that_are_no_text_are_refused_with_the_way_out() -> None:
    with pytest.raises(Unstorable, match="input: cannot be written as JSON"):
        payload.dump(MODEL, Everything(data=b"\xff"), "input")


def test_a_model_that_refuses_what_it_wrote_is_told_so() -> None:
    class Picky(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def small(cls, value: int) -> int:
            if value > 3:
                raise ValueError("too large")
            return value

    value = Picky(n=1)
    value.n = 9
    with pytest.raises(Unstorable, match=r"input\.n: .*too large.*the model Picky refuses it"):
        payload.dump(Picky, value, "input")


def test_a_payload_over_the_limit_says_how_large_it_is_and_what_to_do() -> None:
    value = Inner(text="x" * 2000)
    size = len(payload.dump(Inner, value, "input"))
    assert payload.dump(Inner, value, "input", limit=size)
    with pytest.raises(Unstorable, match=rf"input: {size:,} bytes of JSON, the limit is {size - 1:,}: .*max_payload"):
        payload.dump(Inner, value, "input", limit=size - 1)


def test_the_limit_counts_bytes_not_characters() -> None:
    with pytest.raises(Unstorable):
        payload.dump(Inner, Inner(text="ü" * 100), "input", limit=150)


def test_explain_names_every_field_that_is_wrong() -> None:
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate({"number": "x", "inner": {"ratio": "y"}})
    shown = payload.explain(caught.value, "input")
    assert shown.startswith("input.number: ")
    assert "; input.inner.ratio: " in shown


# --- words


@pytest.mark.parametrize("value", ["a", "ü", "x" * 10, "two words"])
def test_a_word_that_can_be_stored_is_left_as_it_is(value: str) -> None:
    assert payload.word(value, "key", 10) == value


@pytest.mark.parametrize("value", ["", None, 7, b"a", "\x00", "\ud800", "x" * 11, "ü" * 6], ids=repr)
def test_any_other_word_is_refused(value: object) -> None:
    with pytest.raises(Unstorable, match=r"^key: "):
        payload.word(value, "key", 10)


# --- errors as JSON


class Shy(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Number(IntEnum):
    ONE = 1


def attributed(**attributes: object) -> Exception:
    error = ValueError("with attributes")
    error.__dict__.update(attributes)
    return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        ValueError("\x00\ud800\U0001f600"),
        ValueError(b"\xff"),
        Shy(),
        KeyError("\x00"),
        ExceptionGroup("\ud800", [ValueError("\x00"), ExceptionGroup("b", [Shy()])]),
        attributed(text="\x00\ud800", number=7, flag=True, enum=Number.ONE, other=object(), _private=1),
        attributed(huge=10**5000),
        attributed(**{"\x00": 1, "\udfff": 2}),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "\x00"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_can_be_stored(error: BaseException) -> None:
    text = payload.error_json(error)
    assert not holds_what_jsonb_cannot(text)
    assert json.loads(text)["type"] == type(error).__name__


@settings(max_examples=200, deadline=None)
@given(TEXT, st.dictionaries(TEXT, TEXT | st.integers() | st.booleans() | st.floats(), max_size=3))
def test_every_error_with_any_text_can_be_stored(text: str, attributes: dict[str, Any]) -> None:
    error = ValueError(text)
    error.__dict__.update(attributes)
    error.add_note(text)
    assert not holds_what_jsonb_cannot(payload.error_json(error))
    assert not holds_what_jsonb_cannot(payload.note_json("Lost", text))


def test_an_error_shows_its_type_message_traceback_and_plain_attributes() -> None:
    try:
        raise attributed(status=404, retriable=False, body=object(), _hidden="x")
    except ValueError as error:
        shown = json.loads(payload.error_json(error))
    assert shown["type"] == "ValueError"
    assert shown["message"] == "with attributes"
    assert "test_payload.py" in shown["traceback"]
    assert shown["attrs"] == {"status": "404", "retriable": "False"}


@pytest.mark.parametrize(("error", "code"), [(UsageError("x"), "usage"), (LeaseLostError("x"), "lease_lost")])
def test_an_error_of_this_package_has_its_code(error: Exception, code: str) -> None:
    assert json.loads(payload.error_json(error))["attrs"]["code"] == code


def test_a_long_text_keeps_its_end_where_the_cause_stands() -> None:
    assert payload.clean("a" * 50 + "cause", 10) == "…aaaaacause"
    assert len(json.loads(payload.error_json(ValueError("x" * 10**6)))["message"]) <= 10_001


def test_a_digest_is_the_same_in_every_process() -> None:
    assert payload.digest("type\nkey") == 1951707864
    assert payload.digest("a") != payload.digest("b")
