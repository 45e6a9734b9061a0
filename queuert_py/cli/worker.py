"""`queuert worker`: one worker in this process, or a supervisor over some."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from queuert_py import Engine, Worker
from queuert_py.cli import apps, lifetime
from queuert_py.cli.supervisor import Supervisor
from queuert_py.cli.trouble import CODES, OK

T = TypeVar("T")
logger = logging.getLogger("queuert_py.cli")
GRACE = 5.0
"""Seconds that a handler has for its end, once it is cancelled."""
LEAVING = 10.0
"""Seconds beyond shutdown timeout and grace in which a worker must have written everything and left."""
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Options:
    """How to work; see `Engine.worker`."""

    concurrency: int = 100
    queues: Sequence[str] | None = None
    types: Sequence[str] | None = None
    lease: float = 30.0
    shutdown_timeout: float = 30.0
    drain: bool = False
    name: str = "worker"
    log_level: str = "info"

    @property
    def longest_stop(self) -> float:
        """Seconds after which a worker that was asked to stop is stuck."""
        return self.shutdown_timeout + GRACE + LEAVING

    def arguments(self) -> list[str]:
        """As options of `queuert worker`."""
        pairs = {
            "--concurrency": self.concurrency,
            "--queues": ",".join(self.queues or ()),
            "--types": ",".join(self.types or ()),
            "--lease": self.lease,
            "--shutdown-timeout": self.shutdown_timeout,
            "--name": self.name,
            "--log-level": self.log_level,
        }
        given = [f"{name}={value}" for name, value in pairs.items() if value != ""]
        return [*given, "--drain"] if self.drain else given


def seconds(value: str | float) -> float:
    """A span on the command line: 30, 30s, 5m, 2h, 500ms."""
    found = re.fullmatch(r"(\d+\.?\d*)(ms|s|m|h|)", str(value).strip())
    if not found:
        raise click.BadParameter(f"{value!r} is no span of time: write 30, 30s, 5m or 500ms.")
    return float(found[1]) * {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}[found[2]]


def names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    """A list by commas; None for nothing."""
    found = [each.strip() for each in (value or "").split(",") if each.strip()]
    return found or None


@click.command(epilog=CODES)
@click.argument("app", envvar=apps.APP_VARIABLE, required=False, metavar="MODULE:ENGINE")
@apps.app_dir_option
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Worker processes, watched and restarted.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Handlers at once, in each process.")
@click.option("--queues", callback=names, metavar="A,B", help="Only these queues (default: those of the job types, and default).")
@click.option("--types", callback=names, metavar="A,B", help="Only these job types (default: all with a handler).")
@click.option("--lease", type=seconds, metavar="SPAN", default=30.0, help="How long a silent worker keeps its jobs (default: 30s).")
@click.option(
    "--shutdown-timeout",
    type=seconds,
    metavar="SPAN",
    default=30.0,
    help="How long handlers may go on after the first signal (default: 30s).",
)
@click.option("--drain", is_flag=True, help="End when nothing is left to do.")
@click.option("--name", default="worker", show_default=True, help="The first part of its id.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, envvar="QUEUERT_LOG_LEVEL")
def worker(app: str | None, app_dir: str, processes: int, **given: Any) -> int:
    """Run jobs.

    The first SIGTERM or SIGINT stops it gracefully: it claims nothing more, handlers go on until the shutdown timeout, what is not done
    by then is given back uncharged. The second ends it at once; other workers take over within about a second.
    """
    options = Options(**given)
    set_up_logging(options.log_level)
    if processes > 1:
        return apps.run(
            Supervisor(apps.checked(app), app_dir, processes, options.arguments(), options.longest_stop, drain=options.drain).run()
        )
    return apps.run(run_worker(apps.load(app, app_dir), options))


def set_up_logging(level: str) -> None:
    """To stderr, unless the app has set up its own."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s")


async def run_worker(engine: Engine[Any], options: Options) -> int:
    """Work until asked to stop (or, draining, until nothing is left); then leave in an orderly way."""
    stop = lifetime.Stop()
    with lifetime.on_signals(stop, lifetime.end_now):
        lifetime.watch_parent(stop)
        try:
            running = await _unless(stop, _start(engine, options))
            if running is not None:
                await _unless(stop, running.drained() if options.drain else stop.wait())
        finally:
            with lifetime.deadline(options.longest_stop):
                await engine.close()  # stops the worker first
        if stop.wanted:
            logger.info("stopped (%s)", stop.reason)
    return OK


async def _start(engine: Engine[Any], options: Options) -> Worker:
    await apps.open_engine(engine)
    context = engine.worker(
        concurrency=options.concurrency,
        queues=options.queues,
        types=options.types,
        lease=options.lease,
        shutdown_timeout=options.shutdown_timeout,
        grace=GRACE,
        drain=options.drain,
        name=options.name,
    )
    return await context.start()


async def _unless(stop: lifetime.Stop, work: Coroutine[Any, Any, T]) -> T | None:
    """The work's result; None when a wish to stop came first, and the work was cancelled."""
    working, asked = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
    return None if working.cancelled() else working.result()
