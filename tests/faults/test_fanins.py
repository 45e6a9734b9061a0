"""Fan-ins whose blockers end at the same time in two processes: each runs once, none is stranded, nobody deadlocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.faults.kit import Facts


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
async def test_every_fan_in_runs_once(facts: Facts, tmp_path: Path, count: int) -> None:
    found = await scenarios.fanins(facts.dsn, tmp_path, count=count)
    assert (found.completed, found.effects, found.right, found.deadlocks) == (count, count, count, 0), str(found)
