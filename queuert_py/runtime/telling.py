"""Whom a worker tells what it has committed: those who wait for results in this process, and the event handlers and watchers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from pydantic_core import from_json

from queuert_py.events import (
    JobCancelled,
    JobCompleted,
    JobContinued,
    JobEvent,
    JobExpired,
    JobFailed,
    JobProgress,
    JobReleased,
    JobRetrying,
    JobRevived,
    JobSnoozed,
    JobStarted,
    JobSuspended,
)
from queuert_py.runtime.attempt import Attempt
from queuert_py.runtime.services import Services
from queuert_py.runtime.waiters import Ended
from queuert_py.values import Delay, Ending, LiveJob, Step


class Tells:
    """The part of a worker that tells. Events are made only while somebody wants them."""

    id: str
    shutting_down: bool
    _engine: Services

    def tell_ending(self, attempt: Attempt, ending: Ending) -> None:
        """A sequence has ended."""
        row = attempt.row
        id, waiters = row.sequence_id, self._engine.waiters
        if ending.output is not None:
            ending = replace(ending, output=self._engine.wire.opened(ending.output))
        if waiters.awaits(id):
            output = None if ending.output_type is None else ending.output
            waiters.deliver(id, Ended(ending.outcome, ending.reason, output, ending.output_type, _error(ending.error), row.type))
        if self._engine.events.wanted:
            self._engine.events.emit(ended(row, ending, self.id))

    def tell_started(self, attempt: Attempt) -> None:
        """An attempt begins."""
        if self._engine.events.wanted and self._engine.events.listens(JobStarted):
            self._engine.events.emit(JobStarted(**_about(attempt.row, self.id)))

    def tell_continued(self, attempt: Attempt, step: Step) -> None:
        """A job has handed its sequence to the next."""
        if self._engine.events.wanted:
            self._engine.events.emit(JobContinued(**_about(attempt.row, self.id), next_type=step.type))

    def tell_delayed(self, attempt: Attempt, delay: Delay) -> None:
        """An attempt has given its job back."""
        if self._engine.events.wanted:
            unrun = self.shutting_down or attempt.task is None
            self._engine.events.emit(delayed(attempt.row, delay, self.id, stopping=unrun))

    def tell_taken(self, taken: Iterable[tuple[LiveJob, object, str | None]]) -> None:
        """Jobs were taken back, or ended because they are too late. Little is known of them."""
        for row, verdict, worker in taken if self._engine.events.wanted else ():
            if isinstance(verdict, Ending):
                self._engine.events.emit(ended(row, verdict, worker))
            elif isinstance(verdict, Delay):
                self._engine.events.emit(delayed(row, verdict, worker, stopping=True))

    def tell_progress(self, job: LiveJob, progress: str) -> None:
        """A handler has told how far it is."""
        if self._engine.events.wanted and self._engine.events.listens(JobProgress):
            known: Mapping[str, Any] = from_json(progress)
            told = JobProgress(**_about(job, self.id), percent=known.get("percent"), message=known.get("message"))
            self._engine.events.emit(told)


def ended(row: LiveJob, ending: Ending, worker: str | None) -> JobEvent:
    """The event of an ending."""
    about = _about(row, worker)
    match ending.outcome:
        case "completed":
            return JobCompleted(**about, output=ending.output if ending.output_type else None, output_type=ending.output_type)
        case "failed":
            return JobFailed(**about, reason=ending.reason or "error", error=_error(ending.error))
        case "cancelled":
            return JobCancelled(**about)
        case "expired":
            return JobExpired(**about)


def changed(row: LiveJob, verdict: Ending | Step | None) -> JobEvent:
    """The event of what was done to a job from outside; None: it had failed, and runs again."""
    match verdict:
        case Ending():
            return ended(row, verdict, None)
        case Step():
            return JobContinued(**_about(row, None), next_type=verdict.type)
        case None:
            return JobRevived(**_about(row, None))


def delayed(row: LiveJob, delay: Delay, worker: str | None, *, stopping: bool = False) -> JobEvent:
    """The event of an attempt that gave its job back. What is neither charged nor logged waits for something, or was given back."""
    about = _about(row, worker)
    match delay.outcome:
        case "error" | "timeout" | "lost":
            return JobRetrying(**about, outcome=delay.outcome, error=_error(delay.error))
        case "snoozed":
            return JobSnoozed(**about, error=_error(delay.error))
        case "" if not stopping:
            return JobSuspended(**about)
        case _:
            return JobReleased(**about)


def _about(row: LiveJob, worker: str | None) -> dict[str, Any]:
    """What every event of a job says. Of a row that was taken back only its place is known."""
    return {
        "sequence_id": UUID(row.sequence_id),
        "type": row.type,
        "queue": row.queue,
        "tags": row.tags or (),
        "correlation_id": row.correlation_id,
        "job_id": UUID(row.job_id or row.sequence_id) if row.job_id or row.position == 0 else None,
        "position": row.position,
        "attempt": row.attempt,
        "worker": worker,
    }


def _error(text: str | None) -> Mapping[str, Any] | None:
    return None if text is None else from_json(text)
