"""What a database error means: by SQLSTATE and the state of the connection, never by its text (docs/design.md has the table)."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """The classes of failure that are treated differently."""

    CONFLICT = "conflict"  # rolled back for certain by the server: run the transaction again
    LOST = "lost"  # the connection is gone: what was under way is unknown until looked at
    READ_ONLY = "read_only"  # a standby: this connection is of no use, the primary is elsewhere
    OVERLOADED = "overloaded"  # no connection or resource to be had just now
    STORAGE = "storage"  # disk full or failing
    BUSY = "busy"  # a lock or a statement took longer than its limit
    BROKEN = "broken"  # a bug or a configuration: retrying changes nothing


_BY_STATE = {
    "40001": Fault.CONFLICT,
    "40P01": Fault.CONFLICT,
    "57P01": Fault.LOST,
    "57P02": Fault.LOST,
    "57P03": Fault.OVERLOADED,
    "57P05": Fault.LOST,
    "25P03": Fault.LOST,
    "25006": Fault.READ_ONLY,
    "53300": Fault.OVERLOADED,
    "53400": Fault.OVERLOADED,
    "53100": Fault.STORAGE,
    "53200": Fault.STORAGE,
    "58030": Fault.STORAGE,
    "55P03": Fault.BUSY,
    "57014": Fault.BUSY,
}


def classify(sqlstate: str | None, *, connected: bool) -> Fault:
    """Tell the class of an error. `connected`: the connection is still usable. Without a SQLSTATE only the connection counts."""
    known = _BY_STATE.get(sqlstate or "")
    if known in (Fault.CONFLICT, Fault.READ_ONLY, Fault.OVERLOADED, Fault.STORAGE):
        return known
    if not connected or (sqlstate or "").startswith("08"):
        return Fault.LOST
    return known or Fault.BROKEN


def retries(fault: Fault) -> int:
    """How often something idempotent is tried again after this fault; LOST and its like last for about twenty seconds of pauses."""
    match fault:
        case Fault.CONFLICT:
            return 5
        case Fault.LOST | Fault.READ_ONLY | Fault.OVERLOADED | Fault.STORAGE:
            return 8
        case Fault.BUSY:
            return 3
        case Fault.BROKEN:
            return 0


def pause(fault: Fault, tried: int, random: float) -> float:
    """Seconds before try number `tried` + 1 (`tried` from 1), with full jitter: `random` in [0, 1)."""
    first, cap = {
        Fault.CONFLICT: (0.02, 0.2),
        Fault.BUSY: (0.1, 1.0),
        Fault.STORAGE: (1.0, 30.0),
    }.get(fault, (0.1, 5.0))
    return min(cap, first * 2.0 ** (tried - 1)) * (0.5 + random / 2)
