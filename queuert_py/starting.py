"""From requests to rows and back to handles: everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from pydantic import RootModel

from queuert_py import options, payload
from queuert_py.annotations import Contract
from queuert_py.errors import DuplicateIdError, DuplicateKeyError, InvalidInputError, NotStartableError, UsageError
from queuert_py.events import SequenceStarted
from queuert_py.ids import lane_of, uuid7
from queuert_py.job_types import InternalJobType, JobType
from queuert_py.payload import Wire
from queuert_py.postgres import blocking, starts
from queuert_py.postgres.database import Database
from queuert_py.postgres.listener import hint
from queuert_py.postgres.plans import Carrier
from queuert_py.postgres.starts import Outcome, Own, Start
from queuert_py.sequence import Collected, JobSequence, ResultSource
from queuert_py.values import LiveJob, Request

_Plain = RootModel[Mapping[str, Any]]


class Unregistered(JobType[Any, Any]):
    """A job type of which only the name is known here: its input is any JSON object."""

    @property
    def contract(self) -> Contract:
        return Contract(_Plain, {}, none=True)


class Batch:
    """The starts of one call. `starts` are the distinct ones: inside a batch, too, the first of a key wins, and an id is one sequence."""

    def __init__(
        self, requests: Sequence[Request[Any]], *, lanes: int, wire: Wire, origin: LiveJob | None, get: Callable[[str], Any]
    ) -> None:
        self._requests = requests
        self._how = (lanes, wire, origin, get)
        self._places: list[int] = []
        self.starts: list[Start] = []

    @property
    def plain(self) -> bool:
        """Nothing but types and inputs: it can go straight in by COPY while it is being checked."""
        origin = self._how[2]
        kinds = {request.job_type.name: request.job_type for request in self._requests}
        timed = any({"timeout", "expires", "deadline"} & kind.options.keys() for kind in kinds.values())
        return not timed and not (origin and origin.tags) and not any(request.options for request in self._requests)

    def chunks(self, size: int) -> Iterator[list[Start]]:
        """Check and dump the requests, `size` at a time; what comes out is in `starts` as well."""
        firsts: dict[tuple[str, ...], tuple[int, int]] = {}
        several = len(self._requests) > 1
        for number, request in enumerate(self._requests):
            start = _prepare(request, *self._how, f" (request {number})" if several else "")
            new = len(self.starts)
            mark = (request.job_type.name, start.key) if start.key else (start.id,)
            place, before = firsts.setdefault(mark, (new, number)) if start.key or start.own_id else (new, number)
            if place == new:
                self.starts.append(start)
            else:
                self.starts[place] = _met(self.starts[place], start, f"(requests {before} and {number})")
            self._places.append(place)
            if place == new and (new + 1) % size == 0:
                yield self.starts[-size:]
        rest = len(self.starts) % size
        if rest:
            yield self.starts[-rest:]

    def check(self) -> list[Start]:
        """Check and dump them all: the distinct starts."""
        for _ in self.chunks(starts.CHUNK):
            pass
        return self.starts

    async def write(self, database: Database, connection: Carrier | None, own: Own | None) -> list[Outcome]:
        """Start them, in the caller's transaction if there is one; by COPY while they are checked where nothing else is asked.

        `own`: the job in whose phase that is.
        """
        if connection is None and len(self._requests) >= starts.COPY_FROM and self.plain:
            return await starts.stream(database, self.chunks(starts.CHUNK))
        checked = self.check()
        if connection is None:
            return await starts.start(database, checked)
        return await starts.start_in(database, connection, checked, [hint(*place) for place in self.hints], own)

    @property
    def hints(self) -> dict[tuple[int, str, int], Start]:
        """Where there will be work: lane, queue, priority."""
        return {(each.lane, each.fields["queue"], each.fields["priority"]): each for each in self.starts}

    def events(self, outcomes: Sequence[Outcome]) -> Iterator[SequenceStarted]:
        """What was started, and not found."""
        for start, (id, found) in zip(self.starts, outcomes, strict=True):
            if not found:
                known: dict[str, Any] = {"queue": start.fields["queue"], "tags": start.fields.get("tags") or (), "key": start.key}
                yield SequenceStarted(
                    sequence_id=UUID(id), type=start.fields["type"], correlation_id=start.fields.get("correlation_id"), **known
                )

    def handles(self, outcomes: Sequence[Outcome], source: ResultSource) -> list[JobSequence[Any]]:
        """A handle for each request, in their order."""
        handles: list[JobSequence[Any]] = []
        seen: set[int] = set()
        for request, place in zip(self._requests, self._places, strict=True):
            id, found = outcomes[place]
            contract = None if isinstance(request.job_type, Unregistered) else request.job_type.contract
            handles.append(JobSequence(id, request.job_type.name, source, contract, deduplicated=found or place in seen))
            seen.add(place)
        return handles


def _met(before: Start, after: Start, which: str) -> Start:
    """Of two starts of one key, or one id, in a batch, the one that counts. DuplicateKeyError, DuplicateIdError, UsageError."""
    if after.dedup is None or before.dedup is None:
        same = before.fields["type"] == after.fields["type"] and (after.sealed or before.input == after.input)
        if not same:
            raise DuplicateIdError(f"the id {after.id} is twice in the batch, with another type or input {which}.", id=after.id)
        return before
    if replace(before.dedup, delay=None) != replace(after.dedup, delay=None):
        raise UsageError(f"the key {after.key!r} is twice in the batch, with another scope, window or on_match {which}.")
    match after.dedup.on_match:
        case "raise":
            raise DuplicateKeyError(f"the key {after.key!r} is twice in the batch {which}.", key=after.key)
        case "replace":  # under the id of the first
            after.id = after.fields["sequence_id"] = before.id
            after.lane = after.fields["lane"] = before.lane
            return after
        case "return":
            return before


def _prepare(request: Request[Any], lanes: int, wire: Wire, origin: LiveJob | None, get: Callable[[str], Any], which: str) -> Start:
    job_type: InternalJobType[Any, Any] = request.job_type
    if not isinstance(job_type, Unregistered) and get(job_type.name) is not job_type:
        raise UsageError(f"{job_type.name!r} is another job type than the one mounted on this engine{which}: mount its registry.")
    if not job_type.startable:
        raise NotStartableError(f"{job_type.name!r} is internal{which}: only continue_with reaches it. Start the type that leads to it.")
    blockers = Collected()
    try:
        text = job_type.dump_input(request.input, wire, blockers)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error}{which}", **error.details) from error.__cause__
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
    if not fields.get("tags", True):  # [] has kept those of the handler's job away
        del fields["tags"]
    start = Start(id, fields["lane"], fields, text, key, own_id is not None, options.dedup(request.options), sealed=wire.codec is not None)
    if blockers.ids:
        start.blockers, start.policy = list(map(str, blockers.ids)), job_type.options.get("on_blocker_failure", "hold")
        blocking.check(start.blockers, id, f"{job_type.name!r}{which}")
    return start


def _inherit(fields: dict[str, Any], origin: LiveJob) -> None:
    """What a sequence started inside a handler takes from its job."""
    fields["root_id"] = origin.root_id or origin.sequence_id
    fields["origin_id"] = origin.job_id or origin.sequence_id
    if origin.correlation_id is not None:
        fields.setdefault("correlation_id", origin.correlation_id)
    if origin.tags:
        fields.setdefault("tags", list(origin.tags))
