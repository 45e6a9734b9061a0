"""What a command says when it cannot go on: three lines on stderr (what, why, repair) and an exit code."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import psycopg
from pydantic import ValidationError

from queuert_py.cli.output import one_line
from queuert_py.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    EmbeddedError,
    QueuertError,
    ResultTimeoutError,
    SchemaError,
    SequenceCancelledError,
    SequenceEndedError,
    SequenceExpiredError,
    SequenceFailedError,
    SequenceHasDependentsError,
    SequenceNotFoundError,
    SequenceRunningError,
    UnknownJobTypeError,
    UsageError,
)

OK = 0
FAILED = 1
"""The command ran; what it was about did not succeed (or a bug: then the message says so)."""
USAGE = 2
"""The command line, or a value on it, cannot be right."""
DATABASE = 3
"""PostgreSQL cannot be used now."""
SCHEMA = 4
"""The schema is missing, older or newer than this package."""
SETUP = 5
"""The app cannot be loaded, or it (or this machine) is set up in a way that cannot work."""
NOT_FOUND = 6
"""No such sequence."""
TIMEOUT = 7
"""`start --wait --timeout`: not ended in time; it goes on."""
STUCK = 8
"""A worker did not stop in its time and was ended."""
SIGNALLED = 128
"""Plus the signal's number: ended at once by a second signal (or Ctrl-C, where there is nothing to end gracefully)."""

CODES = """Exit codes: 0 done; 1 what was asked for failed; 2 usage; 3 database unavailable; 4 schema missing or of another
version; 5 app or setup; 6 not found; 7 timeout of --wait; 8 a worker had to be killed after its time to stop; 128 + n ended at
once by signal n."""
_LONGEST = 600


@dataclass
class Trouble(Exception):  # noqa: N818 - shown, not handled
    """An error as a person reads it."""

    what: str
    why: str
    repair: str
    code: int = FAILED

    def lines(self) -> list[str]:
        """Exactly three, whatever the texts hold."""
        named = (("error", self.what), ("  why", self.why), ("  fix", self.repair))
        return [f"{name}: {one_line(text, _LONGEST)}" for name, text in named]


def tell(trouble: Trouble) -> None:
    """Print it to stderr."""
    print("\n".join(trouble.lines()), file=sys.stderr, flush=True)


def explain(error: BaseException) -> Trouble:
    """Any exception as three lines."""
    match error:
        case Trouble():
            return error
        case click.ClickException():
            return _of_click(error)
        case SequenceFailedError():
            return _of_failure(error)
        case QueuertError():
            return _of_queuert(error)
        case psycopg.Error():
            return _of_psycopg(error)
        case ValidationError():
            return Trouble("The value does not fit its model.", str(error), "correct the field that is named", USAGE)
        case NameError() if "define it before" in str(error):
            why, _, repair = str(error).rpartition(": ")
            return Trouble("The app's declarations cannot be read.", why, repair, SETUP)
        case _:
            where = _where(error)
            why = f"{type(error).__name__}: {error}{where}"
            return Trouble("The command failed unexpectedly.", why, "run it again with --debug for the traceback", FAILED)


def _of_click(error: click.ClickException) -> Trouble:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "queuert"
    usage = context.get_usage() if context is not None else f"{path} was not called as it can be"
    return Trouble(error.format_message(), usage, f"`{path} --help` shows what there is", error.exit_code)


def _of_failure(error: SequenceFailedError) -> Trouble:
    what, _, _ = str(error).partition("\n")
    head, _, why = what.partition("): ")
    return Trouble(f"{head})", why or error.reason, f"`queuert show {error.sequence_id}`, `queuert retry {error.sequence_id}`", FAILED)


_TITLES: tuple[tuple[type[QueuertError], str, str, int], ...] = (
    (SequenceNotFoundError, "There is no such sequence.", "`queuert list` shows those that there are", NOT_FOUND),
    (SequenceRunningError, "Some of them are running.", "wait for them, or cancel them", FAILED),
    (SequenceEndedError, "Some of them have ended.", "`queuert retry` runs what failed again, `queuert start` starts anew", FAILED),
    (SequenceHasDependentsError, "Unfinished sequences need them.", "delete those too, or cancel them first", FAILED),
    (SequenceCancelledError, "The sequence was cancelled.", "start it again with `queuert start`", FAILED),
    (SequenceExpiredError, "The sequence expired.", "start it again with `queuert start`; is a worker running? `queuert status`", FAILED),
    (ResultTimeoutError, "The result is not there yet.", "`queuert status` shows whether a worker serves it", TIMEOUT),
    (SchemaError, "The database's schema does not fit this package.", "run `queuert migrate`", SCHEMA),
    (EmbeddedError, "The embedded PostgreSQL cannot be had here.", "set QUEUERT_DSN to a server of your own", SETUP),
    (ConfigurationError, "The setup cannot work.", "correct what is named", SETUP),
    (UnknownJobTypeError, "There is no such job type.", "declare it in the app, or import the module that does", USAGE),
    (UsageError, "That cannot be right.", "correct the value that is named", USAGE),
    (QueuertError, "The command failed.", "run it again with --debug for the traceback", FAILED),
)


def _of_queuert(error: QueuertError) -> Trouble:
    """Title and exit code by class; the message's own way out, which stands after its last colon, wins."""
    if isinstance(error, DatabaseUnavailableError):
        what, _, why = str(error).partition(": ")
        return Trouble(f"{what}.", why or str(error), _repair_of(why), DATABASE)
    title, repair, code = next(row[1:] for row in _TITLES if isinstance(error, row[0]))
    why, own = _way_out(str(error))
    return Trouble(title, why, own or repair, code)


_WAY_OUT = re.compile(
    r"(?:: |\. (?:Or )?|, or )((?:run|set|declare|use|install|upgrade|pass|decorate|give|Start|Install|Give|Use) .*)$", re.S
)


def _way_out(message: str) -> tuple[str, str]:
    """Split a message where it begins to say what to do."""
    found = _WAY_OUT.search(message)
    return (message[: found.start()], found[1]) if found else (message, "")


def _repair_of(why: str) -> str:
    """What helps against a connection that fails: by the words of libpq, which has no codes here."""
    known = (
        ("password authentication failed", "correct user and password in QUEUERT_DSN (or the app's DSN, or ~/.pgpass)"),
        ("no password supplied", "add the password to QUEUERT_DSN, or to ~/.pgpass"),
        ("does not exist", "create it (`createdb NAME`, `createuser NAME`), or correct QUEUERT_DSN"),
        ("name or service not known", "correct the host name in QUEUERT_DSN (or the app's DSN)"),
        ("too many clients", "raise max_connections, or end some of the clients"),
        ("read-only", "point QUEUERT_DSN at the primary"),
    )
    found = next((repair for words, repair in known if words in why.lower()), None)
    return found or "start that server, or set QUEUERT_DSN (or the app's DSN) to one that runs"


def _of_psycopg(error: psycopg.Error) -> Trouble:
    why = str(error).strip() or type(error).__name__
    state = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
    if error.sqlstate is None or error.sqlstate.startswith(("08", "57P", "53")):
        return Trouble("PostgreSQL cannot be used.", why + state, _repair_of(why), DATABASE)
    if error.sqlstate == "42501":
        return Trouble("PostgreSQL forbids it.", why + state, "grant the role of the DSN what is named, or use another role", SETUP)
    return Trouble("PostgreSQL refuses a statement.", why + state, "run it again with --debug for the traceback", FAILED)


def _where(error: BaseException) -> str:
    """File and line at which it was raised."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
