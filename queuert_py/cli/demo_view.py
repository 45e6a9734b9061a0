"""How the demo shows itself: a progress bar on a terminal, lines elsewhere; the figures at the end."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from queuert_py.cli import output

if TYPE_CHECKING:
    from queuert_py.cli.demo import Figures

STEPS = 5
"""Lines of progress, where there is no terminal."""


class View:
    """Lines, and how many of `total` files are stored."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._told = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if output.is_terminal() and not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

            self._bar = self._stack.enter_context(Progress("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()))
            self._task = self._bar.add_task("stored", total=self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def say(self, text: str) -> None:
        """A line, above the bar."""
        if self._quiet:
            return
        if self._bar is None:
            output.say(text)
            return
        from rich.text import Text

        self._bar.console.print(Text(output.clean(text)))

    def progress(self, stored: int) -> None:
        """How far it is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=stored)
        elif stored * STEPS // self._total > self._told:
            self._told = stored * STEPS // self._total
            self.say(f"  {stored} of {self._total} stored")


def show(figures: Figures) -> None:
    """What came of it, whether it is as promised, and what to type next."""
    report = figures.report
    print()
    output.facts(
        (
            ("files", f"{figures.files:,} ({report['bytes']:,} bytes, {report['lines']:,} lines, {report['words']:,} words)"),
            ("Python definitions", f"{report['definitions']:,}, most in {report['most_definitions']}" if report["definitions"] else None),
            ("changed meanwhile", f"{figures.changed:,} files, which do not count" if figures.changed else None),
            ("jobs", f"{figures.jobs:,} in {figures.work_seconds:.2f} s ({figures.jobs_per_second:,.0f} jobs/s, the recovery included)"),
            ("killed", f"worker {figures.killed_pid} by SIGKILL, holding {figures.held} jobs"),
            ("recovered", f"{figures.held} jobs: {_recovered(figures)}; {output.span(figures.recovery_seconds)} after the death"),
            ("rows stored", f"{figures.rows:,} for {figures.distinct_rows:,} files ({_by_whom(figures)}), counted by SQL"),
            ("in all", f"{figures.total_seconds:.1f} s, PostgreSQL's start and end included"),
        )
    )
    print()
    if not figures.holds:
        output.say(f"NOT as promised: {'; '.join(figures.broken)}.")
        return
    output.say("Every file exactly once, although a worker was killed while it worked.")
    output.say("")
    output.say("Next: the tutorial in docs/tutorial.md, an idea each in examples/; the demo's own job types: queuert_py/cli/demo_jobs.py.")
    output.say("      queuert --help")


def _recovered(figures: Figures) -> str:
    return f"{figures.attempts_lost} attempts lost and run again, {figures.held - figures.held_begun} that had not begun"


def _by_whom(figures: Figures) -> str:
    return ", ".join(f"{rows:,} by {pid}" for pid, rows in figures.stored_by.items())
