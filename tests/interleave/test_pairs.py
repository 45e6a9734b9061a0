"""Every pair of the kinds of operations, statement by statement, in every order: nothing stranded, nothing doubled, no deadlock."""

from __future__ import annotations

import pytest

from tests.interleave.catalogue import NAMED, TRIPLES, Program, pairs
from tests.interleave.kit import Lab
from tests.interleave.runner import Runner


@pytest.fixture(scope="module")
def runner(lab: Lab) -> Runner:
    return Runner(lab)


@pytest.mark.parametrize("name", NAMED)
async def test_no_order_of_two_operations_breaks_a_rule(runner: Runner, name: str) -> None:
    """This one with itself and with those behind it in the list."""
    behind = NAMED[NAMED.index(name) :]
    programs = [each for each in pairs(NAMED) if each[1][0] == name and each[1][1] in behind]
    reports = [await runner.explore(*program) for program in programs]
    print(*(report.line() for report in reports), sep="\n")
    assert not [violation for report in reports for violation in report.violations]


@pytest.mark.slow
@pytest.mark.parametrize("program", [*pairs(), *TRIPLES], ids=lambda program: f"{program[0]}: {' x '.join(program[1])}")
async def test_nor_with_a_statement_held_between_its_snapshot_and_its_locks(runner: Runner, program: Program) -> None:
    report = await runner.explore(*program, holds=1)
    print(report.line())
    assert not report.violations
