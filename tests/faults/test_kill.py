"""kill -9 of a worker: nothing is lost, nothing is done twice, and the jobs start again soon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.faults.kit import Facts


async def test_killed_with_fifty_jobs_in_flight(facts: Facts, tmp_path: Path) -> None:
    print(await scenarios.kills(facts.dsn, tmp_path, times=3))


async def test_killed_while_its_presence_seems_held(facts: Facts, tmp_path: Path) -> None:
    print(await scenarios.kills(facts.dsn, tmp_path, times=1, lease=3.0, presence=False))


@pytest.mark.slow
async def test_killed_twenty_times(facts: Facts, tmp_path: Path) -> None:
    print(await scenarios.kills(facts.dsn, tmp_path, times=20))
