"""What runs in a process of `isolation="process"`: takes one job after the other, ends with its parent. See processes.py."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from io import FileIO
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NoReturn, TypeVar, cast

from pydantic_core import from_json, to_json

from queuert_py import payload
from queuert_py.dependencies import Provided, call_here, leave
from queuert_py.errors import PhaseError
from queuert_py.job import Running, SyncJob, current
from queuert_py.job_types import InternalJobType, JobTypes
from queuert_py.payload import Wire
from queuert_py.runtime.processes import LIMIT, READY, described, look_up
from queuert_py.sequence import BlockerEnding, Outputs
from queuert_py.values import Abort, LiveJob

T = TypeVar("T")
_main: ModuleType | None = None


class _Remote:
    """An attempt of another process, as far as its handler here may know it."""

    abort_reason: Abort | None = None
    shutting_down = False
    in_phase = over = False
    completing = False
    place = None
    origin = None

    def __init__(self, row: LiveJob) -> None:
        self.row = row
        self.state: dict[str, Any] = {}

    def carrier_for(self, tx: object) -> None:
        """No transaction."""

    @property
    def durable(self) -> _Remote:
        return self

    def phase(self, kind: str) -> NoReturn:
        self.__getattr__(kind)

    def __getattr__(self, name: str) -> NoReturn:
        raise PhaseError(
            f"job.{name}() is not to be had with isolation='process': there is no database in this process. Return the output, and write "
            "in a job that follows (continue_with), or run this handler in a thread."
        )

    def ask(self, fn: Callable[[], Awaitable[T]]) -> T:
        self.__getattr__("this call")

    async def run(self, fn: Callable[[], T]) -> T:
        self.__getattr__("this call")


def handle(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """One job: the output, or the error. A copy of this process that the handler has forked does not come back from here: it ends."""
    own = os.getpid()
    try:
        row = LiveJob(**request["row"])._replace(run_at=datetime.fromisoformat(request["row"]["run_at"]), timeout=None)
        module, handler = request["handler"]
        job_type = _job_type(module, handler, request["main"], row.type)
        endings = {key: BlockerEnding(**ending) for key, ending in request["endings"].items()}
        remote = _Remote(row)
        running = cast("Running", remote)  # what it lacks, __getattr__ refuses
        job = SyncJob[Any](running, job_type.load_input(row.input, Outputs(endings)), remote)
        current.set(running)
        output, name = _driven(_run(job_type, job))
    except BaseException as error:
        if os.getpid() != own:
            raise
        return {"error": described(error, payload.error_json(error))}
    if os.getpid() != own:
        sys.exit()
    return {"output": output, "output_type": name}


async def _run(job_type: InternalJobType[Any, Any], job: SyncJob[Any]) -> tuple[str, str | None]:
    """The handler between its dependencies. Nothing here ever waits for an event loop: there is none."""
    assert job_type.handler is not None  # noqa: S101
    assert job_type.shape is not None  # noqa: S101
    opened: list[AbstractAsyncContextManager[Any]] = []
    output: tuple[str, str | None] = "null", None
    error: BaseException | None = None
    try:
        given = await Provided({SyncJob: job}, call_here, opened, {}).values(job_type.shape.needs)
        output = job_type.dump_output(job_type.handler(job, **given), Wire(LIMIT))
    except BaseException as raised:
        error = raised
    error = await leave(opened, error)
    if error is not None:
        raise error
    return output


def _driven(work: Coroutine[Any, Any, T]) -> T:
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise RuntimeError("a provider of a handler with isolation='process' has waited for an event loop")


def _job_type(module: str, name: str, main: str | None, type_: str) -> InternalJobType[Any, Any]:
    found = look_up(_load_main(main) if module == "__main__" else importlib.import_module(module), name)
    if isinstance(found, InternalJobType):
        return found  # pyright: ignore[reportUnknownVariableType]
    declared: InternalJobType[Any, Any] = JobTypes().job_type(type_, isolation="process")(found)
    return declared


def _load_main(file: str | None) -> ModuleType:
    """The parent's main file, under another name, so that what it does only as a program is not done."""
    global _main  # noqa: PLW0603 - loaded once in this process
    if _main is None:
        assert file is not None  # noqa: S101 - the parent has looked
        spec = importlib.util.spec_from_file_location("__mp_main__", Path(file))
        assert spec is not None  # noqa: S101
        assert spec.loader is not None  # noqa: S101
        _main = importlib.util.module_from_spec(spec)
        sys.modules["__mp_main__"] = sys.modules["__main__"] = _main
        spec.loader.exec_module(_main)
    return _main


def _at_fork(held: Iterable[signal.Signals], in_copy: Callable[[], None]) -> None:
    """Have it called in each copy of this process, before one of these signals can reach the copy."""
    before = threading.local()

    def hold() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def begin() -> None:
        in_copy()
        go_on()

    os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=begin)


def main(deaf: Callable[..., None]) -> None:
    """Take requests until there are no more; then end at once, whatever runs, with all that was started: the worker is gone.

    deaf: the handler of the signals that are not for this process.
    """
    requests, answers = FileIO(os.dup(0), "r"), FileIO(os.dup(1), "w")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # what handlers print is not an answer

    def forked() -> None:
        """A copy of this process has nothing to do with the worker: it holds no pipe open, and is not deaf."""
        requests.close()
        answers.close()
        for each, usual in usually.items():
            if signal.getsignal(each) is deaf:
                signal.signal(each, usual)

    usually: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    _at_fork(usually, forked)
    asked: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        parts: list[bytes] = []
        while part := requests.read(1 << 16):
            parts.append(part)
            if part.endswith(b"\n"):  # the next one comes after our answer
                asked.put(b"".join(parts))
                parts.clear()
        os.killpg(os.getpid(), signal.SIGKILL)

    def answer(line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[answers.write(left) :]

    threading.Thread(target=read, name="queuert requests", daemon=True).start()
    answer(READY)
    while True:
        answer(to_json(handle(from_json(asked.get()))) + b"\n")
