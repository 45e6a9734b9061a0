"""A worker that starts with another model tries again what the old one refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from queuert_py.errors import QueuertError
from queuert_py.failing import fingerprint
from queuert_py.job_types import InternalJobType
from queuert_py.postgres import blocking, controls, rows
from queuert_py.postgres.controls import Ready
from queuert_py.postgres.database import Database
from queuert_py.postgres.plans import carry_out

logger = logging.getLogger("queuert_py.worker")


async def revive_invalid(database: Database, types: Iterable[InternalJobType[Any, Any]], told: Callable[[Iterable[Ready]], None]) -> None:
    """Run again the sequences that failed because a model of these types refused their stored input, if the model was another one then.

    Workers that start at once may all try: each sequence is revived by one of them.
    """
    prints = ((each.name, fingerprint(each.contract.input)) for each in types)
    parts = [rows.schema_row(name, each) for name, each in prints if each is not None]

    async def work(connection: psycopg.AsyncConnection[Any]) -> controls.Changes:
        async with connection.transaction():
            return (await carry_out(controls.revive_invalid(database.store, parts), connection))[1]

    try:
        while True:
            changes = await blocking.marking(database, lambda: database.retrying(work))
            told(changes.ready)
            if not changes.ready:
                return
            logger.info("%d sequence(s) whose input an earlier model refused run again", len(changes.ready))
    except (psycopg.Error, OSError, QueuertError) as error:
        logger.warning("what an earlier model refused was not looked through: %s", error)
