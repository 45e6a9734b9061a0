"""What is to be written for an attempt: from how its handler ended to a verdict. Nothing else decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic_core import from_json, to_json

from queuert_py.decisions.backoff import next_wait, seconds
from queuert_py.decisions.leases import POISON
from queuert_py.errors import EventTimeoutError, InvalidEventError, InvalidOutputError, NotRepeatableError, TransactionEscapedError
from queuert_py.payload import note_json
from queuert_py.values import Backoff, Delay, Ending, Fail, Reason, Retry, Snooze

Exceptions = tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a job type answers failure. `max_attempts` None: for ever. answered: it has on_failed or a dead letter."""

    max_attempts: int | None = 10
    backoff: Backoff | None = None
    retry_on: Exceptions = (Exception,)
    no_retry_on: Exceptions = ()
    answered: bool = False


def policy_for(policy: Policy, backoff: float | None) -> Policy:
    """The policy of one job, which may have a wait of its own."""
    return policy if backoff is None else replace(policy, backoff=backoff)


def attempts_left(policy: Policy, override: int | None, attempt: int) -> bool:
    """Is there an attempt after number `attempt`? `override`: the job's own maximum, 0 for ever, None the policy's."""
    most = policy.max_attempts if override is None else override or None
    return most is None or attempt < most


def after_error(
    error: BaseException, as_json: str, policy: Policy, *, override: int | None, attempt: int, random: float, outcome: str = "error"
) -> Ending | Delay:
    """A handler that raised: Snooze and Retry as they say, Fail at once, anything else by the policy."""
    match error:
        case Snooze():
            return Delay(*_when(error, policy, attempt, random), charged=False, outcome="snoozed", error=as_json)
        case TransactionEscapedError():  # what escaped is committed: another attempt would write it twice
            return Ending("failed", reason="error", error=as_json)
        case Fail():
            return Ending("failed", reason="fail", error=as_json)
        case InvalidOutputError() | InvalidEventError() | NotRepeatableError():  # what is kept would make every attempt end like this
            return Ending("failed", reason="validation", error=as_json)
        case EventTimeoutError():
            return Ending("failed", reason="timeout", error=as_json)
        case _:
            pass
    asked = isinstance(error, Retry) or (isinstance(error, TimeoutError) and outcome == "timeout")
    wanted = isinstance(error, (TimeoutError, *policy.retry_on)) and not isinstance(error, policy.no_retry_on)
    if not (asked or wanted) or not attempts_left(policy, override, attempt):
        reason: Reason = "timeout" if outcome == "timeout" else "error"
        return Ending("failed", reason=reason, error=as_json)
    return Delay(*_when(error, policy, attempt, random), outcome=outcome, error=as_json)


def _when(error: BaseException, policy: Policy, attempt: int, random: float) -> tuple[timedelta | None, datetime | None]:
    if isinstance(error, Retry) and error.at is not None:
        return None, error.at
    if isinstance(error, Retry) and error.after is not None:
        return timedelta(seconds=seconds(error.after)), None
    return next_wait(policy.backoff, attempt, random), None


def unrun(*, expired: bool, deadline: float | None, doom: str | None) -> Ending | None:
    """The ending of a job that may not run at all: too late, or doomed (`doom`: the error as JSON; by a blocker, if no `reason` is in it).
    `deadline`: seconds left to its sequence."""
    if doom is not None:
        error = from_json(doom)
        return Ending("failed", reason=error.pop("reason", "blocker_failed"), error=to_json(error).decode())
    if deadline is not None and deadline <= 0:
        return Ending("failed", reason="timeout", error=note_json("DeadlineExceeded", "the sequence did not end by its deadline"))
    return Ending("expired", error=note_json("Expired", "it was not started by its `expires`")) if expired else None


def after_loss(
    policy: Policy, as_json: str, *, begun: bool, override: int | None, attempt: int, crash_count: int, random: float
) -> Ending | Delay:
    """A job whose worker is gone. One that had not begun goes back as it was; the first death costs no backoff; the fifth is the last."""
    if not begun:
        return Delay(None, charged=False, outcome="")
    crashes = crash_count + 1
    if crashes >= POISON:
        return Ending("failed", reason="poison", error=as_json)
    if not attempts_left(policy, override, attempt):
        return Ending("failed", reason="crashed", error=as_json)
    wait = None if crashes == 1 else next_wait(policy.backoff, crashes - 1, random)
    return Delay(wait, outcome="lost", error=as_json)
