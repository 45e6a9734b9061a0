"""Failed sequences that waited for others run again: what they wait for then, and what one of many that cannot does to the rest."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Engine, Job, JobSequence
from queuert_py.errors import SequenceFailedError
from tests.engine.kit import Number


class Parts(BaseModel):
    of: list[Blocker[Number]] = []


class Plant:
    """Parts that fail as long as it is off, and wholes that fail with them; `built`: of how many parts."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.on = False
        self.built: list[int] = []

        @engine.job_type(max_attempts=1)
        async def part(job: Job[Number]) -> Number:
            if not self.on:
                raise ValueError("broken")
            return job.input

        @engine.job_type(max_attempts=1, on_blocker_failure="fail")
        async def whole(job: Job[Parts]) -> Number:
            if not self.on:
                raise ValueError("broken")
            self.built.append(len(job.input.of))
            return Number(n=sum(each.output.n for each in job.input.of))

        @engine.job_type(max_attempts=1, on_blocker_failure="fail")
        async def waiting(job: Job[Parts]) -> Number:
            parts = await job.wait_for(job.input.of)
            self.built.append(len(parts))
            return Number(n=len(parts))

        self.part, self.whole, self.waiting = part, whole, waiting

    async def failed(self, sequence: JobSequence[Number]) -> JobSequence[Number]:
        await self.drain()
        with pytest.raises(SequenceFailedError):
            await sequence.result(timeout=10)
        return sequence

    async def drain(self) -> None:
        async with self.engine.worker(drain=True):
            pass


@pytest.fixture
def plant(engine: Engine) -> Plant:
    return Plant(engine)


async def test_one_that_falls_out_is_not_waited_for_as_if_it_ran(engine: Engine, plant: Plant) -> None:
    part = await plant.failed(await engine.start_sequence(plant.part, Number(n=1), key="k"))
    whole = await plant.failed(await engine.start_sequence(plant.whole, Parts(of=[part])))
    top = await plant.failed(await engine.start_sequence(plant.whole, Parts(of=[whole])))
    await engine.start_sequence(plant.part, Number(n=2), key="k", delay=3600)
    plant.on = True
    answers = await engine.retry_sequences([top.id, whole.id, part.id])
    assert answers == {top.id: "retried", whole.id: "retried", part.id: "key_taken"}
    await plant.drain()
    for each in (whole, top):  # by the policy of both, for the part has failed
        assert (await engine.get_sequence(each.id)).reason == "blocker_failed"
        assert [entry.outcome for entry in await engine.list_attempts(each.id)] == ["failed", "retried", "failed"]
    assert plant.built == []


async def test_one_whose_blocker_is_gone_does_not_keep_the_others_from_running(engine: Engine, plant: Plant) -> None:
    part = await plant.failed(await engine.start_sequence(plant.part, Number(n=1)))
    orphan = await plant.failed(await engine.start_sequence(plant.whole, Parts(of=[part])))
    other = await plant.failed(await engine.start_sequence(plant.whole, Parts()))
    assert await engine.clear_failed(type="part") == {part.id: "deleted"}
    plant.on = True
    assert await engine.retry_sequences(type="whole") == {orphan.id: "blocker_gone", other.id: "retried"}
    await plant.drain()
    assert (await other.result(timeout=10)).n == 0
    assert (await engine.get_sequence(orphan.id)).status == "failed"
    assert await engine.retry_sequences([orphan.id], new_input=Parts()) == {orphan.id: "retried"}
    await plant.drain()
    assert (await orphan.result(timeout=10)).n == 0


@pytest.mark.parametrize("kind", ["whole", "waiting"])
async def test_a_new_input_without_the_blocker_that_failed_does_not_wait_for_it(engine: Engine, plant: Plant, kind: str) -> None:
    plant.on = True
    good = await engine.start_sequence(plant.part, Number(n=7))
    await plant.drain()
    plant.on = False
    bad = await plant.failed(await engine.start_sequence(plant.part, Number(n=1)))
    job_type = plant.whole if kind == "whole" else plant.waiting
    sequence = await plant.failed(await engine.start_sequence(job_type, Parts(of=[good, bad])))
    plant.on = True
    assert await engine.retry_sequences([sequence.id], new_input=Parts(of=[Blocker(good.id)])) == {sequence.id: "retried"}
    await plant.drain()
    await sequence.result(timeout=10)
    assert plant.built == [1]
    assert [link.id for link in await engine.list_blockers(sequence.id)] == [good.id]
