"""`queuert worker`: signals, draining, the supervisor."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from queuert_py.cli.supervisor import LONGEST_WAIT, crashes_after, ending, restart_after
from tests.cli.conftest import Run, Spawn, is_gone, until

Start = Callable[..., str]


@pytest.fixture
def status_of(queuert: Run) -> Callable[[str], str]:
    """Where a sequence stands."""
    return lambda id: str(queuert("show", id, "--json").json["sequence"]["status"])


def test_a_draining_worker_ends_by_itself(worker: Spawn, start: Start, status_of: Callable[[str], str]) -> None:
    ids = [start("double", n) for n in range(3)]
    assert worker("--drain").ended() == 0
    assert {status_of(id) for id in ids} == {"completed"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_gives_jobs_back_uncharged(
    worker: Spawn, start: Start, queuert: Run, status_of: Callable[[str], str], number: signal.Signals
) -> None:
    held, last = start("hold"), start("last_words")
    process = worker("--shutdown-timeout", "1s")
    until(lambda: status_of(held) == status_of(last) == "running")
    process.send(number)
    assert process.ended() == 0
    assert f"stopped ({number.name})" in process.text
    known = queuert("show", held, "--json").json
    assert (known["jobs"][0]["status"], known["jobs"][0]["attempt"], known["jobs"][0]["crash_count"]) == ("pending", 0, 0)
    assert status_of(last) == "completed"
    assert queuert("status", "--json").json["workers"] == []


def test_the_second_signal_ends_it_at_once(worker: Spawn, start: Start, status_of: Callable[[str], str]) -> None:
    held = start("hold")
    process = worker("--shutdown-timeout", "1h")
    until(lambda: status_of(held) == "running")
    process.send(signal.SIGTERM)
    process.send(signal.SIGINT)
    assert process.ended() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert status_of(held) == "running"  # nothing was written; another worker takes it over


def test_only_the_named_types_and_queues_are_served(worker: Spawn, start: Start, status_of: Callable[[str], str]) -> None:
    served, other, elsewhere = start("double"), start("fail"), start("double", 1, "--queue", "slow")
    assert worker("--drain", "--types", "double", "--queues", "default,other").ended() == 0
    assert [status_of(id) for id in (served, other, elsewhere)] == ["completed", "pending", "pending"]


# --- the supervisor


def test_pauses_between_restarts_grow_to_a_cap_and_start_anew_after_a_healthy_minute() -> None:
    assert [restart_after(n) for n in (1, 2, 3, 4)] == [0.5, 1, 2, 4]
    assert restart_after(10) == restart_after(10_000) == LONGEST_WAIT
    assert crashes_after(5, lived=3) == 6
    assert crashes_after(5, lived=61) == 1


def test_an_ending_in_words() -> None:
    assert [ending(code) for code in (0, 3, -9, -200)] == [
        "ended with code 0", "ended with code 3", "was killed by SIGKILL", "was killed by signal 200",
    ]  # fmt: skip


def test_a_killed_worker_is_started_again_and_sigterm_ends_all(worker: Spawn) -> None:
    process = worker("--processes", 2)
    first, second = (int(match[1]) for match in process.line(r"worker \d started, pid (\d+)", 2))
    process.line("serves", 2)
    os.kill(first, signal.SIGKILL)
    process.line(rf"pid {first}\) was killed by SIGKILL: started again in 0.5 s")
    third = int(process.line(r"worker \d started, pid (\d+)", 3)[2][1])
    process.line("serves", 3)
    process.send(signal.SIGTERM)
    assert process.ended() == 0
    assert all(is_gone(pid) for pid in (first, second, third))
    assert process.text.count("stopped (the supervisor's end)") == 2


def test_workers_end_when_their_supervisor_is_killed(worker: Spawn, queuert: Run) -> None:
    process = worker("--processes", 2)
    pids = [int(match[1]) for match in process.line(r"worker \d started, pid (\d+)", 2)]
    process.line("serves", 2)
    process.send(signal.SIGKILL)
    until(lambda: all(is_gone(pid) for pid in pids))
    assert queuert("status", "--json").json["workers"] == []


def test_a_supervisor_drains_and_ends(worker: Spawn, start: Start, status_of: Callable[[str], str]) -> None:
    ids = [start("double", n) for n in range(3)]
    assert worker("--processes", 2, "--drain").ended() == 0
    assert {status_of(id) for id in ids} == {"completed"}


def test_a_supervisor_does_not_restart_what_cannot_start(spawn: Spawn) -> None:
    process = spawn("worker", "missing_app", "--processes", 2)
    assert process.ended() == 5
    assert "started again" not in process.text


def test_the_second_signal_kills_the_workers(worker: Spawn, start: Start, status_of: Callable[[str], str]) -> None:
    held = start("hold")
    process = worker("--processes", 2, "--shutdown-timeout", "1h")
    pids = [int(match[1]) for match in process.line(r"worker \d started, pid (\d+)", 2)]
    process.line("serves", 2)
    until(lambda: status_of(held) == "running")
    process.send(signal.SIGINT)
    process.line("stopping 2 worker")
    process.send(signal.SIGINT)
    assert process.ended() == 128 + signal.SIGINT
    until(lambda: all(is_gone(pid) for pid in pids))
