"""File locks (flock): they belong to an open file, and go with the process, however it ends.

Every unlock is explicit: a child that another thread forks meanwhile has the same open file, and a mere close would leave it
locked.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def open_lock(path: Path) -> int:
    """The lock file as a descriptor, which (as all of Python) no child inherits across exec."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def attempt(lock: int, operation: int) -> bool:
    """Lock at once or not at all."""
    try:
        fcntl.flock(lock, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(lock: int) -> None:
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


@contextmanager
def exclusive(path: Path) -> Generator[None]:
    """Hold the lock, waiting for it."""
    lock = open_lock(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        release(lock)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock. A lock file that is gone (or never was) is free, and is not made."""
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        return attempt(lock, fcntl.LOCK_EX)
    finally:
        release(lock)
