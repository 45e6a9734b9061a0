"""Connections die, hints are lost, the server goes: what the worker then does, and how it ends when it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from pydantic import BaseModel

from queuert_py import Blocker, Engine, Job
from queuert_py.decisions.faults import Fault
from queuert_py.errors import DatabaseUnavailableError
from queuert_py.postgres import database
from queuert_py.postgres.listener import Listener
from tests.faults.kit import Facts, event, until
from tests.faults.lab import In, Lab, Out, write
from tests.faults.proxy import Proxy
from tests.faults.servers import OwnServer

MINE = "select pid from pg_stat_activity where application_name like 'queuert%' and datname = current_database() order by pid"
LISTENING = (
    "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    " and (query ilike 'listen %' or query = 'select pg_notify($1, $2)')"
)


async def test_the_states_of_health_when_the_server_goes_and_comes(own_server: OwnServer) -> None:
    engine = Engine(own_server.dsn)
    go, begun = asyncio.Event(), asyncio.Event()
    states: list[str] = ["healthy"]

    @engine.job_type
    async def held(job: Job[In]) -> Out:
        begun.set()
        await go.wait()
        async with job.finalize() as tx:
            await write(tx, job, f"attempt {job.attempt}")
        return Out()

    @engine.job_type
    async def quick(job: Job[In]) -> Out:
        return Out()

    async with Facts(own_server.dsn) as facts, engine, engine.worker(lease=20.0) as worker:
        engine.health.on_change(lambda report: states.append(report.state))
        await engine.start_sequence(held, In())
        await event(begun, "the handler to begin")

        async def state(wanted: str) -> bool:
            return engine.health.report.state == wanted

        await own_server.stop()
        await until(lambda: state("down"), "the state down")
        for _ in range(5):  # further probes fail: no further callbacks
            await engine.health.check()
        go.set()
        await own_server.start()
        await until(lambda: state("healthy"), "the state healthy")
        await (await engine.start_sequence(quick, In())).result(timeout=30)
        await facts.all_done_but_pairs(2)
        assert await facts.rows("select what from effect") == [("attempt 1",)]
        assert not worker._running
        await until(lambda: state("healthy"), "the state healthy, whatever connection of before the outage was found dead after it")
    assert all(before != after for before, after in itertools.pairwise(states))
    assert states[:4] == ["healthy", "doubtful", "down", "recovering"]
    assert "healthy" in states[4:]


@pytest.mark.slow
async def test_a_start_while_the_server_is_down_fails_in_the_end(own_server: OwnServer) -> None:
    engine = Engine(own_server.dsn)

    @engine.job_type
    async def work(job: Job[In]) -> Out:
        return Out()

    async with engine:
        await own_server.stop()
        with pytest.raises(Exception, match="cannot be used") as raised:
            await asyncio.wait_for(engine.start_sequence(work, In()), 100)
        assert type(raised.value).__name__ == "DatabaseUnavailableError"


async def test_each_backend_is_terminated_under_load(facts: Facts) -> None:
    engine = Engine(facts.dsn, pool_size=4)

    @engine.job_type(backoff=0)
    async def plain(job: Job[In]) -> Out:
        await asyncio.sleep(0.01)
        return Out()

    @engine.job_type(backoff=0)
    async def final(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "final")
        return Out()

    count = 1500
    async with engine:
        await engine.start_sequences([final(In(n=n)) if n % 2 else plain(In(n=n)) for n in range(count)])
        async with engine.worker(concurrency=20, lease=10.0):
            killed: list[int] = []
            for _ in range(2):
                for (pid,) in await facts.rows(MINE):
                    done = await facts.finished()
                    if done == count:
                        break
                    killed += [pid] if await facts.one("select pg_terminate_backend(%(pid)s)", {"pid": pid}) else []

                    async def more(least: int = done + 10) -> bool:
                        return await facts.finished() >= min(count, least)

                    await until(more, "more jobs to complete")
            await facts.all_done_but_pairs(count)
    assert len(killed) > 10
    assert await facts.doubles() == []
    assert await facts.one("select count(*) from effect") == count // 2


async def test_a_lost_listener_is_made_again(lab: Lab) -> None:
    @lab.engine.job_type
    async def work(job: Job[In]) -> Out:
        return Out()

    async with lab.engine.worker(poll_interval=60.0), Engine(lab.facts.dsn, lab.engine) as producer:
        for _ in range(3):
            found = await until(lambda: lab.facts.rows(LISTENING), "backends that listen")
            for (pid,) in found:
                await lab.facts.rows("select pg_terminate_backend(%(pid)s)", {"pid": pid})
            sequence = await producer.start_sequence(work, In())
            assert (await lab.end(sequence)).status == "completed"


def twice(_: Fault) -> int:
    """How often whatever fault there was is tried again."""
    return 2


async def test_a_start_with_blockers_does_not_wait_for_ever_for_the_server(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Needs(BaseModel):
        other: Blocker[Out]

    engine = Engine(own_server.dsn)

    @engine.job_type
    async def quick(job: Job[In]) -> Out:
        return Out()

    @engine.job_type
    async def after(job: Job[Needs]) -> Out:
        return Out()

    monkeypatch.setattr(database, "DEADLINE", 0.1)
    monkeypatch.setattr(database, "retries", twice)
    async with engine:
        other = await engine.start_sequence(quick, In())
        await own_server.stop()
        async with asyncio.timeout(30):
            while engine.health.report.state != "down":
                await engine.health.check()
            with pytest.raises(DatabaseUnavailableError):
                await engine.start_sequence(after, Needs(other=other))
        await own_server.start()


async def test_without_any_hints_the_poll_bounds_the_latency(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(*_: object) -> None: ...

    monkeypatch.setattr(Listener, "_heard", deaf)

    @lab.engine.job_type
    async def work(job: Job[In]) -> Out:
        return Out()

    async with lab.engine.worker(poll_interval=0.3), Engine(lab.facts.dsn, lab.engine) as producer:
        for _ in range(3):
            assert (await lab.end(await producer.start_sequence(work, In()), 15)).status == "completed"


async def test_a_hint_that_comes_while_a_claim_is_under_way_is_not_forgotten(facts: Facts) -> None:
    async with Proxy.before(facts.dsn) as proxy:
        engine = Engine(proxy.dsn)

        @engine.job_type
        async def work(job: Job[In]) -> Out:
            return Out()

        async with Engine(facts.dsn, engine) as producer, engine, engine.worker(poll_interval=60.0, concurrency=10):
            await producer.start_sequence(work, In())
            await until(facts.finished, "the first sequence to complete")
            claim, listen = proxy.of("claim")[0], proxy.of("listen")[0]
            proxy.hold = b"claim_token = "
            await producer.start_sequence(work, In())
            await until(lambda: facts.rows("select 1 from queuert.live_job where leased_by is not null"), "the claim to be committed")
            heard = listen.passed
            await producer.start_sequence(work, In())  # after the claim's snapshot
            await until(lambda: asyncio.sleep(0, listen.passed > heard), "the hint to arrive")
            async with Engine(proxy.dsn, engine) as other:  # a round trip of many messages: the hint has been read by now
                assert (await other.health.check()).state == "healthy"
            claim.flow()

            async def all_ended() -> bool:
                return await facts.finished() == 3

            await until(all_ended, "the third sequence to complete long before the poll", 15)


EACH = ("finish", "settle", "claim", "listen", "notify")


@pytest.mark.parametrize("labels", [("claim", "listen", "notify"), *(pytest.param((label,), marks=pytest.mark.slow) for label in EACH)])
async def test_a_frozen_connection_is_given_up(labels: tuple[str, ...], facts: Facts) -> None:
    """Half open: nothing comes back, and nobody says that the connection is gone."""
    async with Proxy.before(facts.dsn) as proxy:
        engine = Engine(proxy.dsn)

        @engine.job_type
        async def work(job: Job[In]) -> Out:
            return Out()

        async with Engine(facts.dsn, engine) as producer, engine, engine.worker(poll_interval=(0.5, 1.0)):
            await producer.start_sequence(work, In())
            await until(facts.finished, "the first sequence to complete")
            for wire in [wire for label in labels for wire in proxy.of(label)]:
                wire.freeze()
            await producer.start_sequence(work, In())

            async def all_ended() -> bool:
                return await facts.finished() == 2

            await until(all_ended, "the second sequence to complete", 60)


async def test_a_worker_whose_heartbeat_is_frozen_lets_go_before_its_lease_ends(facts: Facts) -> None:
    lease = 3.0
    begun = asyncio.Event()
    let_go: list[object] = []
    async with Proxy.before(facts.dsn) as proxy:
        engine = Engine(proxy.dsn)

        @engine.job_type
        async def work(job: Job[In]) -> Out:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                let_go.append(job.abort_reason)
            return Out()

        async with Engine(facts.dsn, engine) as producer, engine, engine.worker(lease=lease, grace=1.0, shutdown_timeout=0.1):
            await producer.start_sequence(work, In())
            await event(begun, "the handler to begin")
            ends = await facts.one("select leased_until from queuert.live_job")
            for wire in proxy.of("heartbeat"):
                wire.freeze()
            try:
                await until(lambda: asyncio.sleep(0, let_go), "the worker to let go", 4 * lease)
                ends = max(ends, await facts.one("select max(leased_until) from queuert.live_job"))
                print(f"let go {(ends - await facts.stamp()).total_seconds():.2f} s before the lease's end")
            finally:
                for wire in list(proxy.wires):
                    wire.flow()
    assert let_go == ["lease_lost"]


@pytest.mark.usefixtures("claims_ahead")
async def test_at_a_graceful_stop_running_handlers_finish_and_waiting_jobs_go_back(lab: Lab) -> None:
    go = asyncio.Event()

    @lab.engine.job_type
    async def work(job: Job[In]) -> Out:
        lab.seen.append(job.id)
        await go.wait()
        assert job.shutting_down
        async with job.finalize() as tx:
            await write(tx, job, "finished")
        return Out()

    worker = await lab.engine.worker(concurrency=4).start()
    await lab.engine.start_sequences([work(In()) for _ in range(8)])

    async def prefetched() -> bool:
        return len(lab.seen) == 4 and await lab.facts.one("select count(*) from queuert.live_job where leased_by is not null") > 4

    await until(prefetched, "four to run and one to wait")
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: asyncio.sleep(0, worker.shutting_down), "the stop to begin")
    go.set()
    await asyncio.wait_for(stopping, 20)
    assert await lab.effects() == ["finished"] * 4
    assert await lab.facts.rows("select attempt, leased_by, crash_count from queuert.live_job") == [(0, None, 0)] * 4
    assert await lab.facts.rows("select outcome from queuert.attempt_log") == []
    assert await lab.facts.one("select count(*) from queuert.worker") == 0


async def test_after_the_deadline_of_a_stop_handlers_are_cancelled_and_given_back_uncharged(lab: Lab) -> None:
    @lab.engine.job_type
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "lost")
            try:
                lab.seen.append("begun")
                await asyncio.Event().wait()
            finally:
                lab.seen.append(job.abort_reason)
        return Out()

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(lab.engine.worker(concurrency=3, shutdown_timeout=0.1, grace=2.0))
        await lab.engine.start_sequences([work(In()) for _ in range(3)])
        await until(lambda: asyncio.sleep(0, lab.seen == ["begun"] * 3), "the handlers to begin")
    assert lab.seen[3:] == ["shutdown"] * 3
    assert await lab.effects() == []
    assert await lab.facts.rows("select attempt, leased_by, crash_count from queuert.live_job") == [(0, None, 0)] * 3
    assert await lab.facts.rows("select outcome, attempt from queuert.attempt_log") == [("released", 1)] * 3


async def test_one_row_that_the_database_refuses_fails_alone(lab: Lab) -> None:
    await lab.facts.rows(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        " if new.output ->> 'n' = '13' then raise exception 'unlucky'; end if; return new; end $$"
    )
    await lab.facts.rows("create trigger refuse before insert on queuert.finished_job for each row execute function refuse()")

    @lab.engine.job_type
    async def work(job: Job[In]) -> Out:
        return Out(n=job.input.n)

    async with lab.engine.worker(concurrency=30):
        await lab.engine.start_sequences([work(In(n=n)) for n in range(20)])

        async def all_ended() -> bool:
            return await lab.facts.live() == 0

        await until(all_ended, "all to end")
    assert await lab.facts.finished() == 19
    bad = await lab.facts.rows("select input ->> 'n', last_error ->> 'message' from queuert.finished_job where outcome = 'failed'")
    assert [n for n, _ in bad] == ["13"]
    assert "unlucky" in bad[0][1]
