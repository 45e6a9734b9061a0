"""A handler that starts its successor under its own key: when it has the key again, and when the key was never free."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Continuation, Dedup, Engine, Job, JobSequence, continue_with
from queuert_py.errors import DuplicateKeyError

TIMEOUT = 20


class Number(BaseModel):
    n: int = 0


@pytest.mark.parametrize("ends", [True, False])
async def test_a_batch_that_is_refused_takes_no_key_away(engine: Engine, ends: bool) -> None:
    gate, at_second = asyncio.Event(), asyncio.Event()

    @engine.job_type(internal=True)
    async def second(job: Job[Number]) -> Number:
        at_second.set()
        await gate.wait()
        return job.input

    @engine.job_type
    async def tick(job: Job[Number]) -> Number | Continuation[Number]:
        async with job.finalize() as tx:
            successor, refused = tick(Number(n=1), key="own"), tick(Number(n=2), dedup=Dedup("held", on_match="raise"))
            with pytest.raises(DuplicateKeyError):
                await engine.start_sequences([successor, refused], tx=tx)
            return job.input if ends else continue_with(second, Number(n=3))

    async with engine:
        await engine.start_sequence(tick, Number(), key="held", delay=3600)
        async with engine.worker():
            sequence: JobSequence[Any] = await engine.start_sequence(tick, Number(), key="own")
            if not ends:
                await at_second.wait()
                assert (await engine.start_sequence(tick, Number(), key="own")).id == sequence.id, "it is unfinished, and has the key"
            gate.set()
            await sequence.result(timeout=TIMEOUT)
            assert (await engine.get_sequence(sequence.id)).key == "own"
            assert (await engine.start_sequence(tick, Number(), dedup=Dedup("own", scope="all"))).id == sequence.id


async def test_a_successor_whose_savepoint_was_rolled_back_is_none(engine: Engine) -> None:
    @engine.job_type(internal=True)
    async def second(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def tick(job: Job[Number]) -> Continuation[Number]:
        async with job.finalize() as tx:
            with contextlib.suppress(ValueError):
                async with tx.transaction():
                    await engine.start_sequence(tick, Number(n=1), key="own", tx=tx)
                    raise ValueError("not this one")
            return continue_with(second, Number(n=2))

    async with engine, engine.worker():
        sequence = await engine.start_sequence(tick, Number(), key="own")
        assert await sequence.result(timeout=TIMEOUT) == Number(n=2)
        assert [(each.id, each.key) for each in await engine.list_sequences()] == [(sequence.id, "own")]


async def test_a_successor_of_a_finalize_that_was_left_by_an_error_is_none(engine: Engine) -> None:
    @engine.job_type(internal=True)
    async def second(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def tick(job: Job[Number]) -> Continuation[Number]:
        with contextlib.suppress(ValueError):
            async with job.finalize() as tx:
                await engine.start_sequence(tick, Number(n=1), key="own", tx=tx)
                raise ValueError("not this one")
        async with job.finalize():
            pass
        return continue_with(second, Number(n=2))

    async with engine, engine.worker():
        sequence = await engine.start_sequence(tick, Number(), key="own")
        assert await sequence.result(timeout=TIMEOUT) == Number(n=2)


@pytest.mark.parametrize("dedup", [Dedup("own", scope="all"), Dedup.throttle("own", 3600)])
async def test_where_finished_ones_count_a_handler_meets_itself(engine: Engine, dedup: Dedup) -> None:
    met: list[bool] = []

    @engine.job_type
    async def tick(job: Job[Number]) -> Number:
        async with job.finalize() as tx:
            again = await engine.start_sequence(tick, Number(n=1), dedup=dedup, tx=tx)
            met.append(again.id == job.sequence_id and again.deduplicated)
            return job.input

    async with engine, engine.worker(drain=True):
        await engine.start_sequence(tick, Number(), dedup=dedup)
    assert met == [True]


async def test_a_throttled_successor_starts_when_the_window_of_its_predecessor_is_over(
    engine: Engine, db: psycopg.AsyncConnection[Any]
) -> None:
    runs: list[int] = []

    @engine.job_type
    async def tick(job: Job[Number]) -> Number:
        runs.append(job.input.n)
        async with job.finalize() as tx:
            await engine.start_sequence(tick, Number(n=job.input.n + 1), dedup=Dedup.throttle("own", 60), tx=tx)
            return job.input

    async with engine:
        await engine.start_sequence(tick, Number(), dedup=Dedup.throttle("own", 60))
        await db.execute("update queuert.live_job set sequence_created_at = sequence_created_at - interval '61 seconds'")
        async with engine.worker(drain=True):
            pass
    assert runs == [0, 1]
