"""Commands that look and change nothing: status, list, show, why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import click

from queuert_py import Engine
from queuert_py.cli import apps, output
from queuert_py.cli.trouble import USAGE, Trouble
from queuert_py.looking import Page
from queuert_py.runtime.leases import presence_class
from queuert_py.values import AttemptRecord, JobRecord, LinkRecord, SequenceRecord, Status
from queuert_py.why import Why

LINKS = 100
"""Blockers, and dependents, that `show` prints at most."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def identifier(text: str) -> UUID:
    """An id from the command line."""
    try:
        return UUID(text.strip())
    except ValueError:
        raise Trouble(f"{text!r} is no id.", "an id is a UUID", "`queuert list` shows the ids", USAGE) from None


# --- status


@dataclass(frozen=True)
class Standing:
    """What `status` shows, as it is printed as JSON."""

    database: dict[str, Any]
    workers: list[dict[str, Any]]
    live: list[dict[str, Any]]
    finished_last_hour: list[dict[str, Any]]
    failed: int
    failed_by_type: list[dict[str, Any]]


@click.command()
@apps.database_options
@json_option
def status(app: str | None, app_dir: str, schema: str | None, as_json: bool) -> None:
    """Show the database's health, what waits and runs, what ended in the last hour, and the workers."""
    standing = apps.run(_standing(apps.named(app, app_dir, schema)))
    if as_json:
        output.print_json(standing)
    else:
        _print_standing(standing)


async def _standing(engine: Engine[Any]) -> Standing:
    async with apps.opened(engine):
        report = await engine.health.check()
        store, run = engine.database.store, engine.database.run
        live = await run(store.count_live())
        ended = await run(store.count_finished(timedelta(hours=1)))
        failed = await run(store.count_failed())
        version = report.server_version or 0
        database = {
            "target": apps.target(engine),
            "schema": engine.database.schema,
            "lanes": store.lanes,
            "state": report.state,
            "latency": report.latency,
            "version": f"{version // 10_000}.{version % 10_000}",
        }
        return Standing(
            database,
            await list_workers(engine),
            [dict(zip(("queue", "type", "status", "jobs", "oldest_ready_age"), row, strict=True)) for row in live],
            [dict(zip(("type", "outcome", "jobs", "mean_seconds"), row, strict=True)) for row in ended],
            sum(row[1] for row in failed),
            [dict(zip(("type", "sequences", "latest"), row, strict=True)) for row in failed],
        )


async def list_workers(engine: Engine[Any]) -> list[dict[str, Any]]:
    """The workers that are there or were not yet seen to be gone (`present` false), with the number of jobs each holds."""
    database = engine.database
    rows = await database.run(database.store.list_workers())
    absent = {id for id, free in await database.run(database.store.find_absent(presence_class(database.schema))) if free}
    names = ("id", "host", "pid", "version", "queues", "types", "concurrency", "started_at", "running")
    return [{**dict(zip(names, row, strict=True)), "present": row[0] not in absent} for row in rows]


def _print_standing(standing: Standing) -> None:
    known = standing.database
    output.say(
        f"PostgreSQL {known['version']} at {known['target']}, schema {known['schema']}: {known['state']}, {output.span(known['latency'])}"
    )
    output.say()
    if standing.workers:
        columns = ("worker", "host", "pid", "state", "running", "of", "queues", "started")
        output.table(columns, [_worker_row(each) for each in standing.workers], title="Workers")
    if standing.live:
        rows = [
            (each["queue"], each["type"], each["status"], each["jobs"], output.span(each["oldest_ready_age"])) for each in standing.live
        ]
        output.table(("queue", "type", "status", "jobs", "oldest ready"), rows, title="Jobs now")
    if standing.finished_last_hour:
        rows_ = [(each["type"], each["outcome"], each["jobs"], output.span(each["mean_seconds"])) for each in standing.finished_last_hour]
        output.table(("type", "outcome", "jobs", "mean time"), rows_, title="Ended in the last hour")
    if standing.failed:
        failed = [(each["type"], each["sequences"], output.ago(each["latest"])) for each in standing.failed_by_type]
        output.table(("type", "sequences", "latest"), failed, title="Failed")
    for line in _remarks(standing):
        output.say(line)


def _worker_row(worker: dict[str, Any]) -> Sequence[object]:
    state = "present" if worker["present"] else "gone"
    started = output.ago(worker["started_at"])
    return (
        worker["id"],
        worker["host"],
        worker["pid"],
        state,
        worker["running"],
        worker["concurrency"],
        ", ".join(worker["queues"]),
        started,
    )


def _remarks(standing: Standing) -> list[str]:
    """What follows from the figures, and what to type next."""
    remarks: list[str] = []
    jobs = sum(each["jobs"] for each in standing.live)
    present = any(each["present"] for each in standing.workers)
    if not standing.live:
        remarks.append("Nothing waits and nothing runs.")
    if not present:
        waiting = f", {jobs} job(s) wait" if jobs else ""
        remarks.append(f"No worker is running{waiting}: `queuert worker module:engine`.")
    if standing.failed:
        remarks.append("`queuert list --failed` shows what failed, `queuert retry --failed` runs it again.")
    return remarks


# --- list


def instant(text: str | None, option: str) -> datetime | None:
    """An instant from the command line: ISO, in UTC unless it says otherwise; or how long ago (30m, 2h, 7d)."""
    if text is None:
        return None
    ago = re.fullmatch(r"(\d+)([smhd])", text.strip())
    try:
        if ago:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[ago[2]])
        found = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise Trouble(
            f"{option} {text!r} is no time.", "a date, a time, or a span back from now", "write 2026-01-31T12:00, or 30m, 2h, 7d", USAGE
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


STATUSES = [each for each in get_args(Status) if each != "continued"]
"""How a sequence may stand; continued are jobs of it."""


@click.command("list")
@apps.database_options
@click.option("--status", "wanted", type=click.Choice(STATUSES), help="Only sequences that stand so.")
@click.option("--failed", is_flag=True, help="The same as --status failed.")
@click.option("--type", "type", metavar="TYPE", help="Only sequences that started with this job type.")
@click.option("--queue", help="Only sequences in this queue.")
@click.option("--key", help="Only sequences of this key.")
@click.option("--tag", help="Only sequences with this tag.")
@click.option("--correlation", "correlation_id", metavar="ID", help="Only sequences of this correlation id.")
@click.option("--root", metavar="ID", help="Only this sequence and all that was started from it.")
@click.option("--created-after", metavar="TIME", help="Started since: 2026-01-31T12:00 (UTC), or 30m, 2h, 7d ago.")
@click.option("--created-before", metavar="TIME", help="Started before.")
@click.option("--finished-after", metavar="TIME", help="Ended since.")
@click.option("--finished-before", metavar="TIME", help="Ended before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--after", metavar="PAGE", help="What follows a page: as the command says at its end.")
@json_option
def list_(
    app: str | None,
    app_dir: str,
    schema: str | None,
    wanted: Status | None,
    failed: bool,
    limit: int,
    after: str | None,
    as_json: bool,
    **given: str | None,
) -> None:
    """List sequences, newest first."""
    if failed and wanted not in (None, "failed"):
        raise Trouble("--failed and --status contradict each other.", "both say which sequences to list", "give one of them", USAGE)
    filters: dict[str, Any] = {"status": "failed" if failed else wanted}
    root = given.pop("root")
    filters["root_id"] = None if root is None else identifier(root)
    for name, text in given.items():
        filters[name] = instant(text, f"--{name.replace('_', '-')}") if name.endswith(("_after", "_before")) else text
    found = apps.run(_list(apps.named(app, app_dir, schema), filters, limit, after))
    if as_json:
        output.print_json(found)
        return
    if not found:
        output.say("No such sequences.")
        return
    output.table(("id", "type", "status", "step", "attempt", "created", "key", "says"), [_sequence_row(each) for each in found])
    if found.next:
        output.say(f"There are more: --after {found.next} (or a larger --limit).")


async def _list(engine: Engine[Any], filters: dict[str, Any], limit: int, after: str | None) -> Page[SequenceRecord]:
    async with apps.opened(engine):
        return await engine.list_sequences(limit=limit, after=after, **filters)


def _sequence_row(record: SequenceRecord) -> Sequence[object]:
    step = f"{record.steps} {record.current_type}"
    says = describe_error(record.error) if record.error and record.status != "completed" else ""
    return record.id, record.type, record.status, step, record.attempt, output.ago(record.created_at), record.key, output.one_line(says, 60)


def describe_error(error: Any) -> str:
    """An error as stored, in a line."""
    return f"{error.get('type', 'error')}: {error.get('message', '')}"


# --- show


@click.command()
@click.argument("id")
@apps.database_options
@json_option
def show(id: str, app: str | None, app_dir: str, schema: str | None, as_json: bool) -> None:
    """Show one sequence: its jobs, what they wait for, its attempts with their errors, and what to type next."""
    found = apps.run(_read(apps.named(app, app_dir, schema), identifier(id)))
    if as_json:
        output.print_json(found)
        return
    _print_sequence(found.sequence)
    output.table(("#", "job type", "status", "attempt", "crashes", "queue", "took", "worker"), [_job_row(each) for each in found.jobs])
    _print_links("Waits for", found.blockers)
    _print_links("Waited for by", found.dependents)
    _print_attempts(found.attempts)
    output.say(_next(found.sequence))


@dataclass(frozen=True)
class Shown:
    """What `show` shows, as it is printed as JSON."""

    sequence: SequenceRecord
    jobs: list[JobRecord]
    blockers: list[LinkRecord]
    dependents: list[LinkRecord]
    attempts: list[AttemptRecord]


async def _read(engine: Engine[Any], id: UUID) -> Shown:
    async with apps.opened(engine):
        record = await engine.get_sequence(id)
        blockers, dependents = await engine.list_blockers(id), await engine.list_dependents(id, limit=LINKS)
        return Shown(record, await engine.list_jobs(id), blockers, dependents, await engine.list_attempts(id))


def _print_links(title: str, links: Sequence[LinkRecord]) -> None:
    """Blockers or dependents: those that are still open first."""
    if not links:
        return
    rows = [
        (each.id, each.type or "(deleted)", each.status, each.position, "no" if each.settled else "yes")
        for each in sorted(links, key=lambda each: each.settled)[:LINKS]
    ]
    output.table(("sequence", "type", "status", "#", "open"), rows, title=title)


def _print_sequence(record: SequenceRecord) -> None:
    reason = f" ({record.reason})" if record.reason else ""
    output.facts(
        (
            ("sequence", record.id),
            ("type", record.type),
            ("status", f"{record.status}{reason}"),
            ("key", record.key),
            ("correlation", record.correlation_id),
            ("tags", ", ".join(record.tags) or None),
            ("root", record.root_id if record.root_id != record.id else None),
            ("progress", _progress(record.progress) if record.finished_at is None else None),
            ("created", f"{record.created_at:%Y-%m-%d %H:%M:%S %Z} ({output.ago(record.created_at)})"),
            ("ended", f"{record.finished_at:%Y-%m-%d %H:%M:%S %Z}" if record.finished_at else None),
            ("input", output.compact(record.input, 1000)),
            ("output", output.compact(record.output, 1000) if record.status == "completed" else None),
            ("error", describe_error(record.error) if record.error and record.status != "completed" else None),
        )
    )
    print()


def _progress(progress: Mapping[str, Any] | None) -> str | None:
    if progress is None:
        return None
    return f"{progress.get('percent')} % {progress.get('message') or ''}".strip()


def _job_row(job: JobRecord) -> Sequence[object]:
    took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
    return job.position, job.type, job.status, job.attempt, job.crash_count, job.queue, output.span(took), job.worker


def _print_attempts(attempts: Sequence[AttemptRecord]) -> None:
    """Each attempt that did not succeed; a traceback that was just shown is not shown again."""
    shown = ""
    for each in attempts:
        error = each.error or {}
        head = f"attempt {each.attempt} of {each.type} (#{each.position}): {each.outcome}, {output.ago(each.finished_at)}"
        output.say(f"{head}, on {each.worker}" if each.worker else head)
        if error:
            print(f"  {output.one_line(describe_error(error), 1000)}")
        trace = output.clean(error.get("traceback") or "").rstrip()
        if trace and trace == shown:
            print("  (the same traceback)")
        elif trace:
            print("\n".join(f"  {line}" for line in trace.split("\n")))
        shown = trace or shown
        print()


def _next(record: SequenceRecord) -> str:
    match record.status:
        case "failed":
            return f"Next: `queuert retry {record.id}` runs it again from the job that failed."
        case "completed" | "cancelled" | "expired":
            return f"It has ended. `queuert list --type {record.type}` shows others."
        case "running":
            return f"It runs. `queuert show {record.id}` shows how it goes on."
        case _:
            return f"It waits. `queuert why {record.id}` says what for."


# --- why


@click.command()
@click.argument("id")
@apps.database_options
@json_option
def why(id: str, app: str | None, app_dir: str, schema: str | None, as_json: bool) -> None:
    """Say what a sequence waits for, or how it ended; behind a block, what is at the root of it."""
    found = apps.run(_why(apps.named(app, app_dir, schema), identifier(id)))
    if as_json:
        output.print_json(found)
        return
    output.say(f"{found.code}: {found.sentence}")
    for title, several in (("Because of", found.causes), ("At the root", found.roots)):
        if several:
            output.table(("sequence", "type", "why", "says"), [_why_row(each) for each in several], title=title)


async def _why(engine: Engine[Any], id: UUID) -> Why:
    async with apps.opened(engine):
        return await engine.why(id)


def _why_row(why: Why) -> Sequence[object]:
    return why.sequence_id, why.type, why.code, output.one_line(why.sentence, 100)
