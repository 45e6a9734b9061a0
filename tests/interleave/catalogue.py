"""Which operations meet where: every pair of them, on every scene that means something to both, and the triples in which races hide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

from tests.interleave.scenes import SceneName

Program = tuple[SceneName, tuple[str, ...]]

SCENES: dict[str, Sequence[SceneName]] = {
    "finish": ("lone",),
    "finish late": ("idle", "failed"),
    "finish watched": ("lone", "fan", "diamond", "family", "parent"),
    "finish batch": ("lone", "fan"),
    "fail": ("lone", "fan"),
    "give back": ("lone", "fan"),
    "finalize": ("lone", "fan"),
    "continue": ("lone", "fan"),
    "continue with blockers": ("lone", "fan", "failed", "ended"),
    "wait for": ("lone", "fan", "failed", "ended"),
    "wait back": ("lone", "fan"),
    "wait again": ("again",),
    "finish retried": ("again", "failed"),
    "wait for event": ("lone", "fan"),
    "send event": ("lone", "fan", "idle", "failed"),
    "keep a step": ("lone", "fan"),
    "start blocked": ("lone", "fan", "idle", "failed", "ended"),
    "start key": ("lone", "failed", "ended"),
    "start key, all": ("lone", "failed", "ended"),
    "start key, replace": ("lone", "idle"),
    "replace one that waits": ("fan", "idle", "failed"),
    "start keys": ("lone", "failed"),
    "cancel": ("lone", "fan", "idle", "failed"),
    "cancel many": ("fan",),
    "cancel the middle": ("diamond",),
    "cancel the family": ("family", "parent"),
    "wait for the children": ("family",),
    "delete": ("lone", "fan", "failed", "ended"),
    "delete many": ("fan", "idle", "failed"),
    "complete": ("lone", "fan", "idle"),
    "complete, going on": ("lone", "fan"),
    "complete W, to wait": ("lone", "fan", "failed", "ended"),
    "complete D, to wait": ("fan", "failed"),
    "retry": ("lone", "fan", "failed", "ended", "again"),
    "reschedule": ("idle",),
    "reap": ("lone", "fan"),
    "reap, burying": ("lone", "fan"),
    "claim": ("fan", "idle", "failed"),
}
"""Where an operation has something to do, or must find that it has not."""

LATE = {"finish late", "start key, replace", "cancel", "delete", "complete", "retry", "reschedule", "claim"}
"""What an attempt that lost its job long ago is set against: whatever gives the job to somebody else."""

MOST: Sequence[SceneName] = ("fan", "failed", "idle", "again", "ended", "lone", "diamond", "parent", "family")

NAMED = (
    "finish",
    "finish watched",
    "start blocked",
    "wait for",
    "wait for event",
    "send event",
    "continue",
    "continue with blockers",
    "cancel",
    "delete",
    "complete",
    "reap",
    "claim",
    "start key",
    "start key, all",
    "retry",
)
"""One of each kind: the pairs of these are explored with every run of the tests, on one scene each."""


FIRST = NAMED[:4]
"""As many schedules as the others together."""


def pairs(names: Sequence[str] = tuple(SCENES)) -> list[Program]:
    """All of them, on all scenes."""
    return [program for one, other in combinations_with_replacement(names, 2) for program in meetings(one, other)]


def meetings(one: str, other: str) -> list[Program]:
    """Two operations, on every scene that they share."""
    apart = "finish late" in (one, other) and not {one, other} <= LATE
    return [(scene, (one, other)) for scene in SCENES[one] if scene in SCENES[other] and not apart]


def telling(one: str, other: str) -> list[Program]:
    """Two operations, on the scene that they share where most is going on."""
    return sorted(meetings(one, other), key=lambda program: MOST.index(program[0]))[:1]


CORE: list[Program] = [
    ("lone", ("finish", "start blocked")),
    ("lone", ("wait for", "wait back")),
    ("lone", ("wait for event", "send event")),
    ("lone", ("keep a step", "send event")),
    ("fan", ("finish watched", "start blocked")),
    ("fan", ("finish watched", "finish watched C")),
    ("fan", ("fail", "start blocked")),
    ("fan", ("finish watched", "replace one that waits")),
    ("failed", ("retry", "start blocked")),
    ("lone", ("delete", "start blocked")),
    ("diamond", ("finish watched", "cancel the middle")),
    ("parent", ("finish watched", "cancel the family")),
    ("lone", ("wait for", "complete W, to wait")),
    ("fan", ("replace one that waits", "complete D, to wait")),
]
"""Where most breaks were found: explored with statements held, too, with every run of the tests."""

TRIPLES: list[Program] = [
    ("lone", ("finish watched", "start blocked", "finish watched C")),
    ("fan", ("finish watched", "start blocked", "finish watched C")),
    ("fan", ("finish watched", "wait for", "finish watched C")),
    ("lone", ("start keys", "start keys", "finish batch")),
    ("lone", ("start keys, one free", "start keys, one free", "finish")),
    ("failed", ("retry", "start blocked", "cancel many")),
    ("again", ("retry", "wait again", "finish retried")),
    ("fan", ("fail", "retry", "start blocked")),
    ("lone", ("delete", "start key", "start key, all")),
]
