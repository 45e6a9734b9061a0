"""The numbers of a lease."""

from __future__ import annotations

SUSPECT = 2
"""After so many deaths of workers that ran it, a job runs alone."""

POISON = 5
"""After so many (three of them alone), it has failed."""


def renew_every(lease: float) -> float:
    """Seconds between renewals: two may fail before the lease is in danger."""
    return lease / 3


def trusted_until(sent: float, lease: float) -> float:
    """When a worker stops trusting a lease, on its own monotonic clock: `sent` is when the renewal that succeeded was sent, so the
    database's lease ends later, by the margin (a sixth) and the round trip."""
    return sent + lease - lease / 6
