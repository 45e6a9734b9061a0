"""Where most breaks were found: with statements held between snapshot and locks; and that the rules notice what is taken out."""

from __future__ import annotations

import pytest

from queuert_py.decisions import graph
from queuert_py.postgres import controls
from queuert_py.postgres.calls import BEGIN
from tests.interleave.catalogue import CORE, Program
from tests.interleave.kit import Lab
from tests.interleave.mutations import MUTATIONS, Mutation
from tests.interleave.runner import Runner


@pytest.mark.parametrize(
    "program", [*CORE[:-1], pytest.param(CORE[-1], marks=pytest.mark.slow)], ids=lambda program: f"{program[0]}: {' x '.join(program[1])}"
)  # the last takes as long as all others
async def test_a_statement_held_before_its_locks_breaks_nothing(lab: Lab, program: Program) -> None:
    report = await Runner(lab).explore(*program, holds=1)
    print(report.line())
    assert not report.violations


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
async def test_a_protection_taken_out_is_noticed(lab: Lab, mutation: Mutation) -> None:
    whole = await Runner(lab).explore(*mutation.program)
    assert not whole.violations
    changes = {mutation.statement: (mutation.old, mutation.new)} if mutation.statement else {}
    lab.begin = mutation.begin
    try:
        noticed = [await notices(Runner(lab, changes), mutation, holds) for holds in range(mutation.holds + 1)]
    finally:
        lab.begin = BEGIN
    assert noticed == [*[False] * mutation.holds, True]


async def notices(runner: Runner, mutation: Mutation, holds: int) -> bool:
    """Does a schedule break the rule that it should?"""
    report = await runner.explore(*mutation.program, holds=holds, until=mutation.shows)
    return any(mutation.shows in violation for violation in report.violations)


async def test_locks_from_dependent_to_blocker_deadlock(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(ids: list[str], edges: list[graph.Edge]) -> list[list[str]]:
        return graph.levels(ids, edges)[::-1]

    monkeypatch.setattr(controls, "levels", backwards)
    report = await Runner(lab).explore("fan", ("finish watched", "cancel many"), until="DeadlockDetected")
    assert any("DeadlockDetected" in violation for violation in report.violations)
