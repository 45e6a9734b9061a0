"""Where schedules begin: some sequences, made by the engine's own statements once and put back before each schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

from psycopg import AsyncConnection

from queuert_py.postgres import blocking, rows
from queuert_py.postgres.plans import carry_out
from queuert_py.postgres.starts import Start, careful
from queuert_py.postgres.store import Store
from queuert_py.runtime.finisher import settle_calls
from queuert_py.values import Block, BlockerPolicy, Dedup, Delay, Ending, LiveJob, Verdict

TABLES = ("live_job", "finished_job", "job_blocker", "attempt_log")
TOKEN = UUID(int=7)
LEASE = timedelta(hours=1)
TYPE = "t"
SceneName = Literal["lone", "fan", "idle", "failed", "ended", "again", "diamond", "family", "parent"]


def id_of(letter: str) -> str:
    """The id of a sequence of a scene, that begins with its letter's code: ids sort as letters do."""
    return str(UUID(int=ord(letter) << 120 | 7 << 76 | 2 << 62))


NAMES = {id_of(chr(code)): chr(code) for code in range(ord("A"), ord("Z") + 1)}


def start(
    letter: str,
    *,
    key: str | None = None,
    dedup: Dedup | None = None,
    blockers: str = "",
    policy: BlockerPolicy = "hold",
    origin: str | None = None,
) -> Start:
    """One sequence. `blockers`: their letters. `origin`: that of whose handler starts it."""
    id, by = id_of(letter), origin and id_of(origin)
    fields: dict[str, Any] = {"lane": 0, "sequence_id": id, "type": TYPE, "queue": "default", "priority": 0, "key": key}
    fields |= {"root_id": by, "origin_id": by} if by else {}
    return Start(id, 0, fields, '{"n": 1}', key, False, dedup, [id_of(each) for each in blockers], policy)


@dataclass(slots=True)
class Scene:
    """A beginning. `attempts`: by letter, who runs the job, or ran it last."""

    name: SceneName
    attempts: dict[str, LiveJob] = field(default_factory=dict[str, LiveJob])
    reset: bytes = b""
    before: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict[str, Any])


async def build(connection: AsyncConnection[Any], name: SceneName) -> Scene:
    """Make a scene on an autocommit connection, and remember its rows.

    B and C (keys k and m) may be blockers, W and V run and may come to wait. lone: nothing else. ended: as lone, B has failed. again: as
    ended, and W, which had waited for B and ignores that, runs once more.
    fan: also D (key d, waits for B and C, holds), F (B, fails), I (B and C, ignores), and G (D). idle: as fan, B waits to be claimed
    and an older attempt of it is about. failed: as fan, B has failed.
    diamond: as lone; A waits for B and D (ignores), and D for B. family: as lone; A, which runs, has started B and C. parent: as family, A
    waits for both.
    """
    store, scene, bare = Store("queuert"), Scene(name), name not in ("fan", "idle", "failed")
    origin = "A" if name in ("family", "parent") else None
    await connection.execute(f"truncate {', '.join(f'queuert.{table}' for table in TABLES)}".encode())
    await _start(store, connection, start("B", key="k", origin=origin), start("C", key="m", origin=origin), start("V"), start("W"))
    if origin:
        await _start(store, connection, start("A"))
        scene.attempts["A"] = await _claim(store, connection, "A")
    for letter in "BCVW":
        scene.attempts[letter] = await _claim(store, connection, letter)
    if name == "diamond":
        await store.mark_watched([rows.sequence_row(id_of("B"), 0)]).on(connection)
        scene.attempts["B"] = scene.attempts["B"]._replace(watched=True)
        await _start(store, connection, start("D", blockers="B"))
        await store.mark_watched([rows.sequence_row(id_of("D"), 0)]).on(connection)
        await _start(store, connection, start("A", blockers="BD", policy="ignore"))
    if name == "parent":
        await store.mark_watched([rows.sequence_row(id_of(letter), 0) for letter in "BC"]).on(connection)
        scene.attempts.update({letter: scene.attempts[letter]._replace(watched=True) for letter in "BC"})
        async with connection.transaction():
            await carry_out(blocking.block(store, scene.attempts["A"], Block([id_of("B"), id_of("C")], "once")), connection)
    if not bare:
        await store.mark_watched([rows.sequence_row(id_of(letter), 0) for letter in "BC"]).on(connection)
        scene.attempts.update({letter: scene.attempts[letter]._replace(watched=True) for letter in "BC"})
        await _start(store, connection, start("D", key="d", blockers="BC"), start("F", blockers="B", policy="fail"))
        await _start(store, connection, start("I", blockers="BC", policy="ignore"))
        await store.mark_watched([rows.sequence_row(id_of("D"), 0)]).on(connection)
        await _start(store, connection, start("G", blockers="D"))
    if name == "idle":
        await _settle(store, connection, scene.attempts["B"], Delay(timedelta(0), charged=False, outcome=""))
    elif name == "again":
        await store.mark_watched([rows.sequence_row(id_of("B"), 0)]).on(connection)
        async with connection.transaction():
            await carry_out(blocking.block(store, scene.attempts["W"], Block([id_of("B")], "once", "ignore")), connection)
    if name in ("failed", "ended", "again"):
        await _settle(store, connection, scene.attempts["B"], Ending("failed", reason="error", error='{"type": "E"}'))
    if name == "again":
        scene.attempts["W"] = await _claim(store, connection, "W")
    return await _remember(connection, scene)


async def _claim(store: Store, connection: AsyncConnection[Any], letter: str) -> LiveJob:
    parts = [rows.sequence_row(id_of(letter), 0)]
    return (await store.claim_started(parts, [TYPE], worker="w1", token=TOKEN, lease=LEASE, suspect=2).on(connection))[0]


async def _start(store: Store, connection: AsyncConnection[Any], *starts: Start) -> None:
    async with connection.transaction():
        await carry_out(careful(store, starts, repeat=False), connection)


async def _settle(store: Store, connection: AsyncConnection[Any], job: LiveJob, verdict: Verdict) -> None:
    async with connection.transaction():
        for call in settle_calls(store, [(job, verdict, False)], LEASE).values():
            await call.on(connection)


async def _remember(connection: AsyncConnection[Any], scene: Scene) -> Scene:
    copies = [f"interleave.{scene.name}_{table}" for table in TABLES]
    for table, copy in zip(TABLES, copies, strict=True):
        await connection.execute(f"drop table if exists {copy}; create table {copy} as table queuert.{table}".encode())
    emptied = [f"delete from queuert.{table}" for table in TABLES]
    filled = [f"insert into queuert.{table} table {copy}" for table, copy in zip(TABLES, copies, strict=True)]
    scene.reset = "; ".join([*emptied, *filled]).encode()
    scene.before = await state(connection)
    return scene


STATE = f"""
select jsonb_build_object({
    ", ".join(
        f"'{table}', (select coalesce(jsonb_agg(to_jsonb(t) order by t.sequence_id, t.position), '[]') from queuert.{table} t)"
        for table in TABLES
    )
})
"""


async def state(connection: AsyncConnection[Any]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """All rows of the tables that matter, with letters for ids."""
    found: dict[str, list[dict[str, Any]]] = (await (await connection.execute(STATE.encode())).fetchall())[0][0]
    for table in found.values():
        for row in table:
            for column in ("sequence_id", "blocker_id"):
                if column in row:
                    row[column] = NAMES.get(row[column], row[column])
    return found
