"""Declaring: what the annotations of a handler make of its job type, and what is refused before it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

from pydantic import BaseModel
from typing_extensions import assert_type

from queuert_py import Continuation, InternalJobType, Job, JobType, JobTypes, continue_with, exponential


class Order(BaseModel):
    number: int


class RushOrder(Order):
    by: str = ""


class Parcel(BaseModel):
    weight: float


class Receipt(BaseModel):
    total: float


class Refusal(BaseModel):
    why: str


shop = JobTypes()
assert_type(shop, JobTypes)


# --- the shapes of an output


@shop.job_type
async def bare(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.job_type()
async def parenthesised(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.job_type("shop.named")
async def named(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.job_type("shop.nothing")
async def nothing(job: Job[Order]) -> None: ...


@shop.job_type("shop.either")
async def either(job: Job[Order]) -> Parcel | Refusal:
    return Refusal(why="closed")


@shop.job_type("shop.perhaps")
async def perhaps(job: Job[Order]) -> Parcel | None:
    return None


@shop.job_type("shop.inner", internal=True)
async def inner(job: Job[Parcel]) -> Receipt:
    return Receipt(total=job.input.weight)


@shop.job_type("shop.public", internal=False)
async def public(job: Job[Parcel]) -> Receipt:
    return Receipt(total=job.input.weight)


@shop.job_type("shop.onward")
async def onward(job: Job[Order]) -> Continuation[Receipt]:
    return continue_with(inner, Parcel(weight=2))


@shop.job_type("shop.branch")
async def branch(job: Job[Order]) -> Refusal | Continuation[Receipt]:
    if job.input.number < 0:
        return Refusal(why="negative")
    return continue_with(inner, Parcel(weight=2))


@shop.job_type("shop.branch_inner", internal=True)
async def branch_inner(job: Job[Order]) -> Refusal | Continuation[Receipt]:
    return Refusal(why="negative")


@shop.job_type("shop.branch_none")
async def branch_none(job: Job[Order]) -> None | Continuation[Receipt]:
    return None


@shop.job_type("shop.loop")
async def loop(job: Job[Order]) -> Parcel | Continuation[Parcel]:
    return continue_with(loop, Order(number=job.input.number - 1))


@shop.job_type("shop.wide_onward")
async def wide_onward(job: Job[Order]) -> Continuation[Parcel | Refusal]:
    return continue_with(either, job.input)


assert_type(bare, JobType[Order, Parcel])
assert_type(parenthesised, JobType[Order, Parcel])
assert_type(named, JobType[Order, Parcel])
assert_type(nothing, JobType[Order, None])
assert_type(either, JobType[Order, Parcel | Refusal])
assert_type(perhaps, JobType[Order, Parcel | None])
assert_type(inner, InternalJobType[Parcel, Receipt])
assert_type(public, JobType[Parcel, Receipt])
assert_type(onward, JobType[Order, Receipt])
assert_type(branch, JobType[Order, Refusal | Receipt])
assert_type(branch_inner, InternalJobType[Order, Refusal | Receipt])
assert_type(branch_none, JobType[Order, Receipt | None])
assert_type(loop, JobType[Order, Parcel])
assert_type(wide_onward, JobType[Order, Parcel | Refusal])
assert_type(bare.name, str)


# --- options


@shop.job_type(
    "shop.options",
    queue="mail",
    priority=5,
    max_attempts=None,
    backoff=exponential(timedelta(seconds=1), 60),
    timeout=timedelta(minutes=1),
    expires=3600.0,
    retry_on=(OSError, ValueError),
    no_retry_on=(KeyError,),
    max_steps=12,
)
async def with_options(job: Job[Order]) -> None: ...


@shop.job_type(max_attempts=3, backoff=lambda failed: 2.0 * failed, timeout=30)
async def with_functions(job: Job[Order]) -> None: ...


@shop.job_type("shop.fixed", internal=True, backoff=5)
async def fixed(job: Job[Order]) -> None: ...


assert_type(with_options, JobType[Order, None])
assert_type(fixed, InternalJobType[Order, None])


@shop.job_type("x1", time_out=30)  # E
async def misspelt(job: Job[Order]) -> None: ...


@shop.job_type("x2", queu="mail")  # E
async def misspelt_queue(job: Job[Order]) -> None: ...


@shop.job_type("x3", priority="high")  # E
async def worded_priority(job: Job[Order]) -> None: ...


@shop.job_type("x4", retry_on=OSError)  # E
async def no_tuple(job: Job[Order]) -> None: ...


@shop.job_type("x5", internal="yes")  # E
async def worded_internal(job: Job[Order]) -> None: ...


@shop.job_type("x6", backoff="slow")  # E
async def worded_backoff(job: Job[Order]) -> None: ...


@shop.job_type("x7", timeout="30s")  # E
async def worded_timeout(job: Job[Order]) -> None: ...


@shop.job_type(name="x8")  # E
async def name_by_keyword(job: Job[Order]) -> None: ...


# --- handlers that are none


@shop.job_type  # E
def not_async(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.job_type  # E
async def generates(job: Job[Order]) -> AsyncIterator[Parcel]:
    yield Parcel(weight=1)


@shop.job_type  # E
async def takes_nothing() -> Parcel:
    return Parcel(weight=1)


@shop.job_type  # E
async def takes_two(job: Job[Order], connection: object) -> Parcel:
    return Parcel(weight=1)


@shop.job_type  # E
async def takes_the_input(order: Order) -> Parcel:
    return Parcel(weight=1)


@shop.job_type  # E
async def returns_text(job: Job[Order]) -> str:
    return ""


@shop.job_type  # E
async def returns_model_or_number(job: Job[Order]) -> Parcel | int:
    return 1


@shop.job_type  # E
async def takes_a_dict(job: Job[dict[str, int]]) -> Parcel:  # E
    return Parcel(weight=1)


@shop.job_type("x9", internal=True)  # E
async def inner_returns_bytes(job: Job[Order]) -> bytes:
    return b""


@shop.job_type
async def returns_another(job: Job[Order]) -> Parcel:
    return Receipt(total=1)  # E


@shop.job_type
async def returns_nothing_at_times(job: Job[Order]) -> Parcel:
    if job.input.number:
        return None  # E
    return Parcel(weight=1)


@shop.job_type
async def returns_the_class(job: Job[Order]) -> Parcel:
    return Parcel  # E


# --- contract first

priced = JobType[Order, Receipt | Refusal]("shop.priced")
hidden = InternalJobType[Order, Receipt]("shop.hidden", timeout=timedelta(seconds=5))
assert_type(priced, JobType[Order, Receipt | Refusal])
assert_type(hidden, InternalJobType[Order, Receipt])
shop.add(priced, hidden)


@shop.handler(priced)
async def price(job: Job[Order]) -> Receipt:
    return Receipt(total=9)


@shop.handler(hidden)
async def hide(job: Job[Order]) -> Receipt | Continuation[Receipt]:
    return continue_with(hidden, job.input)


@shop.handler(priced)  # E
async def price_wrong_output(job: Job[Order]) -> Parcel:
    return Parcel(weight=1)


@shop.handler(priced)  # E
async def price_too_wide(job: Job[Order]) -> Receipt | Refusal | None:
    return None


@shop.handler(priced)  # E
async def price_wrong_input(job: Job[Parcel]) -> Receipt:
    return Receipt(total=1)


@shop.handler(hidden)  # E
async def hide_wrong_continuation(job: Job[Order]) -> Continuation[Parcel]:
    return continue_with(loop, job.input)


@shop.handler(hidden)  # E
def hide_not_async(job: Job[Order]) -> Receipt:
    return Receipt(total=1)


@shop.handler("shop.priced")  # E
async def price_by_name(job: Job[Order]) -> Receipt:
    return Receipt(total=1)


JobType[int, Receipt]("shop.number")  # E
JobType[Order, str]("shop.text")  # E
JobType[Order, Receipt](name="shop.keyword")  # E
JobType[Order, Receipt]("shop.misspelt", que="mail")  # E
JobType[Order, Receipt]()  # E

# --- variance: a type that takes less and returns more is not the same

takes_rush: JobType[RushOrder, Parcel] = bare
returns_more: JobType[Order, Parcel | Refusal] = bare
as_internal: InternalJobType[Order, Parcel] = bare
takes_base: JobType[Order, Parcel] = JobType[RushOrder, Parcel]("shop.rush")  # E
returns_less: JobType[Order, Parcel] = either  # E
startable: JobType[Parcel, Receipt] = inner  # E
