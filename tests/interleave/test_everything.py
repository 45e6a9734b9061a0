"""All pairs on all scenes, and the triples, with statements held between their snapshot and their locks."""

from __future__ import annotations

import pytest

from tests.interleave.catalogue import TRIPLES, Program, pairs
from tests.interleave.kit import Lab
from tests.interleave.runner import Runner


def titled(program: Program) -> str:
    return f"{program[0]}: {' x '.join(program[1])}"


@pytest.mark.slow
@pytest.mark.parametrize("program", pairs(), ids=titled)
async def test_no_pair_with_a_statement_held_breaks_a_rule(lab: Lab, program: Program) -> None:
    report = await Runner(lab).explore(*program, holds=1)
    print(report.line())
    assert not report.violations


@pytest.mark.slow
@pytest.mark.parametrize("program", TRIPLES, ids=titled)
async def test_no_order_of_three_operations_breaks_a_rule(lab: Lab, program: Program) -> None:
    report = await Runner(lab).explore(*program)
    print(report.line())
    assert not report.violations
