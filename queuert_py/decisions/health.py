"""Is the database there? A table of states, driven by the fate of every statement and by probes."""

from __future__ import annotations

from typing import Literal, TypeAlias

State: TypeAlias = Literal["healthy", "doubtful", "down", "recovering"]

_AFTER: dict[tuple[State, bool], State] = {
    ("healthy", True): "healthy",
    ("healthy", False): "doubtful",  # one connection died: perhaps only that one
    ("doubtful", True): "healthy",
    ("doubtful", False): "down",
    ("down", True): "recovering",  # reachable again: leases are renewed first
    ("down", False): "down",
    ("recovering", True): "healthy",
    ("recovering", False): "down",
}


def after(state: State, answered: bool) -> State:
    """The state after one more probe or statement that was answered, or whose connection failed."""
    return _AFTER[state, answered]


def claims(state: State) -> bool:
    """May a worker claim? While down it keeps what it runs and takes nothing."""
    return state != "down"


def probe_after(state: State, failures: int, interval: float, random: float) -> float:
    """Seconds until the next probe: at once in doubt, soon while down (full jitter, at most 1 s for the first minute, then 5 s)."""
    match state:
        case "healthy":
            return interval * (0.9 + random / 5)
        case "doubtful" | "recovering":
            return 0.0
        case "down":
            cap = 1.0 if failures < 60 else 5.0
            return min(cap, 0.05 * 2.0 ** min(failures, 10)) * (0.5 + random / 2)
