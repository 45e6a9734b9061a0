"""`isolation="process"`: handlers in processes of their own, that can be killed, and whose death is only theirs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from queuert_py import Depends, Engine, Job, JobSequence, JobTypes, SyncJob
from queuert_py.errors import ConfigurationError, DeclarationError, SequenceFailedError
from queuert_py.runtime import processes
from queuert_py.testing import run_handler
from tests.engine import isolated
from tests.engine.isolated import Even, In, Out, Parts
from tests.engine.kit import time_out
from tests.faults.kit import until


@pytest.fixture
async def engine(engine: Engine) -> Engine:
    engine.mount(isolated.jobs)
    return engine


async def failure(sequence: JobSequence[Any]) -> SequenceFailedError:
    with pytest.raises(SequenceFailedError) as failed:
        await sequence.result(timeout=30)
    return failed.value


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text() if Path("/proc").is_dir() else ") R"
    except (ProcessLookupError, FileNotFoundError):  # also: gone between the two looks
        return False
    return "Z" not in state.rpartition(")")[2].split()[0]


async def dead(*pids: int) -> None:
    """Wait until none of these processes lives."""

    async def gone() -> bool:
        return not any(map(alive, pids))

    await until(gone, "the processes to die", 30)


async def lines(file: Path, count: int = 1) -> list[str]:
    """What handlers have written to a file, once there is that much."""

    async def found() -> list[str] | None:
        written = file.read_text().splitlines() if file.exists() else []
        return written if len(written) >= count else None

    written = await until(found, "a handler to write", 30)
    assert written is not None
    return written


# --- what it is given and gives back


async def test_a_handler_runs_in_a_process_of_its_own_that_is_kept_for_the_next(engine: Engine) -> None:
    async with engine.worker(concurrency=1):
        found = [await (await engine.start_sequence(isolated.pid, In(n=n))).result(timeout=30) for n in range(3)]
    assert len({each.n for each in found}) == 1
    assert found[0].n != os.getpid()
    assert [each.text for each in found] == [f"pid 1 False {n} True" for n in range(3)]
    assert not alive(found[0].n), "it ends with the worker"


async def test_every_member_of_the_output_comes_back_as_what_it_is(engine: Engine) -> None:
    async with engine.worker():
        handles = await engine.start_sequences([isolated.halve(In(n=n)) for n in range(3)])
        assert [await each.result(timeout=30) for each in handles] == [None, Out(n=1), Even(half=1)]


async def test_blockers_outputs_are_there(engine: Engine) -> None:
    async with engine.worker():
        parts = await engine.start_sequences([isolated.contract(In(n=n)) for n in (1, 2)])
        sequence = await engine.start_sequence(isolated.add, Parts(parts=[*parts]))
        assert await sequence.result(timeout=30) == Out(n=5)


async def test_dependencies_are_made_there_and_closed(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    async with engine.worker():
        done = await engine.start_sequence(isolated.depends, In(n=1, file=str(file)))
        assert await done.result(timeout=30) == Out(n=1)
        failed = await engine.start_sequence(isolated.depends, In(n=0, file=str(file)))
        assert (await failure(failed)).error["type"] == "ZeroDivisionError"
    assert file.read_text().splitlines() == ["+opened", "opened", "-opened"] * 2


# --- how it fails


async def test_an_exception_comes_back_with_its_type_message_attributes_and_traceback(engine: Engine) -> None:
    async with engine.worker():
        error = (await failure(await engine.start_sequence(isolated.raises_own, In()))).error
    assert (error["type"], error["message"], error["attrs"]) == ("OwnError", "1 and 2", {"second": "2"})
    assert "in raises_own" in str(error["traceback"])
    assert "raise OwnError(1, 2)" in str(error["traceback"])


async def test_retry_filters_see_its_class(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    async with engine.worker():
        failed = await failure(await engine.start_sequence(isolated.filtered, In(file=str(file))))
    assert failed.error["type"] == "KeyError"
    assert file.read_text().splitlines() == ["attempt 1", "attempt 2"]


async def test_retry_and_fail_mean_what_they_mean_elsewhere(engine: Engine) -> None:
    async with engine.worker():
        failed = await failure(await engine.start_sequence(isolated.signals, In()))
    assert (failed.reason, failed.error["message"], len(failed.attempts)) == ("fail", "for good", 3)


async def test_a_process_that_dies_fails_the_attempt_and_not_the_worker(engine: Engine) -> None:
    async with engine.worker():
        sequence = await engine.start_sequence(isolated.dies, In())
        assert await sequence.result(timeout=30) == Out(n=2)
    (died,) = await engine.list_attempts(sequence.id)
    assert died.error is not None
    assert (died.outcome, died.error["type"]) == ("error", "ProcessDiedError")
    assert "the process of 'dies' died (SIGSEGV)" in died.error["message"]


async def test_sys_exit_is_an_error_of_the_handler(engine: Engine) -> None:
    async with engine.worker():
        failed = await failure(await engine.start_sequence(isolated.exits, In()))
        assert (failed.error["type"], failed.error["message"]) == ("SystemExit", "3")


async def test_an_output_that_is_not_declared_fails_the_job(engine: Engine) -> None:
    async with engine.worker():
        failed = await failure(await engine.start_sequence(isolated.wrong, In()))
    assert (failed.reason, failed.error["type"]) == ("validation", "InvalidOutputError")


@pytest.mark.parametrize("job_type", [isolated.writes, isolated.steps], ids=lambda each: each.name)
async def test_phases_and_steps_are_refused_with_what_to_do_instead(engine: Engine, job_type: Any) -> None:
    async with engine.worker():
        failed = await failure(await engine.start_sequence(job_type, In()))
    assert failed.error["type"] == "PhaseError"
    assert "isolation='process'" in str(failed.error["message"])


@pytest.mark.parametrize("call", ["step", "sleep", "wait_for_event", "wait_for", "on_commit", "progress", "prepare", "finalize", "atomic"])
async def test_what_is_refused_is_named_as_it_was_called(engine: Engine, call: str) -> None:
    async with engine.worker():
        failed = await failure(await engine.start_sequence(isolated.calls, In(file=call)))
    assert failed.error["type"] == "PhaseError"
    assert str(failed.error["message"]).startswith(f"job.{call}() is not to be had with isolation='process'")


# --- what it starts


async def test_a_copy_that_the_handler_forks_is_a_process_like_any_other_and_answers_nothing(engine: Engine) -> None:
    async with engine.worker(concurrency=1):
        assert await (await engine.start_sequence(isolated.forks, In())).result(timeout=30) == Out(n=3)
        for n in range(2):
            assert await (await engine.start_sequence(isolated.contract, In(n=n))).result(timeout=30) == Out(n=n + 1)


async def test_whoever_reads_its_stdin_finds_nothing(engine: Engine) -> None:
    async with engine.worker(concurrency=1):
        for _ in range(2):
            assert await (await engine.start_sequence(isolated.reads, In())).result(timeout=30) == Out()


async def test_it_may_share_its_work_with_processes(engine: Engine) -> None:
    async with engine.worker():
        assert await (await engine.start_sequence(isolated.shares, In())).result(timeout=30) == Out(n=3)


async def test_its_death_is_seen_while_a_copy_of_it_lives_which_ends_as_well(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with engine.worker():
        failed = await failure(await engine.start_sequence(isolated.leaves_a_copy_behind, In(file=str(file))))
    assert "died (SIGKILL)" in str(failed.error["message"])
    await dead(*map(int, await lines(file)))


async def test_a_program_that_it_runs_is_killed_with_it(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with engine.worker() as worker:
        sequence = await engine.start_sequence(isolated.runs_a_program, In(file=str(file)))
        child, program = map(int, await lines(file, 2))
        time_out(worker)
        assert (await failure(sequence)).reason == "timeout"
        assert not alive(child)
        await dead(program)


async def test_signals_that_the_worker_gets_do_not_end_it_but_what_it_starts_is_not_deaf(engine: Engine) -> None:
    async with engine.worker():
        assert await (await engine.start_sequence(isolated.is_told_to_end, In())).result(timeout=30) == Out(text="{-15}")


# --- it is killed for real


async def test_it_is_killed_when_its_time_is_over(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with engine.worker(concurrency=1):
        child = (await (await engine.start_sequence(isolated.pid, In())).result(timeout=30)).n  # it is there, and has imported all
        assert alive(child)
        failed = await failure(await engine.start_sequence(isolated.spins, In(file=str(file))))
        assert failed.reason == "timeout"
        assert not alive(child)
    assert file.read_text() == f"{child}\n", "it was the one that spun"


async def test_it_is_killed_when_its_job_is_cancelled(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with engine.worker():
        sequence = await engine.start_sequence(isolated.spins_for_ever, In(file=str(file)))
        (pid,) = map(int, await lines(file))
        await engine.cancel_sequences([sequence.id])
        await dead(pid)


async def test_it_is_killed_when_the_worker_stops_and_its_job_is_given_back(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    sequence = await engine.start_sequence(isolated.spins_for_ever, In(file=str(file)))
    worker = await engine.worker(shutdown_timeout=0.1).start()
    (pid,) = map(int, await lines(file))
    await worker.stop()
    (job,) = await engine.list_jobs(sequence.id)
    assert (job.status, job.attempt, alive(pid)) == ("pending", 0, False)


async def test_it_ends_with_all_it_has_started_when_its_worker_is_killed(dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    engine = Engine(dsn, isolated.jobs)
    async with engine:
        await engine.start_sequence(isolated.runs_a_program, In(file=str(file)))
    script = tmp_path / "serve.py"
    script.write_text(
        "import asyncio, sys\n"
        "from queuert_py import Engine\n"
        "from tests.engine import isolated\n"
        "async def serve():\n"
        "    async with Engine(sys.argv[1], isolated.jobs).worker():\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(serve())\n"
    )
    root = Path(__file__).parents[2]
    worker = subprocess.Popen([sys.executable, str(script), dsn], env={**os.environ, "PYTHONPATH": str(root)})
    try:
        pids = [int(each) for each in await lines(file, 2)]
    finally:
        worker.kill()
        await asyncio.to_thread(worker.wait)
    await dead(*pids)


async def test_jobs_that_wait_for_a_processor_do_not_use_up_their_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "processors", lambda: 1)
    handles = await engine.start_sequences([isolated.pid(In(n=n), timeout=20) for n in range(6)])
    async with engine.worker():
        found = [await each.result(timeout=60) for each in handles]
    assert len({each.n for each in found}) == 1, "one processor, one process"


# --- a main file, a test, and what cannot be declared


async def test_a_handler_of_the_main_file_is_found_and_what_it_does_as_a_program_is_not_done_again(dsn: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, os, sys\n"
        "from pydantic import BaseModel\n"
        "from queuert_py import Engine, SyncJob\n"
        "class In(BaseModel): n: int\n"
        "engine = Engine(sys.argv[1] if len(sys.argv) > 1 else None and '')\n"
        "@engine.job_type(isolation='process')\n"
        "def double(job: SyncJob[In]) -> In: return In(n=job.input.n * 2)\n"
        "async def main() -> None:\n"
        "    async with engine.worker():\n"
        "        handle = await engine.start_sequence(double, In(n=21))\n"
        "        print((await handle.result(timeout=30)).n)\n"
        "    await engine.close()\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(program), dsn],
        env={**os.environ, "PYTHONPATH": str(root), "QUEUERT_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


async def test_run_handler_runs_it_in_this_process() -> None:
    assert await run_handler(isolated.pid, In(n=1)) == Out(n=os.getpid(), text="pid 1 False 1 True")


async def coroutine() -> str:
    return ""


def of_job(job: Job[In]) -> str:
    return ""


async def asynchronous(job: Job[In]) -> Out: ...  # type: ignore[empty-body]
def with_coroutine(job: SyncJob[In], given: str = Depends(coroutine)) -> Out: ...  # type: ignore[empty-body]
def with_job(job: SyncJob[In], given: str = Depends(of_job)) -> Out: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (asynchronous, "isolation='process' is for `def` handlers"),
        (with_coroutine, "its provider coroutine must be a `def`: there is no event loop"),
        (with_job, "annotate the job of its provider of_job as SyncJob"),
    ],
)
def test_what_cannot_run_apart_is_refused_at_the_declaration(handler: Any, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        JobTypes().job_type("apart", isolation="process")(handler)


def test_a_handler_inside_a_function_cannot_be_imported_and_is_refused() -> None:
    with pytest.raises(DeclarationError, match="define inner at the top of a module"):

        @JobTypes().job_type(isolation="process")
        def inner(job: SyncJob[In]) -> Out:
            return Out()


async def test_run_and_map_work_in_processes_as_well(engine: Engine) -> None:
    async with engine:
        assert await engine.run(isolated.contract, In(n=1)) == Out(n=2)
        assert await engine.map(isolated.contract, [In(n=n) for n in range(3)], concurrency=2) == [Out(n=n + 1) for n in range(3)]


def decorated(job: SyncJob[In]) -> Out:
    return Out()


async def test_a_handler_that_is_hidden_behind_its_name_is_told_when_the_worker_starts(engine: Engine) -> None:
    engine.job_type("hidden", isolation="process")(decorated)
    globals()["decorated"] = None
    with pytest.raises(ConfigurationError, match=r"tests.engine.test_isolation.decorated is not its handler"):
        await engine.worker().start()


@pytest.mark.parametrize("isolation", ["fork", None, 3])
def test_an_isolation_that_is_none_is_refused(isolation: Any) -> None:
    with pytest.raises(DeclarationError, match="isolation="):
        JobTypes().job_type("apart", isolation=isolation)(decorated)
