"""What a database error means."""

from __future__ import annotations

import pytest

from queuert_py.decisions.faults import Fault, classify, pause, retries


@pytest.mark.parametrize(
    ("sqlstate", "connected", "fault"),
    [
        ("40001", True, Fault.CONFLICT),
        ("40P01", True, Fault.CONFLICT),
        ("40001", False, Fault.CONFLICT),  # rolled back for certain, whatever became of the connection
        ("57P01", True, Fault.LOST),
        ("57P01", False, Fault.LOST),
        ("57P02", True, Fault.LOST),
        ("57P03", True, Fault.OVERLOADED),
        ("57P03", False, Fault.OVERLOADED),
        ("57P05", True, Fault.LOST),
        ("25P03", True, Fault.LOST),
        ("08006", True, Fault.LOST),
        ("08P01", False, Fault.LOST),
        ("25006", True, Fault.READ_ONLY),
        ("25006", False, Fault.READ_ONLY),
        ("53300", False, Fault.OVERLOADED),
        ("53400", True, Fault.OVERLOADED),
        ("53100", True, Fault.STORAGE),
        ("53200", True, Fault.STORAGE),
        ("58030", True, Fault.STORAGE),
        ("55P03", True, Fault.BUSY),
        ("55P03", False, Fault.LOST),
        ("57014", True, Fault.BUSY),
        ("57014", False, Fault.LOST),
        ("23505", True, Fault.BROKEN),
        ("42P01", True, Fault.BROKEN),
        ("42P01", False, Fault.LOST),
        ("22P05", True, Fault.BROKEN),
        ("", True, Fault.BROKEN),
        (None, True, Fault.BROKEN),
        (None, False, Fault.LOST),
    ],
)
def test_the_class_of_an_error(sqlstate: str | None, fault: Fault, *, connected: bool) -> None:
    assert classify(sqlstate, connected=connected) is fault


@pytest.mark.parametrize("fault", Fault)
def test_how_often_something_idempotent_is_tried_again(fault: Fault) -> None:
    expected = {Fault.BROKEN: 0, Fault.BUSY: 3, Fault.CONFLICT: 5}
    assert retries(fault) == expected.get(fault, 8)


@pytest.mark.parametrize("fault", Fault)
def test_pauses_grow_to_a_cap_with_full_jitter(fault: Fault) -> None:
    longest = [pause(fault, tried, 0.999999) for tried in range(1, 60)]
    shortest = [pause(fault, tried, 0.0) for tried in range(1, 60)]
    assert longest == sorted(longest)
    assert all(0 < low < high < 30.0 for low, high in zip(shortest, longest, strict=True))
    assert all(low == pytest.approx(high / 2, rel=1e-5) for low, high in zip(shortest, longest, strict=True))


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.READ_ONLY, Fault.OVERLOADED, Fault.STORAGE])
def test_an_outage_of_ten_seconds_is_survived(fault: Fault) -> None:
    assert sum(pause(fault, tried, 0.5) for tried in range(1, retries(fault) + 1)) > 10


def test_a_conflict_is_tried_again_within_a_moment() -> None:
    assert sum(pause(Fault.CONFLICT, tried, 1.0) for tried in range(1, 6)) < 1
