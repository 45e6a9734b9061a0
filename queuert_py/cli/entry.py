"""`queuert`: the group of commands, and the one place where errors become three lines."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from queuert_py import __version__
from queuert_py.cli.act import migrate, retry, start
from queuert_py.cli.control import cancel, delete, reschedule, trigger
from queuert_py.cli.demo import demo
from queuert_py.cli.look import list_, show, status, why
from queuert_py.cli.trouble import CODES, SIGNALLED, explain, tell
from queuert_py.cli.worker import worker

DEBUG_VARIABLE = "QUEUERT_DEBUG"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 130},
    help="Typed workflows on PostgreSQL: run workers, look, retry.\n\nThe database: QUEUERT_DSN, or that of the app (--app, QUEUERT_APP).",
    epilog=CODES,
)
@click.version_option(__version__, prog_name="queuert")
def queuert() -> None:
    """The group; its commands are added below."""


for command in (demo, worker, migrate, status, list_, show, why, retry, start, cancel, delete, trigger, reschedule):
    command.params.append(click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."))
    queuert.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script. Always ends by SystemExit with one of the codes of `trouble`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_code(given or ["--help"]))


def _code(given: list[str]) -> int:
    try:
        code = queuert.main(args=given, prog_name="queuert", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        return SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
        return SIGNALLED + signal.SIGPIPE
    except Exception as error:
        if "--debug" in given or os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        trouble = explain(error)
        tell(trouble)
        return trouble.code
    return code if isinstance(code, int) else 0
