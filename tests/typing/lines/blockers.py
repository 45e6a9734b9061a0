"""Blockers, keys and times in the types."""
from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pydantic import BaseModel
from typing_extensions import assert_type

from queuert_py import Blocker, Continuation, Dedup, Engine, Job, JobSequence, JobType, Request, continue_with

engine = Engine("postgresql://")

class X(BaseModel): x: int
class A(BaseModel): a: int
class B(BaseModel): b: int
class Fan(BaseModel):
    cover: Blocker[A]
    pages: Sequence[Blocker[A]] = ()
    by_name: dict[str, Blocker[B]] = {}
    maybe: Blocker[A] | None = None
    either: Blocker[A | B] | None = None

@engine.job_type
async def one(job: Job[X]) -> A: return A(a=1)
@engine.job_type
async def other(job: Job[X]) -> B: return B(b=1)
@engine.job_type(on_blocker_failure="ignore")
async def fan(job: Job[Fan]) -> A:
    assert_type(job.input.cover.output, A)
    assert_type(job.input.pages[0].output, A)
    assert_type(job.input.by_name["b"].output, B)
    if job.input.either: assert_type(job.input.either.output, A | B)
    return job.input.cover.output
@engine.job_type
async def wide(job: Job[X]) -> Continuation[A]:
    return continue_with(fan, Fan(cover=await engine.start_sequence(one, X(x=1))))
@engine.job_type(on_blocker_failure="drop")  # E
async def odd(job: Job[Fan]) -> A: return A(a=1)

async def main() -> None:
    a = await engine.start_sequence(one, X(x=1), dedup=Dedup("k", scope="all", window=timedelta(hours=1)))
    b = await engine.start_sequence(other, X(x=1), dedup=Dedup.debounce("k", 5), deadline=60)
    assert_type(await engine.start_sequence(fan, Fan(cover=a, by_name={"b": b}, either=b)), JobSequence[A])

async def wrong() -> None:
    a = await engine.start_sequence(one, X(x=1))
    b = await engine.start_sequence(other, X(x=1))
    Fan(cover=b)  # E
    Fan(cover=a, pages=[a, b])  # E
    Fan(cover=a, by_name={"b": a})  # E
    Dedup("k", scope="some")  # E
    Dedup("k", on_match="drop")  # E
    await engine.start_sequence(one, X(x=1), dedup="k")  # E
    await engine.start_sequence(fan, Fan(cover=b))  # E
    await engine.start_sequence(fan, a)  # E
    await engine.start_sequence(one, X(x=1), deadline="soon")  # E
    await engine.start_sequence(one, X(x=1), expires=[1])  # E
    await engine.start_sequence(one, X(x=1), delay="5")  # E
    one(X(x=1), dedup=Dedup(5))  # E
    one(X(x=1), dedup=Dedup("k", window="1h"))  # E
    Dedup.throttle("k")  # E
    Dedup.debounce("k", "5")  # E
    continue_with(fan, Fan(cover=b))  # E
    Blocker[A]("not an id").output.b  # E
    a.outcome.upper()  # E
    Engine("postgresql://", codec="gzip")  # E
    Engine("postgresql://", codec=object())  # E

@engine.job_type(deadline="soon")  # E
async def odd_too(job: Job[Fan]) -> A: return A(a=1)
@engine.job_type
async def reads(job: Job[Fan]) -> B:
    return job.input.cover.output  # E

class Zip:
    def encode(self, data: bytes, /) -> bytes: return data
    def decode(self, data: bytes, /) -> bytes: return data

assert_type(fan, JobType[Fan, A])
assert_type(wide, JobType[X, A])
assert_type(one(X(x=1), dedup=Dedup("k", on_match="replace"), deadline=timedelta(hours=1)), Request[A])
Engine("postgresql://", codec=Zip())
