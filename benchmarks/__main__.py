"""What the engine does on this machine, and how that compares, in one run.

    python -m benchmarks [--jobs 20000] [--rounds 3] [--peers] [DSN]

Without a DSN an embedded PostgreSQL with fsync on is started for the run. `--peers` adds procrastinate's worker (extra `bench`) on the
same server. Every figure is the median of the rounds; the ratio is that of the medians of one run.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from statistics import median

import click

from benchmarks import measures
from queuert_py.embedded import open_server


@click.command()
@click.argument("dsn", default="")
@click.option("--jobs", default=20_000, help="Jobs of a drain.")
@click.option("--rounds", default=3, help="How often each figure is measured.")
@click.option("--peers", is_flag=True, help="Measure procrastinate on the same server, too.")
def main(dsn: str, jobs: int, rounds: int, peers: bool) -> None:
    """Print the figures."""
    logging.disable(logging.WARNING)
    if dsn:
        asyncio.run(report(dsn, jobs, rounds, peers=peers))
        return
    with open_server(ephemeral=True, fsync=True) as server:
        asyncio.run(report(server.dsn, jobs, rounds, peers=peers))


async def report(dsn: str, jobs: int, rounds: int, *, peers: bool) -> None:
    """Measure and print."""
    print(await measures.describe(dsn))
    starts: list[float] = []
    drains: list[float] = []
    steps: list[float] = []
    others: list[float] = []
    for _ in range(rounds):
        started, drained = await measures.drain(dsn, jobs)
        starts.append(started)
        drains.append(drained)
        steps.append(await measures.chains(dsn, 1000, 5))
        if peers:
            others.append(await measures.procrastinate_drain(dsn, max(500, jobs // 10)))
    show("start_sequences", starts, "rows/s", "at least 60,000")
    show("drain of no-op jobs, one worker, concurrency 100", drains, "jobs/s", "at least 12,000")
    show("1,000 sequences of five steps", steps, "steps/s", "at least 8,000")
    if others:
        show("procrastinate: drain of no-op jobs, concurrency 100", others, "jobs/s", "")
        print(f"{'ratio to procrastinate':52} {median(drains) / median(others):10.1f} ×         at least 8")
    first_line, finished = await measures.idle_start(dsn, 200), await measures.idle_chain(dsn, 100, 5)
    show_latency("idle worker, start to the handler's first line", first_line, "p50 ≤ 4, p99 ≤ 25")
    show_latency("five steps at idle, start to result", finished, "p50 ≤ 10")


def show(name: str, values: list[float], unit: str, target: str) -> None:
    low, high = min(values), max(values)
    print(f"{name:52} {median(values):10,.0f} {unit:8}  {target:16} ({low:,.0f} to {high:,.0f})")


def show_latency(name: str, seconds: list[float], target: str) -> None:
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99) - 1]
    print(f"{name:52} p50 {p50 * 1000:6.1f} ms, p99 {p99 * 1000:6.1f} ms  {target}")


if __name__ == "__main__":
    sys.exit(main())
