"""`python -m tests.interleave`: all pairs and triples, with statements held, and how many schedules that were.

Options: --short (the pairs of the named kinds, as in the tests), --holds N (statements held in a schedule), --only TEXT (titles with it),
--most N (schedules of one program), --part K/N (every Nth program from the Kth). QUEUERT_TEST_DSN or the embedded server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from itertools import combinations_with_replacement
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from queuert_py.embedded import open_server
from queuert_py.postgres.migrate import script
from tests.interleave.catalogue import CORE, NAMED, TRIPLES, Program, pairs, telling
from tests.interleave.kit import Lab
from tests.interleave.runner import Report, Runner


async def explore(dsn: str, programs: list[Program], holds: int, most: int | None) -> list[Report]:
    reports: list[Report] = []
    async with Lab(dsn) as lab:
        runner = Runner(lab)
        for scene, operations in programs:
            held = 0 if len(operations) > 2 else holds  # three, with statements held, are too many
            reports.append(await runner.explore(scene, operations, holds=held, most=most))
            print(reports[-1].line(), flush=True)
            for violation in reports[-1].violations[:2]:
                print(violation, flush=True)
    return reports


def main(server: str, options: argparse.Namespace) -> int:
    first, every = map(int, options.part.split("/"))
    named = [each for one, other in combinations_with_replacement(NAMED, 2) for each in telling(one, other)]
    programs = [*named, *CORE] if options.short else [*pairs(), *TRIPLES]
    chosen = [each for each in programs if options.only in f"{each[0]}: {' x '.join(each[1])}"][first - 1 :: every]
    name = f"queuert_interleave_{uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            dsn = make_conninfo(server, dbname=name)
            with psycopg.connect(dsn, autocommit=True) as inside:
                inside.execute(script("queuert").encode())
            reports = asyncio.run(explore(dsn, chosen, options.holds, options.most))
        finally:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
    broken = sum(len(report.violations) for report in reports)
    seconds = sum(report.seconds for report in reports)
    print(f"{sum(report.schedules for report in reports):,} schedules of {len(reports)} programs in {seconds:.0f} s, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.interleave", description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--holds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--most", type=int)
    parser.add_argument("--part", default="1/1")
    given = parser.parse_args()
    if os.environ.get("QUEUERT_TEST_DSN"):
        sys.exit(main(os.environ["QUEUERT_TEST_DSN"], given))
    with open_server(ephemeral=True) as embedded:
        sys.exit(main(embedded.dsn, given))
