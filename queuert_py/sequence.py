"""Handles: a Blocker is a sequence to wait for, as a field of an input; a JobSequence is one that can be awaited in code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast, get_args
from uuid import UUID

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from queuert_py.errors import UsageError
from queuert_py.values import Duration, Out_co

if TYPE_CHECKING:
    from pydantic import SerializationInfo, ValidationInfo

_UNSET: Any = object()


@dataclass(frozen=True, slots=True)
class Collected:
    """The context with which an input is dumped: its Blocker fields leave their ids here."""

    ids: list[UUID] = field(default_factory=list[UUID])


@dataclass(frozen=True, slots=True)
class Outputs:
    """The context with which an input is read on pickup: what its blockers returned."""

    by_id: Mapping[UUID, Any]


class Blocker(Generic[Out_co]):
    """A sequence that a job waits for. Declared as a field of the job's input; in the handler, `output` is what that sequence returned."""

    __slots__ = ("_id", "_output")

    def __init__(self, id: UUID | str) -> None:
        self._id = id
        self._output: Any = _UNSET

    @property
    def id(self) -> UUID:
        """The sequence's id."""
        if isinstance(self._id, str):
            self._id = UUID(self._id)
        return self._id

    @property
    def output(self) -> Out_co:
        """What the sequence returned. UsageError where that is not known: outside the handler that waited for it."""
        if self._output is _UNSET:
            raise UsageError("the output of a Blocker is there in the handler that waited for it; elsewhere use `await sequence.result()`.")
        output: Out_co = self._output
        return output

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocker) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        wanted = handler.generate_schema(get_args(source)[0]) if get_args(source) else core_schema.any_schema()

        def read(value: Any, info: ValidationInfo) -> Blocker[Any]:
            if isinstance(value, Blocker):
                return cast("Blocker[Any]", value)
            if not isinstance(value, (str, UUID)):
                raise ValueError("a started sequence is needed: await engine.start_sequence(…), or engine.sequence(type, id)")
            blocker: Blocker[Any] = Blocker(UUID(str(value)))
            context: Any = info.context
            if isinstance(context, Outputs) and blocker.id in context.by_id:
                blocker._output = context.by_id[blocker.id]
            return blocker

        def write(blocker: Blocker[Any], info: SerializationInfo) -> str:
            context: Any = info.context
            if isinstance(context, Collected):
                context.ids.append(blocker.id)
            return str(blocker.id)

        return core_schema.with_info_plain_validator_function(
            read,
            serialization=core_schema.plain_serializer_function_ser_schema(write, info_arg=True, return_schema=core_schema.str_schema()),
            metadata={"queuert_output": wanted},
        )


class ResultSource(Protocol):
    """Who answers for a handle: the engine."""

    async def result_of(self, sequence: JobSequence[Any], timeout: Duration | None) -> Any: ...


class JobSequence(Blocker[Out_co]):
    """A started sequence. `id`; `deduplicated`: the start found it by its key (or id) instead of making it."""

    __slots__ = ("_source", "deduplicated", "outputs", "type")

    def __init__(
        self,
        id: UUID | str,
        type: str,
        source: ResultSource,
        outputs: Mapping[str, type[BaseModel]] | None,
        *,
        deduplicated: bool = False,
    ) -> None:
        super().__init__(id)
        self.type = type
        self.deduplicated = deduplicated
        self._source = source
        self.outputs = outputs

    async def result(self, *, timeout: Duration | None = None) -> Out_co:
        """Wait for the sequence to end and return its output, read back as the model that was returned.

        timeout: how long to wait (None: for ever). Raises ResultTimeoutError (the sequence goes on), SequenceFailedError with its error
        and attempts, SequenceCancelledError, SequenceExpiredError, SequenceNotFoundError; UsageError inside a handler, where it would
        hold a slot: use a Blocker there.
        """
        output: Out_co = await self._source.result_of(self, timeout)
        return output
