"""Plans: what several statements do together, written once; what they run on is chosen where they are carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Protocol, TypeAlias
from weakref import WeakValueDictionary

from psycopg import AsyncConnection
from typing_extensions import TypeVar

from queuert_py.postgres.calls import Call
from queuert_py.postgres.carriers import explained

T = TypeVar("T")
Row = TypeVar("Row")

Plan: TypeAlias = Generator[Call[Any], list[Any], T]
"""Yields statements, is sent their rows, returns the outcome. It neither begins, commits nor rolls back."""


class Carrier(Protocol):
    """A transaction of the caller's: runs statements in it, and never ends it."""

    @property
    def session(self) -> object:
        """What the statements go to: plans on one take turns."""
        ...

    async def run(self, call: Call[Row], /) -> list[Row]: ...


_turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
"""By the session, for as long as a plan is carried out there, or waits for its turn."""


async def carry_out(plan: Plan[T], connection: AsyncConnection[Any] | Carrier) -> T:
    """Run a plan's statements here, one after the other. The error of a statement is raised into the plan, where it stands.

    Another plan on the same session waits until this one is done: its savepoints are none of this one's.
    """
    session = connection.pgconn if isinstance(connection, AsyncConnection) else connection.session
    async with _turns.setdefault(id(session), asyncio.Lock()):
        try:
            call = next(plan)
            while True:
                try:
                    rows: list[Any] = await (call.on(connection) if isinstance(connection, AsyncConnection) else connection.run(call))
                except Exception as error:
                    call = plan.throw(error if isinstance(connection, AsyncConnection) else explained(error))
                else:
                    call = plan.send(rows)
        except StopIteration as done:
            outcome: T = done.value
            return outcome
