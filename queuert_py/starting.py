"""From requests to rows and back to handles: everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import psycopg
from psycopg import AsyncConnection

from queuert_py import options, payload
from queuert_py.errors import InvalidInputError, NotStartableError, UsageError
from queuert_py.ids import lane_of, uuid7
from queuert_py.job_types import InternalJobType
from queuert_py.postgres import starts
from queuert_py.postgres.database import Database
from queuert_py.postgres.listener import hint
from queuert_py.postgres.starts import Outcome, Start
from queuert_py.sequence import Collected, JobSequence, ResultSource
from queuert_py.values import LiveJob, Request


class Batch:
    """The starts of one call. `starts` are the distinct ones: inside a batch, too, the first of a key wins."""

    def __init__(
        self, requests: Sequence[Request[Any]], *, lanes: int, limit: int, origin: LiveJob | None, get: Callable[[str], Any]
    ) -> None:
        self._requests = requests
        self._how = (lanes, limit, origin, get)
        self._places: list[int] = []
        self.starts: list[Start] = []

    @property
    def plain(self) -> bool:
        """Nothing but types and inputs: it can go straight in by COPY while it is being checked."""
        origin = self._how[2]
        kinds = {request.job_type.name: request.job_type for request in self._requests}
        timed = any({"timeout", "expires"} & kind.options.keys() for kind in kinds.values())
        return not timed and not (origin and origin.tags) and not any(request.options for request in self._requests)

    def chunks(self, size: int) -> Iterator[list[Start]]:
        """Check and dump the requests, `size` at a time; what comes out is in `starts` as well."""
        firsts: dict[tuple[str, str], int] = {}
        several = len(self._requests) > 1
        for number, request in enumerate(self._requests):
            start = _prepare(request, *self._how, f" (request {number})" if several else "")
            new = len(self.starts)
            place = firsts.setdefault((request.job_type.name, start.key), new) if start.key else new
            if place == new:
                self.starts.append(start)
            self._places.append(place)
            if place == new and (new + 1) % size == 0:
                yield self.starts[-size:]
        rest = len(self.starts) % size
        if rest:
            yield self.starts[-rest:]

    def check(self) -> list[Start]:
        """Check and dump them all: the distinct starts."""
        return [start for chunk in self.chunks(starts.CHUNK) for start in chunk]

    async def write(self, database: Database, connection: AsyncConnection[Any] | None) -> list[Outcome]:
        """Start them, in the caller's transaction if there is one; by COPY while they are checked where nothing else is asked."""
        if connection is None and len(self._requests) >= starts.COPY_FROM and self.plain:
            return await starts.stream(database, self.chunks(starts.CHUNK))
        checked = self.check()
        if connection is None:
            return await starts.start(database, checked)
        return await starts.start_in(database, connection, checked, [hint(*place) for place in self.hints])

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
