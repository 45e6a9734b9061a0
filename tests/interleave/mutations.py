"""Protections of the engine taken out one at a time, and the program that must then break a rule."""

from __future__ import annotations

from dataclasses import dataclass

from queuert_py.postgres.calls import BEGIN, Call, plain
from tests.interleave.catalogue import Program


@dataclass(frozen=True, slots=True)
class Mutation:
    """In `statement` the text `old` becomes `new`; begin: what transactions begin with. shows: what a violation must say.
    holds: it shows only when that many statements are held between their snapshot and their locks."""

    what: str
    program: Program
    shows: str
    statement: str = ""
    old: str = ""
    new: str = ""
    holds: int = 0
    begin: Call[tuple[object, ...]] = BEGIN


_HELD: tuple[Program, ...] = (("lone", ("wait for", "complete W, to wait")), ("fan", ("replace one that waits", "complete D, to wait")))

MUTATIONS = [
    Mutation(
        "the plain lane finishes what is watched",
        ("lone", ("finish", "start blocked")),
        "was not told",
        "finish_jobs",
        "and not l.watched",
        "",
    ),
    Mutation(
        "blockers that are not watched yet are waited for",
        ("lone", ("give back", "start blocked")),
        "not watched",
        "lock_blockers",
        "where l.watched",
        "",
    ),
    Mutation(
        "blockers are not held", ("fan", ("finish watched", "start blocked")), "was not told", "lock_blockers", "for key share of l", ""
    ),
    Mutation(
        "dependents that wait for each other are locked in the order of their ids",
        ("diamond", ("finish watched", "cancel the middle")),
        "DeadlockDetected",
        "unblock_jobs",
        "order by d.step, l.lane",
        "order by l.lane",
    ),
    Mutation(
        "ending and unblocking share a snapshot",
        ("fan", ("finish watched", "start blocked")),
        "was not told",
        begin=plain("begin isolation level repeatable read"),
        holds=1,
    ),
    Mutation(
        "an ending is written whoever runs the job",
        ("idle", ("finish late", "claim")),
        "had lost it",
        "end_jobs",
        "where l.epoch = done.epoch",
        "",
    ),
    Mutation(
        "an advance is written whoever runs the job",
        ("lone", ("continue", "give back")),
        "after 1 job",
        "finish_steps",
        "where l.epoch = step.epoch",
        "",
    ),
    *(
        Mutation("who has the lock of the edges waits for a row", program, "DeadlockDetected", "lock_free", " skip locked", "")
        for program in _HELD
    ),
    Mutation(
        "rings are looked for without a lock",
        ("lone", ("wait for", "wait back")),
        "waits for itself",
        "lock_edges",
        "pg_advisory_xact_lock(%(lock)s) is null",
        "%(lock)s is null",
    ),
    Mutation(
        "failed blockers are not held",
        ("ended", ("delete", "start blocked")),
        "does not exist",
        "read_blockers",
        "for key share skip locked",
        "",
    ),
    Mutation(
        "a deletion lets others add edges",
        ("lone", ("delete", "start blocked")),
        "does not exist",
        "lock_to_delete",
        "for update",
        "for no key update",
    ),
    Mutation(
        "what was counted already is decremented again",
        ("failed", ("retry", "finish retried")),
        "open_blockers",
        "unblock_jobs",
        "and not b.counted",
        "",
    ),
    Mutation(
        "a running job is replaced",
        ("idle", ("claim", "start key, replace")),
        "runs and waits",
        "replace_waiting",
        "and l.leased_by is null and l.attempt = 0",
        "",
    ),
    Mutation("a reap keeps the epoch", ("lone", ("reap", "finish")), "epoch of", "delay_jobs", "epoch = l.epoch + 1,", ""),
    Mutation(
        "a finished holder of a key is not looked for",
        ("lone", ("finish", "start key, all")),
        "was started with the key",
        "find_holders",
        "f.key = r.key",
        "false",
    ),
    Mutation(
        "a suspension does not look for its event",
        ("lone", ("wait for event", "send event")),
        "which has come",
        "suspend_jobs",
        "mine.event and l.memo -> 'events' ? mine.name",
        "false",
    ),
    Mutation(
        "an event does not look who waits for it",
        ("lone", ("wait for event", "send event")),
        "which has come",
        "send_event",
        "l.leased_by is null and l.memo ->> 'waiting' = %(name)s then",
        "%(name)s is null then",
    ),
    Mutation(
        "a claim takes no locks",
        ("idle", ("claim", "claim")),
        "was claimed twice",
        "claim_jobs",
        "for no key update skip locked",
        "",
        holds=1,
    ),
]
