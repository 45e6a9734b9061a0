"""A worker holds no more memory after many jobs than after a few."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.faults.kit import Facts


@pytest.mark.slow
async def test_memory_stays_flat_over_many_jobs(facts: Facts, tmp_path: Path) -> None:
    held = await scenarios.memory(facts.dsn, tmp_path, jobs=200_000)
    print("RSS in MB after the warm-up and each tenth:", [round(each / 2**20, 1) for each in held])
    assert held[-1] - held[0] <= 5 * 2**20
