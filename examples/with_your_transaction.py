"""tx=: the sequence exists if and only if the caller's own transaction commits.

Prints:
    rolled back: 0 orders, 0 sequences
    committed: 1 orders, 1 sequences
"""

import asyncio
import os

import psycopg
from pydantic import BaseModel

from queuert_py import Engine, Job

engine = Engine()


class Order(BaseModel):
    id: int


@engine.job_type
async def ship(job: Job[Order]) -> None: ...


async def main() -> None:
    async with engine, await psycopg.AsyncConnection.connect(os.environ["QUEUERT_DSN"], autocommit=True) as connection:
        await connection.execute("create table orders (id int primary key)")
        for how in ("rolled back", "committed"):
            async with connection.transaction(force_rollback=how == "rolled back"):
                await connection.execute("insert into orders values (1)")
                await engine.start_sequence(ship, Order(id=1), tx=connection)
            row = await (await connection.execute("select count(*) from orders")).fetchone()
            assert row is not None
            print(f"{how}: {row[0]} orders, {len(await engine.list_sequences(type='ship'))} sequences")


if __name__ == "__main__":
    asyncio.run(main())
