"""key=: at most one unfinished sequence of a type has it. start_sequences: any number at once, first of a key wins.

Prints:
    10000 started, 10000 ids
    True: the second start found the first
    3 requests, 2 sequences
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Engine, Job

engine = Engine()


class User(BaseModel):
    id: int


@engine.job_type
async def sync_user(job: Job[User]) -> None: ...


async def main() -> None:
    async with engine:
        started = await engine.start_sequences([sync_user(User(id=n)) for n in range(10_000)])
        print(f"{len(started)} started, {len({each.id for each in started})} ids")
        first = await engine.start_sequence(sync_user, User(id=1), key="user-1")
        second = await engine.start_sequence(sync_user, User(id=1), key="user-1", delay=60)
        print(f"{second.deduplicated and first.id == second.id}: the second start found the first")
        batch = await engine.start_sequences([sync_user(User(id=n), key=f"user-{n % 2 + 2}") for n in range(3)])
        print(f"{len(batch)} requests, {len({each.id for each in batch})} sequences")


if __name__ == "__main__":
    asyncio.run(main())
