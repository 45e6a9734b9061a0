"""A sequence that branches and loops: each step returns an output, or the next job.

Prints:
    6 took 8 steps to 1
    -3 rejected: not positive
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, continue_with

engine = Engine()


class Number(BaseModel):
    n: int
    steps: int = 0


class One(BaseModel):
    steps: int


class Rejected(BaseModel):
    reason: str


@engine.job_type("walk", internal=True)
async def walk(job: Job[Number]) -> One | Continuation[One]:
    n, steps = job.input.n, job.input.steps
    if n == 1:
        return One(steps=steps)
    return continue_with(walk, Number(n=n // 2 if n % 2 == 0 else 3 * n + 1, steps=steps + 1))


@engine.job_type("collatz")
async def collatz(job: Job[Number]) -> Rejected | Continuation[One]:
    if job.input.n < 1:
        return Rejected(reason="not positive")
    return continue_with(walk, job.input)


async def main() -> None:
    async with engine, engine.worker():
        for n in (6, -3):
            sequence = await engine.start_sequence(collatz, Number(n=n))
            match await sequence.result(timeout=10):
                case One(steps=steps):
                    print(f"{n} took {steps} steps to 1")
                case Rejected(reason=reason):
                    print(f"{n} rejected: {reason}")


if __name__ == "__main__":
    asyncio.run(main())
