"""A limit of N is N at once: as many from the beginning, another as soon as one ends, never more."""

from __future__ import annotations

import asyncio
from typing import Any

from queuert_py import Engine, Job
from tests.defects.kit import TIMEOUT, Number

LIMIT, COUNT = 3, 12


class Course:
    """Handlers that run until they are let go, one by one."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.most = 0
        self._begun: asyncio.Queue[int] = asyncio.Queue()
        self._ends = {n: asyncio.Event() for n in range(COUNT)}

    async def handle(self, job: Job[Number]) -> Number:
        self.running.add(job.input.n)
        self.most = max(self.most, len(self.running))
        self._begun.put_nowait(job.input.n)
        await self._ends[job.input.n].wait()
        self.running.discard(job.input.n)
        return job.input

    async def run(self) -> None:
        """Whenever `LIMIT` have begun, let the latest of them go: the older ones run on, and yet another has to begin."""
        async with asyncio.timeout(TIMEOUT):
            begun = [await self._begun.get() for _ in range(LIMIT)]
            for _ in range(COUNT - LIMIT):
                assert len(self.running) == LIMIT
                self._ends[begun.pop()].set()
                begun.append(await self._begun.get())
        for end in self._ends.values():
            end.set()


async def run_beside(course: Course, work: asyncio.Task[Any]) -> None:
    try:
        await course.run()
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    assert (course.most, course.running) == (LIMIT, set())


async def test_a_workers_concurrency_is_not_a_batch_size(engine: Engine) -> None:
    """zeke: a limit of N took N jobs, ran them one after the other or waited for all of them, and only then took the next."""
    course = Course()
    note = engine.job_type("note")(course.handle)
    await engine.start_sequences([note(Number(n=n)) for n in range(COUNT)])

    async def work() -> None:
        async with engine.worker(concurrency=LIMIT, drain=True, shutdown_timeout=0):
            pass

    await run_beside(course, asyncio.create_task(work()))


async def test_the_concurrency_of_map_is_not_a_batch_size(engine: Engine) -> None:
    """zeke: as for workers."""
    course = Course()
    note = engine.job_type("note")(course.handle)
    async with engine:
        await run_beside(course, asyncio.create_task(engine.map(note, [Number(n=n) for n in range(COUNT)], concurrency=LIMIT)))
