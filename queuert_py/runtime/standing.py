"""Gathers the facts behind `engine.why`: of the sequence, of the workers, and of all that blocks it, level by level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from queuert_py.errors import SequenceNotFoundError
from queuert_py.ids import lane_of
from queuert_py.postgres import rows
from queuert_py.postgres.database import Database
from queuert_py.runtime.leases import presence_class
from queuert_py.why import Serving, Why, blocked, explain

LEVELS, MOST = 30, 1000
"""How deep, and at how many sequences, the search for root causes ends."""
SHOWN = 10


class Types(Protocol):
    """Who knows job types: the engine."""

    def names(self) -> list[str]: ...


async def why(database: Database, types: Types, id: UUID) -> Why:
    """Why a sequence stands where it stands, with its causes and their roots. SequenceNotFoundError."""
    workers = await _workers(database)
    known = types.names()
    found = await _explain(database, [str(id)], workers, known)
    if not found:
        raise SequenceNotFoundError(f"sequence {id} does not exist.")
    top = str(id)
    whys, links = dict(found), dict[str, list[str]]()
    level = [top]
    for _ in range(LEVELS):
        level = [each for each in level if each in whys and whys[each].code == "blocked"]
        if not level or len(whys) >= MOST:
            break
        below: list[str] = []
        for waiting, blocker in await database.run(database.store.list_open_links(_parts(database, level), MOST)):
            links.setdefault(waiting, []).append(blocker)
            if blocker not in whys:
                below.append(blocker)
        level = list(dict.fromkeys(below))[: MOST - len(whys)]
        whys |= await _explain(database, level, workers, known)
    return _assemble(top, whys, links)


def _assemble(top: str, whys: Mapping[str, Why], links: Mapping[str, Sequence[str]]) -> Why:
    if whys[top].code != "blocked":
        return whys[top]
    roots = [each for id, each in whys.items() if id != top and each.code != "blocked"]
    causes = [whys[id] for id in links.get(top, ()) if id in whys]
    return blocked(whys[top], sorted(causes, key=_urgency)[:SHOWN], sorted(roots, key=_urgency)[:SHOWN])


def _urgency(why: Why) -> int:
    """What somebody must do something about comes first."""
    calm = ("blocked", "running", "ready", "retrying", "busy")
    return calm.index(why.code) + 1 if why.code in calm else 0


async def _workers(database: Database) -> list[Serving]:
    absent = {id for id, free in await database.run(database.store.find_absent(presence_class(database.schema))) if free}
    listed = await database.run(database.store.list_workers())
    return [Serving(row[0], row[4], row[5], row[6], row[8]) for row in listed if row[0] not in absent]


async def _explain(database: Database, ids: Sequence[str], workers: Sequence[Serving], known: Sequence[str]) -> dict[str, Why]:
    if not ids:
        return {}
    found = await database.run(database.store.read_standings(_parts(database, ids)))
    return {str(each.sequence_id): explain(each, workers, known) for each in found}


def _parts(database: Database, ids: Iterable[str]) -> list[str]:
    return [rows.sequence_row(id, lane_of(id, database.store.lanes)) for id in ids]
