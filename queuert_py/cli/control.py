"""Commands that change what was started: cancel, delete, trigger, reschedule."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import click

from queuert_py import Engine
from queuert_py.cli import apps, output
from queuert_py.cli.look import identifier, json_option
from queuert_py.cli.trouble import FAILED, NOT_FOUND, OK, USAGE, Trouble

T = TypeVar("T")
ids_argument = click.argument("ids", nargs=-1, required=True, metavar="ID...")


def _done(
    app: str | None, app_dir: str, schema: str | None, ids: Sequence[str], do: Callable[[Engine[Any], list[UUID]], Awaitable[T]]
) -> T:
    """Do it with the ids on an open engine."""
    wanted = [identifier(id) for id in ids]
    engine = apps.named(app, app_dir, schema)

    async def run() -> T:
        async with apps.opened(engine):
            return await do(engine, wanted)

    return apps.run(run())


def _code(left: Sequence[str]) -> int:
    """Of those that were not done: what each is instead."""
    return OK if not left else NOT_FOUND if "not_found" in left else FAILED


@click.command()
@ids_argument
@apps.database_options
@click.option("--cascade", is_flag=True, help="Also what their handlers have started.")
@json_option
def cancel(ids: Sequence[str], app: str | None, app_dir: str, schema: str | None, cascade: bool, as_json: bool) -> int:
    """End sequences that have not ended. A handler that runs is aborted and can write no more."""
    standing = _done(app, app_dir, schema, ids, lambda engine, wanted: engine.cancel_sequences(wanted, cascade=cascade))
    says = {"not_found": "not found", "busy": "held by an open transaction: try again", "cancelled": "cancelled"}
    if as_json:
        output.print_json(standing)
    for id, status in () if as_json else standing.items():
        output.say(f"{id}: {says.get(status, f'left, it is {status}')}.")
    return _code([status for status in standing.values() if status != "cancelled"])


@click.command()
@ids_argument
@apps.database_options
@click.option("--cascade", is_flag=True, help="Also what they have waited for, as far as nobody else needs it.")
@json_option
def delete(ids: Sequence[str], app: str | None, app_dir: str, schema: str | None, cascade: bool, as_json: bool) -> int:
    """Remove sequences with all that is known of them, finished or not. Refused if an unfinished one has them as blockers."""
    deleted = _done(app, app_dir, schema, ids, lambda engine, wanted: engine.delete_sequences(wanted, cascade=cascade))
    missing = [id for id in dict.fromkeys(map(identifier, ids)) if id not in deleted]
    if as_json:
        output.print_json({"deleted": deleted, "missing": missing})
    for id in () if as_json else deleted:
        output.say(f"{id} is deleted.")
    for id in () if as_json else missing:
        output.say(f"{id}: not found.")
    return _code(["not_found"] if missing else [])


@click.command()
@ids_argument
@apps.database_options
@json_option
def trigger(ids: Sequence[str], app: str | None, app_dir: str, schema: str | None, as_json: bool) -> None:
    """Let waiting sequences run now, in the order of the ids; all or none."""
    _done(app, app_dir, schema, ids, lambda engine, wanted: engine.trigger(wanted))
    _told(ids, as_json, "runs now")


@click.command()
@ids_argument
@apps.database_options
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="So long from now.")
@click.option("--at", metavar="INSTANT", help="Then: ISO 8601 with its zone, like 2030-01-31T08:00+01:00.")
@json_option
def reschedule(
    ids: Sequence[str], app: str | None, app_dir: str, schema: str | None, delay: float | None, at: str | None, as_json: bool
) -> None:
    """Give waiting sequences another time; all or none. Blocked ones go on waiting for their blockers, and for that time."""
    if (delay is None) == (at is None):
        raise Trouble("It is not clear when.", "neither, or both, of --delay and --at", "give one of them", USAGE)
    instant = None if at is None else _instant(at)
    _done(app, app_dir, schema, ids, lambda engine, wanted: engine.reschedule(wanted, delay=delay, at=instant))
    _told(ids, as_json, f"runs in {output.span(delay)}" if delay is not None else f"runs at {instant}")


def _told(ids: Sequence[str], as_json: bool, what: str) -> None:
    changed = list(dict.fromkeys(map(identifier, ids)))
    if as_json:
        output.print_json({"changed": changed})
    for id in () if as_json else changed:
        output.say(f"{id} {what}.")


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise Trouble(f"{text!r} is no instant.", str(error), "write it as 2030-01-31T08:00+01:00", USAGE) from None
