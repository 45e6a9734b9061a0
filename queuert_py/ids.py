"""Ids are UUIDv7 made by the client (RFC 9562, 5.7): known before the round trip, so that a repeated start is no second one.

They are made and carried as text, as they travel; a uuid.UUID is made where a user asks for one.
"""

from __future__ import annotations

import os
import time


def uuid7(low: int | None = None) -> str:
    """48 bits of milliseconds since 1970, then 74 random ones, as text. `low`: its last byte. Nothing is decided by the clock in it."""
    random = int.from_bytes(os.urandom(10), "big") & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    if low is not None:
        random = random & ~0xFF | low
    text = f"{(time.time_ns() // 1_000_000) << 80 | random:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def lane_of(id: object, lanes: int) -> int:
    """The lane of a sequence, by the low byte of its id (a UUID or its text): the id alone finds its row."""
    return int(str(id)[-2:], 16) % lanes if lanes > 1 else 0
