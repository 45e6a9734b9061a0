"""Plans: what several statements do together, written once; who waits for them (async, sync, through another driver) is chosen here."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, TypeAlias

from psycopg import AsyncConnection, Connection
from typing_extensions import TypeVar

from queuert_py.postgres.store import Call

T = TypeVar("T")
Row = TypeVar("Row")

Plan: TypeAlias = Generator[Call[Any], list[Any], T]
"""Yields statements, is sent their rows, returns the outcome. It neither begins, commits nor rolls back."""


class Carrier(Protocol):
    """A transaction that is not on a psycopg connection of ours: runs statements in it, and never ends it."""

    async def run(self, call: Call[Row], /) -> list[Row]: ...


class SyncCarrier(Protocol):
    """As Carrier, in the caller's thread."""

    def run_sync(self, call: Call[Row], /) -> list[Row]: ...


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


def carry_out_sync(plan: Plan[T], connection: Connection[Any] | SyncCarrier) -> T:
    """As `carry_out`, in the caller's thread."""
    try:
        call = next(plan)
        while True:
            try:
                rows: list[Any] = call.on_sync(connection) if isinstance(connection, Connection) else connection.run_sync(call)
            except Exception as error:
                call = plan.throw(error)
            else:
                call = plan.send(rows)
    except StopIteration as done:
        outcome: T = done.value
        return outcome
