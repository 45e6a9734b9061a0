"""From requests to rows and back to handles: everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import psycopg
from psycopg import AsyncConnection

from queuert_py import options, payload
from queuert_py.errors import InvalidInputError, NotStartableError, UsageError
from queuert_py.ids import lane_of, uuid7
from queuert_py.job_types import InternalJobType
from queuert_py.postgres.starts import Outcome, Start
from queuert_py.sequence import Collected, JobSequence, ResultSource
from queuert_py.values import LiveJob, Request


class Batch:
    """The starts of one call. `starts` are the distinct ones: inside a batch, too, the first of a key wins."""

    def __init__(
        self, requests: Sequence[Request[Any]], *, lanes: int, limit: int, origin: LiveJob | None, get: Callable[[str], Any]
    ) -> None:
        self._requests = requests
        self._places: list[int] = []
        self.starts: list[Start] = []
        firsts: dict[tuple[str, str], int] = {}
        for number, request in enumerate(requests):
            which = f" (request {number})" if len(requests) > 1 else ""
            start = _prepare(request, lanes, limit, origin, get, which)
            new = len(self.starts)
            place = firsts.setdefault((request.job_type.name, start.key), new) if start.key else new
            if place == new:
                self.starts.append(start)
            self._places.append(place)

    @property
    def hints(self) -> dict[tuple[int, str, int], Start]:
        """Where there will be work: lane, queue, priority."""
        return {(each.lane, each.fields["queue"], each.fields["priority"]): each for each in self.starts}

    def handles(self, outcomes: Sequence[Outcome], source: ResultSource) -> list[JobSequence[Any]]:
        """A handle for each request, in their order."""
        handles: list[JobSequence[Any]] = []
        seen: set[int] = set()
        for request, place in zip(self._requests, self._places, strict=True):
            id, found = outcomes[place]
            outputs = request.job_type.contract.outputs
            handles.append(JobSequence(id, request.job_type.name, source, outputs, deduplicated=found or place in seen))
            seen.add(place)
        return handles


def _prepare(request: Request[Any], lanes: int, limit: int, origin: LiveJob | None, get: Callable[[str], Any], which: str) -> Start:
    job_type: InternalJobType[Any, Any] = request.job_type
    if get(job_type.name) is not job_type:
        raise UsageError(f"{job_type.name!r} is another job type than the one mounted on this engine{which}: mount its registry.")
    if not job_type.startable:
        raise NotStartableError(f"{job_type.name!r} is internal{which}: only continue_with reaches it. Start the type that leads to it.")
    blockers = Collected()
    try:
        text = job_type.dump_input(request.input, limit, blockers)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}{which}", **error.details) from error.__cause__
    if blockers.ids:
        raise UsageError(f"{job_type.name!r}: inputs with Blocker fields cannot be started yet{which}.")
    fields, own_id = options.start(job_type.options, request.options)
    fields["type"] = job_type.name
    key = fields.get("key")
    if own_id is not None:
        id = str(own_id)
    elif key is not None and lanes > 1:
        id = uuid7(low=payload.digest(f"{job_type.name}\n{key}") % lanes)
    else:
        id = uuid7()
    fields["lane"], fields["sequence_id"] = lane_of(id, lanes), id
    if origin is not None:
        _inherit(fields, origin)
    return Start(id, fields["lane"], fields, text, key, own_id is not None)


def _inherit(fields: dict[str, Any], origin: LiveJob) -> None:
    """What a sequence started inside a handler takes from its job."""
    fields["root_id"] = origin.root_id or origin.sequence_id
    fields["origin_id"] = origin.job_id or origin.sequence_id
    if origin.correlation_id is not None:
        fields.setdefault("correlation_id", origin.correlation_id)
    if origin.tags:
        fields.setdefault("tags", list(origin.tags))


def connection_of(tx: Any) -> AsyncConnection[Any] | None:
    """The connection of a caller's transaction, checked to be open."""
    if tx is None:
        return None
    if not isinstance(tx, AsyncConnection):
        raise UsageError(f"tx={type(tx).__name__}: a psycopg AsyncConnection with an open transaction is needed.")
    connection = cast("AsyncConnection[Any]", tx)
    if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        raise UsageError("tx= has no open transaction: use it inside `async with connection.transaction():`.")
    return connection
