"""Every pair of the kinds of operations, statement by statement, in every order: nothing stranded, nothing doubled, no deadlock."""

from __future__ import annotations

import pytest

from tests.interleave.catalogue import FIRST, NAMED, telling
from tests.interleave.kit import Lab
from tests.interleave.runner import Runner


async def explore(lab: Lab, name: str) -> None:
    """An operation with itself and with those behind it in the list."""
    runner = Runner(lab)
    programs = [program for other in NAMED[NAMED.index(name) :] for program in telling(name, other)]
    reports = [await runner.explore(*program) for program in programs]
    print(*(report.line() for report in reports), sep="\n")
    print(f"{sum(report.schedules for report in reports):,} schedules of {len(reports)} pairs")
    assert not [violation for report in reports for violation in report.violations]


@pytest.mark.parametrize("name", FIRST)
async def test_no_order_of_two_operations_breaks_a_rule(lab: Lab, name: str) -> None:
    await explore(lab, name)
