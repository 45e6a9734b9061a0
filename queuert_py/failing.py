"""Failure for good: what its callbacks are given, the dead letter that is started with it, and the inputs with which it runs again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, cast, get_args, get_origin, get_type_hints
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import from_json, to_json

from queuert_py import payload
from queuert_py.annotations import members
from queuert_py.control import DeadLetter, Failure
from queuert_py.errors import DeclarationError, InvalidInputError, UsageError
from queuert_py.job_types import InternalJobType, JobTypes
from queuert_py.payload import Wire
from queuert_py.postgres.controls import Failed, NewInput
from queuert_py.sequence import Collected
from queuert_py.starting import Batch
from queuert_py.values import Continuation, Ending, LiveJob, Reason, Request

SPARE = 64 * 1024
"""Bytes that a dead letter may have beyond the limit of payloads: it holds an input that was as large as that, and an error."""


# --- what is declared


def check(types: JobTypes[Any]) -> None:
    """The answers to failure that job types declare. DeclarationError says what to write."""
    for job_type in types:
        _check_compensation(job_type)
        letters: Any = job_type.options.get("dead_letter")
        if letters is None:
            continue
        name = f"job type {job_type.name!r}: dead_letter={letters!r}"
        if not isinstance(letters, InternalJobType) or not letters.startable:
            raise DeclarationError(f"{name}: a job type is needed that a sequence can start with and that takes a DeadLetter.")
        if not types.has(letters.name) or types.get(letters.name) is not letters:
            raise DeclarationError(f"{name}: it is not declared on this engine: mount its registry.")
        if not issubclass(DeadLetter, letters.contract.input):
            raise DeclarationError(f"{name}: its input is {letters.contract.input.__name__}, it has to take queuert_py.control.DeadLetter.")


def _check_compensation(job_type: InternalJobType[Any, Any]) -> None:
    """What `on_failed` continues with, if its annotation can be read, must be what the type returns; else the attempt would be refused."""
    on_failed, contract = job_type.options.get("on_failed"), job_type.contract
    try:
        returned = get_type_hints(on_failed).get("return")
    except (NameError, AttributeError, TypeError):  # a name for checkers alone; nothing with annotations
        return
    for part in (returned, *get_args(returned)):
        for model in members(part) if get_origin(part) is Continuation else ():
            if not isinstance(model, type) or (contract.none if model is type(None) else contract.returns(model)):
                continue
            name = model.__name__
            raise DeclarationError(
                f"job type {job_type.name!r}: its on_failed continues with a job that returns {name}, it declares {contract}: "
                f"write `-> {contract} | Continuation[{name}]`."
            )


def failure_of(job: LiveJob, ending: Ending, wire: Wire) -> Failure:
    id = UUID(job.sequence_id)
    error = cast("Mapping[str, Any]", from_json(ending.error or "{}"))
    job_id = UUID(job.job_id) if job.job_id else id
    attempt = job.attempt if ending.charged else job.attempt - 1
    return Failure(id, job_id, job.type, job.position, ending.reason or "error", error, attempt, wire.opened(from_json(job.input)))


def dead_letter_row(letters: InternalJobType[Any, Any], job: LiveJob, failure: Failure, *, lanes: int, wire: Wire) -> str:
    """The row for start_dead_letters."""
    known = {name: getattr(failure, name) for name in DeadLetter.model_fields}
    letter = DeadLetter.model_construct(**known)
    start = Batch(
        [Request(letters, letter)], lanes=lanes, wire=replace(wire, limit=wire.limit + SPARE), origin=job, get=lambda _: letters
    ).check()[0]
    failed = {"failed_lane": job.lane, "failed_id": job.sequence_id, "failed_position": job.position, "failed_epoch": job.epoch}
    return f"{start.row[:-1]},{to_json(failed).decode()[1:]}"


# --- running again


def new_inputs(
    given: Any, get: Callable[[str], InternalJobType[Any, Any]], wire: Wire
) -> Callable[[Sequence[Failed]], Mapping[str, NewInput]]:
    """Makes the inputs with which failed jobs run again, all or none: InvalidInputError lists every one that is refused."""

    def make(failed: Sequence[Failed]) -> Mapping[str, NewInput]:
        made: dict[str, NewInput] = {}
        refused: dict[str, str] = {}
        for each in failed if given is not None else ():
            try:
                made[each.sequence_id] = _new_input(given, each, get(each.type), wire)
            except (InvalidInputError, UsageError) as error:
                refused[each.sequence_id] = str(error)
        if refused:
            lines = "; ".join(f"{id}: {why}" for id, why in refused.items())
            raise InvalidInputError(f"{len(refused)} of {len(failed)} new inputs are refused, nothing was changed: {lines}", errors=refused)
        return made

    return make


def _new_input(given: Any, failed: Failed, job_type: InternalJobType[Any, Any], wire: Wire) -> NewInput:
    value, before = given, wire.opened(from_json(failed.input))
    if callable(given) and not isinstance(given, BaseModel):
        error = from_json(failed.error or "{}")
        which = UUID(failed.sequence_id), UUID(failed.job_id)
        reason = cast("Reason", failed.reason)
        value = given(Failure(*which, failed.type, failed.position, reason, error, failed.attempt, before))
    blockers = Collected()
    text = job_type.dump_input(value, wire, blockers)
    ids = list(map(str, blockers.ids))
    others = set(ids) - set(_strings(before)) if ids else ()
    if others:
        raise UsageError(f"a new input cannot have other blockers than the one that failed: {', '.join(others)}.")
    return NewInput(text, ids)


def _strings(value: Any) -> list[str]:
    """All texts in plain JSON values."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for each in cast("dict[str, Any]", value).values() for text in _strings(each)]
        case list():
            return [text for each in cast("list[Any]", value) for text in _strings(each)]
        case _:
            return []


# --- inputs that a model refuses


class _Schema(GenerateJsonSchema):
    """A schema of any model: what JSON Schema cannot say is left as the name of its kind."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {"description": error_info}


@lru_cache(1024)
def fingerprint(model: type[BaseModel]) -> str | None:
    """What a model accepts, as far as its JSON schema says: the same for the same fields, whatever process reads them. None: no telling."""
    try:
        schema = model.model_json_schema(schema_generator=_Schema)
    except Exception:  # a field's own hook may do anything
        return None
    return sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:16]


def invalid_input(job_type: InternalJobType[Any, Any], error: ValidationError | NotImplementedError | payload.Sealed) -> Ending:
    """A stored input that its model refuses, or that no codec opens: no attempt is charged, and a worker with another model, or any that
    starts later, tries it again."""
    known: dict[str, Any] = from_json(payload.error_json(error))
    sealed = isinstance(error, payload.Sealed)
    known["attrs"]["input_schema"] = "sealed" if sealed else fingerprint(job_type.contract.input)  # null is never another one
    return Ending("failed", reason="validation", error=to_json(known).decode(), charged=False)
