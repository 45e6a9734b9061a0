"""Retries, a signal, and what a failure looks like: its attempts, and how it runs again.

Prints:
    failed after 2 attempts: TimeoutError: the printer does not answer
    run again: printed
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Engine, Fail, Job
from queuert_py.errors import SequenceFailedError

engine = Engine()
printer = {"on": False}


class Page(BaseModel):
    text: str


class Printed(BaseModel):
    text: str


@engine.job_type("print", max_attempts=2, backoff=0)
async def print_page(job: Job[Page]) -> Printed:
    if not job.input.text:
        raise Fail("an empty page")  # at once, whatever attempts are left
    if not printer["on"]:
        raise TimeoutError("the printer does not answer")
    return Printed(text="printed")


async def main() -> None:
    async with engine, engine.worker():
        sequence = await engine.start_sequence(print_page, Page(text="hello"))
        try:
            await sequence.result(timeout=10)
        except SequenceFailedError as error:
            print(f"failed after {len(error.attempts)} attempts: {error.error['type']}: {error.error['message']}")
        printer["on"] = True
        await engine.retry_sequences([sequence.id])  # or: queuert retry ID
        print("run again:", (await sequence.result(timeout=10)).text)


if __name__ == "__main__":
    asyncio.run(main())
