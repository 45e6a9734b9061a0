"""Ids are UUIDv7 made by the client (RFC 9562, 5.7): known before the round trip, so that a repeated start is no second one.

They are made and carried as text, as they travel; a uuid.UUID is made where a user asks for one.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime


def uuid7(low: int | None = None) -> str:
    """Time in steps of 1/4096 ms (RFC 9562, 6.2, method 3: those of one process sort as they were made), then 62 random bits, as text.

    `low`: its last byte. Nothing is decided by the clock in it.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    random = int.from_bytes(os.urandom(8), "big") >> 2
    if low is not None:
        random = random & ~0xFF | low
    text = f"{milliseconds << 80 | 0x7 << 76 | (rest << 12) // 1_000_000 << 64 | 0x2 << 62 | random:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def about_now() -> datetime:
    """The time by this machine's clock: for guesses, where a wrong one costs time only."""
    return datetime.now(UTC)


def lane_of(id: object, lanes: int) -> int:
    """The lane of a sequence, by the low byte of its id (a UUID or its text): the id alone finds its row."""
    return int(str(id)[-2:], 16) % lanes if lanes > 1 else 0
