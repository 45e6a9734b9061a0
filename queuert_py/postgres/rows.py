"""The JSON rows of the batch statements: composed as text, so that payloads pass through without being parsed here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import to_json

from queuert_py.values import Delay, Ending, LiveJob, Step


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


def end_row(job: LiveJob, ending: Ending) -> str:
    return (
        f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"outcome":"{ending.outcome}",'
        f'"reason":{quote(ending.reason)},"output":{ending.output or "null"},"output_type":{quote(ending.output_type)},'
        f'"error":{ending.error or "null"}}}'
    )


def step_row(job: LiveJob, step: Step, handoff: bool) -> str:
    return (
        f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"job_id":"{step.job_id}","type":{quote(step.type)},'
        f'"queue":{quote(step.queue)},"priority":{"null" if step.priority is None else step.priority},"input":{step.input},'
        f'"at":{instant(step.at)},"delay":{interval(step.delay)},'
        f'"max_attempts":{"null" if step.max_attempts is None else step.max_attempts},"timeout":{interval(step.timeout)},'
        f'"handoff":{"true" if handoff else "false"}}}'
    )


def delay_row(job: LiveJob, delay: Delay) -> str:
    return (
        f'{{"lane":{job.lane},"sequence_id":"{job.sequence_id}","epoch":{job.epoch},"delay":{interval(delay.after)},'
        f'"at":{instant(delay.at)},"charge":{0 if delay.charged else -1},"crash":{1 if delay.outcome == "lost" else 0},'
        f'"outcome":{quote(delay.outcome or None)},"error":{delay.error or "null"}}}'
    )


def sequence_row(sequence_id: str, lane: int) -> str:
    return f'{{"lane":{lane},"sequence_id":"{sequence_id}"}}'


def start_row(fields: Mapping[str, Any], input: str) -> str:
    """A start: plain fields, and the input that is JSON already."""
    return f'{to_json(fields).decode()[:-1]},"input":{input}}}'
