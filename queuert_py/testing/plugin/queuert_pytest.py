"""The pytest plugin of queuert_py: a real PostgreSQL for every test, clean, with a clock that a test can move. See docs/how-to/testing.md.

A package of its own, so that pytest starts as fast as without it: queuert_py is imported by the first test that uses a fixture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from queuert_py.testing import Harness
    from queuert_py.testing.databases import Scratch


@pytest.fixture(scope="session")
def queuert_setup() -> Callable[[str], object] | None:
    """Override it to return what makes your own tables: called once, with the DSN of the fresh database of this test process.

    Tables that are empty after it are emptied after every test; what it has filled stays.
    """
    return None


@pytest.fixture(scope="session")
def queuert_database(queuert_setup: Callable[[str], object] | None) -> Iterator[Scratch]:
    """The database of this test process: on the server of QUEUERT_TEST_DSN, else on an ephemeral PostgreSQL of its own (no fsync)."""
    from queuert_py.testing.databases import scratch

    with scratch(os.environ.get("QUEUERT_TEST_DSN"), queuert_setup) as database:
        yield database


@pytest.fixture
def queuert_dsn(queuert_database: Scratch) -> Iterator[str]:
    """Its DSN, with the schema in it, as empty as it was made."""
    queuert_database.prepare("queuert")
    yield queuert_database.dsn
    queuert_database.clean()


@pytest.fixture
def queuert(queuert_database: Scratch, queuert_dsn: str) -> Harness:
    """Binds an engine, or registries, to the clean database: `async with queuert(app.engine) as engine:` (in a `def` test `with`)."""
    from queuert_py.testing import Harness

    return Harness(queuert_database)
