"""At most one sequence of a key: scopes, windows, what a match does, in batches, in a handler's own finalize, under concurrency."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from queuert_py import Blocker, Continuation, Dedup, Engine, Job, JobSequence, JobType, Snooze, continue_with
from queuert_py.errors import DuplicateKeyError, SequenceFailedError, UsageError
from queuert_py.postgres import rows
from queuert_py.values import Delay

TIMEOUT = 20


class Note(BaseModel):
    text: str = ""
    number: int = 0


class Done(BaseModel):
    text: str


class Pair(BaseModel):
    first: Blocker[Done]


@pytest.fixture
def note(engine: Engine) -> JobType[Note, Done]:
    @engine.job_type("note")
    async def note(job: Job[Note]) -> Done:
        return Done(text=job.input.text)

    return note


async def finished(engine: Engine, note: JobType[Note, Done], dedup: Dedup) -> JobSequence[Done]:
    sequence = await engine.start_sequence(note, Note(text="first"), dedup=dedup)
    await sequence.result(timeout=TIMEOUT)
    return sequence


# --- scopes and windows


async def test_an_unfinished_sequence_answers_for_its_key_and_a_finished_one_does_not(engine: Engine, note: JobType[Note, Done]) -> None:
    first = await engine.start_sequence(note, Note(text="first"), key="k")
    second = await engine.start_sequence(note, Note(text="second"), dedup=Dedup("k"))
    assert (second.id, second.deduplicated, first.deduplicated) == (first.id, True, False)
    async with engine.worker():
        assert (await second.result(timeout=TIMEOUT)).text == "first", "the second input is ignored"
        third = await engine.start_sequence(note, Note(text="third"), key="k")
        assert (await third.result(timeout=TIMEOUT)).text == "third"


async def test_scope_all_counts_finished_sequences_too(engine: Engine, note: JobType[Note, Done]) -> None:
    async with engine.worker():
        first = await finished(engine, note, Dedup("k", scope="all"))
        again = await engine.start_sequence(note, Note(text="again"), dedup=Dedup("k", scope="all"))
        assert (again.id, again.deduplicated) == (first.id, True)
        assert len(await engine.list_sequences()) == 1, "what was inserted to find out is undone"
        assert not (await engine.start_sequence(note, Note(), dedup=Dedup("other", scope="all"))).deduplicated


async def test_a_window_forgets_what_was_started_before_it(
    engine: Engine, note: JobType[Note, Done], db: psycopg.AsyncConnection[Any]
) -> None:
    dedup = Dedup.throttle("k", 60)
    async with engine.worker():
        first = await finished(engine, note, dedup)
        assert (await engine.start_sequence(note, Note(), dedup=dedup)).id == first.id
        await db.execute("update queuert.finished_job set sequence_created_at = sequence_created_at - interval '61 seconds'")
        assert (await engine.start_sequence(note, Note(), dedup=dedup)).id != first.id


async def test_another_job_type_has_keys_of_its_own(engine: Engine, note: JobType[Note, Done]) -> None:
    @engine.job_type
    async def memo(job: Job[Note]) -> Done:
        return Done(text="")

    await engine.start_sequence(note, Note(), key="k")
    assert not (await engine.start_sequence(memo, Note(), key="k")).deduplicated


async def test_a_sequence_of_several_jobs_holds_its_key_until_it_ends(engine: Engine) -> None:
    gate, at_second = asyncio.Event(), asyncio.Event()

    @engine.job_type(internal=True)
    async def second(job: Job[Note]) -> Done:
        at_second.set()
        await gate.wait()
        return Done(text="end")

    @engine.job_type
    async def first(job: Job[Note]) -> Continuation[Done]:
        return continue_with(second, job.input)

    async with engine.worker():
        sequence = await engine.start_sequence(first, Note(), key="k")
        await at_second.wait()
        assert (await engine.start_sequence(first, Note(), key="k")).id == sequence.id
        gate.set()
        await sequence.result(timeout=TIMEOUT)
        assert (await engine.start_sequence(first, Note(), dedup=Dedup("k", scope="all"))).id == sequence.id


# --- what a match does


async def test_raise_names_the_holder(engine: Engine, note: JobType[Note, Done]) -> None:
    first = await engine.start_sequence(note, Note(), key="k")
    with pytest.raises(DuplicateKeyError, match=str(first.id)) as refused:
        await engine.start_sequences([note(Note(), key="other"), note(Note(), dedup=Dedup("k", on_match="raise"))])
    assert refused.value.details["id"] == first.id
    assert [each.id for each in await engine.list_sequences()] == [first.id], "all or none"


async def test_raise_in_the_caller_s_transaction_leaves_nothing_of_the_batch(
    engine: Engine, note: JobType[Note, Done], db: AsyncConnection[Any]
) -> None:
    await engine.start_sequence(note, Note(), key="k")
    async with db.transaction():
        with pytest.raises(DuplicateKeyError):
            await engine.start_sequences([note(Note(), key="other"), note(Note(), dedup=Dedup("k", on_match="raise"))], tx=db)
    assert len(await engine.list_sequences()) == 1


async def test_replace_takes_the_place_of_the_one_that_waits(engine: Engine, note: JobType[Note, Done]) -> None:
    first = await engine.start_sequence(note, Note(text="old"), key="k", delay=3600)
    second = await engine.start_sequence(note, Note(text="new"), dedup=Dedup("k", on_match="replace"), tags=["t"])
    assert (second.id, second.deduplicated) == (first.id, True)
    async with engine.worker():
        assert (await first.result(timeout=TIMEOUT)).text == "new"


async def test_replace_lets_one_that_runs_alone(engine: Engine) -> None:
    running, gate = asyncio.Event(), asyncio.Event()

    @engine.job_type
    async def slow(job: Job[Note]) -> Done:
        running.set()
        await gate.wait()
        return Done(text=job.input.text)

    async with engine.worker():
        first = await engine.start_sequence(slow, Note(text="old"), key="k")
        await running.wait()
        second = await engine.start_sequence(slow, Note(text="new"), dedup=Dedup("k", on_match="replace"))
        gate.set()
        assert second.id == first.id
        assert (await second.result(timeout=TIMEOUT)).text == "old"


async def test_replace_lets_one_that_has_begun_alone(engine: Engine) -> None:
    seen: list[str] = []

    @engine.job_type
    async def slow(job: Job[Note]) -> Done:
        seen.append(job.input.text)
        if len(seen) == 1:
            raise Snooze(after=3600)
        return Done(text=job.input.text)

    first = await engine.start_sequence(slow, Note(text="old"), key="k")
    async with engine.worker(drain=True):
        pass
    assert (await engine.get_sequence(first.id)).status == "scheduled", "its attempt was given back"
    again = await engine.start_sequence(slow, Note(text="new"), dedup=Dedup("k", on_match="replace"))
    assert again.id == first.id
    await engine.reschedule([first.id], delay=0)
    async with engine.worker():
        await first.result(timeout=TIMEOUT)
    assert seen == ["old", "old"]


async def test_replace_takes_the_place_of_one_that_a_worker_has_claimed_and_not_begun(
    engine: Engine, note: JobType[Note, Done], db: AsyncConnection[Any]
) -> None:
    first = await engine.start_sequence(note, Note(text="old"), key="k")
    store, parts = engine.database.store, [rows.sequence_row(str(first.id), 0)]
    terms: dict[str, Any] = {"worker": "w", "token": first.id, "lease": timedelta(seconds=60), "suspect": 2}
    [job] = await store.claim_started(parts, ["note"], **terms).on(db)
    await store.delay_jobs([rows.delay_row(job, Delay(None, charged=False, outcome=""))]).on(db)
    await engine.start_sequence(note, Note(text="new"), dedup=Dedup("k", on_match="replace"))
    async with engine.worker():
        assert (await first.result(timeout=TIMEOUT)).text == "new"


async def test_replace_takes_over_blockers_as_well(engine: Engine, note: JobType[Note, Done]) -> None:
    @engine.job_type
    async def after(job: Job[Pair]) -> Done:
        return Done(text=f"after {job.input.first.output.text}")

    never = await engine.start_sequence(note, Note(text="never"), delay=3600)
    soon = await engine.start_sequence(note, Note(text="soon"))
    waits = await engine.start_sequence(after, Pair(first=never), key="k")
    await engine.start_sequence(after, Pair(first=soon), dedup=Dedup("k", on_match="replace"))
    async with engine.worker():
        assert (await waits.result(timeout=TIMEOUT)).text == "after soon"


async def test_debounce_puts_off_and_keeps_the_last_input(
    engine: Engine, note: JobType[Note, Done], db: psycopg.AsyncConnection[Any]
) -> None:
    first = await engine.start_sequence(note, Note(text="1"), dedup=Dedup.debounce("k", 100))
    before = (await engine.get_sequence(first.id)).created_at
    for number in ("2", "3"):
        assert (await engine.start_sequence(note, Note(text=number), dedup=Dedup.debounce("k", 3600))).id == first.id
    row = await (await db.execute("select input ->> 'text', run_at - created_at > interval '50 minutes' from queuert.live_job")).fetchone()
    assert row == ("3", True)
    assert (await engine.get_sequence(first.id)).created_at == before


# --- batches


async def test_in_a_batch_the_first_of_a_key_wins(engine: Engine, note: JobType[Note, Done]) -> None:
    a, b, c = await engine.start_sequences([note(Note(text="a"), key="k"), note(Note(text="b")), note(Note(text="c"), key="k")])
    assert a.id == c.id != b.id
    assert (a.deduplicated, b.deduplicated, c.deduplicated) == (False, False, True)
    async with engine.worker():
        assert (await c.result(timeout=TIMEOUT)).text == "a"


async def test_in_a_batch_replace_lets_the_last_win_and_raise_refuses(engine: Engine, note: JobType[Note, Done]) -> None:
    replace, refuse = Dedup("k", on_match="replace"), Dedup("r", on_match="raise")
    a, b = await engine.start_sequences([note(Note(text="a"), dedup=replace), note(Note(text="b"), dedup=replace)])
    assert a.id == b.id
    with pytest.raises(DuplicateKeyError, match="twice in the batch"):
        await engine.start_sequences([note(Note(), dedup=refuse), note(Note(), dedup=refuse)])
    async with engine.worker():
        assert (await a.result(timeout=TIMEOUT)).text == "b"


# --- in a handler's own finalize


async def test_a_handler_starts_its_successor_under_its_own_key(engine: Engine) -> None:
    runs: list[int] = []

    @engine.job_type
    async def tick(job: Job[Note]) -> Done:
        runs.append(job.input.number)
        async with job.finalize() as tx:
            if job.input.number < 3:
                following = await engine.start_sequence(tick, Note(number=job.input.number + 1), key="tick", tx=tx)
                assert not following.deduplicated
            return Done(text=str(job.input.number))

    async with engine.worker(drain=True):
        await engine.start_sequence(tick, Note(), key="tick")
    assert runs == [0, 1, 2, 3]
    found = await engine.list_sequences(key="tick", status="completed")
    assert len(found) == 4, "each keeps the key in its history"


async def test_a_sequence_that_gave_its_key_away_may_not_go_on(engine: Engine) -> None:
    @engine.job_type
    async def tick(job: Job[Note]) -> Done | Continuation[Done]:
        if job.input.number:
            return Done(text="")
        async with job.finalize() as tx:
            await engine.start_sequence(tick, Note(number=1), key="tick", tx=tx)
            return continue_with(tick, Note(number=2))

    async with engine.worker():
        sequence: JobSequence[Any] = await engine.start_sequence(tick, Note(), key="tick")
        with pytest.raises(SequenceFailedError, match="own key 'tick'"):
            await sequence.result(timeout=TIMEOUT)
    assert len(await engine.list_sequences()) == 1, "what it started was rolled back"


async def test_outside_of_its_finalize_a_handler_meets_itself(engine: Engine) -> None:
    met: list[bool] = []

    @engine.job_type
    async def tick(job: Job[Note]) -> Done:
        again = await engine.start_sequence(tick, Note(), key="tick")
        met.append(again.id == job.sequence_id and again.deduplicated)
        return Done(text="")

    async with engine.worker():
        await (await engine.start_sequence(tick, Note(), key="tick")).result(timeout=TIMEOUT)
    assert met == [True]


# --- misuse


@pytest.mark.parametrize(
    ("dedup", "says"),
    [
        (Dedup(""), "key"),
        (Dedup("k", window=10), "scope='all'"),
        (Dedup("k", scope="all", window=0), "more than 0"),
        (Dedup("k", scope="some"), "scope is"),  # type: ignore[arg-type]
        ("k", "Dedup is needed"),
    ],
)
async def test_a_wrong_dedup_is_named(engine: Engine, note: JobType[Note, Done], dedup: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await engine.start_sequence(note, Note(), dedup=dedup)


async def test_a_key_comes_from_one_place(engine: Engine, note: JobType[Note, Done]) -> None:
    with pytest.raises(UsageError, match="both given"):
        await engine.start_sequence(note, Note(), key="a", dedup=Dedup("a"))
    with pytest.raises(UsageError, match="its own delay"):
        await engine.start_sequence(note, Note(), dedup=Dedup.debounce("a", 5), delay=3)


async def test_scope_all_needs_read_committed_in_the_caller_s_transaction(
    engine: Engine, note: JobType[Note, Done], db: AsyncConnection[Any]
) -> None:
    await engine.open()
    async with db.transaction():
        await db.execute("set transaction isolation level repeatable read")
        with pytest.raises(UsageError, match="READ COMMITTED"):
            await engine.start_sequence(note, Note(), dedup=Dedup("k", scope="all"), tx=db)


def test_a_throttle_and_a_debounce_have_a_time() -> None:
    with pytest.raises(UsageError, match="window=None"):
        Dedup.throttle("k", None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="delay=None"):
        Dedup.debounce("k", None)  # type: ignore[arg-type]


# --- concurrency


@pytest.mark.parametrize("rounds", [40, pytest.param(1000, marks=pytest.mark.slow)])
async def test_at_any_time_there_is_one_unfinished_sequence_of_a_key(
    engine: Engine, note: JobType[Note, Done], dsn: str, db: AsyncConnection[Any], rounds: int
) -> None:
    """32 tasks start with one key, some in transactions that roll back, while workers finish what there is."""
    chance = random.Random(7)
    most: list[int] = []

    async def starter(number: int) -> None:
        async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
            for _ in range(rounds):
                if chance.random() < 0.4:
                    async with connection.transaction() as block:
                        await engine.start_sequence(note, Note(number=number), key="one", tx=connection)
                        if chance.random() < 0.5:
                            raise psycopg.Rollback(block)
                else:
                    await engine.start_sequence(note, Note(number=number), key="one")

    async def counter(done: asyncio.Event) -> None:
        while not done.is_set():
            row = await (await db.execute("select count(*) from queuert.live_job where key = 'one'")).fetchone()
            most.append(row[0] if row else -1)

    done = asyncio.Event()
    async with engine.worker():
        counting = asyncio.create_task(counter(done))
        await asyncio.gather(*[starter(number) for number in range(32)])
        done.set()
        await counting
    assert set(most) <= {0, 1}
    live = await (await db.execute("select count(*) from queuert.live_job")).fetchone()
    ended = await (await db.execute("select count(distinct sequence_id), count(*) from queuert.finished_job")).fetchone()
    assert live in ((0,), (1,))
    assert ended is not None
    assert ended[0] == ended[1]


async def test_scope_all_is_exact_under_concurrency(engine: Engine, note: JobType[Note, Done]) -> None:
    async with engine.worker():
        handles = await asyncio.gather(
            *[engine.start_sequence(note, Note(number=number), dedup=Dedup("once", scope="all")) for number in range(200)]
        )
        for each in handles:
            await each.result(timeout=TIMEOUT)
    assert len({each.id for each in handles}) == 1
    assert len(await engine.list_sequences()) == 1
