"""What a step touches, so that only such steps are tried in both orders as can notice each other.

A place is a sequence, or the edges to one; "*" is every place. Two steps notice each other if they touch a place in modes that do not go
together: reading goes with reading, adding edges with adding edges, writing with nothing. When in doubt a statement touches everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from queuert_py.postgres.calls import Call

Mode = Literal["read", "add", "write"]
Kind = Literal["read", "snap", "write", "commit"]
"""Towards others a step does nothing (a mere read), nothing yet (it takes its snapshot), takes or frees locks, or changes what they see."""
Footprint = frozenset[tuple[str, Mode]]

LOCKS = re.compile(rb"for (no key )?update|for key share|insert into|update \"|delete from|pg_advisory")
_EVERYWHERE = {"unblock_jobs", "claim_jobs", "lock_lost", "revive_failed", "replace_waiting"}
_SHARES = {"lock_blockers", "read_blockers"}
"""Key share locks: they go together."""


class Step(NamedTuple):
    """What an operation does next."""

    name: str
    kind: Kind
    places: Footprint = frozenset()

    def commutes(self, other: Step) -> bool:
        """Does the order of two steps of different operations make no difference?"""
        kinds = {self.kind, other.kind}
        if "commit" not in kinds and kinds != {"write"}:
            return True  # what is not committed is not seen
        return not any(_clash(one, another) for one in self.places for another in other.places)


def _clash(one: tuple[str, Mode], other: tuple[str, Mode]) -> bool:
    same = one[0] == other[0] or "*" in (one[0], other[0])
    return same and (one[1] != other[1] or one[1] == "write")


def places_of(name: str, call: Call[Any]) -> Footprint:
    """What a statement touches."""
    if b"savepoint" in call.sql:
        return frozenset()
    reads = not LOCKS.search(call.sql) or name in _SHARES
    mode: Mode = "read" if reads else "write"
    given: dict[str, Any] = dict(call.parameters)
    rows: list[dict[str, Any]] = json.loads(str(given.get("rows", "[]")))
    if name in _EVERYWHERE or any(row.get("key") for row in rows):
        return frozenset({("*", mode)})
    if name == "insert_blockers":
        return frozenset({*((row["sequence_id"], mode) for row in rows), *_edges((row["blocker_id"] for row in rows), "add")})
    if name == "lock_edges":
        return frozenset({("ring", mode)})
    ids = [row["sequence_id"] for row in rows] + ([given["sequence_id"]] if "sequence_id" in given else [])
    if not ids or name == "find_cycle":
        return frozenset({("*", mode)})
    return frozenset({*((str(id), mode) for id in ids), *_edges(map(str, ids), mode)})


def _edges(ids: Iterable[str], mode: Mode) -> Iterable[tuple[str, Mode]]:
    return ((f"to {id}", mode) for id in ids)
