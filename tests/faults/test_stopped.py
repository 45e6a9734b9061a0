"""A worker that is stopped (SIGSTOP, a paused machine) or whose event loop stands: it may overlap, it never commits late."""

from __future__ import annotations

import signal
from pathlib import Path

from queuert_py import Engine
from tests.faults import app
from tests.faults.app import Stage, Work
from tests.faults.kit import Facts, until, worker_process

LEASE = 2.0


async def test_a_stopped_worker_does_not_commit_late(facts: Facts, producer: Engine, tmp_path: Path) -> None:
    """Stopped before, inside and after finalize's block, and inside atomic: the server frees the rows, another worker has the jobs."""
    gate = tmp_path / "gate"
    stages: list[Stage] = ["before", "inside", "after", "atomic"]
    async with worker_process(facts.dsn, tmp_path, lease=LEASE, hold=True, gate=str(gate), name="victim") as victim:
        for stage in stages:
            await producer.start_sequence(app.whole if stage == "atomic" else app.work, Work(stage=stage))

        async def held() -> bool:
            return await facts.events("held") == len(stages)

        await until(held, "the handlers to reach their stages")
        victim.signal(signal.SIGSTOP)
        gate.touch()
        async with worker_process(facts.dsn, tmp_path, lease=LEASE, name="other") as other:
            await facts.all_done(len(stages))
            assert await facts.rows("select outcome from queuert.attempt_log") == [("lost",)] * len(stages)

            victim.signal(signal.SIGCONT)

            async def noticed() -> bool:
                return victim.log.count("is no longer ours") == len(stages)

            await until(noticed, "the victim to notice its losses")
            await facts.all_done(len(stages))
            assert await facts.rows("select distinct pid from effect") == [(other.pid,)]
        again = await producer.start_sequence(app.work, Work())
        await again.result(timeout=60)  # by the victim: it works on
        await facts.all_done(len(stages) + 1)
    assert "loop failed" not in victim.log


async def test_a_handler_that_blocks_the_loop_keeps_its_job(facts: Facts, producer: Engine, tmp_path: Path) -> None:
    lease = 1.5
    async with worker_process(facts.dsn, tmp_path, lease=lease, name="blocked") as blocked:
        sequence = await producer.start_sequence(app.block, Work())
        await until(lambda: facts.events("start"), "the handler to start")
        async with worker_process(facts.dsn, tmp_path, lease=lease, name="other"):
            await sequence.result(timeout=60)
            await facts.all_done(1)
        assert await facts.rows("select attempt, pid from history where event = 'start'") == [(1, blocked.pid)]
        assert await facts.rows("select outcome from queuert.attempt_log") == []
        assert "the event loop has been blocked" in blocked.log
        assert "time.sleep(3 * setup.lease)" in blocked.log
