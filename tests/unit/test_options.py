"""What an engine checks before it needs a database: options, inputs, requests, transactions."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Dedup, Engine, Fail, InternalJobType, JobType, JobTypes, Retry, Snooze, continue_with
from queuert_py.errors import (
    ConfigurationError,
    InvalidInputError,
    NotStartableError,
    QueuertError,
    UnknownJobTypeError,
    UsageError,
)
from queuert_py.ids import lane_of
from queuert_py.payload import Wire
from queuert_py.postgres.starts import Start
from queuert_py.starting import Batch
from queuert_py.values import Request
from tests.store.samples import live_job


class Note(BaseModel):
    text: str = ""
    weight: float = 0.0
    tags: list[str] = []


class Done(BaseModel): ...


write = JobType[Note, Done]("write")
hidden = InternalJobType[Note, Done]("hidden")
ID = UUID("01999999-9999-7999-8999-999999999999")
NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def closed() -> Engine:
    """An engine that is never opened: nothing here may need the database."""
    engine = Engine("postgresql://nobody@127.0.0.1:1/nowhere")
    engine.add(write, hidden)
    return engine


def prepared(engine: Engine, request: Request[Any], lanes: int = 1) -> Start:
    return Batch([request], lanes=lanes, wire=engine.wire, origin=None, get=engine.get).check()[0]


def requested(options: dict[str, Any]) -> Request[Any]:
    return Request(write, Note(), options)  # type: ignore[arg-type] # pyright: ignore


# --- options


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {"queue": "default", "priority": 0}),
        ({"key": "k" * 512}, {"key": "k" * 512}),
        ({"key": None, "delay": None, "at": None, "expires": None, "tags": [], "correlation_id": None}, {"queue": "default"}),
        ({"delay": 3}, {"delay": "3.000000 seconds"}),
        ({"delay": timedelta(milliseconds=1500)}, {"delay": "1.500000 seconds"}),
        ({"delay": 0}, {"delay": "0.000000 seconds"}),
        ({"at": NOON}, {"at": "2030-06-01T12:00:00+00:00"}),
        ({"at": NOON.astimezone(timezone(timedelta(hours=-3)))}, {"at": "2030-06-01T09:00:00-03:00"}),
        ({"at": datetime(9999, 12, 29, tzinfo=UTC)}, {"at": "9999-12-29T00:00:00+00:00"}),
        ({"expires": 60.0}, {"expires": "60.000000 seconds"}),
        ({"expires": NOON}, {"expires_at": "2030-06-01T12:00:00+00:00"}),
        ({"timeout": timedelta(seconds=9)}, {"timeout": "9.000000 seconds"}),
        ({"timeout": None}, {"timeout": "0 seconds"}),
        ({"priority": -32767, "queue": "q" * 40}, {"priority": -32767, "queue": "q" * 40}),
        ({"max_attempts": 3}, {"max_attempts": 3}),
        ({"max_attempts": None}, {"max_attempts": 0}),
        ({"tags": ["a", "b"]}, {"tags": ["a", "b"]}),
        ({"correlation_id": "request 7"}, {"correlation_id": "request 7"}),
        ({"id": ID}, {"sequence_id": str(ID)}),
    ],
)
def test_options_become_columns(closed: Engine, options: dict[str, Any], fields: dict[str, Any]) -> None:
    made = prepared(closed, requested(options)).fields
    assert {name: made.get(name) for name in fields} == fields


FAR = [
    datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12))),
    datetime(9999, 12, 31, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=12))),
]
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("naive datetime", {"at": NOON.replace(tzinfo=None)}),
    ("text for an instant", {"at": "2030-06-01"}),
    ("seconds for an instant", {"at": 3.0}),
    *((f"{name} beyond what can be read", {name: at}) for name in ("at", "expires", "deadline") for at in FAR),
    ("naive expiry", {"expires": NOON.replace(tzinfo=None)}),
    ("delay and at", {"delay": 3, "at": NOON}),
    ("negative delay", {"delay": -1}),
    ("negative delay as timedelta", {"delay": timedelta(seconds=-1)}),
    ("endless delay", {"delay": math.inf}),
    ("delay that is no number", {"delay": math.nan}),
    ("delay in words", {"delay": "soon"}),
    ("negative timeout", {"timeout": -1}),
    ("timeout that is no number", {"timeout": math.nan}),
    ("endless timeout", {"timeout": math.inf}),
    ("timeout in words", {"timeout": "30 s"}),
    ("negative expiry", {"expires": -1}),
    ("expiry that is no number", {"expires": math.nan}),
    ("empty key", {"key": ""}),
    ("key too long", {"key": "k" * 513}),
    ("key too long in bytes", {"key": "ü" * 257}),
    ("key with NUL", {"key": "a\x00"}),
    ("key with surrogate", {"key": "\ud800"}),
    ("key that is no text", {"key": 7}),
    ("queue too long", {"queue": "q" * 41}),
    ("empty queue", {"queue": ""}),
    ("queue that is no text", {"queue": None}),
    ("priority too high", {"priority": 32768}),
    ("priority too low", {"priority": -32769}),
    ("priority in words", {"priority": "high"}),
    ("half a priority", {"priority": 0.5}),
    ("yes as priority", {"priority": True}),
    ("no attempts", {"max_attempts": 0}),
    ("fewer than no attempts", {"max_attempts": -1}),
    ("attempts in words", {"max_attempts": "ever"}),
    ("half an attempt", {"max_attempts": 1.5}),
    ("more attempts than a column holds", {"max_attempts": 2**31}),
    ("empty tag", {"tags": [""]}),
    ("tag with NUL", {"tags": ["a", "\x00"]}),
    ("tags that are none", {"tags": 7}),
    ("empty correlation id", {"correlation_id": ""}),
    ("correlation id with NUL", {"correlation_id": "\x00"}),
    ("id as text", {"id": str(ID)}),
    ("id and key", {"id": ID, "key": "k"}),
    ("a delay of a key that is returned", {"dedup": Dedup("k", delay=5)}),
    ("a delay of a key that is refused", {"dedup": Dedup("k", delay=5, on_match="raise")}),
    ("unknown option", {"keey": "k"}),
]


@pytest.mark.parametrize("options", [options for _, options in WRONG], ids=[name for name, _ in WRONG])
def test_an_option_that_cannot_be_is_refused_by_name(closed: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        prepared(closed, requested(options))
    assert any(name in str(refused.value).lower() for name in options)


@pytest.mark.parametrize("lanes", [2, 3, 64, 256])
def test_the_row_of_a_key_is_where_its_id_says(closed: Engine, lanes: int) -> None:
    starts = [prepared(closed, requested({"key": f"key {n}"}), lanes) for n in range(50)]
    assert all(start.lane == start.fields["lane"] == lane_of(start.id, lanes) for start in starts)
    again = [prepared(closed, requested({"key": f"key {n}"}), lanes).lane for n in range(50)]
    assert [start.lane for start in starts] == again, "the same key has the same lane"
    assert len(set(again)) > 1


def test_the_options_of_the_type_hold_where_the_start_gives_none(closed: Engine) -> None:
    slow = JobType[Note, Done]("slow", queue="slow", priority=3, timeout=5, expires=60)
    closed.add(slow)
    fields = prepared(closed, slow(Note())).fields
    assert (fields["queue"], fields["priority"], fields["timeout"]) == ("slow", 3, "5.000000 seconds")
    assert fields["expires"] == "60.000000 seconds"
    assert prepared(closed, slow(Note(), queue="fast", priority=9)).fields["queue"] == "fast"


# --- inputs


@pytest.mark.parametrize(
    ("input", "path"),
    [
        (Note(text="\x00"), "input.text"),
        (Note(text="\ud800"), "input.text"),
        (Note(weight=math.nan), "input.weight"),
        (Note(weight=math.inf), "input.weight"),
        (Note(tags=["a", "\x00"]), "input.tags.1"),
        (Note(text="x" * 2_000_000), "input"),
    ],
    ids=["NUL", "surrogate", "nan", "infinity", "in a list", "too large"],
)
def test_an_input_that_cannot_be_stored_names_its_field(closed: Engine, input: Note, path: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        prepared(closed, write(input))
    assert refused.value.details["path"] == path
    assert f"{path}: " in str(refused.value)


def test_the_size_limit_is_the_engines() -> None:
    small = Engine("postgresql://", max_payload=50)
    small.add(write)
    with pytest.raises(InvalidInputError, match="the limit is 50"):
        prepared(small, write(Note(text="x" * 50)))


def test_a_batch_names_the_request_that_is_wrong(closed: Engine) -> None:
    requests = [write(Note()), write(Note()), write(Note(text="\x00"))]
    with pytest.raises(InvalidInputError, match=r"input\.text.*\(request 2\)"):
        Batch(requests, lanes=1, wire=Wire(1000), origin=None, get=closed.get).check()


def test_inside_a_batch_the_first_of_a_key_wins(closed: Engine) -> None:
    requests = [write(Note(text=text), key=key) for text, key in (("a", "k"), ("b", "other"), ("c", "k"))]
    batch = Batch(requests, lanes=1, wire=Wire(1000), origin=None, get=closed.get)
    assert [start.key for start in batch.check()] == ["k", "other"]
    handles = batch.handles([(start.id, False) for start in batch.starts], closed)
    assert [str(handle.id) for handle in handles] == [batch.starts[0].id, batch.starts[1].id, batch.starts[0].id]
    assert [handle.deduplicated for handle in handles] == [False, False, True]


# --- what can be started


def test_an_internal_type_cannot_be_started(closed: Engine) -> None:
    with pytest.raises(NotStartableError, match="'hidden' is internal: only continue_with reaches it"):
        prepared(closed, Request(hidden, Note()))


def test_a_type_of_another_engine_cannot_be_started(closed: Engine) -> None:
    with pytest.raises(UnknownJobTypeError, match=r"no job type 'elsewhere' is declared here \(known: hidden, write\)"):
        prepared(closed, JobType[Note, Done]("elsewhere")(Note()))
    with pytest.raises(UsageError, match="'write' is another job type than the one mounted on this engine"):
        prepared(closed, JobType[Note, Done]("write")(Note()))


async def test_an_unknown_name_is_told_before_the_database_is_asked(closed: Engine) -> None:
    with pytest.raises(UnknownJobTypeError, match="'nothing'"):
        await closed.start_sequence("nothing", {})
    with pytest.raises(UnknownJobTypeError, match="'nothing'"):
        closed.sequence("nothing", ID, output=Done)


# --- tx=


@pytest.mark.parametrize("tx", ["connection", 7, True, object(), psycopg.Connection], ids=["str", "int", "bool", "object", "class"])
async def test_a_transaction_of_another_kind_is_refused(closed: Engine, tx: Any) -> None:
    with pytest.raises(UsageError, match=f"tx={type(tx).__name__}: a psycopg AsyncConnection with an open transaction, or tx=join"):
        await closed.start_sequence(write, Note(), tx=tx)


# --- continuations and signals


@pytest.mark.parametrize(
    "options",
    [
        {"delay": -1},
        {"delay": math.nan},
        {"delay": "soon"},
        {"delay": 1, "at": NOON},
        {"at": NOON.replace(tzinfo=None)},
        {"at": "tomorrow"},
        {"priority": "high"},
        {"priority": 99_999},
        {"priority": 0.5},
        {"dely": 3},
    ],
    ids=repr,
)
def test_an_option_of_a_continuation_is_refused_by_name(closed: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(QueuertError) as refused:
        closed.step_for(continue_with(hidden, Note(), **options), live_job(type="hidden"))  # pyright: ignore[reportArgumentType]
    assert any(name in str(refused.value) for name in options)


def test_a_continuation_is_checked_and_dumped(closed: Engine) -> None:
    step = closed.step_for(continue_with(hidden, Note(text="a"), delay=3, priority=7), live_job(type="hidden"))
    assert (step.type, step.delay, step.priority) == ("hidden", timedelta(seconds=3), 7)
    assert step.input == '{"text":"a","weight":0.0,"tags":[]}'
    with pytest.raises(InvalidInputError, match=r"input\.weight"):
        closed.step_for(continue_with(hidden, Note(weight=math.nan)), live_job(type="hidden"))
    with pytest.raises(UnknownJobTypeError, match="'elsewhere'"):
        closed.step_for(continue_with(JobType[Note, Done]("elsewhere"), Note()), live_job(type="hidden"))


@pytest.mark.parametrize("kind", [Retry, Snooze])
def test_a_signal_carries_when(kind: type[Retry]) -> None:
    assert (kind("busy", after=3).after, str(kind("busy"))) == (3, "busy")
    assert kind(at=NOON).at == NOON
    assert isinstance(Fail("never"), Exception)


@pytest.mark.parametrize("kind", [Retry, Snooze])
@pytest.mark.parametrize(
    "when",
    [
        {"at": NOON.replace(tzinfo=None)},
        {"after": -5.0},
        {"after": math.nan},
        {"after": math.inf},
        {"after": 1e300},
        {"after": timedelta.max},
        {"after": timedelta(days=-3)},
        {"after": "a while"},
        *({"at": at} for at in FAR),
    ],
    ids=repr,
)
def test_a_signal_for_a_time_that_cannot_be_is_refused_when_it_is_made(kind: type[Retry], when: dict[str, Any]) -> None:
    (name,) = when
    with pytest.raises(UsageError, match=name):
        kind(**when)


# --- engines


@pytest.mark.parametrize("db", [7, object(), b"postgresql://", JobTypes()], ids=["int", "object", "bytes", "registry"])
def test_an_engine_of_no_database_says_what_it_needs(db: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Engine\(\) needs a database: .*Engine.embedded\(\)"):
        Engine(db)


def test_an_engine_without_argument_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUEUERT_DSN", raising=False)
    with pytest.raises(ConfigurationError, match="QUEUERT_DSN"):
        Engine()
    monkeypatch.setenv("QUEUERT_DSN", "postgresql://somewhere")
    assert "not open" in repr(Engine())


def test_a_worker_without_room_is_refused(closed: Engine) -> None:
    with pytest.raises(ConfigurationError, match="concurrency=0"):
        closed.worker(concurrency=0)


@pytest.mark.parametrize(
    "options",
    [
        *({"pool_size": value} for value in (0, -1, None, "x", True)),
        *({"max_payload": value} for value in (0, None, "x", math.nan)),
        *({"schema": value} for value in (None, 5, "Upper", "")),
        {"pooler": "no"},
        {"codec": 5},
    ],
    ids=repr,
)
def test_an_engine_is_not_made_with_an_option_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Engine("postgresql://", **options)


def test_an_engine_is_not_made_with_an_empty_dsn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="the DSN is empty"):
        Engine("")
    monkeypatch.setenv("QUEUERT_DSN", " ")
    with pytest.raises(ConfigurationError, match="the DSN is empty"):
        Engine()
