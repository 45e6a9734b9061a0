"""The operations: what the engine does, on an actor instead of a connection. They answer what they claim to have done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from queuert_py.decisions import judge
from queuert_py.errors import QueuertError
from queuert_py.postgres import blocking, controls, rows, signals
from queuert_py.postgres.calls import Call
from queuert_py.postgres.controls import Changes
from queuert_py.postgres.database import Database
from queuert_py.postgres.plans import Plan, carry_out
from queuert_py.postgres.starts import Start, careful
from queuert_py.postgres.store import Store
from queuert_py.runtime.finisher import settle_calls
from queuert_py.runtime.reaper import blank_job
from queuert_py.values import Block, Dedup, Delay, Doom, Ending, LiveJob, Step, Suspend, Verdict
from tests.interleave.kit import Actor, Operation
from tests.interleave.scenes import LEASE, NAMES, TOKEN, TYPE, Scene, id_of, start

DONE = Ending("completed", output='{"done": 1}', output_type="Out")
FAILED = Ending("failed", reason="error", error='{"type": "E"}')


class Wrote(NamedTuple):
    """An ending that an operation says it has written. position -1: that of the last job; epoch: of the attempt whose ending it is."""

    id: str
    position: int
    how: str
    epoch: int | None = None


@dataclass(slots=True)
class Outcome:
    """What an operation answered. new: the answers of its starts: the letter, and whether it was there before."""

    word: str
    ended: list[Wrote] = field(default_factory=list[Wrote])
    new: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])


@dataclass(slots=True)
class World:
    """What an operation may know: the statements, and the scene's attempts."""

    store: Store
    scene: Scene

    def database(self, actor: Actor) -> Database:
        """As much of a Database as `blocking.marking` uses."""
        return cast("Database", SimpleNamespace(store=self.store, aside=actor.aside))

    def job(self, letter: str) -> LiveJob:
        return self.scene.attempts[letter]


Make = Callable[[Actor, World], Any]
OPERATIONS: dict[str, Make] = {}


def operation(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        OPERATIONS[name] = make
        return make

    return add


def bind(name: str, world: World) -> Operation:
    """An operation that never raises what its documentation names."""

    async def run(actor: Actor) -> Outcome:
        try:
            return cast("Outcome", await OPERATIONS[name](actor, world))
        except QueuertError as refusal:
            return Outcome(f"refused: {type(refusal).__name__}")

    return run


# --- what a worker writes (runtime/finisher.py: routes and repeats as there)


async def _written(actor: Actor, world: World, items: Sequence[tuple[LiveJob, Verdict]]) -> Outcome:
    """The settling lane, until the database says what became of each."""
    outcome, left = Outcome("settled"), list(items)
    while left:
        async with actor.transaction():
            calls = settle_calls(world.store, [(job, verdict, False) for job, verdict in left], LEASE)
            answers = {name: {row[0] for row in await actor.run(call)} for name, call in calls.items()}
        done = answers.get("end_jobs", set()) | answers.get("advance_jobs", set()) | answers.get("delay_jobs", set())
        done |= answers.get("suspend_jobs", set())
        written = [(job, verdict) for job, verdict in left if job.sequence_id in done]
        outcome.ended += [_ended(job, verdict) for job, verdict in written if not isinstance(verdict, (Delay, Suspend))]
        left = [(job, verdict) for job, verdict in left if job.sequence_id not in done]
        if not left:
            break
        fates = {row[0]: row[2] for row in await actor.run(world.store.read_fates([rows.epoch_row(job) for job, _ in left]))}
        lost = [fates[job.sequence_id] for job, _ in left if fates[job.sequence_id] != "mine"]
        outcome.word = " ".join([outcome.word, *lost])
        left = [(job, verdict) for job, verdict in left if fates[job.sequence_id] == "mine"]
        if left:
            await actor.park()
    return outcome


def _ended(job: LiveJob, verdict: Verdict) -> Wrote:
    return Wrote(NAMES[job.sequence_id], job.position, verdict.outcome if isinstance(verdict, Ending) else "continued", job.epoch)


@operation("finish")
async def finish(actor: Actor, world: World) -> Outcome:
    """Complete B by the plain lane, which is right for one that was not watched when it was claimed."""
    job = world.job("B")
    if await actor.run(world.store.finish_jobs([rows.finish_row(job, "1", None)])):
        return Outcome("finished", [_ended(job, DONE)])
    return await _written(actor, world, [(job, DONE)])


OPERATIONS["finish late"] = finish


@operation("finish watched")
async def finish_watched(actor: Actor, world: World) -> Outcome:
    return await _written(actor, world, [(world.job("B"), DONE)])


@operation("finish retried")
async def finish_retried(actor: Actor, world: World) -> Outcome:
    """Whoever claims B completes it."""
    parts = [rows.sequence_row(id_of("B"), 0)]
    claimed = await actor.run(world.store.claim_started(parts, [TYPE], worker="w3", token=TOKEN, lease=LEASE, suspect=9))
    return await _written(actor, world, [(claimed[0], DONE)]) if claimed else Outcome("nothing to claim")


@operation("finish watched C")
async def finish_second(actor: Actor, world: World) -> Outcome:
    return await _written(actor, world, [(world.job("C"), DONE)])


@operation("finish batch")
async def finish_batch(actor: Actor, world: World) -> Outcome:
    """B and C in one batch, the later first."""
    return await _written(actor, world, [(world.job("C"), DONE), (world.job("B"), DONE)])


@operation("fail")
async def fail(actor: Actor, world: World) -> Outcome:
    return await _written(actor, world, [(world.job("B"), FAILED)])


@operation("give back")
async def give_back(actor: Actor, world: World) -> Outcome:
    return await _written(actor, world, [(world.job("B"), Delay(timedelta(0), error='{"type": "E"}'))])


@operation("finalize")
async def finalize(actor: Actor, world: World) -> Outcome:
    """B completes in its handler's own transaction."""
    store, job = world.store, world.job("B")
    async with actor.transaction():
        fence = await actor.run(store.fence_job(job))
        if not fence:
            return Outcome("lost")
        await actor.run(store.lock_to_delete([rows.epoch_row(job)]))
        await actor.run(store.end_jobs([rows.end_row(job, DONE)]))
        await actor.run(store.unblock_jobs([rows.epoch_row(job)]))
        await actor.run(store.assert_written(job, fence[0][1]))
    return Outcome("finalized", [_ended(job, DONE)])


def _step(actor: Actor, blockers: str = "") -> Step:
    waits = [id_of(each) for each in blockers]
    return Step(id_of("EHY"[actor.number]), TYPE, None, '{"n": 2}', None, None, None, None, None, waits)


@operation("continue")
async def continue_(actor: Actor, world: World) -> Outcome:
    job, step = world.job("B"), _step(actor)
    part = rows.step_row(job, step, handoff=True)
    async with actor.transaction():
        await actor.run(world.store.finish_steps([part]))
        advanced = await actor.run(world.store.advance_jobs([part], LEASE))
    return Outcome("continued", [_ended(job, step)]) if advanced else await _written(actor, world, [(job, step)])


async def _waits(actor: Actor, world: World, job: LiveJob, verdict: Step | Block) -> Outcome:
    """The edges lane: a job that comes to wait for blockers."""

    async def once() -> list[Any]:
        async with actor.transaction():
            if isinstance(verdict, Block):
                return await carry_out(blocking.block(world.store, job, verdict), actor)
            return (await carry_out(blocking.advance(world.store, job, verdict), actor))[1]

    while True:
        if await blocking.marking(world.database(actor), once, verdict.blockers):
            return Outcome("waits", [_ended(job, verdict)] if isinstance(verdict, Step) else [])
        fate = (await actor.run(world.store.read_fates([rows.epoch_row(job)])))[0][2]
        if fate != "mine":
            return Outcome(fate)
        await actor.park()


@operation("continue with blockers")
async def continue_blocked(actor: Actor, world: World) -> Outcome:
    return await _waits(actor, world, world.job("V"), _step(actor, "BC"))


@operation("wait for")
async def wait_for(actor: Actor, world: World) -> Outcome:
    return await _waits(actor, world, world.job("W"), Block([id_of("C"), id_of("B")], "first"))


@operation("wait for the children")
async def wait_for_children(actor: Actor, world: World) -> Outcome:
    return await _waits(actor, world, world.job("A"), Block([id_of("C"), id_of("B")], "first"))


@operation("wait again")
async def wait_again(actor: Actor, world: World) -> Outcome:
    """Under another name, for one that W has waited for before, and ignoring how it ends."""
    return await _waits(actor, world, world.job("W"), Block([id_of("B")], "again", "ignore"))


@operation("wait back")
async def wait_back(actor: Actor, world: World) -> Outcome:
    """B comes to wait for W: with W waiting for B, a ring."""
    return await _waits(actor, world, world.job("B"), Block([id_of("W")], "first"))


# --- events, and what is kept


@operation("wait for event")
async def wait_for_event(actor: Actor, world: World) -> Outcome:
    """B's handler has looked for its event, has found none, and waits for it."""
    return await _written(actor, world, [(world.job("B"), Suspend("go", event=True))])


@operation("send event")
async def send_event(actor: Actor, world: World) -> Outcome:
    sent = await carry_out(signals.send(world.store, id_of("B"), "go", '{"by":"me","payload":1}', "me"), cast("Any", actor))
    return Outcome("sent" if sent.taken else "not taken")


@operation("keep a step")
async def keep_step(actor: Actor, world: World) -> Outcome:
    kept = await actor.run(world.store.save_memo(world.job("B"), "steps", "one", '{"value":1}'))
    return Outcome("kept" if kept else "lost")


# --- starting


async def _started(actor: Actor, world: World, starts: Sequence[Start], *, transaction: bool = True) -> Outcome:
    async def once() -> list[tuple[str, bool]]:
        if not transaction:
            return await carry_out(careful(world.store, starts, repeat=False), actor)
        async with actor.transaction():
            return await carry_out(careful(world.store, starts, repeat=False), actor)

    first = dict.fromkeys(id for each in starts for id in each.blockers)
    answers = await blocking.marking(world.database(actor), once, first)
    lasting = any(each.lasting for each in starts)
    return Outcome("started, all" if lasting else "started", new=[(NAMES[id], joined) for id, joined in answers])


@operation("start blocked")
async def start_blocked(actor: Actor, world: World) -> Outcome:
    """Three that wait for B, one of each policy; the first waits for C as well."""
    letters = "NOP" if actor.number == 0 else "QRS"
    ways = [start(letters[0], blockers="CB"), start(letters[1], blockers="B", policy="fail")]
    return await _started(actor, world, [*ways, start(letters[2], blockers="B", policy="ignore")])


def _new(actor: Actor) -> str:
    return "KLM"[actor.number]


@operation("start key")
async def start_key(actor: Actor, world: World) -> Outcome:
    return await _started(actor, world, [start(_new(actor), key="k")], transaction=False)


@operation("start key, all")
async def start_key_all(actor: Actor, world: World) -> Outcome:
    return await _started(actor, world, [start(_new(actor), key="k", dedup=Dedup("k", scope="all"))])


@operation("start key, replace")
async def start_key_replace(actor: Actor, world: World) -> Outcome:
    return await _started(actor, world, [start(_new(actor), key="k", dedup=Dedup("k", on_match="replace"), blockers="C")])


@operation("replace one that waits")
async def replace_waiting(actor: Actor, world: World) -> Outcome:
    """D waits for B and C; from now on for B alone."""
    return await _started(actor, world, [start(_new(actor), key="d", dedup=Dedup("d", on_match="replace"), blockers="B")])


def _starting_keys(keys: str) -> Make:
    async def run(actor: Actor, world: World) -> Outcome:
        """In the order of the keys, or (the second of a pair) the other way round."""
        letters = ("JKL", "MTU", "XYZ")[actor.number]
        starts = [start(letter, key=key) for letter, key in zip(letters, keys, strict=False)]
        return await _started(actor, world, starts if actor.number == 0 else starts[::-1])

    return run


OPERATIONS["start keys"] = _starting_keys("km")
OPERATIONS["start keys, one free"] = _starting_keys("kn")


# --- control


async def _changed(actor: Actor, plan: Callable[[], Plan[tuple[Any, Changes]]], world: World) -> Any:
    async def once() -> Any:
        async with actor.transaction():
            return (await carry_out(plan(), actor))[0]

    return await blocking.marking(world.database(actor), once)


def _cancelling(letters: str, *, cascade: bool = False) -> Make:
    async def run(actor: Actor, world: World) -> Outcome:
        ids = [id_of(letter) for letter in letters]
        standing = await _changed(actor, lambda: controls.cancel(world.store, ids, cascade=cascade), world)
        return Outcome(" ".join(standing.values()), [Wrote(NAMES[id], -1, word) for id, word in standing.items() if word == "cancelled"])

    return run


def _deleting(letters: str) -> Make:
    async def run(actor: Actor, world: World) -> Outcome:
        ids = [id_of(letter) for letter in letters]
        deleted = await _changed(actor, lambda: controls.delete(world.store, ids, cascade=False), world)
        return Outcome("deleted", [Wrote(NAMES[id], -1, "deleted") for id in deleted])

    return run


OPERATIONS["cancel"] = _cancelling("B")
OPERATIONS["cancel many"] = _cancelling("GIDB")
OPERATIONS["cancel the middle"] = _cancelling("D")
OPERATIONS["cancel the family"] = _cancelling("A", cascade=True)
OPERATIONS["delete"] = _deleting("B")
OPERATIONS["delete many"] = _deleting("BGFDI")


def _completing(letter: str = "B", blockers: str = "", *, going_on: bool) -> Make:
    async def run(actor: Actor, world: World) -> Outcome:
        verdict = _step(actor, blockers) if going_on else DONE
        position = await carry_out(controls.look(world.store, id_of(letter)), actor)
        async with actor.transaction():
            held = await carry_out(controls.hold(world.store, id_of(letter), position), actor)
            write = partial(controls.complete, world.store, held, verdict)
            await blocking.marking(world.database(actor), lambda: carry_out(write(), actor), map(id_of, blockers))
        return Outcome("waits" if blockers else "completed", [_ended(held.job(), verdict)])

    return run


OPERATIONS["complete"] = _completing(going_on=False)
OPERATIONS["complete, going on"] = _completing(going_on=True)
OPERATIONS["complete W, to wait"] = _completing("W", "BC", going_on=True)
OPERATIONS["complete D, to wait"] = _completing("D", "V", going_on=True)


@operation("retry")
async def retry(actor: Actor, world: World) -> Outcome:
    plan = lambda: controls.retry(world.store, [id_of("B")], {}, lambda _: {}, reset_attempts=True)  # noqa: E731
    return Outcome(" ".join((await _changed(actor, plan, world)).values()))


@operation("reschedule")
async def reschedule(actor: Actor, world: World) -> Outcome:
    await _changed(actor, lambda: controls.reschedule(world.store, [id_of("D"), id_of("B")], timedelta(0), None), world)
    return Outcome("rescheduled")


# --- leases


def _judged(row: tuple[Any, ...], attempts: int) -> tuple[LiveJob, Verdict | Doom, bool]:
    """What becomes of a job of lock_lost, for a job type with so many attempts."""
    *place, attempt, crash_count, begun, most, _, _ = row
    policy, error = judge.Policy(max_attempts=attempts), '{"type": "WorkerLost"}'
    verdict = judge.after_loss(policy, error, begun=begun, override=most, attempt=attempt, crash_count=crash_count, random=0.0)
    return blank_job(*place), verdict, False


def _reaping(attempts: int) -> Make:
    async def run(actor: Actor, world: World) -> Outcome:
        outcome = Outcome("reaped")
        async with actor.transaction():
            items = [_judged(row, attempts) for row in await actor.run(world.store.lock_lost(["w1"], 10))]
            for name, call in settle_calls(world.store, items, timedelta(0)).items():
                answers = {row[0] for row in await actor.run(call)}
                if name == "end_jobs":
                    outcome.ended += [_ended(job, FAILED) for job, _, _ in items if job.sequence_id in answers]
        return outcome

    return run


OPERATIONS["reap"] = _reaping(10)
OPERATIONS["reap, burying"] = _reaping(1)


@operation("claim")
async def claim(actor: Actor, world: World) -> Outcome:
    """Whatever is ready; a claimed job finds how its blockers ended."""
    scan = '{"lane": 0, "queue": "default", "priority": 0, "since": "-infinity"}'
    call: Call[LiveJob] = world.store.claim_jobs([scan], [TYPE], limit=10, slots=10, worker="w2", token=TOKEN, lease=LEASE, suspect=2)
    jobs = await actor.run(call)
    waited = [job for job in jobs if job.blocker_count and job.doom is None]
    if waited:
        parts = [rows.job_row(job.lane, job.sequence_id, job.position) for job in waited]
        for id, blocker, how, *_ in await actor.run(world.store.read_outputs(parts)):
            assert how == "completed" or NAMES[id] in "IPS", f"{NAMES[id]} was claimed, but {NAMES[blocker]} is {how}"
    return Outcome(f"claimed {''.join(sorted(NAMES[job.sequence_id] for job in jobs))}")
