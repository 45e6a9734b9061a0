"""Ids: UUIDv7, sorted by time, and the lane in their low byte."""

from __future__ import annotations

import time
from uuid import UUID

import pytest

from queuert_py.ids import lane_of, uuid7


def test_an_id_is_a_version_7_uuid_as_canonical_text() -> None:
    for _ in range(1000):
        id = uuid7()
        assert str(UUID(id)) == id
        assert UUID(id).version == 7
        assert UUID(id).variant == "specified in RFC 4122"


def test_an_id_begins_with_the_milliseconds_since_1970() -> None:
    before = time.time_ns() // 1_000_000
    made = UUID(uuid7()).int >> 80
    assert before <= made <= time.time_ns() // 1_000_000


def test_ids_do_not_repeat() -> None:
    assert len({uuid7() for _ in range(100_000)}) == 100_000


@pytest.mark.parametrize("low", [0, 1, 127, 255])
def test_the_last_byte_can_be_chosen(low: int) -> None:
    assert UUID(uuid7(low)).int & 0xFF == low
    assert UUID(uuid7(low)).version == 7


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 64, 100, 255, 256])
def test_the_id_alone_tells_the_lane(lanes: int) -> None:
    for lane in range(lanes):
        id = uuid7(lane)
        assert lane_of(id, lanes) == lane_of(UUID(id), lanes) == lane
    for low in range(256):
        assert lane_of(uuid7(low), lanes) == low % lanes


def test_ids_spread_over_all_lanes() -> None:
    assert {lane_of(uuid7(), 16) for _ in range(2000)} == set(range(16))
