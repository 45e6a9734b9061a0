"""What a worker does besides running handlers: order, queues, types, prefetch, draining, stopping."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel

from queuert_py import Engine, Job
from queuert_py.errors import ConfigurationError


class Number(BaseModel):
    n: int


async def test_higher_priority_first_then_older_first(engine: Engine) -> None:
    order: list[int] = []

    @engine.job_type
    async def note(job: Job[Number]) -> None:
        order.append(job.input.n)

    await engine.start_sequences([note(Number(n=n), priority=n % 3) for n in range(9)])
    async with engine.worker(concurrency=1, drain=True):
        pass
    assert order == [2, 5, 8, 1, 4, 7, 0, 3, 6]


async def test_a_priority_that_was_not_in_use_is_found_at_once(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine.worker(poll_interval=60):
        for n in (0, 50, -50, 3):
            sequence = await engine.start_sequence(note, Number(n=n), priority=n)
            assert (await sequence.result(timeout=10)).n == n


async def test_a_job_runs_when_its_time_has_come(engine: Engine) -> None:
    @engine.job_type
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine.worker(poll_interval=60):
        later = await engine.start_sequence(note, Number(n=1), delay=0.3)
        assert (await later.result(timeout=20)).n == 1
    (ran,) = await engine.list_jobs(later.id)
    assert ran.started_at is not None
    assert ran.started_at >= ran.run_at > ran.created_at


async def test_a_worker_takes_its_queues_and_types_only(engine: Engine) -> None:
    @engine.job_type
    async def a(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type(queue="side")
    async def b(job: Job[Number]) -> Number:
        return job.input

    mine = await engine.start_sequence(a, Number(n=1))
    other_type = await engine.start_sequence(b, Number(n=2), queue="default")
    other_queue = await engine.start_sequence(a, Number(n=3), queue="side")
    async with engine.worker(queues=["default"], types=["a"], drain=True):
        pass
    assert [(await engine.get_sequence(each.id)).status for each in (mine, other_type, other_queue)] == ["completed", "pending", "pending"]
    async with engine.worker(drain=True):
        pass
    assert [(await engine.get_sequence(each.id)).status for each in (other_type, other_queue)] == ["completed", "completed"]


async def test_no_more_handlers_at_once_than_its_concurrency(engine: Engine) -> None:
    running = most = 0

    @engine.job_type
    async def note(job: Job[Number]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1

    await engine.start_sequences([note(Number(n=n)) for n in range(500)])
    async with engine.worker(concurrency=7, drain=True):
        pass
    assert (most, running) == (7, 0)
    assert {each.status for each in await engine.list_sequences(limit=1000)} == {"completed"}


async def test_two_workers_share_the_work_and_nothing_runs_twice(engine: Engine) -> None:
    ran: list[int] = []

    @engine.job_type
    async def note(job: Job[Number]) -> None:
        ran.append(job.input.n)

    await engine.start_sequences([note(Number(n=n)) for n in range(2000)])
    async with engine.worker(drain=True), engine.worker(drain=True):
        pass
    assert sorted(ran) == list(range(2000))


async def test_a_stopping_worker_lets_handlers_finish_and_gives_back_the_rest(engine: Engine) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def note(job: Job[Number]) -> None:
        started.set()
        await go_on.wait()

    sequences = await engine.start_sequences([note(Number(n=n)) for n in range(3)])
    worker = await engine.worker(concurrency=1).start()
    await started.wait()
    stopping = asyncio.create_task(worker.stop())
    while not worker.shutting_down:
        await asyncio.sleep(0)
    go_on.set()
    await stopping
    jobs = [(await engine.list_jobs(each.id))[0] for each in sequences]
    assert [(job.status, job.attempt) for job in jobs] == [("completed", 1), ("pending", 0), ("pending", 0)]


async def test_a_worker_starts_once_and_needs_a_handler(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="no job type to run"):
        await engine.worker().start()

    @engine.job_type
    async def note(job: Job[Number]) -> None: ...

    async with engine.worker() as worker:
        with pytest.raises(ConfigurationError, match="started already"):
            await worker.start()


async def test_a_batch_with_one_row_the_database_refuses_fails_that_job_alone(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def note(job: Job[Number]) -> Number:
        return job.input

    async with engine:
        async with engine.database.connection() as connection:
            await connection.execute("alter table queuert.finished_job add constraint odd check (output ->> 'n' <> '13')")
        try:
            await engine.start_sequences([note(Number(n=n)) for n in range(30)])
            async with engine.worker(drain=True):
                pass
            ended = {each.input["n"]: each.status for each in await engine.list_sequences()}
            assert ended == {n: "failed" if n == 13 else "completed" for n in range(30)}
        finally:
            async with engine.database.connection() as connection:
                await connection.execute("alter table queuert.finished_job drop constraint odd")
