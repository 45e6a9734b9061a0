"""Handles: a Blocker is a sequence to wait for, as a field of an input; a JobSequence is one that can be awaited in code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema, from_json

from queuert_py.errors import BlockerFailedError, UsageError
from queuert_py.payload import refuse_sealed
from queuert_py.values import Duration, Out_co

if TYPE_CHECKING:
    from pydantic import SerializationInfo, ValidationInfo

    from queuert_py.annotations import Contract

_UNSET: Any = object()
Outcome: TypeAlias = Literal["completed", "failed", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class Collected:
    """The context with which an input is dumped: its Blocker fields leave their ids here."""

    ids: list[UUID] = field(default_factory=list[UUID])


@dataclass(frozen=True, slots=True)
class BlockerEnding:
    """How a blocker ended: its output as JSON with the name of its model, or its error as JSON. outcome None: it had failed, was
    ignored, and runs again."""

    outcome: Outcome | None
    output: str | None = None
    output_type: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """The context with which an input is read on pickup: how its blockers ended, by id."""

    by_id: Mapping[str, BlockerEnding]


class Blocker(Generic[Out_co]):
    """A sequence that a job waits for. Declared as a field of the job's input; in the handler, `output` is what that sequence returned."""

    __slots__ = ("_error", "_id", "_outcome", "_output")

    def __init__(self, id: UUID | str) -> None:
        self._id = id
        self._output: Any = _UNSET
        self._outcome: Outcome | None = None
        self._error: str | None = None

    @property
    def id(self) -> UUID:
        """The sequence's id."""
        if isinstance(self._id, str):
            self._id = UUID(self._id)
        return self._id

    @property
    def output(self) -> Out_co:
        """What the sequence returned. UsageError where that is not known: outside the handler that waited for it. BlockerFailedError when
        it did not complete (with `on_blocker_failure="ignore"`; see `outcome` and `error`)."""
        if self._outcome not in (None, "completed"):
            raise BlockerFailedError(f"blocker {self.id} is {self._outcome}, it has no output: look at `outcome` first.", error=self.error)
        if self._output is _UNSET:
            raise UsageError("the output of a Blocker is there in the handler that waited for it; elsewhere use `await sequence.result()`.")
        output: Out_co = self._output
        return output

    @property
    def outcome(self) -> Outcome | None:
        """How the sequence ended ("completed", "failed", "cancelled", "expired"), in the handler that waited for it; else None."""
        return self._outcome

    @property
    def error(self) -> Mapping[str, Any] | None:
        """The error of a blocker that failed: type, message, traceback, attrs."""
        return None if self._error is None else from_json(self._error)

    def _fill(self, ending: BlockerEnding, read: Callable[[BlockerEnding], Any]) -> None:
        """Take over how the sequence ended. `read` makes the output of its JSON."""
        self._outcome, self._error = ending.outcome, ending.error
        if ending.outcome == "completed":
            self._output = read(ending)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocker) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        models = {member.__name__: member for member in _members(get_args(source)[0])} if get_args(source) else {}

        def output(ending: BlockerEnding) -> Any:
            return read_output(ending, models) if get_args(source) else from_json(ending.output or "null")

        def read(value: Any, info: ValidationInfo) -> Blocker[Any]:
            if isinstance(value, Blocker):
                return cast("Blocker[Any]", value)
            if not isinstance(value, (str, UUID)):
                raise ValueError("a started sequence is needed: await engine.start_sequence(…), or engine.sequence(type, id)")
            id = str(value if isinstance(value, UUID) else UUID(value))
            blocker: Blocker[Any] = Blocker(id)
            context: Any = info.context
            if isinstance(context, Outputs):
                if id not in context.by_id:
                    raise ValueError(
                        "the job never waited for this sequence, or it was deleted: a start that knows the model makes it wait"
                    )
                blocker._fill(context.by_id[id], output)
            return blocker

        def write(blocker: Blocker[Any], info: SerializationInfo) -> str:
            context: Any = info.context
            if isinstance(context, Collected):
                context.ids.append(blocker.id)
            return str(blocker.id)

        return core_schema.with_info_plain_validator_function(
            read,
            serialization=core_schema.plain_serializer_function_ser_schema(write, info_arg=True, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "format": "uuid", "title": "Blocker"}


def _members(annotation: Any) -> Iterator[Any]:
    """The models of an output's annotation."""
    if get_origin(annotation) in (Union, UnionType):
        for each in get_args(annotation):
            yield from _members(each)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def read_output(ending: BlockerEnding, models: Mapping[str, type[BaseModel]]) -> Any:
    """The output of a blocker, read as the model that was returned; ValueError when that is none of `models`."""
    if ending.output_type is None:
        return None
    model = models.get(ending.output_type)
    if model is None:
        declared = " | ".join(models) or "no model"
        raise ValueError(f"the blocker returned a {ending.output_type}, this field declares {declared}")
    return model.__pydantic_validator__.validate_json(refuse_sealed(ending.output or "null"))


def model_named(contract: Contract | None, name: str, own: Callable[[str], type[BaseModel] | None]) -> type[BaseModel] | None:
    """The model of an output, by its name: the handle's; else that of the last job's own type (`own`), if the handle allows it."""
    found = None if contract is None else contract.outputs.get(name)
    if found is not None:
        return found
    last = own(name)
    return last if last is not None and (contract is None or contract.returns(last)) else None


SequenceRef: TypeAlias = Blocker[Any] | UUID
"""What names a sequence to a verb: its handle or its id."""


class ResultSource(Protocol):
    """Who answers for a handle: the engine."""

    async def _result_of(self, sequence: JobSequence[Any], timeout: Duration | None) -> Any: ...
    def _when_done(self, sequence: JobSequence[Any], callback: Callable[[Any], object]) -> Callable[[], None]: ...


class JobSequence(Blocker[Out_co]):
    """A started sequence. `id`; `deduplicated`: the start found it by its key (or id) instead of making it."""

    __slots__ = ("_contract", "_ended", "_source", "deduplicated", "type")

    def __init__(
        self,
        id: UUID | str,
        type: str,
        source: ResultSource,
        contract: Contract | None,
        *,
        deduplicated: bool = False,
    ) -> None:
        super().__init__(id)
        self.type = type
        self.deduplicated = deduplicated
        self._source = source
        self._contract = contract
        """What it returns; None: that is not declared here."""
        self._ended: Any = None
        """How it ended, where that was just learnt (as_completed, callbacks): the next `result()` takes it from here."""

    async def result(self, *, timeout: Duration | None = None) -> Out_co:
        """Wait for the sequence to end and return its output, read back as the model that was returned.

        timeout: how long to wait (None: for ever; 0: has it ended by now?). Raises ResultTimeoutError (the sequence goes on),
        SequenceFailedError with its error and attempts, SequenceCancelledError, SequenceExpiredError, SequenceNotFoundError;
        InvalidOutputError for what the handle's type excludes; UsageError inside a handler, where it would hold a slot: use a Blocker.
        """
        output: Out_co = await self._source._result_of(self, timeout)
        return output

    def add_done_callback(self, callback: Callable[[JobSequence[Out_co]], object], /) -> Callable[[], None]:
        """Call it with this handle once the sequence has ended, however it ended; at once if it has. `await sequence.result()` in an async
        callback then answers without waiting. Its exceptions are logged. Returns a function that takes it back.

        For code in an event loop: UsageError outside of one. Lives no longer than the process; a handler should `wait_for` instead.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError("add_done_callback() needs a running event loop.") from None
        return self._source._when_done(self, callback)
