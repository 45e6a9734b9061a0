"""The JSON rows of the batch statements: composed as text, so that payloads pass through without being parsed here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import from_json, to_json

from queuert_py.values import Block, Delay, Doom, Ending, LiveJob, Step, Suspend


def quote(text: str | None) -> str:
    """A text as JSON."""
    return "null" if text is None else to_json(text).decode()


def interval(span: timedelta | None) -> str:
    return "null" if span is None else f'"{span.total_seconds():.6f} seconds"'


def instant(at: datetime | None) -> str:
    return "null" if at is None else f'"{at.isoformat()}"'


def epoch_row(job: LiveJob) -> str:
    """Which attempt: enough for renewing, locking and reading its fate."""
    return f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","position":{job.position},"epoch":{job.epoch}}}'


def held_row(job: LiveJob, begun: bool) -> str:
    return f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"begun":{"true" if begun else "false"}}}'


def finish_row(job: LiveJob, output: str, output_type: str | None) -> str:
    """A completion. `output` is JSON already; a model's name needs no escaping."""
    kind = "null" if output_type is None else f'"{output_type}"'
    return f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"output":{output},"output_type":{kind}}}'


def end_row(job: LiveJob, ending: Ending, key: str | None = None) -> str:
    """An ending. `key`: the one that the sequence let go for another, kept in its history."""
    return (
        f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"outcome":"{ending.outcome}",'
        f'"reason":{quote(ending.reason)},"output":{ending.output or "null"},"output_type":{quote(ending.output_type)},'
        f'"error":{ending.error or "null"},"key":{quote(key)},"charge":{0 if ending.charged else -1}}}'
    )


_COMPENSATES = ',"compensates":true'


def step_row(job: LiveJob, step: Step, handoff: bool, more: Mapping[str, Any] | None = None) -> str:
    """A continuation. `more`: the columns of one that waits for blockers."""
    rest = f"{_COMPENSATES if step.failure else ''}{_more(more)}"
    return (
        f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"job_id":"{step.job_id}","type":{quote(step.type)},'
        f'"queue":{quote(step.queue)},"priority":{"null" if step.priority is None else step.priority},"input":{step.input},'
        f'"at":{instant(step.at)},"delay":{interval(step.delay)},'
        f'"max_attempts":{"null" if step.max_attempts is None else step.max_attempts},"timeout":{interval(step.timeout)},'
        f'"handoff":{"true" if handoff else "false"}{rest}}}'
    )


def delay_row(job: LiveJob, delay: Delay) -> str:
    return (
        f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"delay":{interval(delay.after)},'
        f'"at":{instant(delay.at)},"charge":{0 if delay.charged else -1},"crash":{1 if delay.outcome == "lost" else 0},'
        f'"outcome":{quote(delay.outcome or None)},"error":{delay.error or "null"}}}'
    )


def suspend_row(job: LiveJob, wait: Suspend) -> str:
    return (
        f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"name":{quote(wait.name)},'
        f'"event":{"true" if wait.event else "false"},"delay":{interval(wait.after)},"at":{instant(wait.at)}}}'
    )


def progress_row(job: LiveJob, progress: str) -> str:
    return f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"progress":{progress}}}'


def job_row(lane: int, sequence_id: str, position: int, **more: Any) -> str:
    return f'{{"lane":{lane},"sequence_id":"{sequence_id}","position":{position}{_more(more)}}}'


def key_row(lane: int, type: str, key: str | None, **more: Any) -> str:
    return to_json({"ordinal": 0, "lane": lane, "type": type, "key": key, **more}).decode()


def sequence_row(sequence_id: str, lane: int) -> str:
    return f'{{"lane":{lane},"sequence_id":"{sequence_id}"}}'


def start_row(fields: Mapping[str, Any], input: str) -> str:
    """A start: plain fields, and the input that is JSON already."""
    return f'{to_json(fields).decode()[:-1]},"input":{input}}}'


def edge_row(blocker_lane: int, blocker_id: str, lane: int, sequence_id: str, position: int, ordinal: int, *, counted: bool) -> str:
    """This job waits for that sequence. `counted`: not any more."""
    return (
        f'{{"blocker_lane":{blocker_lane},"blocker_id":"{blocker_id}","lane":{lane},"sequence_id":"{sequence_id}","position":{position},'
        f'"ordinal":{ordinal},"counted":{"true" if counted else "false"}}}'
    )


def block_row(job: LiveJob, wait: Block, fields: Mapping[str, Any]) -> str:
    known = {"lane": job.lane, "sequence_id": job.sequence_id, "epoch": job.epoch, "name": wait.name, "ids": list(wait.blockers)}
    return to_json({**known, **fields}).decode()


def place_row(sequence_id: str, lane: int, ordinal: int) -> str:
    """A sequence, and its place in what was given."""
    return f'{{"lane":{lane},"sequence_id":"{sequence_id}","ordinal":{ordinal}}}'


def _more(fields: Mapping[str, Any] | None) -> str:
    """Further fields of a row."""
    return "," + to_json(fields).decode()[1:-1] if fields else ""


def revive_row(sequence_id: str, lane: int, input: str | None, attempt: int, more: Mapping[str, Any] | None = None) -> str:
    """A failed sequence that runs again. `input`: JSON in the place of the stored one. `more`: what it waits for."""
    return f'{{"lane":{lane},"sequence_id":"{sequence_id}","attempt":{attempt},"input":{input or "null"}{_more(more)}}}'


def doom_row(job: LiveJob, doom: Doom) -> str:
    """A failure that a worker which knows the job's type has yet to write: the error, and in it the reason."""
    known = {**from_json(doom.ending.error or "{}"), "reason": doom.ending.reason}
    return f'{epoch_row(job)[:-1]},"crash":{int(doom.crash)},"doom":{to_json(known).decode()}}}'


def schema_row(type: str, fingerprint: str) -> str:
    """A job type and what its input model accepts."""
    return f'{{"type":{quote(type)},"input_schema":{quote(fingerprint)}}}'


def failure_row(job: LiveJob, failure: Ending) -> str:
    """A failure to be logged."""
    return f'{epoch_row(job)[:-1]},"error":{failure.error or "{}"}}}'
