"""Middleware: what stands around every attempt, and in the transactions of its phases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Generic

from typing_extensions import TypeVar

from queuert_py.decisions.phases import Kind
from queuert_py.job import Connection, Job

Tx_contra = TypeVar("Tx_contra", contravariant=True, default=Connection)
Hook = Callable[..., AbstractAsyncContextManager[Any]]


class Middleware(Generic[Tx_contra]):
    """Subclass it, override what you need with `@asynccontextmanager` methods that yield once, and give it to `engine.use(…)`.

    The first one used is the outermost. `Middleware[AsyncSession]` where the engine's transactions are sessions; `Middleware[Any]` when
    it opens none.
    """

    def around_attempt(self, job: Job[Any, Any], /) -> AbstractAsyncContextManager[None]:
        """Around the handler, its dependencies and the commit of its transaction.

        On the way out it meets the attempt's exception, and may raise another in its place (Fail, Retry); holding one back changes
        nothing. What it raises after a success fails the attempt, unless the handler's transaction has committed: then it is logged.
        """
        return nullcontext()

    def prepare(self, job: Job[Any, Any], tx: Tx_contra, /) -> AbstractAsyncContextManager[None]:
        """Around each block of `prepare()` or `atomic()`, in its transaction: after its beginning, before its commit."""
        return nullcontext()

    def finalize(self, job: Job[Any, Any], tx: Tx_contra, /) -> AbstractAsyncContextManager[None]:
        """Around the block of `finalize()` or `atomic()`, in its transaction. What it raises rolls everything back."""
        return nullcontext()


def attempt_hooks(middleware: Iterable[Middleware[Any]]) -> Iterator[Hook]:
    """The `around_attempt` of those that have one."""
    for each in middleware:
        if type(each).around_attempt is not Middleware.around_attempt:
            yield each.around_attempt


def phase_hooks(middleware: Iterable[Middleware[Any]], kind: Kind) -> Iterator[Hook]:
    """What stands around a phase, from the outside in; atomic is both."""
    for each in middleware:
        if kind != "finalize" and type(each).prepare is not Middleware.prepare:
            yield each.prepare
        if kind != "prepare" and type(each).finalize is not Middleware.finalize:
            yield each.finalize
