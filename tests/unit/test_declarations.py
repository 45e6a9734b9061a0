"""Declaring job types: what is read from annotations, and every declaration that is refused, with what to write instead."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Optional, Union

import pytest
from pydantic import BaseModel, create_model

from queuert_py import Continuation, Engine, InternalJobType, Job, JobType, JobTypes, SyncJob, continue_with
from queuert_py.annotations import Contract
from queuert_py.errors import (
    DeclarationError,
    DuplicateJobTypeError,
    InvalidInputError,
    InvalidOutputError,
    QueuertError,
    UnknownJobTypeError,
    UsageError,
)
from queuert_py.values import Request


class In(BaseModel):
    n: int = 0


class SubIn(In):
    more: int = 0


class A(BaseModel):
    a: int = 0


OtherJob = Job


class SubA(A):
    b: int = 0


class B(BaseModel):
    b: int = 0


def declared(handler: Any) -> InternalJobType[Any, Any]:
    """As the decorator does, whatever the checkers know of the handler."""
    declare: Any = JobTypes().job_type
    job_type: InternalJobType[Any, Any] = declare(handler)
    return job_type


def another(name: str) -> type[BaseModel]:
    return create_model(name)


# --- what is read


async def plain(job: Job[In]) -> A: ...  # type: ignore[empty-body]
async def nothing(job: Job[In]) -> None: ...
async def union(job: Job[In]) -> A | B | None: ...
async def old_union(job: Job[In]) -> Union[A, Optional[B]]: ...  # noqa: UP007, UP045
async def onward(job: Job[In]) -> Continuation[B]: ...  # type: ignore[empty-body]
async def branch(job: Job[In]) -> A | Continuation[B | None]: ...  # type: ignore[empty-body]
async def loop(job: Job[In]) -> A | Continuation[A]: ...  # type: ignore[empty-body]
async def optional_parameter(job: Job[In], extra: int = 3) -> A: ...  # type: ignore[empty-body]
async def with_transaction(job: Job[In, Any]) -> A: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("handler", "outputs", "none"),
    [
        (plain, {"A"}, False),
        (nothing, set[str](), True),
        (union, {"A", "B"}, True),
        (old_union, {"A", "B"}, True),
        (onward, {"B"}, False),
        (branch, {"A", "B"}, True),
        (loop, {"A"}, False),
        (optional_parameter, {"A"}, False),
        (with_transaction, {"A"}, False),
    ],
)
def test_the_contract_is_what_the_annotations_say(handler: Any, outputs: set[str], *, none: bool) -> None:
    contract: Contract = declared(handler).contract
    assert contract.input is In
    assert set(contract.outputs) == outputs
    assert contract.none is none


def test_a_def_handler_of_sync_job_is_read_in_the_same_way() -> None:
    job_type = declared(sync)
    assert job_type.contract.input is In
    assert set(job_type.contract.outputs) == {"A", "B"}
    assert job_type.shape is not None
    assert job_type.shape.how == "thread"


def test_the_name_defaults_to_the_functions() -> None:
    jobs = JobTypes()
    assert jobs.job_type(plain).name == "plain"
    assert jobs.job_type()(nothing).name == "nothing"
    assert jobs.job_type("a.name")(union).name == "a.name"
    assert jobs.names() == ["plain", "nothing", "a.name"]


def test_only_what_is_not_internal_can_start_a_sequence() -> None:
    jobs = JobTypes()
    assert type(jobs.job_type("x")(plain)) is JobType
    assert type(jobs.job_type("y", internal=True)(plain)) is InternalJobType
    assert jobs.get("x").startable
    assert not jobs.get("y").startable


def test_calling_a_job_type_makes_a_request_and_calls_nothing() -> None:
    job_type = JobTypes().job_type(plain)
    assert job_type(In(n=1), key="k") == Request(job_type, In(n=1), {"key": "k"})


# --- what is refused at decoration


def generator(job: Job[In]) -> Iterator[A]:
    yield A()


async def async_generator(job: Job[In]) -> AsyncIterator[A]:
    yield A()


def plain_def(job: Job[In]) -> A:
    return A()


def sync(job: SyncJob[In]) -> A | Continuation[B]: ...  # type: ignore[empty-body]
def of_job_by_text(job: Job[In]) -> A: ...  # type: ignore[empty-body]
def of_other_job(job: OtherJob[In]) -> A: ...  # type: ignore[empty-body]
async def async_with_sync_job(job: SyncJob[In]) -> A: ...  # type: ignore[empty-body]
def bare_sync_job(job: SyncJob) -> A: ...  # type: ignore[type-arg, empty-body] # pyright: ignore
def no_return_type_sync(job: SyncJob[In]): ...  # type: ignore[no-untyped-def]
def keyword_only(*, job: SyncJob[In]) -> A: ...  # type: ignore[empty-body]


class Handler:
    async def __call__(self, job: Job[In]) -> A:
        return A()


async def no_parameter() -> A: ...  # type: ignore[empty-body]
async def two_parameters(job: Job[In], other: int) -> A: ...  # type: ignore[empty-body]
async def keyword_parameter(job: Job[In], *, other: int) -> A: ...  # type: ignore[empty-body]
async def no_return_type(job: Job[In]): ...  # type: ignore[no-untyped-def]
async def no_parameter_type(job) -> A: ...  # type: ignore[no-untyped-def, empty-body] # pyright: ignore
async def bare_job(job: Job) -> A: ...  # type: ignore[type-arg, empty-body] # pyright: ignore
async def the_input_itself(job: In) -> A: ...  # type: ignore[empty-body]
async def number_input(job: Job[int]) -> A: ...  # type: ignore[type-var, empty-body] # pyright: ignore
async def dict_input(job: Job[dict[str, int]]) -> A: ...  # type: ignore[type-var, empty-body] # pyright: ignore
async def number_output(job: Job[In]) -> int: ...  # type: ignore[empty-body]
async def list_output(job: Job[In]) -> list[A]: ...  # type: ignore[empty-body]
async def any_output(job: Job[In]) -> Any: ...
async def text_or_model(job: Job[In]) -> A | str: ...  # type: ignore[empty-body]
async def onward_to_number(job: Job[In]) -> Continuation[int]: ...  # type: ignore[type-var, empty-body] # pyright: ignore


REFUSED: list[tuple[Any, str]] = [
    (generator, "a generator cannot be a handler: use return, not yield"),
    (async_generator, "a generator cannot be a handler: use return, not yield"),
    (of_job_by_text, r"or `def of_job_by_text\(job: SyncJob\[Input\]\) -> Output`, which runs in a thread"),
    (of_other_job, r"annotate its parameter as `job: SyncJob\[Input\]`, a `def` takes SyncJob"),
    (async_with_sync_job, r"annotate its parameter as `job: Job\[Input\]`, an `async def` takes Job"),
    (bare_sync_job, r"annotate its parameter as `job: SyncJob\[Input\]`, with a pydantic model"),
    (no_return_type_sync, "annotate its return type"),
    (keyword_only, "it takes one parameter"),
    (plain_def, r"write `async def plain_def\(job: Job\[Input\]\) -> Output`"),
    (no_parameter, r"it takes one parameter, `job: Job\[Input\]`, not 0"),
    (two_parameters, "not 2"),
    (keyword_parameter, "not 2"),
    (no_return_type, "annotate its return type"),
    (no_parameter_type, r"annotate its parameter 'job' as `job: Job\[Input\]`"),
    (bare_job, r"annotate its parameter as `job: Job\[Input\]`"),
    (the_input_itself, r"annotate its parameter as `job: Job\[Input\]`"),
    (number_input, "its input is int: write a pydantic model"),
    (dict_input, "its input is dict.*: write a pydantic model"),
    (number_output, "its output is int: write a pydantic model, a union of them, or None"),
    (list_output, "its output is list"),
    (any_output, "its output is .*Any"),
    (text_or_model, "its output is str"),
    (onward_to_number, "its output is int"),
]


@pytest.mark.parametrize(("handler", "says"), REFUSED)
def test_a_handler_that_is_none_is_refused_with_what_to_write(handler: Any, says: str) -> None:
    jobs = JobTypes()
    with pytest.raises(DeclarationError, match=says) as refused:
        jobs.job_type(handler)
    assert repr(handler.__name__) in str(refused.value), "it names the handler"
    assert jobs.names() == [], "nothing is declared"


async def with_a_default(job: Job[In], extra: int = 0) -> A: ...  # type: ignore[empty-body]


PARTIAL = functools.partial(with_a_default, extra=1)


@pytest.mark.parametrize("handler", [PARTIAL, functools.partial(sync), print], ids=["async", "def", "builtin"])
def test_what_has_no_annotations_is_refused_as_a_handler(handler: Any) -> None:
    jobs = JobTypes()
    with pytest.raises(DeclarationError, match="is no function: write one with `def`, or `async def`"):
        jobs.job_type(handler)
    with pytest.raises(DeclarationError, match="handler of 'named'"):
        jobs.job_type("named")(handler)
    assert jobs.names() == []


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "10", None])
def test_a_batch_of_no_number_is_refused(size: Any) -> None:
    async def work(jobs: Sequence[Job[In]]) -> list[A]: ...  # type: ignore[empty-body]

    with pytest.raises(DeclarationError):
        JobTypes().batch_type("batch", size=size)(work)


def test_two_outputs_of_one_name_are_refused_because_the_name_is_stored() -> None:
    Same, Twin = another("Same"), another("Same")

    async def twins(job: Job[In]) -> Any: ...

    twins.__annotations__["return"] = Same | Twin
    with pytest.raises(DeclarationError, match="two outputs are called Same: rename one"):
        JobTypes().job_type(twins)


def test_one_output_named_twice_is_one() -> None:
    assert set(JobType[In, A | Continuation[A]]("x").contract.outputs) == {"A"}  # type: ignore[type-var] # pyright: ignore


@pytest.mark.parametrize("name", ["", "a\x00b", "\ud800", "x" * 201])
def test_a_name_that_cannot_be_stored_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="the name of a job type"):
        JobType[In, A](name)


OPTIONS: list[tuple[str, Any]] = [
    ("max_attempts", 0),
    ("max_attempts", -1),
    ("queue", ""),
    ("queue", "q" * 41),
    ("queue", "a\x00"),
    ("priority", "high"),
    ("priority", 99_999),
    ("timeout", -1),
    ("timeout", float("nan")),
    ("timeout", "30 s"),
    ("expires", -1),
    ("backoff", "slow"),
    ("retry_on", ["OSError"]),
    ("retry_on", 7),
    ("max_steps", 0),
    ("time_out", 30),
]


@pytest.mark.parametrize(("option", "value"), OPTIONS, ids=[f"{name}={value!r:.12}" for name, value in OPTIONS])
def test_an_option_that_cannot_be_is_refused_at_the_declaration(option: str, value: object) -> None:
    options: Any = {option: value}
    with pytest.raises(DeclarationError, match=option):
        JobTypes().job_type("optioned", **options)(plain)


def test_options_that_can_be_are_kept() -> None:
    job_type = JobType[In, A](
        "x",
        queue="q" * 40,
        priority=-32767,
        max_attempts=None,
        backoff=lambda n: n * 2.0,
        timeout=timedelta(minutes=1),
        expires=3.5,
        retry_on=(OSError,),
        no_retry_on=(KeyError,),
        max_steps=1,
    )
    assert job_type.policy.max_attempts is None
    assert job_type.policy.retry_on == (OSError,)
    assert job_type.policy.no_retry_on == (KeyError,)
    assert job_type.options.get("queue") == "q" * 40


# --- forward references


def test_a_model_that_is_defined_later_is_read_when_it_is_needed() -> None:
    jobs = JobTypes()

    @jobs.job_type
    async def early(job: Job[In]) -> Later: ...  # type: ignore[name-defined] # noqa: F821 # pyright: ignore

    globals()["Later"] = another("Later")
    try:
        assert set(early.contract.outputs) == {"Later"}
    finally:
        del globals()["Later"]


def test_a_model_that_is_never_defined_is_told_when_the_engine_is_checked() -> None:
    engine = Engine("postgresql://")

    @engine.job_type
    async def lost(job: Job[In]) -> Nowhere: ...  # type: ignore[name-defined] # noqa: F821 # pyright: ignore

    with pytest.raises(NameError, match="handler of 'lost': name 'Nowhere' is not defined: define it before the engine is opened"):
        engine.validate()


def test_a_late_model_that_is_no_model_is_refused_when_it_is_read() -> None:
    jobs = JobTypes()

    @jobs.job_type
    async def early(job: Job[In]) -> LaterNumber: ...  # type: ignore[name-defined] # noqa: F821 # pyright: ignore

    globals()["LaterNumber"] = int
    try:
        with pytest.raises(DeclarationError, match="its output is int"):
            _ = early.contract
    finally:
        del globals()["LaterNumber"]


def test_models_defined_inside_a_function_are_found() -> None:
    class Local(BaseModel): ...

    class LocalOut(BaseModel): ...

    @JobTypes().job_type
    async def inside(job: Job[Local]) -> LocalOut | None: ...

    assert inside.contract.input is Local
    assert inside.contract.outputs == {"LocalOut": LocalOut}


# --- contract first


def test_a_contract_is_declared_in_one_place_and_implemented_in_another() -> None:
    contract = JobType[In, A | B]("contract")
    assert set(contract.contract.outputs) == {"A", "B"}
    jobs = JobTypes()

    @jobs.handler(contract)
    async def implement(job: Job[In]) -> A:
        return A()

    assert contract.handler is implement
    assert jobs.get("contract") is contract


def test_a_handler_may_take_a_base_of_the_contracts_input() -> None:
    contract = JobType[SubIn, A]("contract")
    JobTypes().handler(contract)(plain)  # type: ignore[arg-type] # pyright: ignore
    assert contract.contract.input is SubIn


async def takes_sub(job: Job[SubIn]) -> A: ...  # type: ignore[empty-body]
async def takes_other(job: Job[B]) -> A: ...  # type: ignore[empty-body]
async def returns_other(job: Job[In]) -> B: ...  # type: ignore[empty-body]
async def returns_more(job: Job[In]) -> A | None: ...


@pytest.mark.parametrize("handler", [takes_sub, takes_other, returns_other, returns_more, plain_def, number_output])
def test_a_handler_of_another_contract_is_refused_and_the_right_one_still_accepted(handler: Any) -> None:
    contract = JobType[In, A]("contract")
    jobs = JobTypes()
    with pytest.raises(DeclarationError, match="'contract'"):
        jobs.handler(contract)(handler)
    assert contract.handler is None
    jobs.handler(contract)(plain)
    assert contract.handler is plain


def test_a_second_handler_is_refused() -> None:
    contract = JobType[In, A]("contract")
    jobs = JobTypes()
    jobs.handler(contract)(plain)
    with pytest.raises(DeclarationError, match="'contract' has a handler already: plain"):
        jobs.handler(contract)(loop)
    assert contract.handler is plain


def test_a_contract_without_types_is_refused_when_it_is_read() -> None:
    bare: JobType[Any, Any] = JobType("bare")
    with pytest.raises(DeclarationError, match=re.escape('write JobType[Input, Output]("bare"), or decorate its handler')):
        _ = bare.contract


@pytest.mark.parametrize("declare", [lambda: JobType[int, A]("x"), lambda: JobType[In, int]("x"), lambda: JobType["In", A]("x")])  # type: ignore[type-var] # pyright: ignore
def test_a_contract_of_what_is_no_model_is_refused_when_it_is_read(declare: Callable[[], JobType[Any, Any]]) -> None:
    with pytest.raises(DeclarationError, match="write a pydantic model"):
        _ = declare().contract


# --- registries


def test_two_job_types_of_one_name_are_refused() -> None:
    jobs = JobTypes()
    jobs.job_type("same")(plain)
    with pytest.raises(DuplicateJobTypeError, match="there is a job type 'same' already: give one of them another name"):
        jobs.job_type("same")(loop)
    assert jobs.get("same").handler is plain


def test_mounting_takes_over_what_is_declared_before_and_after() -> None:
    jobs, outer = JobTypes(), JobTypes()
    before = jobs.job_type("before")(plain)
    outer.mount(jobs)
    after = jobs.job_type("after")(plain)
    assert [outer.get(name) for name in ("before", "after")] == [before, after]
    engine = Engine("postgresql://", outer)
    later = jobs.job_type("later")(plain)
    assert engine.get("later") is later


def test_a_registry_may_be_mounted_on_two_engines() -> None:
    jobs = JobTypes()
    job_type = jobs.job_type(plain)
    engines = [Engine("postgresql://", jobs), Engine("postgresql://", jobs)]
    assert all(engine.get("plain") is job_type for engine in engines)


def test_registries_that_both_declare_a_name_cannot_be_mounted_together() -> None:
    one, two = JobTypes(), JobTypes()
    one.job_type(plain)
    two.job_type(plain)
    with pytest.raises(DuplicateJobTypeError, match="'plain'"):
        Engine("postgresql://", one, two)


def test_a_producer_adds_contracts_without_handlers() -> None:
    jobs = JobTypes()
    contract, other = JobType[In, A]("one"), InternalJobType[In, A]("two")
    jobs.add(contract, other, contract)
    assert list(jobs) == [contract, other]
    assert contract.handler is None


def test_an_unknown_name_lists_what_there_is() -> None:
    jobs = JobTypes()
    with pytest.raises(UnknownJobTypeError, match=r"no job type 'x' is declared here \(known: none\)"):
        jobs.get("x")
    jobs.job_type("b")(plain)
    jobs.job_type("a")(plain)
    with pytest.raises(UnknownJobTypeError, match=r"known: a, b"):
        jobs.get("x")
    assert not jobs.has("x")
    assert jobs.has("a")


@pytest.mark.parametrize("kind", [DeclarationError, DuplicateJobTypeError, UnknownJobTypeError, InvalidInputError])
def test_what_the_caller_does_wrong_is_a_usage_error(kind: type[QueuertError]) -> None:
    assert issubclass(kind, UsageError)
    assert issubclass(kind, ValueError)


# --- inputs and outputs of a type


def test_an_input_is_its_model_or_a_mapping_of_it() -> None:
    job_type = JobTypes().job_type(plain)
    assert job_type.dump_input(In(n=3)) == job_type.dump_input({"n": 3}) == '{"n":3}'
    assert job_type.dump_input({"n": "3"}) == '{"n":3}'
    assert job_type.load_input('{"n":3}') == In(n=3)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"n": "x"}, r"'plain' refuses its input: input\.n: "),
        (A(), "input: A given, 'plain' takes In"),
        ("text", "input: str given, 'plain' takes In"),
        (None, "input: NoneType given, 'plain' takes In"),
    ],
)
def test_an_input_of_another_kind_is_refused_by_field(value: object, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as refused:
        JobTypes().job_type(plain).dump_input(value)
    assert refused.value.details["type"] == "plain"


def test_an_output_is_stored_with_the_name_of_the_model_that_was_returned() -> None:
    job_type = JobTypes().job_type(union)
    assert job_type.dump_output(A(a=1)) == ('{"a":1}', "A")
    assert job_type.dump_output(B(b=1)) == ('{"b":1}', "B")
    assert job_type.dump_output(None) == ("null", None)


def test_an_output_of_a_subclass_is_stored_as_what_is_declared() -> None:
    assert JobTypes().job_type(plain).dump_output(SubA(a=1, b=2)) == ('{"a":1}', "A")


def test_a_subclass_that_is_declared_itself_keeps_its_own_name() -> None:
    job_type = JobType[In, A | SubA]("x")
    assert job_type.dump_output(SubA(a=1, b=2)) == ('{"a":1,"b":2}', "SubA")
    assert job_type.dump_output(A(a=1)) == ('{"a":1}', "A")


@pytest.mark.parametrize("value", [B(), None, 7, "text", {"a": 1}, continue_with(JobType[In, A]("x"), In())], ids=repr)
def test_an_output_that_is_not_declared_is_refused(value: object) -> None:
    with pytest.raises(InvalidOutputError, match=r"the handler of 'plain' returned \w+, it declares A"):
        JobTypes().job_type(plain).dump_output(value)


def test_an_output_that_cannot_be_stored_is_named() -> None:
    class Text(BaseModel):
        text: str

    with pytest.raises(InvalidOutputError, match=r"output\.text: a NUL") as refused:
        JobType[In, Text]("x").dump_output(Text(text="\x00"))
    assert refused.value.details["path"] == "output.text"
