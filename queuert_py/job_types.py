"""Job types: a name, an input model, an output; how they are declared and what their annotations say."""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypedDict, Union, cast, get_args, get_origin, get_type_hints, overload

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar, Unpack

from queuert_py import payload
from queuert_py.decisions.judge import Exceptions, Policy
from queuert_py.errors import DeclarationError, DuplicateJobTypeError, InvalidInputError, InvalidOutputError, UnknownJobTypeError
from queuert_py.job import In, Job, Tx
from queuert_py.options import declaration as check_options
from queuert_py.sequence import Collected
from queuert_py.values import Backoff, Continuation, ContinueOptions, Duration, Out_co, Request, StartOptions

Out = TypeVar("Out", bound=BaseModel | None)
Next = TypeVar("Next", bound=BaseModel | None)
In_contra = TypeVar("In_contra", bound=BaseModel, contravariant=True)
Handler = Callable[[Job[Any, Any]], Awaitable[Any]]


class JobOptions(TypedDict, total=False):
    """How jobs of a type run. All optional; those that a start may also give win there.

    queue "default": where workers look for them. priority 0: higher first. max_attempts 10: None for ever.
    backoff: 10 s doubling to 300 s, with jitter. timeout None: of each attempt. expires None: not started by then, it ends as `expired`.
    retry_on (Exception,), no_retry_on (): which errors are tried again. max_steps 10,000: of one sequence, counted at this job.
    """

    queue: str
    priority: int
    max_attempts: int | None
    backoff: Backoff | None
    timeout: Duration | None
    expires: Duration | None
    retry_on: Exceptions
    no_retry_on: Exceptions
    max_steps: int


@dataclass(frozen=True, slots=True)
class Contract:
    """What the annotations say: the input model, the output models by name, and whether None is an output."""

    input: type[BaseModel]
    outputs: Mapping[str, type[BaseModel]]
    none: bool

    def __str__(self) -> str:
        return " | ".join([*self.outputs, *(["None"] if self.none else [])])


class InternalJobType(Generic[In_contra, Out_co]):
    """A job type that only `continue_with` reaches. `JobType[In, Out]("name")` declares one whose handler is written elsewhere."""

    startable = False

    def __init__(self, name: str, /, **options: Unpack[JobOptions]) -> None:
        self.name = _checked_name(name)
        check_options(name, options, JobOptions.__annotations__)
        self.options = options
        self.policy = _policy(options)
        self.handler: Handler | None = None
        self._local: Mapping[str, Any] = {}
        self._contract: Contract | None = None

    def _phantom(self, input: In_contra) -> Out_co:
        raise NotImplementedError

    @property
    def contract(self) -> Contract:
        """Read at first use, when forward references can be resolved. DeclarationError says what to write."""
        if self._contract is None:
            declared = getattr(self, "__orig_class__", None)
            if declared is not None:
                self._contract = _read_pair(self.name, *get_args(declared))
            elif self.handler is not None:
                self._contract = _read_handler(self.name, self.handler, self._local)
            else:
                raise DeclarationError(f'job type {self.name!r}: write JobType[Input, Output]("{self.name}"), or decorate its handler.')
        return self._contract

    def dump_input(self, value: object, limit: int = payload.MAX_PAYLOAD, blockers: Collected | None = None) -> str:
        """The input as JSON, checked to come back equal. A mapping is validated first. InvalidInputError names the field."""
        model = self.contract.input
        try:
            checked = value if isinstance(value, model) else self._from_mapping(value, model)
            return payload.dump(model, checked, "input", limit, blockers)
        except ValidationError as error:
            raise InvalidInputError(
                f"{self.name!r} refuses its input: {payload.explain(error, 'input')}.", type=self.name, path="input"
            ) from error
        except payload.Unstorable as error:
            raise InvalidInputError(f"{self.name!r} refuses its input: {error}", type=self.name, path=error.path) from error.__cause__

    def _from_mapping(self, value: object, model: type[BaseModel]) -> BaseModel:
        if not isinstance(value, Mapping):
            raise payload.Unstorable("input", f"{type(value).__name__} given, {self.name!r} takes {model.__name__}.")
        return model.model_validate(dict(cast("Mapping[str, Any]", value)))

    def load_input(self, text: str, context: Any = None) -> BaseModel:
        """The input as its handler sees it. pydantic's ValidationError when the model refuses what is stored."""
        return cast("BaseModel", self.contract.input.__pydantic_validator__.validate_json(text, context=context))

    def dump_output(self, value: Any, limit: int = payload.MAX_PAYLOAD) -> tuple[str, str | None]:
        """The output as JSON with the name of its model. InvalidOutputError when it is not what the annotations declare."""
        contract = self.contract
        if value is None and contract.none:
            return "null", None
        named = contract.outputs.get(type(value).__name__)
        if named is not None and isinstance(value, named):
            return self._dump_output(named.__name__, named, value, limit)
        for name, model in contract.outputs.items():
            if isinstance(value, model):
                return self._dump_output(name, model, value, limit)
        raise InvalidOutputError(f"the handler of {self.name!r} returned {type(value).__name__}, it declares {contract}.", type=self.name)

    def _dump_output(self, name: str, model: type[BaseModel], value: BaseModel, limit: int) -> tuple[str, str]:
        try:
            return payload.dump(model, value, "output", limit), name
        except payload.Unstorable as error:
            raise InvalidOutputError(f"the output of {self.name!r} cannot be stored: {error}", type=self.name, path=error.path) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class JobType(InternalJobType[In_contra, Out_co]):
    """A job type that a sequence can start with. Calling it with an input makes a Request."""

    startable = True

    def __call__(self, input: In_contra, /, **options: Unpack[StartOptions]) -> Request[Out_co]:
        """A sequence to be started, as a value: for `start_sequences`, schedules and tests."""
        return Request(self, input, options)


def continue_with(job_type: InternalJobType[In, Out], input: In, /, **options: Unpack[ContinueOptions]) -> Continuation[Out]:
    """The next job of this sequence, as a value to return. Nothing happens until the engine writes it.

    delay, at: not before (not both). priority: inherited by default.
    """
    return Continuation(job_type, input, options)


class _Declare(Protocol[Tx]):
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Continuation[Next]]], /) -> JobType[In, Next]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out]], /) -> JobType[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Next]]], /) -> JobType[In, Out | Next]: ...


class _DeclareInternal(Protocol[Tx]):
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Continuation[Next]]], /) -> InternalJobType[In, Next]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out]], /) -> InternalJobType[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Next]]], /) -> InternalJobType[In, Out | Next]: ...


class JobTypes(Generic[Tx]):
    """A registry that needs no database: declare at import time, mount on an engine later (`Engine(db, jobs)`)."""

    def __init__(self) -> None:
        self._types: dict[str, InternalJobType[Any, Any]] = {}
        self._mounted_on: list[JobTypes[Any]] = []

    def mount(self, registry: JobTypes[Tx]) -> None:
        """Take over all that another registry declares, now and later. DuplicateJobTypeError."""
        for job_type in registry:
            self._add(job_type)
        registry._mounted_on.append(self)

    # --- declaring

    @overload
    def job_type(self, fn: Callable[[Job[In, Tx]], Awaitable[Continuation[Next]]], /) -> JobType[In, Next]: ...
    @overload
    def job_type(self, fn: Callable[[Job[In, Tx]], Awaitable[Out]], /) -> JobType[In, Out]: ...
    @overload
    def job_type(self, fn: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Next]]], /) -> JobType[In, Out | Next]: ...
    @overload
    def job_type(self, name: str | None = None, /, *, internal: Literal[False] = False, **options: Unpack[JobOptions]) -> _Declare[Tx]: ...
    @overload
    def job_type(self, name: str | None = None, /, *, internal: Literal[True], **options: Unpack[JobOptions]) -> _DeclareInternal[Tx]: ...
    def job_type(self, fn: Any = None, /, *, internal: bool = False, **options: Unpack[JobOptions]) -> Any:
        """Declare a job type by decorating its handler, `@job_type` or `@job_type("name", …)`; the name defaults to the function's.

        internal: only `continue_with` reaches it. Options: JobOptions. DeclarationError (a duplicate name, a missing annotation, a type
        that is no pydantic model, a generator, a plain `def`) says what to write.
        """
        local = sys._getframe(1).f_locals

        def declare(handler: Handler) -> InternalJobType[Any, Any]:
            kind = cast("type[InternalJobType[Any, Any]]", InternalJobType if internal else JobType)
            job_type = kind(name or handler.__name__, **options)
            _bind(job_type, handler, local)
            self._add(job_type)
            return job_type

        name = None if callable(fn) else fn
        return declare(cast("Handler", fn)) if callable(fn) else declare

    def handler(
        self, job_type: InternalJobType[In, Out], /
    ) -> Callable[
        [Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Out]]]], Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Out]]]
    ]:
        """Implement a job type that was declared elsewhere (contract first). DeclarationError when it has a handler already."""
        local = sys._getframe(1).f_locals

        def implement(
            handler: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Out]]],
        ) -> Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Out]]]:
            if job_type.handler is not None:
                raise DeclarationError(
                    f"job type {job_type.name!r} has a handler already: {getattr(job_type.handler, '__qualname__', '')}."
                )
            _bind(job_type, handler, local)
            if self._types.get(job_type.name) is not job_type:
                self._add(job_type)
            return handler

        return implement

    def add(self, *job_types: InternalJobType[Any, Any]) -> None:
        """Declare job types made as `JobType[In, Out]("name")`, so that a process without their handlers can start them by name."""
        for job_type in job_types:
            self._add(job_type)

    def _add(self, job_type: InternalJobType[Any, Any]) -> None:
        known = self._types.get(job_type.name)
        if known is not None and known is not job_type:
            raise DuplicateJobTypeError(f"there is a job type {job_type.name!r} already: give one of them another name.")
        self._types[job_type.name] = job_type
        for mounted in self._mounted_on:
            mounted._add(job_type)

    # --- looking

    def get(self, name: str) -> InternalJobType[Any, Any]:
        """The job type of this name. UnknownJobTypeError lists what there is."""
        try:
            return self._types[name]
        except KeyError:
            known = ", ".join(sorted(self._types)) or "none"
            raise UnknownJobTypeError(
                f"no job type {name!r} is declared here (known: {known}): declare it, or mount its registry."
            ) from None

    def has(self, name: str) -> bool:
        return name in self._types

    def names(self) -> list[str]:
        return list(self._types)

    def __iter__(self) -> Iterator[InternalJobType[Any, Any]]:
        return iter(self._types.values())


def _checked_name(name: str) -> str:
    try:
        return payload.word(name, "the name of a job type", 200)
    except payload.Unstorable as error:
        raise DeclarationError(str(error)) from None


def _policy(options: JobOptions) -> Policy:
    return Policy(
        max_attempts=options.get("max_attempts", 10),
        backoff=options.get("backoff"),
        retry_on=options.get("retry_on", (Exception,)),
        no_retry_on=options.get("no_retry_on", ()),
    )


def _bind(job_type: InternalJobType[Any, Any], handler: Any, local: Mapping[str, Any]) -> None:
    """Check what can be checked now, and keep the handler; a forward reference is read again at mounting."""
    name = job_type.name
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise DeclarationError(f"handler of {name!r}: a generator cannot be a handler: use return, not yield.")
    if not inspect.iscoroutinefunction(handler):
        raise DeclarationError(f"handler of {name!r}: write `async def {getattr(handler, '__name__', name)}(job: Job[Input]) -> Output`.")
    given = [each for each in inspect.signature(handler).parameters.values() if each.default is inspect.Parameter.empty]
    if len(given) != 1:
        raise DeclarationError(f"handler of {name!r}: it takes one parameter, `job: Job[Input]`, not {len(given)}.")
    for each in (given[0].name, "return"):
        if each not in handler.__annotations__:
            what = "its return type" if each == "return" else f"its parameter {each!r} as `{each}: Job[Input]`"
            raise DeclarationError(f"handler of {name!r}: annotate {what}.")
    local = {} if local is handler.__globals__ else dict(local)
    with contextlib.suppress(NameError):  # a forward reference: read at first use
        read = _read_handler(name, handler, local)
        _compare(name, read, job_type.contract if hasattr(job_type, "__orig_class__") else read)
    job_type.handler, job_type._local = handler, local


def _compare(name: str, read: Contract, declared: Contract) -> None:
    """A handler of a type that was declared elsewhere: takes its inputs, returns no more than its outputs."""
    if not issubclass(declared.input, read.input):
        raise DeclarationError(f"handler of {name!r}: it takes {read.input.__name__}, the job type declares {declared.input.__name__}.")
    if not read.outputs.items() <= declared.outputs.items() or (read.none and not declared.none):
        raise DeclarationError(f"handler of {name!r}: it returns {read}, the job type declares {declared}.")


def _read_handler(name: str, handler: Any, local: Mapping[str, Any]) -> Contract:
    try:
        hints = get_type_hints(handler, localns=dict(local))
    except NameError as error:
        raise NameError(f"handler of {name!r}: {error}: define it before the engine is opened, at module level.") from None
    parameter = next(iter(inspect.signature(handler).parameters))
    job = hints.get(parameter)
    if get_origin(job) is not Job or not get_args(job):
        raise DeclarationError(f"handler of {name!r}: annotate its parameter as `{parameter}: Job[Input]`, with a pydantic model.")
    return _read_pair(name, get_args(job)[0], hints.get("return", inspect.Parameter.empty))


def _read_pair(name: str, input: Any, output: Any) -> Contract:
    if not (isinstance(input, type) and issubclass(input, BaseModel)):
        raise DeclarationError(f"job type {name!r}: its input is {_show(input)}: write a pydantic model.")
    models: dict[str, type[BaseModel]] = {}
    none = False
    for member in _members(output):
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


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if annotation is None:
        yield type(None)
    elif origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _members(each)
    elif origin is Continuation:
        yield from _members(get_args(annotation)[0])
    else:
        yield annotation


def _show(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
