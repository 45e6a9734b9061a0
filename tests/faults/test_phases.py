"""The phases of a handler: a test for each line of the table in the design (api.md, "The phases of a handler")."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from queuert_py import Fail, Job, JobSequence, Retry, Snooze, SyncJob
from queuert_py.errors import LeaseLostError, PhaseError, UsageError
from tests.faults.kit import event, until
from tests.faults.lab import In, Lab, Out, Tx, fail, write


class Broken(Exception):
    """The handler's own failure."""


async def test_an_exception_in_the_block_rolls_back_and_finalize_may_be_opened_once_more(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        try:
            async with job.finalize() as tx:
                await write(tx, job, "first")
                raise Broken
        except Broken:
            pass
        async with job.finalize() as tx:
            await write(tx, job, "second")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["second"])


async def test_an_exception_in_the_block_and_a_plain_return_completes_without_its_writes(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        try:
            async with job.finalize() as tx:
                await write(tx, job, "first")
                raise Broken
        except Broken:
            return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, [])


async def test_after_a_rolled_back_finalize_prepare_is_refused_and_a_third_finalize_too(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        for _ in range(2):
            try:
                async with job.finalize() as tx:
                    await write(tx, job, "lost")
                    raise Broken
            except Broken:
                pass
            with pytest.raises(PhaseError):
                async with job.prepare():
                    pass
        with pytest.raises(PhaseError):
            async with job.finalize():
                pass
        lab.seen.append("refused")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects(), lab.seen) == ("completed", 1, [], ["refused"])


async def test_an_exception_after_the_block_rolls_back_everything(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, f"attempt {job.attempt}")
        if job.attempt == 1:
            raise Broken
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 2, ["attempt 2"])
    assert await lab.attempts(record) == [(1, "error", "Broken")]


async def test_a_statement_between_the_blocks_end_and_the_return_is_an_error(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "in time")
        if job.attempt == 1:
            await write(tx, job, "too late")
        return Out()

    record = await lab.run(work)
    assert (record.status, await lab.effects()) == ("completed", ["in time"])
    assert await lab.attempts(record) == [(1, "error", "PhaseError")]


async def test_a_failed_statement_that_was_caught_fails_the_attempt(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "lost")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await tx.execute("select 1 / 0")
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, await lab.effects()) == ("failed", [])
    assert await lab.attempts(record) == [(1, "failed", "TransactionAbortedError")]


async def test_a_failed_statement_that_was_caught_in_prepare_raises_there(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.prepare() as tx:
            with pytest.raises(psycopg.errors.DivisionByZero):
                await tx.execute("select 1 / 0")
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert await lab.attempts(record) == [(1, "failed", "TransactionAbortedError")]


async def test_a_failed_statement_in_a_savepoint_does_no_harm(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "kept")
            with pytest.raises(psycopg.errors.DivisionByZero):
                async with tx.transaction():
                    await tx.execute("select 1 / 0")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["kept"])


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("signal", "logged"), [(Retry("again", after=0), (1, "error", "Retry")), (Snooze("later", after=0), (1, "snoozed", "Snooze"))]
)
async def test_retry_and_snooze_after_finalize_roll_it_back(
    inside: bool, signal: Exception, logged: tuple[int, str, str], lab: Lab
) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with job.finalize() as tx:
            await write(tx, job, f"run {runs}")
            if inside and runs == 1:
                raise signal
        if runs == 1:
            raise signal
        return Out()

    record = await lab.run(work)
    assert (record.status, await lab.effects()) == ("completed", ["run 2"])
    assert record.attempt == (2 if isinstance(signal, Snooze) is False else 1)
    assert await lab.attempts(record) == [logged]


async def test_fail_after_finalize_rolls_it_back_and_ends_the_job(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await write(tx, job, "lost")
        raise Fail("no use")

    record = await lab.run(work)
    assert (record.status, record.reason, record.attempt, await lab.effects()) == ("failed", "fail", 1, [])


async def test_prepare_may_be_opened_several_times_and_commits_each_time(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        for number in range(3):
            async with job.prepare() as tx:
                await write(tx, job, f"prepare {number}")
            assert len(await lab.effects()) == number + 1
        async with job.finalize() as tx:
            await write(tx, job, "finalize")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt) == ("completed", 1)
    assert await lab.effects() == ["prepare 0", "prepare 1", "prepare 2", "finalize"]


async def test_an_exception_in_prepare_rolls_back_and_prepare_may_be_opened_again(lab: Lab) -> None:
    async def broken(tx: Tx, job: Job[In]) -> None:
        await write(tx, job, "lost")
        raise Broken

    async def work(job: Job[In]) -> Out:
        with pytest.raises(Broken):
            async with job.prepare() as tx:
                await broken(tx, job)
        async with job.prepare() as tx:
            await write(tx, job, "kept")
        async with job.finalize() as tx:
            await write(tx, job, "finalize")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["kept", "finalize"])


async def test_prepare_is_refused_inside_a_phase_and_after_one(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.prepare():
            for open in (job.prepare, job.finalize, job.atomic):
                with pytest.raises(PhaseError):
                    async with open():
                        pass
        async with job.finalize() as tx:
            with pytest.raises(PhaseError):
                async with job.prepare():
                    pass
            await write(tx, job, "finalize")
        with pytest.raises(PhaseError):
            async with job.prepare():
                pass
        lab.seen.append("refused")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects(), lab.seen) == ("completed", 1, ["finalize"], ["refused"])


async def test_prepare_is_refused_after_atomic(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.atomic() as tx:
            await write(tx, job, "atomic")
        with pytest.raises(PhaseError):
            async with job.prepare():
                pass
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["atomic"])


async def test_a_phase_is_refused_from_a_child_task(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async def child() -> None:
            async with job.finalize() as tx:
                await write(tx, job, "by a child")

        with pytest.raises(PhaseError):
            await asyncio.create_task(child())
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, [])


async def test_a_phase_is_refused_after_the_return(lab: Lab) -> None:
    kept: list[Job[In]] = []

    async def work(job: Job[In]) -> Out:
        kept.append(job)
        return Out()

    await lab.run(work)
    with pytest.raises(PhaseError):
        async with kept[0].finalize():
            pass


@pytest.mark.parametrize("phase", ["finalize", "atomic"])
async def test_a_deferred_constraint_that_fails_at_commit_is_the_handlers_failure(phase: str, lab: Lab) -> None:
    await lab.facts.rows("create table parent (id int primary key)")
    await lab.facts.rows("create table child (parent int references parent (id) deferrable initially deferred)")

    async def work(job: Job[In]) -> Out:
        async with job.finalize() if phase == "finalize" else job.atomic() as tx:
            await write(tx, job, f"attempt {job.attempt}")
            await tx.execute("insert into child values (%s)", [job.attempt])
            if job.attempt == 2:
                await tx.execute("insert into parent values (2)")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 2, ["attempt 2"])
    assert await lab.attempts(record) == [(1, "error", "ForeignKeyViolation")]


async def test_a_deferred_constraint_that_fails_at_the_commit_of_prepare_raises_there(lab: Lab) -> None:
    await lab.facts.rows("create table parent (id int primary key)")
    await lab.facts.rows("create table child (parent int references parent (id) deferrable initially deferred)")

    async def work(job: Job[In]) -> Out:
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            async with job.prepare() as tx:
                await tx.execute("insert into child values (1)")
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt) == ("completed", 1)


@pytest.mark.parametrize("phase", ["prepare", "finalize", "atomic"])
@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_conflict_in_a_phase_runs_the_attempt_again_uncharged(phase: str, state: str, lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        lab.seen.append(job.attempt)
        async with {"prepare": job.prepare, "finalize": job.finalize, "atomic": job.atomic}[phase]() as tx:
            await write(tx, job, f"run {runs}")
            if runs < 4:
                await fail(tx, state)
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 4"])
    assert lab.seen == [1] * 4
    assert await lab.attempts(record) == []


async def test_a_conflict_at_commit_runs_the_attempt_again_uncharged(lab: Lab) -> None:
    await lab.facts.rows(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        " if new.n < 3 then raise exception 'made up' using errcode = '40001'; end if; return null; end $$"
    )
    await lab.facts.rows("create table row_of (n int)")
    await lab.facts.rows(
        "create constraint trigger refuse after insert on row_of deferrable initially deferred for each row execute function refuse()"
    )
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with job.finalize() as tx:
            await write(tx, job, f"run {runs}")
            await tx.execute("insert into row_of values (%s)", [runs])
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 3"])


async def test_a_conflict_that_does_not_end_gives_the_job_back_uncharged(lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with job.finalize() as tx:
            await write(tx, job, f"run {runs}")
            if runs <= 6:
                await fail(tx, "40P01")
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 7"])
    assert [(outcome, error) for _, outcome, error in await lab.attempts(record)] == [("released", "DeadlockDetected")], "it says why"


async def test_a_conflict_that_leaves_a_savepoint_is_one(lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with job.finalize() as tx:
            await write(tx, job, f"run {runs}")
            async with tx.transaction():
                if runs < 2:
                    await fail(tx, "40P01")
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 2"])


async def test_a_conflict_in_a_handlers_thread_is_one(lab: Lab) -> None:
    runs = 0

    def work(job: SyncJob[In]) -> Out:
        nonlocal runs
        runs += 1
        with job.finalize() as tx:
            if runs < 2:
                tx.execute("do $$ begin raise exception 'made up' using errcode = '40001'; end $$")
        return Out()

    job_type = lab.engine.job_type("work", max_attempts=1)(work)
    async with lab.engine.worker():
        record = await lab.end(await lab.engine.start_sequence(job_type, In()))
    assert (record.status, record.attempt, runs) == ("completed", 1, 2)


@pytest.mark.parametrize("phase", ["prepare", "finalize", "atomic"])
@pytest.mark.parametrize("state", ["40001", "40P01", "25006", "53300", "53100"])
async def test_a_fault_of_another_connection_in_a_phase_is_the_handlers_failure(phase: str, state: str, lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        lab.seen.append(job.attempt)
        async with {"prepare": job.prepare, "finalize": job.finalize, "atomic": job.atomic}[phase]():
            async with await psycopg.AsyncConnection.connect(lab.facts.dsn) as other:
                await fail(other, state)
        return Out()

    record = await lab.run(work, max_attempts=2)
    assert (record.status, record.attempt, lab.seen) == ("failed", 2, [1, 2])
    assert lab.engine.health.report.state == "healthy"


async def test_a_timeout_of_another_pool_in_a_phase_is_the_handlers_failure(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        lab.seen.append(job.attempt)
        async with job.finalize(), AsyncConnectionPool(lab.facts.dsn, min_size=0, max_size=1, open=False) as pool, pool.connection():
            async with pool.connection(timeout=0.01):
                return Out()

    record = await lab.run(work, max_attempts=2)
    assert (record.status, record.attempt, lab.seen) == ("failed", 2, [1, 2])
    assert [kind for _, _, kind in await lab.attempts(record)] == ["PoolTimeout"] * 2


async def test_a_handler_that_closes_the_given_connection_is_told(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            await tx.close()
        return Out()

    record = await lab.run(work)
    assert await lab.attempts(record) == [(1, "failed", "TransactionEscapedError")]


@pytest.mark.parametrize("statement", ["commit", "close"])
async def test_a_thread_that_ends_or_closes_the_given_connection_is_told(statement: str, lab: Lab) -> None:
    def work(job: SyncJob[In]) -> Out:
        with job.finalize() as tx:
            if statement == "close":
                tx.close()
            else:
                with tx:
                    tx.execute("insert into effect (sequence_id, what) values (%s, 'done')", [str(job.sequence_id)])
        return Out()

    job_type = lab.engine.job_type("work")(work)
    async with lab.engine.worker():
        record = await lab.end(await lab.engine.start_sequence(job_type, In()))
    assert await lab.attempts(record) == [(1, "failed", "TransactionEscapedError")]
    assert await lab.effects() == (["done"] if statement == "commit" else [])


async def test_a_transaction_that_idled_too_long_is_the_handlers_failure(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        lab.seen.append(job.attempt)
        async with job.finalize() as tx:
            await tx.execute("set local idle_in_transaction_session_timeout = 20")
            while await lab.facts.rows("select 1 from pg_stat_activity where pid = %(pid)s", {"pid": tx.info.backend_pid}):
                await asyncio.sleep(0)
            await tx.execute("select")
        return Out()

    record = await lab.run(work, max_attempts=2)
    assert (record.status, record.attempt, lab.seen) == ("failed", 2, [1, 2])
    assert [kind for _, _, kind in await lab.attempts(record)] == ["IdleInTransactionSessionTimeout"] * 2


async def test_a_conflict_that_the_handler_answered_is_not_rerun(lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        with pytest.raises(psycopg.errors.SerializationFailure):
            async with job.prepare() as tx:
                await fail(tx, "40001")
        raise Broken

    record = await lab.run(work, max_attempts=2)
    assert (record.status, runs) == ("failed", 2)
    assert [kind for _, _, kind in await lab.attempts(record)] == ["Broken", "Broken"]


async def test_a_conflict_that_leaves_a_task_group_is_one(lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with job.finalize() as tx, asyncio.TaskGroup() as group:
            await write(tx, job, f"run {runs}")
            if runs < 2:
                group.create_task(fail(tx, "40001"))
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 2"])


async def test_a_conflict_that_is_raised_in_a_group_of_errors_is_one(lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        found: list[Exception] = []
        try:
            async with job.finalize() as tx:
                await write(tx, job, f"run {runs}")
                if runs < 2:
                    await fail(tx, "40001")
        except psycopg.Error as error:
            found.append(error)
        if found:
            raise ExceptionGroup("some tasks have failed", found)
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 2"])


async def test_exceptions_that_are_chained_in_a_ring_end_an_attempt_like_others(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        with pytest.raises(psycopg.errors.SerializationFailure):
            async with job.prepare() as tx:
                await fail(tx, "40001")
        inner, outer = Broken("inner"), Broken("outer")
        inner.__cause__, outer.__cause__ = outer, inner  # `raise error.orig from error`
        raise inner

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.error and record.error["message"]) == ("failed", "inner")


@pytest.mark.parametrize("phase", ["finalize", "atomic"])
@pytest.mark.parametrize("statement", ["commit", "rollback", "commit; begin", "rollback; begin"])
async def test_a_transaction_that_the_handler_ended_is_reported_and_nothing_is_double(phase: str, statement: str, lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() if phase == "finalize" else job.atomic() as tx:
            await write(tx, job, "before")
            await tx.execute(statement.encode())
            await write(tx, job, "behind")
        return Out()

    record = await lab.run(work, max_attempts=3)
    assert (record.status, record.attempt) == ("failed", 1)
    assert await lab.attempts(record) == [(1, "failed", "TransactionEscapedError")]
    effects = await lab.effects()
    assert len(effects) == len(set(effects))
    assert ("before" in effects) == statement.startswith("commit")


@pytest.mark.parametrize("phase", ["prepare", "finalize", "atomic"])
async def test_a_connection_lost_inside_a_phase_runs_the_attempt_again_uncharged(phase: str, lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with {"prepare": job.prepare, "finalize": job.finalize, "atomic": job.atomic}[phase]() as tx:
            await write(tx, job, f"run {runs}")
            if runs == 1:
                await lab.facts.rows("select pg_terminate_backend(%(pid)s)", {"pid": tx.info.backend_pid})
            await write(tx, job, "more")
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 2", "more"])
    assert await lab.attempts(record) == []


async def test_a_connection_lost_between_the_block_and_the_return_runs_the_attempt_again(lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with job.finalize() as tx:
            await write(tx, job, f"run {runs}")
            pid = tx.info.backend_pid
        if runs == 1:
            await lab.facts.rows("select pg_terminate_backend(%(pid)s)", {"pid": pid})
        return Out()

    record = await lab.run(work, max_attempts=1)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 1, ["run 2"])


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no such file"), TimeoutError("an HTTP client"), ConnectionResetError("another service")]
)
@pytest.mark.parametrize("phase", ["prepare", "finalize"])
async def test_an_os_error_of_the_handlers_own_in_a_phase_is_its_failure(phase: str, error: Exception, lab: Lab) -> None:
    runs = 0

    async def work(job: Job[In]) -> Out:
        nonlocal runs
        runs += 1
        async with job.prepare() if phase == "prepare" else job.finalize():
            raise error

    record = await lab.run(work, max_attempts=2)
    assert (record.status, record.attempt, runs) == ("failed", 2, 2)
    assert [kind for _, _, kind in await lab.attempts(record)] == [type(error).__name__] * 2
    assert lab.engine.health.report.state == "healthy"


async def test_a_start_in_a_phase_without_tx_is_an_error(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        for open in (job.prepare, job.finalize):
            async with open():
                with pytest.raises(UsageError, match="tx=tx"):
                    await lab.engine.start_sequence("other", {})
        with pytest.raises(UsageError, match="tx=tx"):  # its transaction is still open
            await lab.engine.start_sequence("other", {})
        return Out()

    @lab.engine.job_type
    async def other(job: Job[In]) -> Out:
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt) == ("completed", 1)
    assert await lab.facts.finished() == 1


@pytest.mark.parametrize("commits", [True, False])
async def test_a_start_in_a_phase_commits_or_rolls_back_with_it(commits: bool, lab: Lab) -> None:
    started: list[JobSequence[Out]] = []

    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            started.append(await lab.engine.start_sequence(other, In(n=job.attempt), tx=tx))
        if not commits and job.attempt == 1:
            raise Broken
        return Out()

    @lab.engine.job_type
    async def other(job: Job[In]) -> Out:
        return Out()

    record = await lab.run(work)

    async def all_ended() -> bool:
        return await lab.facts.live() == 0

    assert record.status == "completed"
    async with lab.engine.worker():
        await until(all_ended, "the started sequence to end")
    found = await lab.facts.rows("select (input ->> 'n')::int from queuert.finished_job where type = 'other'")
    assert found == [(1,)] if commits else [(2,)]


async def test_a_result_inside_a_handler_is_an_error(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        with pytest.raises(UsageError, match="Blocker"):
            await lab.engine.sequence(job_type, job.sequence_id).result(timeout=1)
        lab.seen.append("refused")
        return Out()

    job_type = lab.engine.job_type("other")(work)
    record = await lab.run(work)
    assert (record.status, lab.seen) == ("completed", ["refused"])


async def test_prepare_in_atomic_mode_is_one_transaction_with_the_end(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.prepare(mode="atomic") as tx:
            await write(tx, job, f"attempt {job.attempt}")
        assert await lab.effects() == []
        if job.attempt == 1:
            raise Broken
        return Out()

    record = await lab.run(work)
    assert (record.status, record.attempt, await lab.effects()) == ("completed", 2, ["attempt 2"])


async def test_a_job_deleted_under_a_handler_refuses_its_next_phase(lab: Lab) -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def work(job: Job[In]) -> Out:
        begun.set()
        await gone.wait()
        with pytest.raises(LeaseLostError):
            async with job.finalize() as tx:
                await write(tx, job, "too late")
        lab.seen.append(job.abort_reason)
        raise LeaseLostError("as a handler would pass it on")

    job_type = lab.engine.job_type("work")(work)
    async with lab.engine.worker():
        await lab.engine.start_sequence(job_type, In())
        await event(begun, "the handler to begin")
        await lab.facts.rows("delete from queuert.live_job")
        gone.set()
        await until(lambda: asyncio.sleep(0, lab.seen), "the handler to be refused")
    assert (await lab.effects(), lab.seen) == ([], ["deleted"])


async def test_the_transaction_given_is_a_psycopg_connection(lab: Lab) -> None:
    async def work(job: Job[In]) -> Out:
        async with job.finalize() as tx:
            checked: Tx = tx
            lab.seen.append(checked.info.transaction_status.name)
        return Out()

    await lab.run(work)
    assert lab.seen == ["INTRANS"]
