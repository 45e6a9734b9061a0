"""`python -m tests.faults.figures kills N | absent N | outages N | memory N | fanins N`: what a scenario measures, on its own server."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.faults import scenarios
from tests.faults.servers import OwnServer


async def main(what: str, times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with OwnServer.run() as server:
            match what:
                case "kills":
                    print(await scenarios.kills(server.dsn, Path(folder), times=times))
                case "absent":
                    print(await scenarios.kills(server.dsn, Path(folder), times=times, lease=3.0, presence=False))
                case "outages":
                    print(await scenarios.outages(server, Path(folder), count=2000, times=times))
                case "memory":
                    held = await scenarios.memory(server.dsn, Path(folder), jobs=times)
                    print("RSS in MB after the warm-up and each tenth:", [round(each / 2**20, 1) for each in held])
                case "fanins":
                    print(await scenarios.fanins(server.dsn, Path(folder), count=times))
                case _:
                    sys.exit(f"unknown: {what}. {__doc__}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
