"""The command line: `queuert …`, or `python -m queuert_py.cli …`."""

from queuert_py.cli.entry import main

__all__ = ["main"]
