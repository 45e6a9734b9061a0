"""Sequences as function calls: run in this process, by it alone, and stored all the same; then many of them, a few at a time.

Prints:
    12 words
    [12, 3, 'SequenceFailedError']
    stopped: 1 counted, 1 failed, 2 not started
"""

import asyncio

from pydantic import BaseModel

from queuert_py import Engine, Job
from queuert_py.errors import MapStoppedError

engine = Engine()


class Page(BaseModel):
    text: str


class Words(BaseModel):
    count: int


@engine.job_type(max_attempts=1)
async def count(job: Job[Page]) -> Words:
    if not job.input.text:
        raise ValueError("an empty page")
    return Words(count=len(job.input.text.split()))


async def main() -> None:
    pages = [Page(text="word " * 12), Page(text="one two three"), Page(text="")]
    async with engine:  # no worker; with one that serves everything it would run there
        print((await engine.run(count, pages[0])).count, "words")

        results = await engine.map(count, pages, concurrency=2)
        print([each.count if isinstance(each, Words) else type(each).__name__ for each in results])

        try:
            await engine.map(count, [pages[0], pages[2], *pages[:2]], concurrency=1, stop_on_error=True)
        except MapStoppedError as error:
            print(f"stopped: {len(error.results)} counted, {len(error.errors)} failed, {len(error.not_started)} not started")


if __name__ == "__main__":
    asyncio.run(main())
