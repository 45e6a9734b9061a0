"""Plans: what several statements do together, written once; what they run on is chosen where they are carried out."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, TypeAlias

from psycopg import AsyncConnection
from typing_extensions import TypeVar

from queuert_py.postgres.calls import Call

T = TypeVar("T")
Row = TypeVar("Row")

Plan: TypeAlias = Generator[Call[Any], list[Any], T]
"""Yields statements, is sent their rows, returns the outcome. It neither begins, commits nor rolls back."""


class Carrier(Protocol):
    """A transaction that is not simply an AsyncConnection of psycopg: runs statements in it, and never ends it."""

    async def run(self, call: Call[Row], /) -> list[Row]: ...


async def carry_out(plan: Plan[T], connection: AsyncConnection[Any] | Carrier) -> T:
    """Run a plan's statements here, one after the other. The error of a statement is raised into the plan, where it stands."""
    try:
        call = next(plan)
        while True:
            try:
                rows: list[Any] = await (call.on(connection) if isinstance(connection, AsyncConnection) else connection.run(call))
            except Exception as error:
                call = plan.throw(error)
            else:
                call = plan.send(rows)
    except StopIteration as done:
        outcome: T = done.value
        return outcome
