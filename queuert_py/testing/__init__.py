"""For the tests of handlers: run one without a database (`run_handler`), or whole sequences on a real PostgreSQL (fixture `queuert`).

The fixtures come with the pytest plugin, which is there once the package is installed; see docs/how-to/testing.md.
"""

from __future__ import annotations

from queuert_py.testing.alone import run_handler
from queuert_py.testing.clock import VirtualClock
from queuert_py.testing.draining import drain
from queuert_py.testing.given import failed, finished
from queuert_py.testing.harness import Bound, Harness
from queuert_py.values import Ran, Summary

__all__ = ["Bound", "Harness", "Ran", "Summary", "VirtualClock", "drain", "failed", "finished", "run_handler"]
