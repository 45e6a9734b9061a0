"""Ids are UUIDv7 made by the client (RFC 9562, 5.7): known before the round trip, so that a repeated start is no second one."""

from __future__ import annotations

import os
import time
from uuid import UUID


def uuid7() -> UUID:
    """48 bits of milliseconds since 1970, then 74 random ones. The clock only sorts: nothing is decided by it."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def lane_of(id: UUID, lanes: int) -> int:
    """The lane of a sequence: its id alone finds its row."""
    return (id.int & 0xFF) % lanes


def in_lane(id: UUID, lane: int, lanes: int) -> UUID:
    """The same id moved to a lane, by its low byte."""
    low = id.int & 0xFF
    return UUID(int=(id.int & ~0xFF) | ((low - low % lanes + lane) % 256 if lanes > 1 else low))
