"""Processes for `isolation="process"`: a handler that takes the whole processor, or that must be stopped for real, runs in one of its own.

Input, output and errors travel as JSON lines over two pipes that nothing but the child holds. It leads a session of its own: it is killed
with everything that its handlers have started, and a terminal's signals do not reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast

from pydantic_core import from_json, to_json

from queuert_py.decisions.backoff import seconds
from queuert_py.errors import ConfigurationError, ProcessDiedError, QueuertError
from queuert_py.job_types import InternalJobType
from queuert_py.sequence import BlockerEnding
from queuert_py.values import LiveJob, Retry

_BEGIN = """
import json, signal, sys
deaf = lambda *_: None  # the worker decides when we end; not SIG_IGN: programs that we start would inherit it
for each in signal.SIGINT, signal.SIGTERM:
    signal.signal(each, deaf)
    signal.siginterrupt(each, False)
sys.path[:] = json.loads(sys.argv.pop())
from queuert_py.runtime.child import main
main(deaf)
"""
READY = b"ready\n"
LIMIT = 64 * 1024 * 1024
"""Bytes of one line: far beyond any payload."""


class RemoteTracebackError(Exception):
    """The traceback of an exception in another process, as text: the cause of its likeness here."""

    def __init__(self, text: str) -> None:
        super().__init__(f"\n\n{text}")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """The children of one worker: at most as many as there are processors, kept for the next job, ended with the worker."""

    def __init__(self, most: int | None = None) -> None:
        self._idle: list[asyncio.subprocess.Process] = []
        self._slots = asyncio.Semaphore(most or processors())

    async def run(
        self, job_type: InternalJobType[Any, Any], row: LiveJob, endings: Mapping[str, BlockerEnding], begins: Callable[[], None]
    ) -> Any:
        """Run the handler in a child, and give its output. Cancelled, it kills the child. ProcessDiedError when it dies by itself.

        begins: told when a child takes it.
        """
        told = {key: asdict(ending) for key, ending in endings.items()}
        request = {"handler": where(job_type), "row": row._asdict(), "endings": told, "main": _main()}
        async with self._slots:
            child = await self._child()
            begins()
            try:
                answer = await self._ask(child, to_json(request) + b"\n")
            except BaseException:
                await _kill(child)
                raise
            if answer is None:
                raise ProcessDiedError(f"the process of {job_type.name!r} died ({await _end_of(child)}): the job did not end.")
            self._idle.append(child)
        if "error" in answer:
            raise rebuilt(answer["error"])
        output = answer["output"]
        if answer["output_type"] is None:
            return None
        return job_type.contract.outputs[answer["output_type"]].__pydantic_validator__.validate_json(output)

    async def _child(self) -> asyncio.subprocess.Process:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BEGIN, to_json(sys.path).decode(), stdin=pipe, stdout=pipe, limit=LIMIT, start_new_session=True
        )
        try:
            assert child.stdout is not None  # noqa: S101
            if await child.stdout.readline() == READY:
                return child
        except BaseException:
            await _kill(child)
            raise
        raise ProcessDiedError(f"a process for isolation='process' could not begin ({await _end_of(child)}): see its stderr.")

    async def _ask(self, child: asyncio.subprocess.Process, request: bytes) -> Mapping[str, Any] | None:
        assert child.stdin is not None  # noqa: S101
        assert child.stdout is not None  # noqa: S101
        try:
            child.stdin.write(request)
            await child.stdin.drain()
            line = await child.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        return cast("Mapping[str, Any]", from_json(line)) if line.endswith(b"\n") else None

    async def close(self) -> None:
        """End the children that are idle."""
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                await _kill(child)


async def _kill(child: asyncio.subprocess.Process) -> None:
    """End it, and whatever its handlers have started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone, and so is all it has started
        os.killpg(child.pid, signal.SIGKILL)
    waiting = asyncio.ensure_future(child.wait())
    while not waiting.done():
        with contextlib.suppress(asyncio.CancelledError):  # killed is killed: it does not take long
            await asyncio.wait([waiting])


async def _end_of(child: asyncio.subprocess.Process) -> str:
    """How a child that says nothing more has ended. What its handlers have started ends as well."""
    try:
        async with asyncio.timeout(1):
            code = await child.wait()
    except TimeoutError:
        return "it closed its output"
    finally:
        await _kill(child)
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


# --- what both sides must find


def where(job_type: InternalJobType[Any, Any]) -> tuple[str, str]:
    """Module and name by which a child imports the handler. ConfigurationError when it could not."""
    handler: Any = job_type.handler
    module, name = str(handler.__module__), str(handler.__qualname__)
    if module == "__main__" and _main() is None:
        raise ConfigurationError(f"the handler of {job_type.name!r} stands in no file: isolation='process' has to import it.")
    try:
        found = look_up(sys.modules[module], name)
    except (KeyError, AttributeError):
        found = None
    if found is not handler and found is not job_type:
        raise ConfigurationError(
            f"isolation='process' of {job_type.name!r}: {module}.{name} is not its handler, so that another process cannot import it."
        )
    return module, name


def look_up(scope: Any, name: str) -> Any:
    """A dotted name in a module or class."""
    for part in name.split("."):
        scope = getattr(scope, part)
    return scope


def _main() -> str | None:
    file = getattr(sys.modules["__main__"], "__file__", None)
    return None if file is None else os.path.abspath(file)


# --- exceptions


def described(error: BaseException, log: str) -> dict[str, Any]:
    """An exception as plain values: `log` is its JSON, and the names of its classes tell which filters it meets."""
    told: dict[str, Any] = {"classes": [f"{each.__module__}:{each.__qualname__}" for each in type(error).__mro__], "log": log}
    if isinstance(error, Retry):
        told |= {"after": None if error.after is None else seconds(error.after), "at": error.at and error.at.isoformat()}
    return told


def rebuilt(told: Mapping[str, Any]) -> BaseException:
    """Its likeness: of the nearest class that this process knows, with its message and its plain attributes. No __init__ is run."""
    log = from_json(told["log"])
    error = _nearest(told["classes"])
    error.args = (log["message"],)
    if isinstance(error, Retry):
        error.after, error.at = told["after"], told["at"] and datetime.fromisoformat(told["at"])
    if isinstance(error, QueuertError):
        error.details = {}
    vars(error).update(log["attrs"])
    error.__cause__ = RemoteTracebackError(log["traceback"])
    return error


def _nearest(classes: Sequence[str]) -> BaseException:
    first = classes[0].partition(":")
    for each in classes:
        module, _, name = each.partition(":")
        try:
            kind = look_up(sys.modules["__main__" if module == "__mp_main__" else module], name)
            if kind is not BaseException and each != classes[0]:
                kind = type(first[2].rpartition(".")[2], (kind,), {"__module__": first[0]})
            return cast("BaseException", kind.__new__(kind))
        except (KeyError, AttributeError, TypeError):  # not known here, or not made without arguments
            continue
    return Exception()
