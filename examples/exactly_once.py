"""finalize: what the handler writes commits with the job's completion. The first attempt fails after its write, so that is rolled back.

Prints:
    transferred 30 on attempt 2
    Ada 70, Bob 30
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Engine, Job

engine = Engine()


class Transfer(BaseModel):
    cents: int


class Done(BaseModel):
    cents: int
    attempt: int


@engine.job_type("transfer", backoff=0)
async def transfer(job: Job[Transfer]) -> Done:
    async with job.finalize() as tx:
        await tx.execute("update purse set cents = cents - %s where owner = 'Ada'", [job.input.cents])
        if job.attempt == 1:
            raise ConnectionError("the line broke half-way")
        await tx.execute("update purse set cents = cents + %s where owner = 'Bob'", [job.input.cents])
        return Done(cents=job.input.cents, attempt=job.attempt)


@engine.job_type("open_purses")
async def open_purses(job: Job[Transfer]) -> None:
    async with job.finalize() as tx:
        await tx.execute("create table purse (owner text primary key, cents int not null)")
        await tx.execute("insert into purse values ('Ada', 100), ('Bob', 0)")


class Purses(BaseModel):
    text: str


@engine.job_type("count_purses")
async def count_purses(job: Job[Transfer]) -> Purses:
    async with job.atomic() as tx:
        rows = await (await tx.execute("select owner, cents from purse order by owner")).fetchall()
        return Purses(text=", ".join(f"{row[0]} {row[1]}" for row in rows))


async def main() -> None:
    async with engine, engine.worker():
        await (await engine.start_sequence(open_purses, Transfer(cents=0))).result(timeout=10)
        done = await (await engine.start_sequence(transfer, Transfer(cents=30))).result(timeout=10)
        print(f"transferred {done.cents} on attempt {done.attempt}")
        print((await (await engine.start_sequence(count_purses, Transfer(cents=0))).result(timeout=10)).text)


if __name__ == "__main__":
    asyncio.run(main())
