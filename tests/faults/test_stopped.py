"""A worker that is stopped (SIGSTOP, a paused machine) or whose event loop stands: it may overlap, it never commits late."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from queuert_py import Engine
from tests.faults import app
from tests.faults.app import Stage, Work
from tests.faults.kit import Facts, until, worker_process

LEASE = 2.0


@pytest.mark.parametrize("stage", ["before", "inside", "after", "atomic"])
async def test_a_stopped_worker_does_not_commit_late(stage: Stage, facts: Facts, producer: Engine, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with worker_process(facts.dsn, tmp_path, lease=LEASE, hold=True, gate=str(gate), name="victim") as victim:
        kind = app.whole if stage == "atomic" else app.work
        sequence = await producer.start_sequence(kind, Work(stage=stage))
        await until(lambda: facts.events("held"), "the handler to reach its stage")
        victim.signal(signal.SIGSTOP)
        gate.touch()
        async with worker_process(facts.dsn, tmp_path, lease=LEASE, name="other"):
            await sequence.result(timeout=60)
            assert await facts.rows("select outcome from queuert.attempt_log") == [("lost",)]

            victim.signal(signal.SIGCONT)

            async def noticed() -> bool:
                return "is no longer ours" in victim.log

            await until(noticed, "the victim to notice its loss")
            await facts.all_done(1)
            assert await facts.rows("select pid from effect where pid = %(pid)s", {"pid": victim.pid}) == []
        gate.touch()
        again = await producer.start_sequence(app.work, Work())
        await again.result(timeout=60)  # by the victim: it works on
        await facts.all_done(2)
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
