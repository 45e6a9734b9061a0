"""What is written for an attempt: from how its handler ended, and its policy, to a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from queuert_py.decisions.judge import Policy, after_error, after_loss, attempts_left
from queuert_py.decisions.leases import POISON
from queuert_py.errors import EventTimeoutError, InvalidEventError, InvalidStepError, NotRepeatableError, TransactionEscapedError
from queuert_py.values import Delay, Ending, Fail, Retry, Snooze

LATER = datetime(2030, 1, 1, tzinfo=UTC)
ERROR = '{"type":"E"}'
FAST = Policy(max_attempts=3, backoff=4.0)


def judged(
    error: BaseException, policy: Policy = FAST, *, attempt: int = 1, override: int | None = None, outcome: str = "error"
) -> Ending | Delay:
    return after_error(error, ERROR, policy, override=override, attempt=attempt, random=0.0, outcome=outcome)


def lost(policy: Policy = FAST, *, begun: bool = True, attempt: int = 1, override: int | None = None, crashes: int = 0) -> Ending | Delay:
    return after_loss(policy, ERROR, begun=begun, override=override, attempt=attempt, crash_count=crashes, random=0.0)


def wait(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("policy", "override", "attempt", "left"),
    [
        (10, None, 1, True),
        (10, None, 9, True),
        (10, None, 10, False),
        (10, None, 11, False),
        (1, None, 1, False),
        (None, None, 10**6, True),
        (10, 3, 2, True),
        (10, 3, 3, False),
        (2, 5, 4, True),
        (2, 0, 10**6, True),  # 0 is how "for ever" is stored in a job's own maximum
        (None, 1, 1, False),
    ],
)
def test_attempts_left_counts_the_jobs_own_maximum_before_the_policys(
    policy: int | None, override: int | None, attempt: int, *, left: bool
) -> None:
    assert attempts_left(Policy(max_attempts=policy), override, attempt) is left


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ValueError(), Delay(wait(4), outcome="error", error=ERROR)),
        (TimeoutError(), Delay(wait(4), outcome="error", error=ERROR)),
        (Retry("busy"), Delay(wait(4), outcome="error", error=ERROR)),
        (Retry(after=7), Delay(wait(7), outcome="error", error=ERROR)),
        (Retry(after=timedelta(minutes=1)), Delay(wait(60), outcome="error", error=ERROR)),
        (Retry(after=0), Delay(wait(0), outcome="error", error=ERROR)),
        (Retry(at=LATER), Delay(None, LATER, outcome="error", error=ERROR)),
        (Snooze(after=7), Delay(wait(7), charged=False, outcome="snoozed", error=ERROR)),
        (Snooze(at=LATER), Delay(None, LATER, charged=False, outcome="snoozed", error=ERROR)),
        (Snooze(), Delay(wait(4), charged=False, outcome="snoozed", error=ERROR)),
        (Fail("never"), Ending("failed", reason="fail", error=ERROR)),
        (TransactionEscapedError("committed"), Ending("failed", reason="error", error=ERROR)),
        (KeyboardInterrupt(), Ending("failed", reason="error", error=ERROR)),
        (GeneratorExit(), Ending("failed", reason="error", error=ERROR)),
    ],
    ids=repr,
)
def test_an_error_on_the_first_attempt(error: BaseException, verdict: Ending | Delay) -> None:
    assert judged(error) == verdict


@pytest.mark.parametrize(
    ("error", "outcome", "verdict"),
    [
        (ValueError(), "error", Ending("failed", reason="error", error=ERROR)),
        (TimeoutError(), "timeout", Ending("failed", reason="timeout", error=ERROR)),
        (ValueError(), "timeout", Ending("failed", reason="timeout", error=ERROR)),
        (Retry(after=7), "error", Ending("failed", reason="error", error=ERROR)),
        (Retry(at=LATER), "error", Ending("failed", reason="error", error=ERROR)),
        (Snooze(after=7), "error", Delay(wait(7), charged=False, outcome="snoozed", error=ERROR)),
        (Fail(), "error", Ending("failed", reason="fail", error=ERROR)),
    ],
    ids=repr,
)
def test_an_error_on_the_last_attempt(error: BaseException, outcome: str, verdict: Ending | Delay) -> None:
    assert judged(error, attempt=3, outcome=outcome) == verdict


@pytest.mark.parametrize(
    ("policy", "error", "again"),
    [
        (Policy(), ValueError(), True),
        (Policy(retry_on=(OSError,)), ValueError(), False),
        (Policy(retry_on=(OSError,)), ConnectionError(), True),
        (Policy(no_retry_on=(ValueError,)), ValueError(), False),
        (Policy(no_retry_on=(ValueError,)), UnicodeError(), False),
        (Policy(retry_on=(OSError,), no_retry_on=(ConnectionError,)), ConnectionError(), False),
        (Policy(retry_on=(OSError,), no_retry_on=(ConnectionError,)), OSError(), True),
        (Policy(retry_on=()), Retry(), True),  # the handler asked for it
        (Policy(retry_on=()), TimeoutError(), True),
        (Policy(no_retry_on=(TimeoutError,)), TimeoutError(), False),
        (Policy(no_retry_on=(Exception,)), Retry(after=1), True),
        (Policy(no_retry_on=(Exception,)), Snooze(), True),
        (Policy(retry_on=(BaseException,)), KeyboardInterrupt(), True),
        (Policy(retry_on=(Exception,)), Fail(), False),
    ],
    ids=repr,
)
def test_which_errors_are_tried_again(policy: Policy, error: BaseException, *, again: bool) -> None:
    assert isinstance(judged(error, policy), Delay) is again


def test_a_timeout_that_is_tried_again_is_logged_as_one() -> None:
    assert judged(TimeoutError(), outcome="timeout") == Delay(wait(4), outcome="timeout", error=ERROR)


def test_no_filter_excludes_the_end_of_the_jobs_own_time() -> None:
    assert isinstance(judged(TimeoutError(), Policy(no_retry_on=(OSError,)), outcome="timeout"), Delay)


def test_a_jobs_own_maximum_decides_when_an_error_is_the_last() -> None:
    assert isinstance(judged(ValueError(), attempt=3, override=5), Delay)
    assert isinstance(judged(ValueError(), attempt=2, override=2), Ending)
    assert isinstance(judged(ValueError(), attempt=10**6, override=0), Delay)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (lost(begun=False), Delay(None, charged=False, outcome="")),
        (lost(begun=False, attempt=99, crashes=99), Delay(None, charged=False, outcome="")),
        (lost(), Delay(None, outcome="lost", error=ERROR)),  # the first death costs no backoff
        (lost(crashes=1, attempt=2), Delay(wait(4), outcome="lost", error=ERROR)),
        (lost(crashes=2, attempt=2), Delay(wait(4), outcome="lost", error=ERROR)),
        (lost(attempt=3), Ending("failed", reason="crashed", error=ERROR)),
        (lost(attempt=1, override=1), Ending("failed", reason="crashed", error=ERROR)),
        (lost(attempt=99, override=0), Delay(None, outcome="lost", error=ERROR)),
        (lost(crashes=POISON - 2), Delay(wait(4), outcome="lost", error=ERROR)),
        (lost(crashes=POISON - 1), Ending("failed", reason="poison", error=ERROR)),
        (lost(crashes=POISON - 1, override=0), Ending("failed", reason="poison", error=ERROR)),
    ],
    ids=repr,
)
def test_a_job_whose_worker_is_gone(found: Ending | Delay, verdict: Ending | Delay) -> None:
    assert found == verdict


def test_a_job_that_kills_its_workers_is_given_up_after_five_of_them() -> None:
    verdicts = [lost(Policy(max_attempts=None), attempt=n + 1, crashes=n) for n in range(POISON)]
    assert [type(each) for each in verdicts] == [Delay] * 4 + [Ending]


def unhelpful(_: int) -> float:
    raise ZeroDivisionError


@pytest.mark.parametrize("value", [math.inf, math.nan, -5.0, 1e300, timedelta.max, timedelta(days=-3)], ids=repr)
def test_a_wait_that_cannot_be_stored_is_still_a_wait(value: float | timedelta) -> None:
    """The path of failure must not fail: whatever a policy asks for, PostgreSQL can add it to now."""
    policies: list[Callable[[], Ending | Delay]] = [
        lambda: judged(ValueError(), Policy(backoff=value)),
        lambda: judged(ValueError(), Policy(backoff=lambda _: value)),
        lambda: lost(Policy(backoff=value), crashes=1),
    ]
    for verdict in policies:
        delay = verdict()
        assert isinstance(delay, Delay)
        assert delay.after is not None
        assert timedelta(0) <= delay.after <= timedelta(days=365 * 200)


def test_a_backoff_function_that_raises_is_no_reason_to_lose_the_attempt() -> None:
    assert isinstance(judged(ValueError(), Policy(backoff=unhelpful)), (Delay, Ending))
    assert isinstance(lost(Policy(backoff=unhelpful), crashes=1), (Delay, Ending))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidStepError("it would not come back"), "validation"),
        (InvalidEventError("another payload"), "validation"),
        (NotRepeatableError("other sequences"), "validation"),
        (EventTimeoutError("not in time"), "timeout"),
    ],
)
def test_what_would_be_so_in_every_attempt_is_not_tried_again(error: Exception, reason: str) -> None:
    assert judged(error) == Ending("failed", reason=reason, error=ERROR)  # type: ignore[arg-type]
