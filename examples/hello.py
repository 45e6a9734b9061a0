"""One job: started, run by a worker in this process, its result awaited.

Prints:
    hello Ada
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Engine, Job

engine = Engine()  # the DSN in QUEUERT_DSN; Engine.embedded() needs no server


class Name(BaseModel):
    name: str


class Greeting(BaseModel):
    text: str


@engine.job_type
async def greet(job: Job[Name]) -> Greeting:
    return Greeting(text=f"hello {job.input.name}")


async def main() -> None:
    async with engine, engine.worker():
        sequence = await engine.start_sequence(greet, Name(name="Ada"))
        print((await sequence.result(timeout=10)).text)


if __name__ == "__main__":
    asyncio.run(main())
