"""The server crashes under load and comes back: all sequences complete, each effect once."""

from __future__ import annotations

from pathlib import Path

from tests.faults import scenarios
from tests.faults.servers import OwnServer


async def test_the_server_crashes_five_times(own_server: OwnServer, tmp_path: Path) -> None:
    print(await scenarios.outages(own_server, tmp_path, count=2000, times=5))
