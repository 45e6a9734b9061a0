"""Backoff, pace, leases and status: the small formulas."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from queuert_py.decisions.backoff import exponential, next_wait, seconds
from queuert_py.decisions.leases import POISON, SUSPECT, renew_every, trusted_until
from queuert_py.decisions.pace import MAX_HANDOFFS, Pace, claim_size, hands_off, poll_after
from queuert_py.decisions.status import live_status
from queuert_py.values import Backoff, Step


@pytest.mark.parametrize(("duration", "value"), [(3, 3.0), (0.5, 0.5), (0, 0.0), (timedelta(minutes=2), 120.0)])
def test_a_duration_is_a_timedelta_or_seconds(duration: timedelta | float, value: float) -> None:
    assert seconds(duration) == value


# --- backoff


def waits(backoff: Backoff | None, attempts: int = 7, random: float = 0.0) -> list[float]:
    return [next_wait(backoff, attempt, random).total_seconds() for attempt in range(1, attempts + 1)]


def growing(attempt: int) -> float:
    return attempt * 1.5


def steady(_: int) -> timedelta:
    return timedelta(seconds=1)


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (None, [10, 20, 40, 80, 160, 300, 300]),
        (5, [5] * 7),
        (timedelta(seconds=2), [2] * 7),
        (0, [0] * 7),
        (exponential(1, 8), [1, 2, 4, 8, 8, 8, 8]),
        (exponential(timedelta(seconds=1), timedelta(minutes=1), factor=3), [1, 3, 9, 27, 60, 60, 60]),
        (exponential(60, 5), [5] * 7),
        (growing, [1.5, 3, 4.5, 6, 7.5, 9, 10.5]),
        (steady, [1] * 7),
    ],
)
def test_the_wait_after_each_failed_attempt(backoff: Backoff | None, expected: list[float]) -> None:
    assert waits(backoff) == expected


@pytest.mark.parametrize("factor", [1.5, 2.0, 1e6, 1e300])
def test_a_backoff_never_passes_its_cap(factor: float) -> None:
    backoff = exponential(1, 300, factor=factor)
    assert next_wait(backoff, 10_000, 0.0) == timedelta(seconds=300)


def test_jitter_takes_up_to_a_quarter() -> None:
    assert waits(100, 1, random=0.0) == [100]
    assert waits(100, 1, random=0.999999) == [pytest.approx(75, abs=0.001)]
    assert waits(0, 1, random=0.5) == [0]


# --- pace


@pytest.mark.parametrize(
    ("free", "waiting", "prefetch", "batch", "size"),
    [
        (100, 0, 10, 50, 50),
        (10, 0, 5, 50, 15),
        (10, 5, 5, 50, 10),
        (0, 0, 5, 50, 5),
        (0, 5, 5, 50, 0),
        (0, 9, 5, 50, 0),  # more is waiting than there is room for: never negative
        (1, 0, 0, 50, 1),
    ],
)
def test_how_many_jobs_to_claim(free: int, waiting: int, prefetch: int, batch: int, size: int) -> None:
    assert claim_size(free=free, waiting=waiting, prefetch=prefetch, batch=batch) == size


def test_as_many_are_claimed_ahead_as_have_just_ended() -> None:
    pace = Pace()
    assert pace.ended(1.0) == 0
    for _ in range(3):
        pace.count()
    assert (pace.ended(1.05), pace.ended(1.1), pace.ended(1.15)) == (3, 3, 3)
    pace.count()
    assert pace.ended(1.21) == 1
    assert pace.ended(9.0) == 0, "nothing has ended of late"


def test_polls_calm_down_while_nothing_is_found() -> None:
    polls = [poll_after(idle=idle, busiest=1, calmest=60, deaf=False, random=0.0) for idle in range(9)]
    assert polls == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert poll_after(idle=10**9, busiest=1, calmest=60, deaf=False, random=0.0) == 60


def test_polls_come_often_while_hints_do_not_arrive() -> None:
    assert max(poll_after(idle=idle, busiest=1, calmest=60, deaf=True, random=0.0) for idle in range(99)) == 5
    assert poll_after(idle=9, busiest=0.1, calmest=2, deaf=True, random=0.0) == 2
    assert poll_after(idle=9, busiest=10, calmest=10, deaf=True, random=0.0) == 10


def test_polls_are_spread_by_a_tenth() -> None:
    assert poll_after(idle=9, busiest=1, calmest=60, deaf=False, random=0.999999) == pytest.approx(54, abs=0.001)


def step(delay: timedelta | None = None, at: datetime | None = None) -> Step:
    return Step("id", "type", None, "{}", delay, at, None, None, None)


@pytest.mark.parametrize(
    ("next", "serves", "stopping", "in_a_row", "handed"),
    [
        (step(), True, False, 0, True),
        (step(), True, False, MAX_HANDOFFS - 1, True),
        (step(), True, False, MAX_HANDOFFS, False),  # the queue gets its turn
        (step(), False, False, 0, False),
        (step(), True, True, 0, False),
        (step(delay=timedelta(0)), True, False, 0, False),
        (step(delay=timedelta(seconds=1)), True, False, 0, False),
        (step(at=datetime(2030, 1, 1, tzinfo=UTC)), True, False, 0, False),
    ],
)
def test_when_a_worker_keeps_the_next_job_of_a_sequence(next: Step, in_a_row: int, *, serves: bool, stopping: bool, handed: bool) -> None:
    assert hands_off(next, serves=serves, stopping=stopping, in_a_row=in_a_row) is handed


# --- leases


@pytest.mark.parametrize("lease", [0.3, 1.0, 30.0, 3600.0])
def test_two_renewals_may_fail_before_a_lease_is_in_danger(lease: float) -> None:
    assert 2 * renew_every(lease) < trusted_until(0.0, lease) < lease
    assert trusted_until(100.0, lease) == pytest.approx(100 + lease * 5 / 6)


def test_a_suspect_runs_alone_before_it_is_poison() -> None:
    assert 0 < SUSPECT < POISON


# --- status


@pytest.mark.parametrize(("leased", "blockers", "due"), [*itertools.product([True, False], [0, 1, 7], [True, False])])
def test_the_status_of_a_live_row(blockers: int, *, leased: bool, due: bool) -> None:
    status = live_status(leased=leased, open_blockers=blockers, due=due)
    if leased:
        assert status == "running"
    elif blockers:
        assert status == "blocked"
    else:
        assert status == ("pending" if due else "scheduled")
