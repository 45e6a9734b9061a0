"""A job that nobody runs: a person decides, through a webhook, exactly once.

Prints:
    order 40: Shipped(parcel='parcel of 40')
    order 900: Rejected(by='Ada')
    order 5000: left open, it needs two signatures
    a second click: it is completed
"""

import asyncio
from uuid import UUID

from pydantic import BaseModel

from queuert_py import Continuation, Engine, InternalJobType, Job, continue_with
from queuert_py.control import Declined, OpenJob
from queuert_py.errors import SequenceEndedError

engine = Engine()


class Order(BaseModel):
    amount: int


class Shipped(BaseModel):
    parcel: str


class Rejected(BaseModel):
    by: str


approval = InternalJobType[Order, Shipped | Rejected]("approval")
engine.add(approval)  # declared, without a handler: it waits until somebody completes it


@engine.job_type(internal=True)
async def ship(job: Job[Order]) -> Shipped:
    return Shipped(parcel=f"parcel of {job.input.amount}")


@engine.job_type
async def order(job: Job[Order]) -> Continuation[Shipped | Rejected]:
    return continue_with(approval, job.input)


async def webhook(sequence_id: UUID, *, by: str, yes: bool) -> bool:
    """A person has clicked. False: the order needs more than one."""

    async def decide(job: OpenJob[Order]) -> Rejected | Continuation[Shipped] | Declined:
        if job.input.amount > 1000:
            return job.decline()
        return continue_with(ship, job.input) if yes else Rejected(by=by)

    return await engine.complete_sequence(sequence_id, decide, job_type=approval)


async def main() -> None:
    small, middle, large = await engine.start_sequences([order(Order(amount=amount)) for amount in (40, 900, 5000)])
    async with engine.worker(drain=True):
        pass  # all three now wait for a person
    await webhook(small.id, by="Ada", yes=True)
    await webhook(middle.id, by="Ada", yes=False)
    async with engine.worker():
        print("order 40:", repr(await small.result(timeout=10)))
        print("order 900:", repr(await middle.result(timeout=10)))
    if not await webhook(large.id, by="Ada", yes=True):
        print("order 5000: left open, it needs two signatures")
    try:
        await webhook(middle.id, by="Bob", yes=True)
    except SequenceEndedError as error:
        print("a second click: it is", error.status)
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
