"""The other half of the pairs, by `pytest -m slow tests/interleave`: with them the suite would take more than five minutes."""

from __future__ import annotations

import pytest

from tests.interleave.catalogue import FIRST, NAMED
from tests.interleave.kit import Lab
from tests.interleave.test_pairs import explore


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMED if name not in FIRST])
async def test_no_order_of_two_further_operations_breaks_a_rule(lab: Lab, name: str) -> None:
    await explore(lab, name)
