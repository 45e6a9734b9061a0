"""Is the database there? Every state with every answer."""

from __future__ import annotations

from typing import get_args

import pytest

from queuert_py.decisions.health import State, after, claims, probe_after

STATES: tuple[State, ...] = get_args(State)


@pytest.mark.parametrize(
    ("state", "answered", "then"),
    [
        ("healthy", True, "healthy"),
        ("healthy", False, "doubtful"),
        ("doubtful", True, "healthy"),
        ("doubtful", False, "down"),
        ("down", True, "recovering"),
        ("down", False, "down"),
        ("recovering", True, "healthy"),
        ("recovering", False, "down"),
    ],
)
def test_what_an_answer_or_its_absence_changes(state: State, then: State, *, answered: bool) -> None:
    assert after(state, answered) == then


def test_one_failed_connection_is_no_outage_and_two_are() -> None:
    assert claims(after("healthy", False))
    assert not claims(after(after("healthy", False), False))


@pytest.mark.parametrize("state", STATES)
def test_a_worker_claims_unless_the_database_is_down(state: State) -> None:
    assert claims(state) is (state != "down")


@pytest.mark.parametrize("state", ["doubtful", "recovering"])
def test_in_doubt_the_next_probe_is_at_once(state: State) -> None:
    assert probe_after(state, 3, 30.0, 0.9) == 0


def test_a_healthy_database_is_probed_about_once_an_interval() -> None:
    assert probe_after("healthy", 0, 30.0, 0.0) == pytest.approx(27)
    assert probe_after("healthy", 0, 30.0, 0.999) == pytest.approx(33, abs=0.1)


def test_one_that_is_down_is_probed_often_at_first_and_never_less_than_every_five_seconds() -> None:
    waits = [probe_after("down", failures, 30.0, 0.5) for failures in range(200)]
    assert waits[0] < 0.05
    assert max(waits[:60]) <= 1
    assert max(waits) <= 5
    assert min(waits) > 0, "never a hot loop"
    assert waits == sorted(waits)
