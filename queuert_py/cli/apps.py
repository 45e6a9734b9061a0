"""From a name to an open engine: the app of `module:attribute`, or a bare database in QUEUERT_DSN."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource
from psycopg.conninfo import conninfo_to_dict

from queuert_py import Engine
from queuert_py.cli.trouble import SETUP, USAGE, Trouble
from queuert_py.engine import DSN_VARIABLE
from queuert_py.errors import DatabaseUnavailableError
from queuert_py.postgres.database import Database

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])
APP_VARIABLE = "QUEUERT_APP"
CONNECT_SECONDS = 3.0
"""How long a command tries to reach a database that neither accepts nor refuses, unless the DSN has a connect_timeout."""


def app_options(command: Command) -> Command:
    """--app and --app-dir."""
    named = click.option("--app", envvar=APP_VARIABLE, metavar="MODULE:ENGINE", help=f"The app; or {APP_VARIABLE}.")
    return named(app_dir_option(command))


def app_dir_option(command: Command) -> Command:
    """--app-dir: the only folder that is put on the import path."""
    return click.option("--app-dir", default=".", metavar="FOLDER", help="Where the app's module is looked up (default: here).")(command)


def database_options(command: Command) -> Command:
    """As app_options, for a command that a database suffices for."""
    schema = click.option("--schema", envvar="QUEUERT_SCHEMA", metavar="NAME", help=f"With {DSN_VARIABLE} and no app: the schema.")
    return app_options(schema(command))


def load(app: str | None, app_dir: str) -> Engine[Any]:
    """The engine that `module:attribute` names (attribute `engine` by default). Trouble when there is none."""
    name, _, attribute = checked(app).partition(":")
    module = _import(name, Path(app_dir))
    return _engine_of(module, attribute or "engine")


def checked(app: str | None) -> str:
    """An app's name. Trouble when there is none, or it is a DSN."""
    if not app:
        repair = f"name it: `--app module:engine` (worker: `queuert worker module:engine`), or set {APP_VARIABLE}"
        raise Trouble("No app is named.", "this command needs the app's job types, not only its database", repair, USAGE)
    if "://" in app or "=" in app:
        raise Trouble(
            "That is no app but a DSN.", "arguments are readable by everybody on this machine", f"set {DSN_VARIABLE} instead", USAGE
        )
    return app


def _import(name: str, folder: Path) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise Trouble(
            f"{name!r} is no name of a module.", "an app is named as Python imports it", "write module:engine, without .py", USAGE
        )
    if not folder.is_dir():
        raise Trouble(f"--app-dir {folder} is no folder.", "the app is looked up there", "name the folder that holds its module", USAGE)
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    try:
        return importlib.import_module(name)
    except Trouble:
        raise
    except Exception as error:
        raise _not_imported(name, place, error) from error


def _not_imported(name: str, place: str, error: Exception) -> Trouble:
    what = f"The app's module {name!r} cannot be imported."
    if isinstance(error, ModuleNotFoundError) and error.name and (name == error.name or name.startswith(f"{error.name}.")):
        return Trouble(
            what, f"there is no module {error.name!r} in {place}, nor installed", "go to its folder, or give --app-dir FOLDER", SETUP
        )
    if isinstance(error, ModuleNotFoundError):
        return Trouble(what, f"it imports {error.name!r}, which is not installed here", "install it in this environment", SETUP)
    line = _line_of(error)
    return Trouble(what, f"{type(error).__name__}: {error}{line}", "repair that; --debug shows the traceback", SETUP)


def _line_of(error: BaseException) -> str:
    """The last line of the traceback that is not the import system's."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<frozen") and "/queuert_py/" not in file and "/importlib/" not in file:
            found = f" ({file}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


def _engine_of(module: ModuleType, attribute: str) -> Engine[Any]:
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Engine):
        return cast("Engine[Any]", found)
    there = sorted(name for name, value in vars(module).items() if isinstance(value, Engine))
    kind = "nothing" if found is None else f"a {type(found).__name__}"
    repair = f"name one that is there: {', '.join(f'{module.__name__}:{name}' for name in there)}" if there else "write: engine = Engine()"
    raise Trouble(f"{module.__name__}:{attribute} is no Engine.", f"there is {kind} of that name in {module.__file__}", repair, SETUP)


def named(app: str | None, app_dir: str, schema: str | None) -> Engine[Any]:
    """The app's engine, or without an app one on QUEUERT_DSN that knows no job types: enough for looking and for operators."""
    if app:
        return of_schema(load(app, app_dir), schema)
    dsn = os.environ.get(DSN_VARIABLE)
    if not dsn:
        repair = f"set {DSN_VARIABLE}=postgresql://… (or use --app module:engine, {APP_VARIABLE})"
        raise Trouble("No database is named.", f"neither an app nor {DSN_VARIABLE} is given", repair, USAGE)
    return Engine(dsn, schema=schema or "queuert", pool_size=2)


def of_schema(engine: Engine[Any], schema: str | None) -> Engine[Any]:
    """The app's engine, unless another schema than its own was typed (the variable is for commands without an app)."""
    typed = click.get_current_context().get_parameter_source("schema") is ParameterSource.COMMANDLINE
    if typed and schema != engine._schema:
        what = f"the app's engine is on the schema {engine._schema!r}, not on {schema!r}"
        raise Trouble("--schema contradicts the app.", what, f"leave --schema out, or leave the app out and set {DSN_VARIABLE}", USAGE)
    return engine


def is_embedded(engine: Engine[Any]) -> bool:
    """Has it a server of its own? Such a one is brought up to date by opening it, and may take its time."""
    return engine._embedded is not None


async def open_engine(engine: Engine[Any], *, migrate: bool | None = None) -> None:
    """Open it; DatabaseUnavailableError soon, where the network gives no answer at all."""
    if is_embedded(engine):
        await engine.open()
        return
    async with _soon(engine):
        await engine.open(migrate=migrate)


@asynccontextmanager
async def _soon(engine: Engine[Any]) -> AsyncGenerator[None]:
    """A limit on connecting, unless the DSN has its own."""
    patient = isinstance(engine._source, str) and "connect_timeout" in engine._source
    try:
        async with asyncio.timeout(None if patient else CONNECT_SECONDS):
            yield
    except TimeoutError:
        message = f"PostgreSQL at {target(engine)} cannot be used: no answer within {CONNECT_SECONDS:.0f} s"
        raise DatabaseUnavailableError(message) from None


async def reach(engine: Engine[Any]) -> None:
    """See that its database answers, before a command that may wait for locks as long as it must. DatabaseUnavailableError."""
    if not isinstance(engine._source, str):
        return
    probe = Database(engine._source, pool_size=1)
    try:
        async with _soon(engine):
            await probe.open()
    finally:
        await probe.close()


@asynccontextmanager
async def opened(engine: Engine[Any], *, migrate: bool | None = False) -> AsyncGenerator[Engine[Any]]:
    """The engine, open; by default a missing schema is an error and nothing is made."""
    await open_engine(engine, migrate=migrate)
    try:
        yield engine
    finally:
        await engine.close()


def target(engine: Engine[Any]) -> str:
    """Which database: host, port and name, no secret."""
    source = engine._source
    if is_embedded(engine) and source is None:
        return "the embedded PostgreSQL"
    known = conninfo_to_dict(engine.database.conninfo if engine._database is not None else source if isinstance(source, str) else "")
    where = known.get("host") or known.get("hostaddr") or "local socket"
    return f"{where}:{known.get('port') or 5432}/{known.get('dbname') or known.get('user') or ''}"


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(main)
