"""Which sequences wait for which: the order in which their rows are locked, and what a deletion takes with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

Edge = tuple[str, str]
"""A blocker and the sequence that waits for it, by their ids."""


def levels(ids: Iterable[str], edges: Iterable[Edge]) -> list[list[str]]:
    """The ids in layers, blockers before their dependents. Whoever ends a blocker holds it while it waits for its dependents, so rows
    that wait for each other are locked in this order."""
    left = dict.fromkeys(ids)
    inner = {(blocker, dependent) for blocker, dependent in edges if blocker in left and dependent in left and blocker != dependent}
    layers: list[list[str]] = []
    while left:
        waiting = {dependent for blocker, dependent in inner if blocker in left}
        free = [id for id in left if id not in waiting] or list(left)  # a ring cannot be; if it is, its order does not matter
        layers.append(free)
        for id in free:
            del left[id]
    return layers


def deletable(wanted: Collection[str], candidates: Iterable[str], dependents: Sequence[Edge]) -> tuple[list[str], list[Edge]]:
    """What may be deleted: `wanted`, and of the candidates (what they waited for) those that nobody else needs.

    dependents: every unfinished job that has one of them as a blocker. Second answer: the edges that forbid deleting what is wanted.
    """
    chosen = dict.fromkeys([*wanted, *candidates])
    while needed := {blocker for blocker, dependent in dependents if blocker in chosen and dependent not in chosen} - set(wanted):
        for id in needed:
            del chosen[id]
    refused = [(blocker, dependent) for blocker, dependent in dependents if blocker in wanted and dependent not in chosen]
    return list(chosen), refused
