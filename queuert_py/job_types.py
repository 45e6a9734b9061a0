"""Job types: a name, an input model, an output; how they are declared and what their annotations say."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypedDict, cast, get_args, overload

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar, Unpack

from queuert_py import payload
from queuert_py.annotations import Contract, Shape, compare, read_handler, read_pair, shape_of
from queuert_py.control import DeadLetter, OnFailed
from queuert_py.decisions.judge import Exceptions, Policy
from queuert_py.dependencies import Provide
from queuert_py.errors import (
    DeclarationError,
    DuplicateJobTypeError,
    InvalidInputError,
    InvalidOutputError,
    UnknownJobTypeError,
    UsageError,
)
from queuert_py.job import In, Job, SyncJob, Tx
from queuert_py.middleware import Middleware
from queuert_py.options import declaration as check_options
from queuert_py.payload import Wire
from queuert_py.sequence import Collected
from queuert_py.values import Backoff, BlockerPolicy, Continuation, ContinueOptions, Duration, Out_co, Request, StartOptions

Out = TypeVar("Out", bound=BaseModel | None)
Next = TypeVar("Next", bound=BaseModel | None)
In_contra = TypeVar("In_contra", bound=BaseModel, contravariant=True)
Out_contra = TypeVar("Out_contra", bound=BaseModel | None, contravariant=True)
Handler = Callable[..., Any]


class JobOptions(TypedDict, total=False):
    """How jobs of a type run. All optional; those that a start may also give win there.

    queue "default": where workers look for them. priority 0: higher first. max_attempts 10: None for ever.
    backoff: 10 s doubling to 300 s, with jitter. timeout None: of each attempt. expires None: not started by then, it ends as `expired`.
    deadline None: of the whole sequence, if it starts with this type. on_blocker_failure "hold": see BlockerPolicy.
    retry_on (Exception,), no_retry_on (): which errors are tried again. max_steps 10,000: of one sequence, counted at this job.
    isolation "thread": where a `def` handler runs; "process": in one of its own, killed when its time is over (see queuert_py.job).
    requires (): classes of middleware without which no worker runs it.
    on_failed: called, def or async, when a job has failed for good, in place of the failure if it returns a Continuation (the sequence
    goes on with that job, without a deadline); it may be called again after a crash. dead_letter: a sequence of this type is started
    with each failure, in the transaction that writes it. See queuert_py.control.
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
    isolation: Literal["thread", "process"]
    requires: tuple[type[Middleware[Any]], ...]
    deadline: Duration | None
    on_blocker_failure: BlockerPolicy
    on_failed: OnFailed | None
    dead_letter: JobType[DeadLetter, Any] | None


class Completes(Protocol[In_contra, Out_contra]):
    """For checkers: a job type of which an Out is an output. As a job type is covariant in what it returns, `InternalJobType[In, Out]`
    beside an output would take any: Out would be whatever both are."""

    def _phantom(self, input: In_contra) -> object: ...
    @property
    def _completed_by(self) -> Callable[[Out_contra], object]: ...


class InternalJobType(Generic[In_contra, Out_co]):
    """A job type that only `continue_with` reaches. `JobType[In, Out]("name")` declares one whose handler is written elsewhere."""

    startable = False

    def __init__(self, name: str, /, **options: Unpack[JobOptions]) -> None:
        self.name = _checked_name(name)
        check_options(name, options, JobOptions.__annotations__)
        self.options = options
        self.policy = _policy(options)
        self.handler: Handler | None = None
        self.shape: Shape | None = None
        self._local: Mapping[str, Any] = {}
        self._contract: Contract | None = None

    def _phantom(self, input: In_contra) -> Out_co:
        raise NotImplementedError

    @property
    def _completed_by(self) -> Callable[[Out_co], object]:
        raise NotImplementedError

    @property
    def contract(self) -> Contract:
        """Read at first use, when forward references can be resolved. DeclarationError says what to write."""
        if self._contract is None:
            declared = getattr(self, "__orig_class__", None)
            if declared is not None:
                self._contract = read_pair(self.name, *get_args(declared))
            elif self.handler is not None and self.shape is not None:
                self._contract = read_handler(self.name, self.handler, self.shape, self._local)
            else:
                raise DeclarationError(f'job type {self.name!r}: write JobType[Input, Output]("{self.name}"), or decorate its handler.')
        return self._contract

    def dump_input(self, value: object, wire: Wire = payload.PLAIN, blockers: Collected | None = None) -> str:
        """The input as JSON, checked to come back equal. A mapping is validated first. InvalidInputError names the field."""
        model = self.contract.input
        try:
            checked = value if isinstance(value, model) else self._from_mapping(value, model)
            return wire.seal(payload.dump(model, checked, "input", wire.limit, blockers))
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
        """The input as its handler sees it. pydantic's ValidationError when the model refuses what is stored; Sealed."""
        text = payload.refuse_sealed(text)
        return cast("BaseModel", self.contract.input.__pydantic_validator__.validate_json(text, context=context))

    def dump_output(self, value: Any, wire: Wire = payload.PLAIN) -> tuple[str, str | None]:
        """The output as JSON with the name of its model. InvalidOutputError when it is not what the annotations declare."""
        contract = self.contract
        if value is None and contract.none:
            return "null", None
        named = contract.outputs.get(type(value).__name__)
        if named is not None and isinstance(value, named):
            return self._dump_output(named.__name__, named, value, wire)
        for name, model in contract.outputs.items():
            if isinstance(value, model):
                return self._dump_output(name, model, value, wire)
        raise InvalidOutputError(f"the handler of {self.name!r} returned {type(value).__name__}, it declares {contract}.", type=self.name)

    def _dump_output(self, name: str, model: type[BaseModel], value: BaseModel, wire: Wire) -> tuple[str, str]:
        try:
            return wire.seal(payload.dump(model, value, "output", wire.limit)), name
        except payload.Unstorable as error:
            raise InvalidOutputError(f"the output of {self.name!r} cannot be stored: {error}", type=self.name, path=error.path) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class JobType(InternalJobType[In_contra, Out_co]):
    """A job type that a sequence can start with. Calling it with an input makes a Request."""

    startable = True

    def __call__(self, input: In_contra, /, **options: Unpack[StartOptions]) -> Request[Out_co]:
        """A sequence to be started, as a value: for `start_sequences`, and for `start_sequence` by itself."""
        return Request(self, input, options)


def job_type_of(value: Any, call: str) -> InternalJobType[Any, Any]:
    """The job type that a call was given. UsageError for anything else: a handler's own function, a name."""
    if not isinstance(value, InternalJobType):
        raise UsageError(f"{call}: {value!r} is no job type: pass what @engine.job_type made of its handler, or JobType[In, Out](name).")
    return cast("InternalJobType[Any, Any]", value)


def continue_with(job_type: InternalJobType[In, Out], input: In, /, **options: Unpack[ContinueOptions]) -> Continuation[Out]:
    """The next job of this sequence, as a value to return. Nothing happens until the engine writes it.

    delay, at: not before (not both). priority: inherited by default. UsageError for what is no job type.
    """
    job_type_of(job_type, "continue_with()")
    return Continuation(job_type, input, options)


class _Declare(Protocol[Tx]):
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Continuation[Next]]], /) -> JobType[In, Next]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out]], /) -> JobType[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Next]]], /) -> JobType[In, Out | Next]: ...
    @overload
    def __call__(self, fn: Callable[[SyncJob[In]], Continuation[Next]], /) -> JobType[In, Next]: ...
    @overload
    def __call__(self, fn: Callable[[SyncJob[In]], Out], /) -> JobType[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[SyncJob[In]], Out | Continuation[Next]], /) -> JobType[In, Out | Next]: ...


class _DeclareInternal(Protocol[Tx]):
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Continuation[Next]]], /) -> InternalJobType[In, Next]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out]], /) -> InternalJobType[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Next]]], /) -> InternalJobType[In, Out | Next]: ...
    @overload
    def __call__(self, fn: Callable[[SyncJob[In]], Continuation[Next]], /) -> InternalJobType[In, Next]: ...
    @overload
    def __call__(self, fn: Callable[[SyncJob[In]], Out], /) -> InternalJobType[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[SyncJob[In]], Out | Continuation[Next]], /) -> InternalJobType[In, Out | Next]: ...


class _DeclareBatch(Protocol[Tx]):
    @overload
    def __call__(self, fn: Callable[[Sequence[Job[In, Tx]]], Awaitable[Sequence[Out]]], /) -> JobType[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[Sequence[Job[In, Tx]]], Awaitable[Sequence[Out | Exception]]], /) -> JobType[In, Out]: ...


class _Implement(Generic[In, Out, Tx]):
    """The decorator that `handler` makes."""

    def __init__(self, implement: Callable[[Any], Any]) -> None:
        self._implement = implement

    @overload
    def __call__(
        self, fn: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Out]]], /
    ) -> Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Out]]]: ...
    @overload
    def __call__(self, fn: Callable[[SyncJob[In]], Out | Continuation[Out]], /) -> Callable[[SyncJob[In]], Out | Continuation[Out]]: ...
    def __call__(self, fn: Any, /) -> Any:
        return self._implement(fn)


class JobTypes(Generic[Tx]):
    """A registry that needs no database: declare at import time, mount on an engine later (`Engine(db, jobs)`)."""

    def __init__(self) -> None:
        self._types: dict[str, InternalJobType[Any, Any]] = {}
        self._mounted_on: list[JobTypes[Any]] = []
        self._mounts: list[JobTypes[Any]] = []
        self._middleware: list[Middleware[Any]] = []
        self.overrides: dict[Provide, Provide] = {}
        """What stands in for dependencies: of an engine, see `Engine.override`."""

    def mount(self, registry: JobTypes[Tx]) -> None:
        """Take over all that another registry declares, now and later. DuplicateJobTypeError; UsageError for what is no registry."""
        if not isinstance(registry, JobTypes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"mount(): {registry!r} is no registry: JobTypes() makes one; Engine(db, jobs_a, jobs_b) takes them one by one."
            )
        for job_type in registry:
            self._add(job_type)
        registry._mounted_on.append(self)
        self._mounts.append(registry)

    # --- declaring

    @overload
    def job_type(self, fn: Callable[[Job[In, Tx]], Awaitable[Continuation[Next]]], /) -> JobType[In, Next]: ...
    @overload
    def job_type(self, fn: Callable[[Job[In, Tx]], Awaitable[Out]], /) -> JobType[In, Out]: ...
    @overload
    def job_type(self, fn: Callable[[Job[In, Tx]], Awaitable[Out | Continuation[Next]]], /) -> JobType[In, Out | Next]: ...
    @overload
    def job_type(self, fn: Callable[[SyncJob[In]], Continuation[Next]], /) -> JobType[In, Next]: ...
    @overload
    def job_type(self, fn: Callable[[SyncJob[In]], Out], /) -> JobType[In, Out]: ...
    @overload
    def job_type(self, fn: Callable[[SyncJob[In]], Out | Continuation[Next]], /) -> JobType[In, Out | Next]: ...
    @overload
    def job_type(self, name: str | None = None, /, *, internal: Literal[False] = False, **options: Unpack[JobOptions]) -> _Declare[Tx]: ...
    @overload
    def job_type(self, name: str | None = None, /, *, internal: Literal[True], **options: Unpack[JobOptions]) -> _DeclareInternal[Tx]: ...
    def job_type(self, fn: Any = None, /, *, internal: bool = False, **options: Unpack[JobOptions]) -> Any:
        """Declare a job type by decorating its handler, `@job_type` or `@job_type("name", …)`; the name defaults to the function's.

        internal: only `continue_with` reaches it. Options: JobOptions. DeclarationError (a duplicate name, a missing annotation, a type
        that is no pydantic model, a generator, a `def` with Job) says what to write.
        """
        local = sys._getframe(1).f_locals

        def declare(handler: Any = None) -> InternalJobType[Any, Any]:
            kind = cast("type[InternalJobType[Any, Any]]", InternalJobType if internal else JobType)
            called: str = getattr(handler, "__name__", "handler")
            job_type = kind(name or called, **options)
            _bind(job_type, handler, local)
            self._add(job_type)
            return job_type

        name = None if callable(fn) else fn
        return declare(cast("Handler", fn)) if callable(fn) else declare

    def batch_type(self, name: str, /, *, size: int, **options: Unpack[JobOptions]) -> _DeclareBatch[Tx]:
        """Declare a job type whose handler, `async def (jobs: Sequence[Job[In]]) -> Sequence[Out | Exception]`, takes up to `size` jobs.

        It is called with those that are due now and never waits for more. One outcome per job, in their order; an Exception among them
        fails that job, as if its handler had raised it; another number of outcomes fails all. A job whose time is over, or that was
        cancelled, is given up by itself and the others go on. No phases, and no step, sleep or wait_for. DeclarationError.
        """
        local = sys._getframe(1).f_locals

        def declare(handler: Any = None) -> JobType[Any, Any]:
            job_type: JobType[Any, Any] = JobType(name, **options)
            _bind(job_type, handler, local, size)
            self._add(job_type)
            return job_type

        return cast("_DeclareBatch[Tx]", declare)

    def handler(self, job_type: InternalJobType[In, Out], /) -> _Implement[In, Out, Tx]:
        """Implement a job type that was declared elsewhere (contract first). DeclarationError when it has a handler already; UsageError
        for what is no job type, its name for instance."""
        local = sys._getframe(1).f_locals
        job_type_of(job_type, "handler()")

        def implement(handler: Handler) -> Handler:
            if job_type.handler is not None:
                raise DeclarationError(
                    f"job type {job_type.name!r} has a handler already: {getattr(job_type.handler, '__qualname__', '')}."
                )
            _bind(job_type, handler, local)
            if self._types.get(job_type.name) is not job_type:
                self._add(job_type)
            return handler

        return _Implement(implement)

    def use(self, *middleware: Middleware[Tx]) -> None:
        """Put middleware around the attempts of all job types declared here or mounted, the first one outermost; those of an engine stand
        outside those of a registry that it has mounted. A worker takes what is there when it starts. UsageError for what is none."""
        for each in middleware:
            if not isinstance(each, Middleware):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"use({each!r}): an object of a subclass of queuert_py.middleware.Middleware is needed.")
        self._middleware.extend(middleware)

    def middleware_of(self, job_type: InternalJobType[Any, Any]) -> list[Middleware[Any]]:
        """What stands around the attempts of this job type, from the outside in."""
        inner = [each for registry in self._mounts if registry.has(job_type.name) for each in registry.middleware_of(job_type)]
        return [*self._middleware, *inner]

    def add(self, *job_types: InternalJobType[Any, Any]) -> None:
        """Declare job types made as `JobType[In, Out]("name")`, so that a process without their handlers can start them by name."""
        for job_type in job_types:
            self._add(job_type_of(job_type, "add()"))

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
        answered=bool(options.get("on_failed") or options.get("dead_letter")),
    )


def _bind(job_type: InternalJobType[Any, Any], handler: Handler, local: Mapping[str, Any], size: int | None = None) -> None:
    """Check what can be checked now, and keep the handler; a forward reference is read again at mounting."""
    name = job_type.name
    shape = shape_of(name, handler, job_type.options.get("isolation"), size)
    local = {} if local is getattr(handler, "__globals__", None) else dict(local)
    with contextlib.suppress(NameError):  # a forward reference: read at first use
        read = read_handler(name, handler, shape, local)
        compare(name, read, job_type.contract if hasattr(job_type, "__orig_class__") else read)
    job_type.handler, job_type.shape, job_type._local = handler, shape, local
