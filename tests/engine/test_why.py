"""Why a sequence stands where it stands: each reason by its name, and behind a block the root of it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Engine, Fail, Job, JobSequence, JobType, Worker
from queuert_py.errors import QueuertError, SequenceNotFoundError

Connection = psycopg.AsyncConnection[Any]


class Number(BaseModel):
    n: int = 0


class Chain(BaseModel):
    after: list[Blocker[Number]]


@pytest.fixture
def echo(engine: Engine) -> JobType[Number, Number]:
    @engine.job_type
    async def echo(job: Job[Number]) -> Number:
        return job.input

    return echo


@pytest.fixture
def fail(engine: Engine) -> JobType[Number, Number]:
    @engine.job_type
    async def fail(job: Job[Number]) -> Number:
        raise Fail("the oven is cold")

    return fail


@pytest.fixture
def chain(engine: Engine) -> JobType[Chain, Number]:
    @engine.job_type
    async def chain(job: Job[Chain]) -> Number:
        return Number()

    return chain


async def ran(engine: Engine) -> None:
    async with engine.worker(drain=True):
        pass


async def says(engine: Engine, sequence: JobSequence[Any]) -> tuple[str, str]:
    found = await engine.why(sequence.id)
    assert found.sequence_id == sequence.id
    assert str(found) == found.sentence
    return found.code, found.sentence


# --- ended, running


async def test_it_has_ended(engine: Engine, echo: JobType[Number, Number], fail: JobType[Number, Number]) -> None:
    done, failed = await engine.start_sequence(echo, Number()), await engine.start_sequence(fail, Number())
    cancelled = await engine.start_sequence(echo, Number(), delay=60)
    await engine.cancel_sequences([cancelled.id])
    await ran(engine)
    code, sentence = await says(engine, done)
    assert (code, sentence[:12]) == ("completed", "it completed")
    code, sentence = await says(engine, failed)
    assert code == "failed"
    assert "(fail)" in sentence
    assert "the oven is cold" in sentence
    assert (await says(engine, cancelled))[0] == "cancelled"
    with pytest.raises(SequenceNotFoundError):
        await engine.why(uuid4())


async def test_it_runs_and_where(engine: Engine, db: Connection) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def slow(job: Job[Number]) -> Number:
        begun.set()
        await go_on.wait()
        return job.input

    sequence = await engine.start_sequence(slow, Number())
    async with engine.worker(name="oven") as worker:
        async with asyncio.timeout(10):
            await begun.wait()
        why = await engine.why(sequence.id)
        assert (why.code, why.facts["worker"], why.facts["attempt"]) == ("running", worker.id, 1)
        assert worker.id in why.sentence
        go_on.set()
        await sequence.result(timeout=10)


@pytest.mark.usefixtures("claims_ahead")
async def test_a_worker_has_taken_it_and_not_begun(engine: Engine, db: Connection) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def hold(job: Job[Number]) -> Number:
        begun.set()
        await go_on.wait()
        return job.input

    first = await engine.start_sequence(hold, Number(n=1))
    async with engine.worker(concurrency=2) as worker:
        await begun.wait()
        ahead = await engine.start_sequences([hold(Number(n=n), priority=-n) for n in range(2, 4)])
        while not worker.waiting:
            await asyncio.sleep(0)
        why = await engine.why(ahead[1].id)
        assert (why.code, why.facts["worker"]) == ("claimed", worker.id)
        assert "waits for a slot there" in why.sentence
        await db.execute("update queuert.live_job set crash_count = 3 where sequence_id = %s", [ahead[1].id])
        assert "waits to run alone there, since workers have died 3 times" in (await engine.why(ahead[1].id)).sentence
        assert (await engine.why(first.id)).code == "running"
        go_on.set()


async def test_its_worker_is_silent(engine: Engine, echo: JobType[Number, Number], db: Connection) -> None:
    sequence = await engine.start_sequence(echo, Number())
    await db.execute("update queuert.live_job set leased_by = 'gone', leased_at = now(), leased_until = clock_timestamp() - interval '1 s'")
    code, sentence = await says(engine, sequence)
    assert code == "lost"
    assert "gone is silent" in sentence


# --- time


async def test_its_time_has_not_come(engine: Engine, echo: JobType[Number, Number]) -> None:
    sequence = await engine.start_sequence(echo, Number(), delay=3600, expires=7200)
    why = await engine.why(sequence.id)
    record = await engine.get_sequence(sequence.id)
    assert (why.code, why.facts["until"]) == ("scheduled", record.run_at)
    assert "expires_at" in why.facts
    assert f"{record.run_at:%H:%M:%S}" in why.sentence


async def test_it_is_too_late_or_will_be(engine: Engine, echo: JobType[Number, Number], db: Connection) -> None:
    late = await engine.start_sequence(echo, Number(), expires=60)
    over = await engine.start_sequence(echo, Number(), delay=30, deadline=60)
    never = await engine.start_sequence(echo, Number(), delay=7200, expires=3600)
    await db.execute("update queuert.live_job set expires_at = now() - interval '1 s' where sequence_id = %s", [late.id])
    await db.execute("update queuert.live_job set deadline_at = now() - interval '1 s' where sequence_id = %s", [over.id])
    code, sentence = await says(engine, late)
    assert code == "doomed"
    assert "it is too late: its expiry (" in sentence
    code, sentence = await says(engine, over)
    assert code == "doomed"
    assert "its deadline (" in sentence
    code, sentence = await says(engine, never)
    assert code == "scheduled"
    assert "It will not come to that: its expiry (" in sentence


async def test_a_long_error_is_cut_in_the_sentence_and_whole_in_the_facts(engine: Engine) -> None:
    @engine.job_type(max_attempts=1)
    async def loud(job: Job[Number]) -> Number:
        raise ValueError("no " * 4000)

    sequence = await engine.start_sequence(loud, Number())
    await ran(engine)
    why = await engine.why(sequence.id)
    assert len(why.sentence) < 500
    assert len(why.facts["error"]["message"]) > 1000


async def test_it_waits_for_its_next_attempt_with_the_error_of_the_last(engine: Engine) -> None:
    @engine.job_type(backoff=3600)
    async def flaky(job: Job[Number]) -> Number:
        raise ConnectionError("the bank does not answer")

    sequence = await engine.start_sequence(flaky, Number())
    await ran(engine)
    why = await engine.why(sequence.id)
    assert (why.code, why.facts["attempt"]) == ("retrying", 1)
    assert "ConnectionError: the bank does not answer" in why.sentence


async def test_it_sleeps_or_waits_for_an_event(engine: Engine) -> None:
    @engine.job_type
    async def sleep(job: Job[Number]) -> Number:
        await job.sleep(3600, name="cooling")
        return job.input

    @engine.job_type
    async def approve(job: Job[Number]) -> Number:
        await job.wait_for_event("approved", timeout=3600 if job.input.n else None)
        return job.input

    sleeping = await engine.start_sequence(sleep, Number())
    waiting = await engine.start_sequence(approve, Number(n=1))
    for_ever = await engine.start_sequence(approve, Number(n=0))
    await ran(engine)
    code, sentence = await says(engine, sleeping)
    assert code == "sleeping"
    assert "cooling" in sentence
    code, sentence = await says(engine, waiting)
    assert code == "waiting_for_event"
    assert "'approved', until" in sentence
    why = await engine.why(for_ever.id)
    assert (why.code, why.facts["until"]) == ("waiting_for_event", None)


# --- nobody takes it


async def test_nobody_takes_it_and_why_not(
    engine: Engine, echo: JobType[Number, Number], fail: JobType[Number, Number], db: Connection, dsn: str
) -> None:
    sequence = await engine.start_sequence(echo, Number())
    assert await says(engine, sequence) == ("no_worker", "no worker is running: `queuert worker module:engine` starts one.")
    async with engine.worker(queues=["elsewhere"]):
        code, sentence = await says(engine, sequence)
        assert code == "unserved_queue"
        assert "'default'" in sentence
    async with engine.worker(types=["fail"]):
        code, sentence = await says(engine, sequence)
        assert code == "unserved_type"
        assert "'echo'" in sentence
        await db.execute("update queuert.live_job set type = 'baked'")
        assert (await says(engine, sequence))[0] == "unknown_type"
        async with Engine(dsn) as stranger:
            assert (await says(stranger, sequence))[0] == "unserved_type", "an engine without job types cannot know"
        await db.execute("update queuert.live_job set type = 'echo'")
    await db.execute("insert into queuert.queue (name, paused) values ('default', true)")
    async with engine.worker():
        assert await says(engine, sequence) == ("paused", "its queue 'default' is paused.")


async def test_every_worker_is_full_or_one_is_free(engine: Engine, echo: JobType[Number, Number], db: Connection) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def slow(job: Job[Number]) -> Number:
        begun.set()
        await go_on.wait()
        return job.input

    async def held(worker: Worker) -> int:
        cursor = await db.execute("select count(*)::int from queuert.live_job where leased_by = %s", [worker.id])
        row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async with engine.worker(concurrency=1, types=["slow"]) as worker:
        await engine.start_sequences([slow(Number()) for _ in range(50)])
        async with asyncio.timeout(10):
            await begun.wait()
            while await held(worker) < 1:
                await asyncio.sleep(0.01)
        waiting = list(await engine.list_sequences(status="pending", limit=100))
        why = await engine.why(waiting[0].id)
        assert (why.code, why.facts["workers"]) == ("busy", [worker.id])
        go_on.set()
        await engine.wait_all([engine.sequence(slow, each.id) for each in waiting], timeout=10)
        sequence = await engine.start_sequence(slow, Number(), delay=3600)
        await db.execute("update queuert.live_job set run_at = clock_timestamp() - interval '1 s'")
        why = await engine.why(sequence.id)
        assert why.code in ("ready", "running", "completed")


# --- blocked


async def test_a_block_names_its_causes_and_their_root(
    engine: Engine, echo: JobType[Number, Number], fail: JobType[Number, Number], chain: JobType[Chain, Number]
) -> None:
    failed = await engine.start_sequence(fail, Number())
    done = await engine.start_sequence(echo, Number())
    late = await engine.start_sequence(echo, Number(), delay=3600)
    middle = await engine.start_sequence(chain, Chain(after=[failed, done]))
    top = await engine.start_sequence(chain, Chain(after=[middle, late]))
    await ran(engine)
    why = await engine.why(top.id)
    assert (why.code, why.facts["blockers"]) == ("blocked", 2)
    assert {(each.sequence_id, each.code) for each in why.causes} == {(middle.id, "blocked"), (late.id, "scheduled")}
    assert {(each.sequence_id, each.code) for each in why.roots} == {(failed.id, "failed"), (late.id, "scheduled")}
    assert str(middle.id) in why.sentence
    assert f"At the root: {failed.id} (fail)" in why.sentence
    assert "the oven is cold" in why.sentence
    assert why.sentence.endswith(f"`queuert retry {failed.id}` runs what has failed again.")
    direct = await engine.why(middle.id)
    assert [each.sequence_id for each in direct.causes] == [failed.id], "what has completed is no cause"


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_behind_what_never_runs_again_the_way_out_is_named(
    engine: Engine, echo: JobType[Number, Number], fail: JobType[Number, Number], chain: JobType[Chain, Number], how: str
) -> None:
    way_out = "never runs again: cancel or complete the sequence that waits for it."
    gone = await engine.start_sequence(echo, Number(), delay=3600, expires=0.001 if how == "expired" else None)
    failed = await engine.start_sequence(fail, Number())
    middle = await engine.start_sequence(chain, Chain(after=[gone]))
    top = await engine.start_sequence(chain, Chain(after=[middle]))
    other = await engine.start_sequence(chain, Chain(after=[failed]))
    if how == "cancelled":
        await engine.cancel_sequences([gone.id])
    async with engine.worker(types=["fail"]):
        with pytest.raises(QueuertError, match=how):
            await gone.result(timeout=10)
    for each in (middle, top):
        code, sentence = await says(engine, each)
        assert code == "blocked"
        assert sentence.endswith(way_out)
    assert way_out not in (await says(engine, other))[1], "a failed one may be retried"
    assert await engine.complete_sequence(middle.id, Number(n=1))
    assert (await engine.why(top.id)).code != "blocked"


async def test_a_long_chain_is_followed_to_its_end(engine: Engine, echo: JobType[Number, Number], chain: JobType[Chain, Number]) -> None:
    first = await engine.start_sequence(echo, Number(), delay=3600)
    last: JobSequence[Number] = first
    for _ in range(12):
        last = await engine.start_sequence(chain, Chain(after=[last]))
    assert [each.sequence_id for each in (await engine.why(last.id)).roots] == [first.id]


async def test_what_is_doomed_says_so(engine: Engine, fail: JobType[Number, Number]) -> None:
    @engine.job_type(on_blocker_failure="fail", queue="later")
    async def strict(job: Job[Chain]) -> Number:
        return Number()

    blocker = await engine.start_sequence(fail, Number())
    waiting = await engine.start_sequence(strict, Chain(after=[blocker]))
    async with engine.worker(types=["fail"]):
        with pytest.raises(Exception, match="the oven is cold"):
            await blocker.result(timeout=10)
    code, sentence = await says(engine, waiting)
    assert code == "doomed"
    assert str(blocker.id) in sentence
