"""A serverless function, or a cron job: one round of work each time it is called, as long as its budget lasts. No worker runs anywhere.

Prints:
    {'claimed': 4, 'available': 3, 'completed': 4}
    {'claimed': 3, 'available': 0, 'completed': 3}
    {'claimed': 0, 'available': 0}
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Engine, Job

engine = Engine()  # through PgBouncer in transaction mode: Engine(pooler=True)


class Mail(BaseModel):
    to: str


@engine.job_type
async def send(job: Job[Mail]) -> None:
    """Sends a mail."""


async def handler() -> dict[str, int]:
    """What the platform calls: it may freeze or end the process afterwards, so nothing stays open."""
    async with engine:
        done = await engine.run_once(limit=4, budget=20)  # seconds: less than the platform's own limit
    return {"claimed": done.claimed, "available": done.available, **done.outcomes}


async def main() -> None:
    async with engine:
        await engine.start_sequences([send(Mail(to=f"{n}@example.org")) for n in range(7)])
    for _ in range(3):
        print(await handler())


if __name__ == "__main__":
    asyncio.run(main())
