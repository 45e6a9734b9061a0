"""Where a job stands, from its row. The view `job` says the same in SQL; a test holds them equal."""

from __future__ import annotations

from queuert_py.values import Status


def live_status(*, leased: bool, open_blockers: int, due: bool) -> Status:
    """The status of a live row; a finished one's is its outcome."""
    if leased:
        return "running"
    if open_blockers > 0:
        return "blocked"
    return "pending" if due else "scheduled"
