"""The failed sequences: counted, listed, run again in bulk with filters or new inputs, cleared; and those that a deploy revives."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection, OperationalError
from pydantic import BaseModel

from queuert_py import Blocker, Engine, Job, JobSequence, JobType, JobTypes
from queuert_py.control import Failure
from queuert_py.engine import controls
from queuert_py.errors import InvalidInputError, SequenceFailedError, UsageError
from queuert_py.job import Connection
from tests.engine.kit import Number

Db = AsyncConnection[tuple[Any, ...]]


class Switch:
    """Two types that fail as long as it is off."""

    def __init__(self, engine: Engine) -> None:
        self.on = False
        self.seen: list[tuple[int, int]] = []

        @engine.job_type(max_attempts=2, backoff=0)
        async def lamp(job: Job[Number]) -> Number:
            self.seen.append((job.input.n, job.attempt))
            if not self.on or job.input.n < 0:
                raise ValueError("dark")
            return job.input

        @engine.job_type(max_attempts=1)
        async def fuse(job: Job[Number]) -> Number:
            if not self.on:
                raise TimeoutError("burnt")
            return job.input

        self.lamp: JobType[Number, Number] = lamp
        self.fuse: JobType[Number, Number] = fuse


async def drain(engine: Engine) -> None:
    async with engine.worker(drain=True):
        pass


@pytest.fixture
async def switch(engine: Engine) -> Switch:
    return Switch(engine)


async def failed_ones(engine: Engine, switch: Switch, *numbers: int) -> list[JobSequence[Number]]:
    """Lamps that failed, in this order."""
    sequences: list[JobSequence[Number]] = []
    for n in numbers:
        sequences.append(await engine.start_sequence(switch.lamp, Number(n=n)))
        await drain(engine)
    switch.seen.clear()
    return sequences


async def test_they_are_counted_and_listed(engine: Engine, switch: Switch) -> None:
    assert await engine.count_failed() == 0
    await failed_ones(engine, switch, 1, 2)
    await engine.start_sequence(switch.fuse, Number(n=3))
    await drain(engine)
    assert await engine.count_failed() == 3
    assert await engine.count_failed(type="lamp") == await engine.count_failed(job_type=switch.lamp) == 2
    assert await engine.count_failed(reason="validation") == 0
    assert await engine.count_failed(before=datetime(2020, 1, 1, tzinfo=UTC)) == 0
    assert await engine.count_failed(after=datetime(2020, 1, 1, tzinfo=UTC), oldest=2) == 2
    assert [each.input["n"] for each in await engine.list_sequences(status="failed", type="lamp")] == [2, 1]


async def test_each_id_has_its_answer_and_the_attempts_begin_anew(engine: Engine, switch: Switch) -> None:
    first, second = await failed_ones(engine, switch, 1, 2)
    keyed = await engine.start_sequence(switch.lamp, Number(n=3), key="k")
    await drain(engine)
    await engine.start_sequence(switch.lamp, Number(n=4), key="k", delay=3600)
    waiting = await engine.start_sequence(switch.lamp, Number(n=5), delay=3600)
    missing = uuid4()
    answer = await engine.retry_sequences([first.id, keyed.id, waiting.id, missing])
    assert answer == {first.id: "retried", keyed.id: "key_taken", waiting.id: "not_failed", missing: "not_found"}
    switch.seen.clear()
    await drain(engine)
    assert switch.seen == [(1, 1), (1, 2)]
    assert (await engine.get_sequence(second.id)).status == "failed"
    assert [(each.attempt, each.outcome) for each in await engine.list_attempts(first.id)] == [
        (1, "error"),
        (2, "failed"),
        (2, "retried"),
        (1, "error"),
        (2, "failed"),
    ]


async def test_without_resetting_there_is_one_more_attempt(engine: Engine, switch: Switch) -> None:
    (sequence,) = await failed_ones(engine, switch, 1)
    await engine.retry_sequences([sequence.id], reset_attempts=False)
    await drain(engine)
    assert switch.seen == [(1, 3)]
    assert (await engine.get_sequence(sequence.id)).status == "failed"


async def test_by_a_filter_the_oldest_first(engine: Engine, switch: Switch) -> None:
    sequences = await failed_ones(engine, switch, 1, 2, 3)
    fuse = await engine.start_sequence(switch.fuse, Number(n=3))
    await drain(engine)
    switch.on = True
    assert await engine.retry_sequences(type="lamp", oldest=2) == {each.id: "retried" for each in sequences[:2]}
    assert await engine.retry_sequences(job_type="fuse", reason="error") == {fuse.id: "retried"}
    assert await engine.retry_sequences(reason="poison") == {}
    noted = (await engine.get_sequence(sequences[2].id)).finished_at
    assert noted is not None
    assert await engine.retry_sequences(before=noted) == {}
    assert await engine.retry_sequences(after=noted, before=noted + timedelta(microseconds=1)) == {sequences[2].id: "retried"}
    await drain(engine)
    assert {each.status for each in await engine.list_sequences()} == {"completed"}


async def test_a_deadline_that_is_ahead_stays(engine: Engine, switch: Switch, db: Db) -> None:
    ahead = await engine.start_sequence(switch.fuse, Number(n=1), deadline=3600)
    over = await engine.start_sequence(switch.fuse, Number(n=2), deadline=3600)
    await drain(engine)
    wanted = (await (await db.execute("select deadline_at from queuert.finished_job where sequence_id = %s", [ahead.id])).fetchall())[0][0]
    await db.execute("update queuert.finished_job set deadline_at = clock_timestamp() where sequence_id = %s", [over.id])
    await engine.retry_sequences([ahead.id, over.id])
    rows = await (await db.execute("select sequence_id, deadline_at from queuert.live_job")).fetchall()
    assert dict(rows) == {ahead.id: wanted, over.id: None}
    assert wanted is not None


async def test_with_one_new_input_or_one_made_of_each_failure(engine: Engine, switch: Switch) -> None:
    first, second, third = await failed_ones(engine, switch, -1, -2, -3)
    switch.on = True
    await engine.retry_sequences([first.id], new_input=Number(n=10))
    await engine.retry_sequences([second.id], new_input={"n": 20})

    def repair(failure: Failure) -> Number:
        assert (failure.type, failure.error["message"], failure.attempt) == ("lamp", "dark", 2)
        return Number(n=-failure.input["n"])

    await engine.retry_sequences(job_type=switch.lamp, new_input=repair)
    await drain(engine)
    assert [(await each.result(timeout=20)).n for each in (first, second, third)] == [10, 20, 3]


async def test_new_inputs_that_are_refused_are_all_listed_and_nothing_is_written(engine: Engine, switch: Switch) -> None:
    first, second, third = await failed_ones(engine, switch, 1, 2, 3)

    def repair(failure: Failure) -> dict[str, object]:
        return {"n": failure.input["n"] if failure.input["n"] == 1 else "many"}

    with pytest.raises(InvalidInputError, match=r"2 of 3 new inputs are refused, nothing was changed.*input\.n") as refused:
        await engine.retry_sequences([first.id, second.id, third.id], new_input=repair)
    errors = refused.value.details["errors"]
    assert set(cast("dict[str, str]", errors)) == {str(second.id), str(third.id)}
    assert await engine.count_failed() == 3


class Needs(BaseModel):
    number: Blocker[Number]
    word: str = ""


async def test_a_new_input_keeps_its_blockers(engine: Engine, switch: Switch) -> None:
    said: list[str] = []

    @engine.job_type(max_attempts=1)
    async def wait(job: Job[Needs]) -> Number:
        said.append(job.input.word)
        if not job.input.word:
            raise ValueError
        return job.input.number.output

    switch.on = True
    blocker, other = [await engine.start_sequence(switch.lamp, Number(n=n)) for n in (1, 2)]
    sequence = await engine.start_sequence(wait, Needs(number=blocker))
    await drain(engine)
    with pytest.raises(InvalidInputError, match="cannot have other blockers"):
        await engine.retry_sequences([sequence.id], new_input=Needs(number=other, word="x"))
    await engine.retry_sequences([sequence.id], new_input=Needs(number=blocker, word="x"))
    await drain(engine)
    assert (await sequence.result(timeout=20)).n == 1
    assert said == ["", "x"]


async def test_all_or_nothing_and_in_the_callers_transaction(engine: Engine, switch: Switch, db: Db) -> None:
    first, second = await failed_ones(engine, switch, 1, 2)
    async with db.transaction(force_rollback=True):
        assert len(await engine.retry_sequences([first.id, second.id], tx=db)) == 2
    assert await engine.count_failed() == 2
    async with db.transaction():
        await engine.retry_sequences([first.id], tx=db)
    assert (await engine.get_sequence(first.id)).status == "pending"


async def test_an_answer_that_is_lost_retries_no_more_than_was_asked(
    engine: Engine, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = await failed_ones(engine, switch, 1, 2, 3, 4)
    lost: list[bool] = []
    real = AsyncConnection.transaction

    def losing(self_: Any, *arguments: Any, **more: Any) -> Any:
        transaction = real(self_, *arguments, **more)

        class Losing:
            async def __aenter__(self) -> Any:
                return await transaction.__aenter__()

            async def __aexit__(self, *raised: Any) -> Any:
                answer = await transaction.__aexit__(*raised)
                if not lost:
                    lost.append(True)
                    await self_.close()
                    raise OperationalError("the connection is gone")
                return answer

        return Losing()

    monkeypatch.setattr(AsyncConnection, "transaction", losing)
    assert await engine.retry_sequences(oldest=2) == {each.id: "retried" for each in sequences[:2]}
    assert await engine.count_failed() == 2
    lost.clear()
    assert await engine.clear_failed(oldest=1) == {sequences[2].id: "deleted"}
    assert await engine.count_failed() == 1


async def test_cleared_ones_are_gone_but_for_those_that_somebody_needs(engine: Engine, switch: Switch) -> None:
    @engine.job_type
    async def wait(job: Job[Needs]) -> Number:
        return job.input.number.output

    first, needed, last = await failed_ones(engine, switch, 1, 2, 3)
    dependent = await engine.start_sequence(wait, Needs(number=needed))
    assert await engine.clear_failed(type="fuse") == {}
    assert await engine.clear_failed(oldest=1) == {first.id: "deleted"}
    assert await engine.clear_failed() == {needed.id: "has_dependents", last.id: "deleted"}
    assert await engine.list_attempts(last.id) == []
    await engine.cancel_sequences([dependent.id])
    assert await engine.clear_failed(job_type=switch.lamp) == {needed.id: "deleted"}


async def test_what_cannot_be_right_is_named(engine: Engine, switch: Switch) -> None:
    with pytest.raises(UsageError, match="ids, or a filter"):
        await engine.retry_sequences()
    with pytest.raises(UsageError, match="ids, or a filter"):
        await engine.retry_sequences([uuid4()], type="lamp")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    with pytest.raises(UsageError, match="oldest=0"):
        await engine.retry_sequences(oldest=0)
    with pytest.raises(UsageError, match="aware"):
        await engine.retry_sequences(before=datetime(2030, 1, 1))
    with pytest.raises(UsageError, match="unknown option typ"):
        await engine.clear_failed(typ="lamp")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(UsageError, match=r"sequence\.id"):
        await engine.retry_sequences(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


# --- a stored input that its model refuses


async def spoil(db: Db, id: UUID) -> None:
    """What an older version has stored."""
    await db.execute("""update queuert.live_job set input = '{"amount": "12"}' where sequence_id = %s""", [id])


async def test_it_fails_without_a_charge_and_a_deploy_with_another_model_revives_it(dsn: str, db: Db) -> None:
    class Strict(BaseModel, strict=True):
        amount: int

    old, new = JobTypes[Connection](), JobTypes[Connection]()

    @old.job_type("order")
    async def order(job: Job[Strict]) -> Number:
        return Number(n=job.input.amount)

    class Lenient(BaseModel):
        amount: int | str

    @new.job_type("order")
    async def order_again(job: Job[Lenient]) -> Number:
        return Number(n=int(job.input.amount))

    async with Engine(dsn, old) as before:
        sequence = await before.start_sequence(order, Strict(amount=1))
        await spoil(db, sequence.id)
        async with before.worker():
            with pytest.raises(SequenceFailedError, match="ValidationError"):
                await sequence.result(timeout=10)
        record = await before.get_sequence(sequence.id)
        assert (record.reason, record.attempt) == ("validation", 0)
        assert [each.outcome for each in await before.list_attempts(sequence.id)] == ["validation"]
        async with before.worker(drain=True):
            pass
        assert len(await before.list_attempts(sequence.id)) == 1, "the same model would refuse it again"
        async with Engine(dsn, new) as after, after.worker():
            handle = after.sequence(order_again, sequence.id)
            assert (await handle.result(timeout=10)).n == 12


async def test_workers_that_start_at_once_revive_each_sequence_once(dsn: str, db: Db) -> None:
    ran: list[int] = []
    old, new = JobTypes[Connection](), JobTypes[Connection]()

    class Strict(BaseModel, strict=True):
        amount: int

    class Lenient(BaseModel):
        amount: int | str

    @old.job_type("order")
    async def order(job: Job[Strict]) -> Number:
        return Number(n=job.input.amount)

    @new.job_type("order")
    async def order_again(job: Job[Lenient]) -> Number:
        ran.append(int(job.input.amount))
        return Number(n=1)

    async with Engine(dsn, old) as before:
        sequences = await before.start_sequences([order(Strict(amount=n)) for n in range(30)])
        await db.execute("update queuert.live_job set input = jsonb_build_object('amount', input ->> 'amount')")
        await drain(before)
        assert await before.count_failed(reason="validation") == 30
    async with Engine(dsn, new) as first, Engine(dsn, new) as second:
        await asyncio.gather(drain(first), drain(second))
        assert await first.count_failed() == 0
    assert sorted(ran) == list(range(len(sequences)))


async def test_an_unknown_type_stays_pending(dsn: str, engine: Engine, switch: Switch) -> None:
    others: JobTypes[Connection] = JobTypes()

    @others.job_type
    async def elsewhere(job: Job[Number]) -> Number:
        return job.input

    async with Engine(dsn, others) as other:
        sequence = await other.start_sequence(elsewhere, Number(n=1))
    await drain(engine)
    assert (await engine.get_sequence(sequence.id)).status == "pending"


@pytest.mark.parametrize("verb", ["retry", "retry by a filter", "clear"])
async def test_inside_a_phase_they_are_changed_in_its_transaction(engine: Engine, switch: Switch, verb: str) -> None:
    refused: list[str] = []
    (failed,) = await failed_ones(engine, switch, 1)

    async def change(tx: Connection | None = None) -> None:
        if verb == "clear":
            await engine.clear_failed(type="lamp", tx=tx)
        elif verb == "retry":
            await engine.retry_sequences([failed.id], tx=tx)
        else:
            await engine.retry_sequences(type="lamp", tx=tx)

    @engine.job_type(max_attempts=1)
    async def repair(job: Job[Number]) -> Number:
        async with job.finalize() as tx:
            try:
                await change()
            except UsageError as error:
                refused.append(str(error))
            await change(tx)
            raise RuntimeError("rolled back")

    sequence = await engine.start_sequence(repair, Number(n=1))
    async with engine.worker(types=["repair"]):
        with pytest.raises(SequenceFailedError, match="rolled back"):
            await sequence.result(timeout=20)
    assert refused == ["inside a phase this must be part of its transaction: pass tx=tx."]
    assert (await engine.get_sequence(failed.id)).status == "failed"


@pytest.mark.parametrize("which", ["ids", "filter"])
async def test_how_long_a_call_may_take_goes_by_how_many_it_is_about(
    engine: Engine, switch: Switch, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one of a hundred thousand takes its time, and is not to be given up for it."""
    sequences = await failed_ones(engine, switch, 1, 2)
    monkeypatch.setattr(controls, "DEADLINE", -20.0)
    monkeypatch.setattr(controls, "EACH", 15.0)
    ids = [each.id for each in sequences]
    retried = await (engine.retry_sequences(ids) if which == "ids" else engine.retry_sequences(type="lamp"))
    assert retried == dict.fromkeys(ids, "retried")
    await drain(engine)
    assert await engine.clear_failed(type="lamp") == dict.fromkeys(ids, "deleted")


async def test_as_many_as_a_cascade_finds_count_for_that(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    @engine.job_type
    async def child(job: Job[Number]) -> Number:
        return job.input

    @engine.job_type
    async def parent(job: Job[Number]) -> Number:
        await job.wait_for([await job.step("child", lambda: engine.start_sequence(child, Number(n=1), delay=3600))])
        return job.input

    root = await engine.start_sequence(parent, Number(n=1))
    await drain(engine)
    monkeypatch.setattr(controls, "DEADLINE", -20.0)
    monkeypatch.setattr(controls, "EACH", 15.0)
    assert set((await engine.cancel_sequences([root.id], cascade=True)).values()) == {"cancelled"}
    assert len(await engine.list_sequences(type="child", status="cancelled")) == 1
