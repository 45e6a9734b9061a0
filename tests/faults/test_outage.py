"""The server crashes under load and comes back: all sequences complete, each effect once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import scenarios
from tests.faults.servers import OwnServer


@pytest.mark.parametrize(("count", "times"), [(1200, 3), pytest.param(2000, 5, marks=pytest.mark.slow)])
async def test_the_server_crashes_several_times(own_server: OwnServer, tmp_path: Path, count: int, times: int) -> None:
    print(await scenarios.outages(own_server, tmp_path, count=count, times=times))
