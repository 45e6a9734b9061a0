"""How long a user's test of a three-step sequence takes, everything included: binding, opening, running, closing, cleaning.

`python -m tests.testing.figures [times]`; on the server of QUEUERT_TEST_DSN, else on an ephemeral one.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time

from queuert_py.testing import Harness, drain
from queuert_py.testing.databases import Scratch, scratch
from tests.testing import app


async def one_test(harness: Harness) -> None:
    async with harness(app.jobs) as engine:
        sequence = await engine.start_sequence(app.order, app.Order(item="tea"))
        await drain(engine)
        assert (await sequence.result(timeout=10)).text == "tea is on its way"


def timed(database: Scratch, times: int) -> list[float]:
    took: list[float] = []
    for _ in range(times):
        begun = time.perf_counter()
        asyncio.run(one_test(Harness(database)))
        database.clean()
        took.append((time.perf_counter() - begun) * 1000)
    return took


def main() -> None:
    begun = time.perf_counter()
    with scratch(os.environ.get("QUEUERT_TEST_DSN")) as database:
        database.prepare("queuert")
        print(f"database ready after {time.perf_counter() - begun:.2f} s")
        took = timed(database, int(sys.argv[1]) if len(sys.argv) > 1 else 50)
        print(
            f"a test of three steps: p50 {statistics.median(took):.0f} ms, best {min(took):.0f}, worst {max(took):.0f}, first {took[0]:.0f}"
        )


if __name__ == "__main__":
    main()
