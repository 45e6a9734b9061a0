"""Handlers that processes of their own import: a module as a user would write it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from queuert_py import Blocker, Depends, Fail, JobType, JobTypes, Retry, SyncJob

jobs = JobTypes()


class In(BaseModel):
    n: int = 0
    file: str = ""


class Out(BaseModel):
    n: int = 0
    text: str = ""


class Even(BaseModel):
    half: int


class Parts(BaseModel):
    parts: list[Blocker[Out]]


class OwnError(Exception):
    """An error with an attribute, and with a constructor that nobody outside knows how to call."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.second = second


def note(job: SyncJob[In], what: str) -> None:
    """Append a line to the file of the input."""
    with Path(job.input.file).open("a") as file:
        file.write(f"{what}\n")


@jobs.job_type(isolation="process")
def pid(job: SyncJob[In]) -> Out:
    print("what a handler prints does not disturb")
    return Out(n=os.getpid(), text=f"{job.type} {job.attempt} {job.aborted} {job.input.n} {job.idempotency_key == str(job.id)}")


@jobs.job_type(isolation="process")
def halve(job: SyncJob[In]) -> Even | Out | None:
    if job.input.n == 0:
        return None
    return Out(n=job.input.n) if job.input.n % 2 else Even(half=job.input.n // 2)


@jobs.job_type(isolation="process")
def add(job: SyncJob[Parts]) -> Out:
    return Out(n=sum(each.output.n for each in job.input.parts))


@jobs.job_type(isolation="process", max_attempts=1)
def raises_own(job: SyncJob[In]) -> Out:
    raise OwnError(1, 2)


@jobs.job_type(isolation="process", max_attempts=3, backoff=0, retry_on=(OwnError,))
def filtered(job: SyncJob[In]) -> Out:
    note(job, f"attempt {job.attempt}")
    if job.attempt == 1:
        raise OwnError(1, 2)
    raise KeyError("no such thing")


@jobs.job_type(isolation="process", max_attempts=5)
def signals(job: SyncJob[In]) -> Out:
    match job.attempt:
        case 1:
            raise Retry("again", after=0)
        case 2:
            raise Retry(at=datetime(2020, 1, 1, tzinfo=UTC))
        case _:
            raise Fail("for good")


@jobs.job_type(isolation="process", timeout=0.5, max_attempts=1)
def spins(job: SyncJob[In]) -> Out:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(job, str(os.getpid()))
    while True:
        pass


@jobs.job_type(isolation="process")
def spins_for_ever(job: SyncJob[In]) -> Out:
    note(job, str(os.getpid()))
    while True:
        pass


@jobs.job_type(isolation="process", max_attempts=2, backoff=0)
def dies(job: SyncJob[In]) -> Out:
    if job.attempt == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return Out(n=job.attempt)


@jobs.job_type(isolation="process", max_attempts=1)
def exits(job: SyncJob[In]) -> Out:
    sys.exit(3)


@jobs.job_type(isolation="process", max_attempts=1)
def forks(job: SyncJob[In]) -> Out:
    copy = os.fork()
    if not copy:
        sys.exit(3)
    return Out(n=os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]))


@jobs.job_type(isolation="process", max_attempts=1)
def reads(job: SyncJob[In]) -> Out:
    return Out(text=f"{subprocess.run(['cat'], check=True, capture_output=True, text=True).stdout}{sys.stdin.read()}")


@jobs.job_type(isolation="process", max_attempts=1)
def shares(job: SyncJob[In]) -> Out:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return Out(n=sum(pool.map(abs, [-1, -2])))


@jobs.job_type(isolation="process", max_attempts=1)
def leaves_a_copy_behind(job: SyncJob[In]) -> Out:
    if not os.fork():
        note(job, str(os.getpid()))
        time.sleep(600)
    while not Path(job.input.file).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    return Out()


@jobs.job_type(isolation="process", max_attempts=1)
def runs_a_program(job: SyncJob[In]) -> Out:
    with subprocess.Popen(["sleep", "600"]) as program:
        note(job, f"{os.getpid()}\n{program.pid}")
    return Out()


@jobs.job_type(isolation="process", max_attempts=1)
def is_told_to_end(job: SyncJob[In]) -> Out:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    program = subprocess.Popen(["sleep", "600"])
    program.terminate()
    ends = {program.wait()}
    for _ in range(5):
        copy = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        copy.start()
        copy.terminate()
        copy.join()
        ends.add(copy.exitcode or 0)
    return Out(text=f"{ends}")


@jobs.job_type(isolation="process", max_attempts=1)
def wrong(job: SyncJob[In]) -> Out:
    return Even(half=1)  # type: ignore[return-value] # pyright: ignore


@jobs.job_type(isolation="process", max_attempts=1)
def writes(job: SyncJob[In]) -> Out:
    with job.finalize():
        return Out()


@jobs.job_type(isolation="process", max_attempts=1)
def steps(job: SyncJob[In]) -> Out:
    return Out(n=job.step("one", lambda: 1))


@jobs.job_type(isolation="process", max_attempts=1)
def calls(job: SyncJob[In]) -> Out:
    match job.input.file:
        case "step":
            job.step("one", lambda: 1)
        case "sleep":
            job.sleep(1)
        case "wait_for_event":
            job.wait_for_event("event")
        case "wait_for":
            job.wait_for(list[Blocker[Out]]())
        case "on_commit":
            job.on_commit(lambda: None)
        case "progress":
            job.progress(5)
        case phase:
            with getattr(job, phase)():
                pass
    return Out()


def opened(job: SyncJob[In]) -> Iterator[str]:
    note(job, "+opened")
    try:
        yield "opened"
    finally:
        note(job, "-opened")


@jobs.job_type(isolation="process", max_attempts=1)
def depends(job: SyncJob[In], given: str = Depends(opened)) -> Out:
    note(job, given)
    return Out(n=1 // job.input.n)


contract = JobType[In, Out]("contract", isolation="process")


@jobs.handler(contract)
def implement(job: SyncJob[In]) -> Out:
    return Out(n=job.input.n + 1)
