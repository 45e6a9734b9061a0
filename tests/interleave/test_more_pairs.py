"""The other half of the pairs: a file of its own, so that it runs beside the first."""

from __future__ import annotations

import pytest

from tests.interleave.catalogue import FIRST, NAMED
from tests.interleave.kit import Lab
from tests.interleave.test_pairs import explore


@pytest.mark.parametrize("name", [name for name in NAMED if name not in FIRST])
async def test_no_order_of_two_further_operations_breaks_a_rule(lab: Lab, name: str) -> None:
    await explore(lab, name)
