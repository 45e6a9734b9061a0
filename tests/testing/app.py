"""What a user tests here: a sequence of three steps, declared in registries and on an engine of its own."""

from __future__ import annotations

from pydantic import BaseModel

from queuert_py import Continuation, Engine, Job, JobTypes, continue_with

jobs = JobTypes()
engine = Engine("postgresql://nowhere.invalid/production", jobs)


class Order(BaseModel):
    item: str


class Parcel(BaseModel):
    item: str
    weight: int = 1


class Receipt(BaseModel):
    text: str


@jobs.job_type
async def order(job: Job[Order]) -> Continuation[Receipt]:
    return continue_with(pack, job.input)


@jobs.job_type(internal=True)
async def pack(job: Job[Order]) -> Continuation[Receipt]:
    return continue_with(send, Parcel(item=job.input.item))


@jobs.job_type(internal=True)
async def send(job: Job[Parcel]) -> Receipt:
    return Receipt(text=f"{job.input.item} is on its way")


async def buy(item: str) -> str:
    """Code of the application that uses its engine by its name."""
    sequence = await engine.start_sequence(order, Order(item=item))
    return str(sequence.id)
