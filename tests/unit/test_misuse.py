"""Calls that cannot be right are refused by name, before the database is asked: the engines here cannot reach one."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import BaseModel

from queuert_py import Engine, Job, JobType, Request, SyncJob, continue_with, options
from queuert_py.errors import ConfigurationError, UnknownJobTypeError, UsageError
from queuert_py.testing import run_handler

Call = Callable[[Any], Any]
ID = UUID("01999999-9999-7999-8999-999999999999")


class Note(BaseModel):
    text: str = ""


write = JobType[Note, Note]("write", timeout=5)


async def handler(job: Job[Note]) -> Note:
    return job.input


@pytest.fixture
def closed() -> Engine:
    engine = Engine("postgresql://nobody@127.0.0.1:1/nowhere")
    engine.add(write)
    return engine


async def outcome(value: Any) -> Any:
    if inspect.isasyncgen(value):
        return [each async for each in value]
    return await value if inspect.isawaitable(value) else value


LOOKS = ["get_sequence", "get_job", "list_jobs", "list_attempts", "list_blockers", "list_dependents", "why"]
TEXT = "'abc': a uuid.UUID is needed, like `sequence.id`"
CALLS: list[tuple[str, Call, str]] = [
    # job types
    ("start 5", lambda engine: engine.start_sequence(5, {}), r"start_sequence\(\): 5 is no job type"),
    ("start a function", lambda engine: engine.start_sequence(handler, {}), "handler at .* is no job type"),
    ("sequence of 5", lambda engine: engine.sequence(5, ID), r"sequence\(\): 5 is no job type"),
    ("run 5", lambda engine: engine.run(5, Note()), r"run\(\): 5 is no job type"),
    ("map 5", lambda engine: engine.map(5, [Note()]), r"map\(\): 5 is no job type"),
    ("map a name", lambda engine: engine.map("write", [Note()]), r"map\(\): 'write' is no job type: pass what @engine.job_type made"),
    ("complete as a name", lambda engine: engine.complete_sequence(ID, Note(), job_type="write"), "'write' is no job type"),
    ("continue with a name", lambda _: continue_with(cast("Any", "write"), Note()), r"continue_with\(\): 'write' is no job type"),
    ("continue with a function", lambda _: continue_with(cast("Any", handler), Note()), "handler at .* is no job type"),
    ("continue with nothing", lambda _: continue_with(cast("Any", None), Note()), "None is no job type"),
    ("implement a name", lambda engine: engine.handler("write"), r"handler\(\): 'write' is no job type: pass what @engine.job_type made"),
    ("add a name", lambda engine: engine.add("write"), r"add\(\): 'write' is no job type"),
    ("declare nothing", lambda engine: engine.job_type("other")(), r"handler of 'other': None is no function: write one with `def`"),
    ("declare no batch", lambda engine: engine.batch_type("other", size=2)(), r"handler of 'other': None is no function"),
    ("mount a list", lambda engine: Engine("postgresql://", cast("Any", [engine])), r"mount\(\): \[<Engine .* is no registry"),
    ("a list of waits", lambda _: JobType[Note, Note]("x", backoff=cast("Any", [1, 2])), r"backoff=\[1, 2\]: a timedelta .*exponential"),
    ("start twice told", lambda engine: engine.start_sequence(write(Note()), Note()), "a Request has its input and its options in it"),
    ("start with options apart", lambda engine: engine.start_sequence(write(Note()), key="k"), r"only tx= goes beside it"),
    ("start a request of nothing", lambda engine: engine.start_sequence(Request(cast("Any", 5), Note())), "5 is no job type"),
    # several
    ("start texts", lambda engine: engine.start_sequences(["x"]), r"'x' is no Request: call a job type with an input"),
    ("start one", lambda engine: engine.start_sequences(write(Note())), r"start_sequences\(\) takes a list of requests"),
    ("start None", lambda engine: engine.start_sequences(None), r"start_sequences\(\) takes a list of requests.*None"),
    ("start no type", lambda engine: engine.start_sequences([Request(cast("Any", 5), Note())]), "5 is no job type"),
    ("map over 5", lambda engine: engine.map(write, 5), r"map\(\) takes a list of inputs.*5"),
    ("map 0 at a time", lambda engine: engine.map(write, [], concurrency=0), "concurrency=0: at least 1"),
    ("map x at a time", lambda engine: engine.map(write, [], concurrency="x"), "concurrency='x': an integer"),
    ("wait for one", lambda engine: engine.wait_all(5), r"a list of handles.*5"),
    ("complete one", lambda engine: engine.as_completed(5), r"a list of handles.*5"),
    # ids
    *[(f"{verb} of a text", lambda engine, verb=verb: getattr(engine, verb)("abc"), TEXT) for verb in LOOKS],
    *[
        (f"{verb} of None", lambda engine, verb=verb: getattr(engine, verb)(None), "id=None: a uuid")
        for verb in LOOKS
        if verb != "list_jobs"
    ],
    ("handle of None", lambda engine: engine.sequence(write, None), "id=None: a uuid.UUID is needed"),
    ("handle of a text", lambda engine: engine.sequence("write", "abc"), TEXT),
    ("cancel one", lambda engine: engine.cancel_sequences(ID), "a list of handles or ids.*UUID"),
    ("cancel a text", lambda engine: engine.cancel_sequences("abc"), "a list of handles or ids.*'abc'"),
    ("cancel texts", lambda engine: engine.cancel_sequences(["abc"]), TEXT),
    ("delete None", lambda engine: engine.delete_sequences(None), "a list of handles or ids.*None"),
    ("retry one", lambda engine: engine.retry_sequences(ID), "a list of handles or ids.*UUID"),
    ("complete a text", lambda engine: engine.complete_sequence("abc", None), TEXT),
    ("send to a text", lambda engine: engine.send_event("abc", "name"), "'abc': a uuid.UUID is needed"),
    ("watch a text", lambda engine: engine.watch(id="abc"), TEXT),
    ("root of a text", lambda engine: engine.list_sequences(root_id="abc"), "root_id=" + TEXT),
    # filters of what failed
    ("retry a reason", lambda engine: engine.retry_sequences(reason="nonsense"), "reason='nonsense': one of error, timeout"),
    ("count a reason", lambda engine: engine.count_failed(reason=5), "reason=5: one of error, timeout"),
    ("clear a reason", lambda engine: engine.clear_failed(reason="errors"), "reason='errors': one of"),
    ("list a reason", lambda engine: engine.list_sequences(reason="nonsense"), "reason='nonsense': one of"),
    ("list a job's reason", lambda engine: engine.list_jobs(reason="nonsense"), "reason='nonsense': one of"),
    ("count a type", lambda engine: engine.count_failed(type=5), "type=5: a text is needed"),
    ("count a job type", lambda engine: engine.count_failed(job_type=5), "job_type=5: a text is needed"),
    ("retry none", lambda engine: engine.retry_sequences(oldest=0), "oldest=0: at least 1"),
    # numbers and times
    ("a result in words", lambda engine: engine.sequence(write, ID).result(timeout="x"), "timeout='x': a timedelta or seconds"),
    ("a result of no number", lambda engine: engine.sequence(write, ID).result(timeout=math.nan), "timeout=nan"),
    ("a result before", lambda engine: engine.sequence(write, ID).result(timeout=-1), "timeout=-1: .* not negative"),
    ("once in words", lambda engine: engine.run_once(limit="x"), "limit='x': an integer"),
    ("once none", lambda engine: engine.run_once(limit=0), "limit=0: at least 1"),
    ("once in no time", lambda engine: engine.run_once(budget=None), "budget=None: a timedelta or seconds"),
]


@pytest.mark.parametrize(("call", "says"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
async def test_a_call_that_cannot_be_right_is_refused_before_the_database_is_asked(closed: Engine, call: Call, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await outcome(call(closed))


async def test_a_name_may_stand_for_a_job_type(closed: Engine) -> None:
    for call in (closed.start_sequence("misspelt", {}), closed.run("misspelt", {})):
        with pytest.raises(UnknownJobTypeError, match="no job type 'misspelt' is declared here"):
            await call


# --- workers

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"concurrency": 0}, "concurrency=0: at least 1"),
    ({"concurrency": "x"}, "concurrency='x': an integer"),
    ({"concurrency": 1.5}, "concurrency=1.5: an integer"),
    ({"concurrency": True}, "concurrency=True: an integer"),
    ({"lease": 0}, "lease=0: .* more than 0"),
    ({"lease": -1}, "lease=-1: .* more than 0"),
    ({"lease": "x"}, "lease='x': a timedelta or seconds"),
    ({"lease": None}, "lease=None: a timedelta or seconds"),
    ({"lease": math.inf}, "lease=inf"),
    ({"grace": -1}, "grace=-1: .* not negative"),
    ({"grace": timedelta(seconds=-1)}, "grace=.* not negative"),
    ({"queues": "abc"}, "queues takes a list of names.*'abc'"),
    ({"queues": 5}, "queues takes a list of names.*5"),
    ({"queues": [1]}, "queues: 1: a non-empty string"),
    ({"queues": ["q" * 41]}, "queues: 41 bytes"),
    ({"types": "a"}, "types takes a list of names.*'a'"),
    ({"types": [""]}, "types: '': a non-empty string"),
    ({"types": [write]}, "types: JobType.*a non-empty string"),
]
LONG_LIVED: list[tuple[dict[str, Any], str]] = [
    ({"shutdown_timeout": -1}, "shutdown_timeout=-1: .* not negative"),
    ({"shutdown_timeout": None}, "shutdown_timeout=None"),
    ({"poll_interval": -1}, "poll_interval=-1: .* more than 0"),
    ({"poll_interval": 0}, "poll_interval=0: .* more than 0"),
    ({"poll_interval": "x"}, "poll_interval='x'"),
    ({"poll_interval": (1, 2, 3)}, r"poll_interval=\(1, 2, 3\): .* two of them"),
    ({"poll_interval": (1, -2)}, "poll_interval=-2: .* more than 0"),
    ({"name": ""}, "name: '': a non-empty string"),
    ({"name": None}, "name: None: a non-empty string"),
]


@pytest.mark.parametrize(("settings", "says"), SETTINGS + LONG_LIVED, ids=repr)
def test_a_worker_that_cannot_work_is_refused_when_it_is_made(closed: Engine, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        closed.worker(**settings)


@pytest.mark.parametrize(("settings", "says"), SETTINGS, ids=repr)
async def test_so_is_a_round_of_work(closed: Engine, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await closed.run_once(**settings)


# --- in a handler


def _named(n: int) -> int:
    return n


def _prepare(job: Any) -> Any:
    return job.prepare(mode="nonsense")


IN_HANDLERS: list[tuple[str, Call, str]] = [
    ("wait for nothing", lambda job: job.wait_for(None), r"wait_for\(\) takes a list of started sequences.*None"),
    ("wait for one", lambda job: job.wait_for(Engine("postgresql://").sequence(_added(), ID)), r"wait_for\(\) takes a list.*JobSequence"),
    ("a step of nothing", lambda job: job.step("x", None), r"step\(\) takes a function without arguments, not None"),
    ("a step of a name", lambda job: job.step("x"), r"step\(\) takes a function without arguments, not None"),
    ("a step with an argument", lambda job: job.step("x", str.upper), r"step\(\) takes a function without arguments.*'self'"),
    ("nothing on commit", lambda job: job.on_commit(None), r"on_commit\(\) takes a function without arguments, not None"),
    ("five on commit", lambda job: job.on_commit(5), r"on_commit\(\) takes a function without arguments, not 5"),
    ("an argument on commit", lambda job: job.on_commit(_named), r"on_commit\(\) takes a function without arguments.*'n'"),
    ("a mode", _prepare, "mode='nonsense': 'staged' or 'atomic'"),
    ("a message", lambda job: job.progress(5, 7), r"progress\(5, 7\): the message is a text"),
]


def _added() -> Any:
    kind = JobType[Note, Note]("write")
    Engine("postgresql://").add(kind)
    return kind


@pytest.mark.parametrize(("call", "says"), [row[1:] for row in IN_HANDLERS], ids=[row[0] for row in IN_HANDLERS])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_call_of_a_handler_that_cannot_be_right_is_refused(kind: str, call: Call, says: str) -> None:
    engine = Engine("postgresql://")
    if kind == "async":

        @engine.job_type("misuse")
        async def misuse(job: Job[Note]) -> Note:
            await outcome(call(job))
            return Note()

    else:

        @engine.job_type("misuse")
        def misuse(job: SyncJob[Note]) -> Note:
            call(job)
            return Note()

    with pytest.raises(UsageError, match=says):
        await run_handler(misuse, Note())


async def test_a_step_that_was_refused_has_not_used_its_name() -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def careful(job: Job[Note]) -> Note:
        with pytest.raises(UsageError):
            await job.step("x", cast("Any", None))
        return Note(text=await job.step("x", lambda: "made"))

    assert await run_handler(careful, Note()) == Note(text="made")


def test_a_wrapper_is_called_as_it_is_not_as_what_it_wraps() -> None:
    def inner(n: int) -> int:
        return n

    @functools.wraps(inner)
    def wrapper() -> int:
        return inner(1)

    for fine in (wrapper, functools.partial(inner, 1), Note, dict, print, list):
        options.bare(fine, "step()")
