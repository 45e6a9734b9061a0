"""Blockers as they look in a handler, for `run_handler`: sequences that nobody has started."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID
from weakref import WeakValueDictionary

from pydantic import BaseModel
from pydantic_core import to_json

from queuert_py.ids import uuid7
from queuert_py.job_types import Out
from queuert_py.sequence import Blocker, BlockerEnding, JobSequence
from queuert_py.values import Duration, Out_co


class Given(JobSequence[Out_co]):
    """See `finished`."""

    def __init__(self, ending: BlockerEnding, output: Any) -> None:
        super().__init__(uuid7(), "given", self, None)
        self.ending = ending
        self.model: type[BaseModel] | None = None if output is None else type(output)
        self._fill(ending, lambda _: output)
        _given[self.id] = self

    async def _result_of(self, sequence: JobSequence[Any], timeout: Duration | None) -> Any:
        return self.output

    def _when_done(self, sequence: JobSequence[Any], callback: Any) -> Any:
        callback(sequence)
        return lambda: None


_given: WeakValueDictionary[UUID, Given[Any]] = WeakValueDictionary()


def finished(output: Out) -> Blocker[Out]:
    """A sequence that has completed with this output, for the Blocker fields of an input, and for `job.wait_for`: `finished(Cover(…))`."""
    text = None if output is None else output.model_dump_json()
    return Given(BlockerEnding("completed", text, None if output is None else type(output).__name__), output)


def failed(message: str = "failed", *, outcome: Literal["failed", "cancelled", "expired"] = "failed") -> Blocker[Any]:
    """A sequence that has not completed, for handlers with `on_blocker_failure="ignore"`."""
    error = to_json({"type": "Exception", "message": message, "traceback": None, "attrs": {}}).decode()
    return Given(BlockerEnding(outcome, error=error), None)


def ending_of(id: UUID) -> BlockerEnding | None:
    """How a sequence that was given by this module ended."""
    given = _given.get(id)
    return None if given is None else given.ending


def model_of(id: UUID) -> type[BaseModel] | None:
    """The model of its output."""
    given = _given.get(id)
    return None if given is None else given.model
