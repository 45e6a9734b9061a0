"""kill -9 of a worker whose handlers keep things: steps are not repeated, sleeps and events are not lost."""

from __future__ import annotations

from pathlib import Path

from queuert_py import Engine
from tests.faults import app
from tests.faults.app import Done, Work
from tests.faults.kit import Facts, until, worker_process

STAGES: tuple[app.Stage, ...] = ("before", "inside", "after")
EACH = 10


async def test_killed_behind_a_step_behind_a_sleep_and_behind_the_last_step(facts: Facts, tmp_path: Path) -> None:
    count = EACH * len(STAGES)
    async with Engine(facts.dsn, app.jobs) as engine:
        sequences = await engine.start_sequences([app.travel(Work(stage=stage)) for stage in STAGES for _ in range(EACH)])
        for number, sequence in enumerate(sequences):
            assert await engine.send_event(sequence, "place", f"place {number}")
        async with worker_process(facts.dsn, tmp_path, hold=True, concurrency=count) as victim:

            async def held() -> bool:
                return await facts.events("held") == count

            await until(held, "all to be held")
            await victim.kill()
        async with worker_process(facts.dsn, tmp_path):
            assert [await each.result(timeout=30) for each in sequences] == [Done(tag=f"place {number}") for number in range(count)]
    assert await facts.rows("select event, count(*) from history where event in ('packed', 'arrived') group by 1 order by 1") == [
        ("arrived", count),
        ("packed", count),
    ]
    assert await facts.one("select count(*) from queuert.attempt_log") == await facts.one(
        "select count(*) from queuert.attempt_log where outcome = 'lost'"
    )
