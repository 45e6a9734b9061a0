"""Contract first: types that a producer needs, apart from the handlers that only workers import.

Prints:
    Area(value=12)
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Engine, Job, JobType, JobTypes


class Rectangle(BaseModel):
    width: int
    height: int


class Area(BaseModel):
    value: int


# contracts.py: no handler, no database
measure = JobType[Rectangle, Area]("measure")

# handlers.py: a registry for workers
jobs = JobTypes()


@jobs.handler(measure)
async def run_measure(job: Job[Rectangle]) -> Area:
    return Area(value=job.input.width * job.input.height)


# main.py: an engine that mounts them
engine = Engine(None, jobs)


async def main() -> None:
    async with engine, engine.worker():
        sequence = await engine.start_sequence(measure, Rectangle(width=3, height=4))
        print(repr(await sequence.result(timeout=10)))


if __name__ == "__main__":
    asyncio.run(main())
