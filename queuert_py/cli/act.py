"""Commands that change something: migrate, retry, start."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import click

from queuert_py import Engine
from queuert_py.cli import apps, output
from queuert_py.cli.look import identifier, json_option, list_workers
from queuert_py.cli.trouble import FAILED, NOT_FOUND, OK, USAGE, Trouble
from queuert_py.errors import SequenceNotFoundError
from queuert_py.postgres.migrate import script
from queuert_py.sequence import JobSequence
from queuert_py.values import StartOptions

BATCH = 500
"""Sequences that one transaction of `retry --failed` moves."""

# --- migrate


@click.command()
@apps.database_options
@click.option("--lanes", type=click.IntRange(1, 256), default=1, show_default=True, help="Fixed by the first migration.")
@click.option("--sql", "as_sql", is_flag=True, help="Print the whole script for review, and change nothing; needs no database.")
@json_option
def migrate(app: str | None, app_dir: str, schema: str | None, lanes: int, as_sql: bool, as_json: bool) -> None:
    """Make the schema, or bring it up to date. Any number may run at once; what is applied is left alone."""
    if as_sql:
        name = apps.of_schema(apps.load(app, app_dir), schema)._schema if app else schema or "queuert"
        print(script(name, lanes), end="")
        return
    engine = apps.named(app, app_dir, schema)
    applied = apps.run(_migrate(engine, lanes))
    if as_json:
        output.print_json({"target": apps.target(engine), "schema": engine._schema, "applied": applied})
    else:
        done = f"applied {', '.join(applied)}" if applied else "up to date"
        output.say(f"Schema {engine._schema} at {apps.target(engine)}: {done}.")


async def _migrate(engine: Engine[Any], lanes: int) -> list[str]:
    await apps.reach(engine)
    try:
        return await engine.migrate(lanes=lanes)
    finally:
        await engine.close()


# --- retry


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@apps.database_options
@click.option("--failed", is_flag=True, help="All that have failed.")
@click.option("--type", "type_", metavar="TYPE", help="With --failed: only sequences that started with this job type.")
@click.option("--yes", is_flag=True, help="With --failed: do not ask.")
@json_option
def retry(
    ids: Sequence[str], app: str | None, app_dir: str, schema: str | None, failed: bool, type_: str | None, yes: bool, as_json: bool
) -> int:
    """Run failed sequences again, from the job that failed, with all their attempts."""
    if bool(ids) == failed or (type_ and not failed):
        raise Trouble(
            "It is not clear what to retry.", "ids, or --failed (with --type)", "`queuert retry ID`, or `queuert retry --failed`", USAGE
        )
    wanted = [identifier(id) for id in ids]
    engine = apps.named(app, app_dir, schema)
    if failed:
        return apps.run(_retry_failed(engine, type_, yes=yes, as_json=as_json))
    retried, left = apps.run(_retry(engine, wanted))
    if as_json:
        output.print_json({"retried": retried, "left": left})
    for id in () if as_json else retried:
        output.say(f"{id} runs again.")
    for id, why in () if as_json else left.items():
        output.say(f"{id} is left: {why}.")
    return OK if not left else NOT_FOUND if "not found" in left.values() else FAILED


async def _retry(engine: Engine[Any], ids: list[UUID]) -> tuple[list[UUID], dict[UUID, str]]:
    """Those that run again, and the others with the reason."""
    async with apps.opened(engine):
        done = await engine.retry_sequences(ids)
        left = {id: await _why_left(engine, id) for id, what in done.items() if what != "retried"}
        return [id for id in done if id not in left], left


async def _why_left(engine: Engine[Any], id: UUID) -> str:
    try:
        record = await engine.get_sequence(id)
    except SequenceNotFoundError:
        return "not found"
    if record.status != "failed":
        return f"it is {record.status}, not failed"
    return f"an unfinished sequence has its key {record.key!r}"


async def _retry_failed(engine: Engine[Any], type_: str | None, *, yes: bool, as_json: bool) -> int:
    async with apps.opened(engine):
        first = await engine.list_sequences(status="failed", type=type_, limit=BATCH)
        if first and not yes:
            count = f"{len(first)}{' or more' if len(first) == BATCH else ''} failed sequence(s){f' of {type_}' if type_ else ''}"
            _ask(f"Retry {count} at {apps.target(engine)}, schema {engine.database.schema}?")
        retried, left = await _retry_all(engine, type_) if first else ([], [])
    if as_json:
        output.print_json({"retried": retried, "left": left})
    else:
        output.say(f"{len(retried)} run again." if retried else "None has failed." if not left else "None runs again.")
        if left:
            output.say(f"{len(left)} left: unfinished sequences have their keys.")
    return FAILED if left else OK


async def _retry_all(engine: Engine[Any], type_: str | None) -> tuple[list[UUID], list[UUID]]:
    """Batch after batch, until there is none that was not tried; each is tried once, also one that fails again meanwhile."""
    tried: set[UUID] = set()
    retried: list[UUID] = []
    page = BATCH
    while True:
        found = await engine.list_sequences(status="failed", type=type_, limit=page)
        fresh = [each.id for each in found if each.id not in tried][:BATCH]
        if fresh:
            tried.update(fresh)
            done = await engine.retry_sequences(fresh)
            retried += [id for id, what in done.items() if what == "retried"]
        elif len(found) < page:
            return retried, sorted(tried - set(retried))
        else:
            page *= 2  # it is full of those that were left: look behind them


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise Trouble("This needs a yes.", f"{question} (there is no terminal to ask on)", "give --yes", USAGE)
    click.confirm(output.clean(question), abort=True, err=True)


# --- start


@click.command()
@click.argument("type_", metavar="TYPE")
@click.argument("input_", metavar="JSON")
@apps.app_options
@click.option("--key", help="At most one unfinished sequence of this type has this key; a second start returns the first.")
@click.option("--queue", help="Where workers look for it.")
@click.option("--priority", type=click.IntRange(-32767, 32767), help="Higher runs first.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Not before.")
@click.option("--wait", is_flag=True, help="Wait for its result and print it; exit code 1 when it fails.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: how long (exit code 7).")
@json_option
def start(
    type_: str,
    input_: str,
    app: str | None,
    app_dir: str,
    key: str | None,
    queue: str | None,
    priority: int | None,
    delay: float | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Start a sequence with an input in JSON ("-": from stdin)."""
    value = _parse(sys.stdin.read() if input_ == "-" else input_)
    given = {"key": key, "queue": queue, "priority": priority, "delay": delay}
    options = cast("StartOptions", {name: each for name, each in given.items() if each is not None})
    apps.run(_start(apps.load(app, app_dir), type_, value, options, wait=wait, timeout=timeout, as_json=as_json))


def _parse(text: str) -> dict[str, Any]:
    """The input's JSON object."""
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise Trouble("The input is no JSON.", str(error), """quote it for the shell: '{"name": "Ada"}'""", USAGE) from None
    if not isinstance(value, dict):
        raise Trouble(
            "The input is no JSON object.", f"it is a {type(value).__name__}", """write the model's fields: '{"name": "Ada"}'""", USAGE
        )
    return cast("dict[str, Any]", value)


async def _start(
    engine: Engine[Any], type_: str, value: dict[str, Any], options: StartOptions, *, wait: bool, timeout: float | None, as_json: bool
) -> None:
    engine.get(type_)
    async with apps.opened(engine, migrate=None):
        sequence: JobSequence[Any] = await engine.start_sequence(type_, value, **options)
        known: dict[str, Any] = {"id": sequence.id, "type": type_, "deduplicated": sequence.deduplicated}
        if not as_json:
            found = " (its key's unfinished sequence)" if sequence.deduplicated else ""
            print(f"{sequence.id}{found}", flush=True)
        if not wait:
            if as_json:
                output.print_json(known)
            return
        await _warn_unserved(engine, type_)
        result = await sequence.result(timeout=timeout)
    dumped = None if result is None else result.model_dump(mode="json")
    output.print_json({**known, "output": dumped} if as_json else dumped)


async def _warn_unserved(engine: Engine[Any], type_: str) -> None:
    """Waiting for a result that nobody works for would look like a hang."""
    workers = await list_workers(engine)
    if not any(each["present"] and type_ in each["types"] for each in workers):
        print(
            f"waiting, but no worker serves {output.one_line(type_)}: `queuert worker module:engine` starts one",
            file=sys.stderr,
            flush=True,
        )
