"""What a handler's signature says: how it is called, what it is given, its input and its outputs; and what is wrong with it."""

from __future__ import annotations

import collections.abc
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from queuert_py.dependencies import Needs, every, needs_of
from queuert_py.errors import DeclarationError
from queuert_py.job import Facts, Job, SyncJob
from queuert_py.values import Continuation

How: TypeAlias = Literal["async", "thread", "process", "batch"]


@dataclass(frozen=True, slots=True)
class Contract:
    """What the annotations say: the input model, the output models by name, and whether None is an output."""

    input: type[BaseModel]
    outputs: Mapping[str, type[BaseModel]]
    none: bool

    def __str__(self) -> str:
        return " | ".join([*self.outputs, *(["None"] if self.none else [])])

    def returns(self, model: type[BaseModel]) -> bool:
        """Is it one of the outputs, or a kind of one?"""
        return issubclass(model, tuple(self.outputs.values()))

    def covers(self, other: Contract) -> bool:
        """Is whatever the other returns an output of this one?"""
        return (self.none or not other.none) and all(map(self.returns, other.outputs.values()))

    def narrowed(self, output: Any) -> Contract | None:
        """This contract as far as its output is an `output`; None when it never is."""
        models = {name: model for name, model in self.outputs.items() if isinstance(output, type) and issubclass(model, output)}
        none = self.none and output is type(None)
        return Contract(self.input, models, none) if models or none else None


@dataclass(frozen=True, slots=True)
class Shape:
    """How a handler is called: where it runs, what it needs beside its job, and (a batch) how many jobs it takes at once."""

    how: How
    needs: Needs
    size: int = 1

    @property
    def takes(self) -> type[Facts[Any]]:
        """What it calls its job."""
        return Job if self.how in ("async", "batch") else SyncJob


def shape_of(name: str, handler: Any, isolation: str | None, size: int | None) -> Shape:
    """What can be told without resolving annotations. DeclarationError says what to write."""
    who = f"handler of {name!r}"
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise DeclarationError(f"{who}: a generator cannot be a handler: use return, not yield.")
    if not hasattr(handler, "__annotations__"):
        raise DeclarationError(f"{who}: {handler!r} is no function: write one with `def`, or `async def`.")
    how = _how(who, handler, isolation, size)
    function = getattr(handler, "__name__", name)
    given = [each for each in inspect.signature(handler).parameters.values() if each.default is inspect.Parameter.empty]
    takes = {"async": "job: Job[Input]", "batch": "jobs: Sequence[Job[Input]]"}.get(how, "job: SyncJob[Input]")
    if len(given) != 1 or given[0].kind in (given[0].VAR_POSITIONAL, given[0].VAR_KEYWORD, given[0].KEYWORD_ONLY):
        raise DeclarationError(
            f"{who}: it takes one parameter, `{takes}`, not {len(given)}; whatever else it needs has a default, like `= Depends(fn)`."
        )
    for each in (given[0].name, "return"):
        if each not in handler.__annotations__:
            wanted = takes.replace("jobs:", f"{each}:").replace("job:", f"{each}:")
            what = "its return type" if each == "return" else f"its parameter {each!r} as `{wanted}`"
            raise DeclarationError(f"{who}: annotate {what}.")
    needs = needs_of(handler, who)
    _check_providers(who, how, needs)
    if how == "process" and "<locals>" in handler.__qualname__:
        raise DeclarationError(f"{who}: isolation='process' imports it in another process: define {function} at the top of a module.")
    return Shape(how, needs, size or 1)


def _how(who: str, handler: Any, isolation: str | None, size: int | None) -> How:
    function = getattr(handler, "__name__", "handle")
    if size is not None:
        if type(size) is not int or size < 1:
            raise DeclarationError(f"{who}: size={size!r}: an integer, at least 1.")
        if not inspect.iscoroutinefunction(handler) or isolation is not None:
            raise DeclarationError(f"{who}: write `async def {function}(jobs: Sequence[Job[Input]]) -> Sequence[Output | Exception]`.")
        return "batch"
    if inspect.iscoroutinefunction(handler):
        if isolation is not None:
            raise DeclarationError(
                f"{who}: isolation={isolation!r} is for `def` handlers: `def {function}(job: SyncJob[Input]) -> Output`."
            )
        return "async"
    if not inspect.isroutine(handler) or _names_job(handler):
        raise DeclarationError(
            f"{who}: write `async def {function}(job: Job[Input]) -> Output`, or `def {function}(job: SyncJob[Input]) -> Output`, "
            "which runs in a thread."
        )
    return "process" if isolation == "process" else "thread"


def _names_job(handler: Any) -> bool:
    """Is its first parameter visibly a Job? What is not visible yet is looked at when the annotations are resolved."""
    first: Any = next(iter(inspect.get_annotations(handler).values()), None)
    return first.startswith(("Job[", "queuert_py.Job[")) if isinstance(first, str) else get_origin(first) is Job


def _check_providers(who: str, how: How, needs: Needs) -> None:
    for provider in every(needs):
        shown = getattr(provider.provide, "__qualname__", repr(provider.provide))
        kind = None if provider.job is None else provider.job[1]
        if how == "batch" and kind is not None:
            raise DeclarationError(f"{who}: its provider {shown} takes the job, and a batch has many: give it none.")
        if (how == "async" and kind is SyncJob) or (how == "process" and kind is Job):
            wanted = "Job" if how == "async" else "SyncJob"
            raise DeclarationError(f"{who}: annotate the job of its provider {shown} as {wanted}, as the handler's own.")
        if how == "process" and provider.how in ("coroutine", "async_generator"):
            raise DeclarationError(f"{who}: with isolation='process' its provider {shown} must be a `def`: there is no event loop.")


def compare(name: str, read: Contract, declared: Contract) -> None:
    """A handler of a type that was declared elsewhere: takes its inputs, returns no more than its outputs."""
    if not issubclass(declared.input, read.input):
        raise DeclarationError(f"handler of {name!r}: it takes {read.input.__name__}, the job type declares {declared.input.__name__}.")
    if not read.outputs.items() <= declared.outputs.items() or (read.none and not declared.none):
        raise DeclarationError(f"handler of {name!r}: it returns {read}, the job type declares {declared}.")


def read_handler(name: str, handler: Any, shape: Shape, local: Mapping[str, Any]) -> Contract:
    """Its contract. NameError for a name that is not defined yet; DeclarationError."""
    parameter = next(iter(inspect.signature(handler).parameters))
    wanted = {each: handler.__annotations__[each] for each in (parameter, "return")}  # others may be names for checkers alone
    scope = getattr(inspect.unwrap(handler), "__globals__", {})
    try:
        hints = get_type_hints(types.SimpleNamespace(__annotations__=wanted), scope, dict(local))
    except NameError as error:
        raise NameError(f"handler of {name!r}: {error}: define it before the engine is opened, at module level.") from None
    job, output = hints[parameter], hints["return"]
    if shape.how == "batch":
        job, output = _each(name, parameter, job, output)
    if get_origin(job) is not shape.takes or not get_args(job):
        right = f"{shape.takes.__name__}[Input]"
        other = {Job: "a `def` takes SyncJob", SyncJob: "an `async def` takes Job"}.get(get_origin(job) or job)
        why = "with a pydantic model" if other is None or get_origin(job) is shape.takes or job is shape.takes else other
        written = f"Sequence[{right}]" if shape.how == "batch" else right
        raise DeclarationError(f"handler of {name!r}: annotate its parameter as `{parameter}: {written}`, {why}.")
    return read_pair(name, get_args(job)[0], output)


def _each(name: str, parameter: str, jobs: Any, outputs: Any) -> tuple[Any, Any]:
    """Of a batch: one job, and what one outcome may be but for exceptions."""
    if get_origin(jobs) is not collections.abc.Sequence or not get_args(jobs):
        raise DeclarationError(
            f"handler of {name!r}: annotate its parameter as `{parameter}: Sequence[Job[Input]]`, with a pydantic model."
        )
    if get_origin(outputs) not in (list, collections.abc.Sequence) or not get_args(outputs):
        raise DeclarationError(f"handler of {name!r}: annotate what it returns as `Sequence[Output | Exception]`: one outcome a job.")
    outcome = get_args(outputs)[0]
    if any(get_origin(each) is Continuation for each in (outcome, *get_args(outcome))):
        raise DeclarationError(f"handler of {name!r}: a batch cannot continue: return outputs, or write a handler of one job.")
    kept: list[Any] = [each for each in members(outcome) if not (isinstance(each, type) and issubclass(each, BaseException))]
    return get_args(jobs)[0], Union[tuple(kept)] if kept else None  # noqa: UP007 - of a list


def read_pair(name: str, input: Any, output: Any) -> Contract:
    """The contract of an input and an output. DeclarationError for what is no pydantic model."""
    if not (isinstance(input, type) and issubclass(input, BaseModel)):
        raise DeclarationError(f"job type {name!r}: its input is {_show(input)}: write a pydantic model.")
    models: dict[str, type[BaseModel]] = {}
    none = False
    for member in members(output):
        if member is type(None):
            none = True
        elif isinstance(member, type) and issubclass(member, BaseModel):
            if any(character in '"\\' or character < " " for character in member.__name__):
                raise DeclarationError(f"job type {name!r}: the name of its output {member.__name__!r} cannot be stored: rename it.")
            if models.setdefault(member.__name__, member) is not member:
                raise DeclarationError(f"job type {name!r}: two outputs are called {member.__name__}: rename one (the name is stored).")
        else:
            raise DeclarationError(f"job type {name!r}: its output is {_show(member)}: write a pydantic model, a union of them, or None.")
    return Contract(input, models, none)


def members(annotation: Any) -> Iterator[Any]:
    """The members of a union, those of a Continuation as well."""
    origin = get_origin(annotation)
    if annotation is None:
        yield type(None)
    elif origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from members(each)
    elif origin is Continuation:
        yield from members(get_args(annotation)[0])
    else:
        yield annotation


def _show(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
