"""Dependencies: what a handler is given beside its job, made for one attempt and closed at its end. `db: Db = Depends(get_db)`."""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, cast, get_origin, get_type_hints, overload

from typing_extensions import TypeVar

from queuert_py.errors import DeclarationError
from queuert_py.job import Facts, Job, SyncJob

T = TypeVar("T")
Provide: TypeAlias = Callable[..., Any]
Provides: TypeAlias = (
    Callable[..., Coroutine[Any, Any, T]]
    | Callable[..., AsyncGenerator[T, Any]]
    | Callable[..., AsyncIterator[T]]
    | Callable[..., Generator[T, Any, Any]]
    | Callable[..., Iterator[T]]
    | Callable[..., T]
)
"""Whatever provides a T."""
Call: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls what is no coroutine where the handler runs: in the event loop, or in its thread."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """The default of a dependency parameter: what `Depends` gives, whatever the checkers are told."""

    provide: Provide


@overload
def Depends(provide: Callable[..., Coroutine[Any, Any, T]], /) -> T: ...
@overload
def Depends(provide: Callable[..., AsyncGenerator[T, Any]], /) -> T: ...
@overload
def Depends(provide: Callable[..., AsyncIterator[T]], /) -> T: ...
@overload
def Depends(provide: Callable[..., Generator[T, Any, Any]], /) -> T: ...
@overload
def Depends(provide: Callable[..., Iterator[T]], /) -> T: ...
@overload
def Depends(provide: Callable[..., T], /) -> T: ...
def Depends(provide: Provide, /) -> Any:  # noqa: N802 - it reads as a type does
    """The default of a parameter of a handler, or of another provider: `db: Db = Depends(get_db)`.

    provide: `def` or `async def`, returning the value or yielding it once (what follows the yield closes it); or what returns a call of
    one of these, as a lambda does. Called at most once per attempt, closed in reverse order, always. Its own parameters are defaults, other
    Depends, or the job, annotated Job or SyncJob. A `def` provider is called where the handler runs: in the event loop, or in its thread.
    """
    return Dependency(provide)


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider, read: how it is called, what it needs itself, and the parameter that takes the job."""

    provide: Provide
    how: Literal["value", "coroutine", "generator", "async_generator"]
    needs: Mapping[str, Provider]
    job: tuple[str, type[Facts[Any]]] | None


Needs: TypeAlias = Mapping[str, Provider]
"""The dependency parameters of a function."""


def _parameters(fn: Provide) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except ValueError:  # a builtin that does not tell: called without arguments
        return {}


def needs_of(fn: Provide, who: str) -> Needs:
    """The dependency parameters of a function. DeclarationError names what cannot be provided."""
    found: dict[str, Provider] = {}
    for name, parameter in _parameters(fn).items():
        if isinstance(parameter.default, Dependency):
            found[name] = read(parameter.default.provide, who)
    return found


def read(provide: Any, who: str) -> Provider:
    """A provider of `who` (a handler, for messages). DeclarationError."""
    if not callable(provide) or getattr(provide, "__hash__", None) is None:
        raise DeclarationError(f"{who}: Depends({provide!r}): a function or a class is needed.")
    job: tuple[str, type[Facts[Any]]] | None = None
    for name, parameter in _parameters(provide).items():
        if parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = _job_kind(provide, name, parameter.annotation)
        if kind is None or parameter.kind is parameter.POSITIONAL_ONLY or job is not None:
            raise DeclarationError(
                f"{who}: the parameter {name!r} of its provider {_name(provide)} has nothing to give it: a default, Depends(fn), or the "
                "job (annotated Job[Input] or SyncJob[Input])."
            )
        job = name, kind
    return Provider(provide, _how(provide), needs_of(provide, who), job)


def _job_kind(provide: Provide, name: str, annotation: Any) -> type[Facts[Any]] | None:
    if isinstance(annotation, str):
        fn = provide if inspect.isroutine(provide) else getattr(provide, "__init__" if isinstance(provide, type) else "__call__", provide)
        try:
            annotation = get_type_hints(fn)[name]
        except (NameError, KeyError, TypeError):  # a name that only type checkers know
            annotation = {"Job": Job, "SyncJob": SyncJob}.get(annotation.partition("[")[0].rpartition(".")[2])
    kind = get_origin(annotation) or annotation
    return kind if kind in (Job, SyncJob) else None


def _how(provide: Provide) -> Literal["value", "coroutine", "generator", "async_generator"]:
    forms = provide, getattr(provide, "__call__", None)  # noqa: B004 - an instance with an async __call__ counts as one
    if any(map(inspect.isasyncgenfunction, forms)):
        return "async_generator"
    if any(map(inspect.isgeneratorfunction, forms)):
        return "generator"
    return "coroutine" if any(map(inspect.iscoroutinefunction, forms)) else "value"


def _name(provide: Provide) -> str:
    return getattr(provide, "__qualname__", None) or repr(provide)


def every(needs: Needs) -> Iterator[Provider]:
    """All providers, those of providers too."""
    for provider in needs.values():
        yield from every(provider.needs)
        yield provider


class Provided:
    """What the dependencies of one attempt have given so far. `opened`: where what is to be closed is put, in order."""

    def __init__(
        self,
        jobs: Mapping[type[Facts[Any]], Any],
        call: Call,
        opened: MutableSequence[AbstractAsyncContextManager[Any]],
        overrides: Mapping[Provide, Provide],
    ) -> None:
        self._jobs = jobs
        self._call = call
        self._opened = opened
        self._overrides = overrides
        self._values: MutableMapping[Provide, Any] = {}

    async def values(self, needs: Needs) -> dict[str, Any]:
        """The arguments for these parameters."""
        return {name: await self._value(provider) for name, provider in needs.items()}

    async def _value(self, provider: Provider) -> Any:
        key = provider.provide
        if key in self._values:
            return self._values[key]
        if key in self._overrides:
            provider = read(self._overrides[key], f"override of {_name(key)}")
        arguments = await self.values(provider.needs)
        if provider.job is not None:
            name, kind = provider.job
            arguments[name] = self._jobs[kind]
        make = partial(provider.provide, **arguments)
        made = await self._call(make) if provider.how == "value" else make()
        if provider.how == "coroutine" or inspect.iscoroutine(made):
            made = await made
        elif inspect.isgenerator(made):
            made = await self._open(_Called(contextmanager(lambda: made)(), self._call))
        elif inspect.isasyncgen(made):
            made = await self._open(asynccontextmanager(lambda: made)())
        self._values[key] = made
        return made

    async def _open(self, manager: AbstractAsyncContextManager[Any]) -> Any:
        value = await manager.__aenter__()
        self._opened.append(manager)
        return value


class _Called(AbstractAsyncContextManager[Any]):
    """A sync context manager, entered and left where the handler runs."""

    def __init__(self, manager: AbstractContextManager[Any], call: Call) -> None:
        self._manager = manager
        self._call = call

    async def __aenter__(self) -> Any:
        return await self._call(self._manager.__enter__)

    async def __aexit__(self, *error: Any) -> bool | None:
        return cast("bool | None", await self._call(partial(self._manager.__exit__, *error)))


class Override(Generic[T]):
    """`engine.override(provide)`: what is to be replaced. `by(fake)` says by what; its type is known by then."""

    def __init__(self, provide: Provide, overrides: MutableMapping[Provide, Provide]) -> None:
        self._provide = provide
        self._overrides = overrides

    def by(self, fake: Provides[T], /) -> AbstractContextManager[None]:
        """Inside the block, `fake` makes the dependency, of whatever kind of function it is, with what that depends on itself.
        DeclarationError for what cannot be provided."""
        read(fake, f"override of {_name(self._provide)}")
        return self._within(fake)

    @contextmanager
    def _within(self, fake: Provide) -> Generator[None]:
        before = dict(self._overrides)
        self._overrides[self._provide] = fake
        try:
            yield
        finally:
            self._overrides.clear()
            self._overrides.update(before)


async def call_here(fn: Callable[[], Any]) -> Any:
    """The Call of an event loop's own handlers."""
    return fn()


async def leave(opened: MutableSequence[AbstractAsyncContextManager[Any]], error: BaseException | None) -> BaseException | None:
    """Leave what was opened, the last one first. `error`: how it ended so far; what stands for it at the end. Never raises.

    As nested `async with` blocks would, but that nothing can hold an exception back.
    """
    while opened:
        manager = opened.pop()
        try:
            await manager.__aexit__(None if error is None else type(error), error, None if error is None else error.__traceback__)
        except BaseException as raised:
            error = raised
    return error
