"""Fixtures of the tests of control."""

from __future__ import annotations

import pytest

from tests.engine.kit import Runs


@pytest.fixture
def runs() -> Runs:
    """The signals of one held handler."""
    return Runs()
