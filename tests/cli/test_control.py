"""cancel, delete, trigger, reschedule."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from tests.cli.conftest import WORKER, Run, Spawn, until

Start = Callable[..., str]


def status(queuert: Run, id: str) -> str:
    answer = queuert("show", id, "--json")
    return str(answer.json["sequence"]["status"]) if answer.code == 0 else "gone"


def test_cancel_says_how_each_stands(queuert: Run, start: Start) -> None:
    done, waiting, missing = start("double"), start("double", 1, "--delay", 3600), str(uuid4())
    queuert("worker", *WORKER, "--drain")
    answer = queuert("cancel", waiting, done, missing, "--json")
    assert (answer.code, answer.json) == (6, {waiting: "cancelled", done: "completed", missing: "not_found"})
    assert queuert("cancel", waiting).out == f"{waiting}: cancelled.\n"
    answer = queuert("cancel", done)
    assert (answer.code, answer.out) == (1, f"{done}: left, it is completed.\n")
    assert status(queuert, waiting) == "cancelled"


def test_cancel_reaches_a_worker_in_another_process(queuert: Run, start: Start, worker: Spawn) -> None:
    id = start("hold")
    process = worker("--log-level", "info")
    until(lambda: status(queuert, id) == "running")
    assert queuert("cancel", id, "--cascade").code == 0
    process.line(f"sequence {id}.*no longer ours \\(cancelled\\)", timeout=9)


def test_delete_says_what_is_gone(queuert: Run, start: Start) -> None:
    id, missing = start("double", 1, "--delay", 3600), str(uuid4())
    answer = queuert("delete", id, missing, "--json")
    assert (answer.code, answer.json) == (6, {"deleted": [id], "missing": [missing]})
    assert status(queuert, id) == "gone"
    again = start("double")
    assert queuert("delete", again, "--cascade").out == f"{again} is deleted.\n"


def test_trigger_and_reschedule(queuert: Run, start: Start) -> None:
    id = start("double", 1, "--delay", 3600)
    assert queuert("trigger", id).out == f"{id} runs now.\n"
    assert status(queuert, id) == "pending"
    assert queuert("reschedule", id, "--delay", 60).out.startswith(f"{id} runs in ")
    assert status(queuert, id) == "scheduled"
    answer = queuert("reschedule", id, "--at", "2100-01-01T00:00+01:00", "--json")
    assert answer.json == {"changed": [id]}
    assert queuert("show", id, "--json").json["jobs"][0]["run_at"].startswith("2099-12-31T23:00")


@pytest.mark.parametrize("command", [("trigger",), ("reschedule", "--delay", 1)])
def test_what_cannot_be_given_another_time_is_named(queuert: Run, start: Start, command: tuple[object, ...]) -> None:
    done = start("double")
    queuert("worker", *WORKER, "--drain")
    assert f"{done} (completed)" in queuert(command[0], done, *command[1:]).trouble(1)
    missing = str(uuid4())
    assert missing in queuert(command[0], missing, *command[1:]).trouble(6)


@pytest.mark.parametrize("times", [(), ("--delay", 1, "--at", "2100-01-01T00:00+01:00")])
def test_a_time_has_to_be_clear(queuert: Run, times: tuple[object, ...]) -> None:
    assert "give one of them" in queuert("reschedule", uuid4(), *times).trouble(2)


def test_wrong_words_are_explained(queuert: Run) -> None:
    assert "no instant" in queuert("reschedule", uuid4(), "--at", "noon").trouble(2)
    assert "aware datetime" in queuert("reschedule", uuid4(), "--at", "2100-01-01").trouble(2)
    for command in ("cancel", "delete", "trigger"):
        assert "is no id" in queuert(command, "x").trouble(2)
        assert "Missing argument" in queuert(command).trouble(2)
