"""migrate, status, list, show, retry, start."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest

from tests.cli.conftest import APP, WORKER, Run, Spawn

Start = Callable[..., str]


@pytest.fixture
def drain(queuert: Run) -> Callable[[], None]:
    """Run all that can be run, by a worker in this process."""

    def run() -> None:
        assert queuert("worker", *WORKER, "--drain").code == 0

    return run


# --- migrate


def test_migrate_makes_a_schema_and_then_leaves_it_alone(queuert: Run, dsn: str) -> None:
    try:
        first = queuert("migrate", "--schema", "cli_test", "--lanes", 4)
        assert first.out.startswith("Schema cli_test at ")
        assert "applied 0001_foundation" in first.out
        assert queuert("migrate", "--schema", "cli_test", "--json").json["applied"] == []
        assert queuert("status", "--schema", "cli_test", "--json").json["database"]["lanes"] == 4
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("drop schema if exists cli_test cascade")


def test_migrate_sql_prints_the_script_without_a_database(bare: Run) -> None:
    answer = bare("migrate", "--sql", "--schema", "elsewhere", "--lanes", 8)
    assert answer.code == 0
    assert 'create table "elsewhere".live_job' in answer.out
    assert "'lanes', '8'" in answer.out


# --- status


def test_status_of_an_idle_database_says_what_to_type(queuert: Run) -> None:
    answer = queuert("status")
    assert "healthy" in answer.out
    assert "Nothing waits" in answer.out
    assert "queuert worker module:engine" in answer.out


def test_status_shows_what_waits_what_failed_and_who_works(queuert: Run, start: Start, drain: Callable[[], None], worker: Spawn) -> None:
    start("fail")
    drain()
    start("hold")
    working = worker("--queues", "elsewhere")
    working.line("serves")
    start("double", 1, "--queue", "elsewhere", "--wait", "--timeout", 20)
    known = queuert("status", *APP, "--json").json
    assert [(row["type"], row["status"], row["jobs"]) for row in known["live"]] == [("hold", "pending", 1)]
    assert known["live"][0]["oldest_ready_age"] > 0
    assert {(row["type"], row["outcome"]) for row in known["finished_last_hour"]} == {("fail", "failed"), ("double", "completed")}
    assert known["failed"] == 1
    assert [(row["pid"], row["queues"], row["present"]) for row in known["workers"]] == [(working.pid, ["elsewhere"], True)]
    shown = queuert("status").out
    assert known["failed_by_type"][0]["type"] == "fail"
    assert "queuert retry --failed" in shown
    assert str(working.pid) in shown


# --- list and show


def test_list_filters(queuert: Run, start: Start, drain: Callable[[], None]) -> None:
    failed, done, waiting = start("fail"), start("double"), start("double", 2, "--key", "k", "--delay", 3600)
    drain()

    def ids(*options: object) -> list[str]:
        return [row["id"] for row in queuert("list", "--json", *options).json]

    assert ids() == [waiting, done, failed]
    assert ids("--limit", 1) == [waiting]
    assert ids("--failed") == ids("--status", "failed") == ids("--type", "fail") == [failed]
    assert ids("--key", "k") == ids("--status", "scheduled") == [waiting]
    assert queuert("list", "--type", "nope").out == "No such sequences.\n"
    assert ids("--queue", "default", "--created-after", "1h") == [waiting, done, failed]
    assert ids("--created-before", "2020-01-01") == ids("--finished-after", "2999-01-01T12:00+02:00") == ids("--tag", "t") == []
    assert ids("--finished-after", "1d", "--finished-before", "2999-01-01") == [done, failed]
    assert ids("--correlation", "c") == []
    assert ids("--root", done) == [done]
    assert "is no time" in queuert("list", "--created-after", "soon").trouble(2)
    assert "is no time" in queuert("list", "--created-after", "99999999999d").trouble(2)
    assert "continued" in queuert("list", "--status", "continued").trouble(2), "that is how jobs stand"


def test_list_goes_on_with_the_next_page(queuert: Run, start: Start) -> None:
    started = [start("double", n) for n in range(3)]
    shown = queuert("list", "--limit", 2).out
    found = re.search(r"--after (\S+)", shown)
    assert found
    rest = queuert("list", "--limit", 2, "--after", found[1])
    assert started[0] in rest.out
    assert started[1] not in rest.out
    assert "--after" not in rest.out
    assert "the `next` of a page" in queuert("list", "--after", "x").trouble(2)


def test_what_a_job_says_cannot_command_the_terminal(queuert: Run, start: Start, drain: Callable[[], None]) -> None:
    id = start("fail", 1, "--key", "\x1b[2Jkey")
    drain()
    for command in (("list",), ("show", id)):
        shown = queuert(*command).out
        assert "\x1b" not in shown
        assert "no red way" in shown
        assert " key" in shown


def test_show_has_the_attempts_with_their_tracebacks_and_the_way_on(queuert: Run, start: Start, drain: Callable[[], None]) -> None:
    id = start("fail", 7)
    drain()
    shown = queuert("show", id).out
    assert "failed (error)" in shown
    assert '{"n": 7}' in shown
    assert shown.count("raise ValueError(") == 1
    assert "(the same traceback)" in shown
    assert f"queuert retry {id}" in shown
    known = queuert("show", id, "--json").json
    assert known["sequence"]["status"] == "failed"
    assert [job["status"] for job in known["jobs"]] == ["failed"]
    assert [attempt["attempt"] for attempt in known["attempts"]] == [1, 2]
    assert "ValueError" in known["attempts"][0]["error"]["traceback"]


@pytest.mark.parametrize("type_", ["double", "hold"])
def test_show_of_what_has_not_failed(queuert: Run, start: Start, drain: Callable[[], None], type_: str) -> None:
    id = start(type_, 4)
    assert "It waits." in queuert("show", id).out
    if type_ == "double":
        drain()
        shown = queuert("show", id).out
        assert '"n": 8' in shown
        assert "It has ended." in shown


def test_show_has_what_is_waited_for_and_by_whom(queuert: Run, start: Start) -> None:
    first = start("double", 1, "--delay", 3600)
    waiting = queuert("start", "after", json.dumps({"n": 1, "first": first}), *APP).out.split()[0]
    shown = queuert("show", waiting).out
    assert re.search(rf"Waits for\n.*\n{first} +double +scheduled +0 +yes", shown)
    assert f"queuert why {waiting}" in shown
    assert re.search(rf"Waited for by\n.*\n{waiting} +after +blocked", queuert("show", first).out)
    known = queuert("show", waiting, "--json").json
    assert [(each["id"], each["settled"]) for each in known["blockers"]] == [(first, False)]


# --- why


def test_why_says_what_is_waited_for(queuert: Run, start: Start, drain: Callable[[], None]) -> None:
    done, first = start("double"), start("double", 1, "--delay", 3600)
    waiting = queuert("start", "after", json.dumps({"n": 1, "first": first}), *APP).out.split()[0]
    assert queuert("why", done).out.startswith("no_worker: no worker is running")
    drain()
    assert queuert("why", done).out.startswith("completed: ")
    shown = queuert("why", waiting).out
    assert shown.startswith("blocked: it waits for 1 other sequence(s): ")
    assert re.search(rf"Because of\n.*\n{first} +double +scheduled", shown)
    known = queuert("why", waiting, "--json").json
    assert (known["code"], known["roots"][0]["sequence_id"]) == ("blocked", first)
    assert "does not exist" in queuert("why", uuid4()).trouble(6)
    assert "is no id" in queuert("why", "x").trouble(2)


# --- retry


def test_retry_runs_what_failed_again_and_says_why_others_are_left(queuert: Run, start: Start, drain: Callable[[], None]) -> None:
    failed, waiting, missing = start("fail"), start("double", 1, "--delay", 3600), str(uuid4())
    drain()
    answer = queuert("retry", failed, waiting, missing, "--json")
    assert answer.code == 6
    assert answer.json == {"retried": [failed], "left": {waiting: "it is scheduled, not failed", missing: "not found"}}
    drain()
    assert queuert("retry", failed).out == f"{failed} runs again.\n"
    assert queuert("show", failed, "--json").json["sequence"]["status"] == "pending"


def test_retry_failed_asks_and_takes_a_type(queuert: Run, start: Start, drain: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = start("fail"), start("fail")
    drain()
    assert queuert("retry", "--failed", "--type", "double", "--yes").out == "None has failed.\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "Retry 2 failed" in queuert("retry", "--failed").trouble(2)
    assert set(queuert("retry", "--failed", "--type", "fail", "--yes", "--json").json["retried"]) == {first, second}


def test_retry_leaves_what_would_break_a_key(queuert: Run, start: Start, drain: Callable[[], None]) -> None:
    failed = start("fail", 1, "--key", "k")
    drain()
    start("fail", 2, "--key", "k")
    answer = queuert("retry", failed)
    assert answer.code == 1
    assert "an unfinished sequence has its key 'k'" in answer.out
    answer = queuert("retry", "--failed", "--yes")
    assert answer.code == 1
    assert "1 left" in answer.out


# --- start


def test_start_prints_the_id_and_knows_a_key(queuert: Run, start: Start) -> None:
    first = start("double", 1, "--key", "once")
    again = queuert("start", "double", '{"n": 5}', *APP, "--key", "once", "--json").json
    assert again == {"id": first, "type": "double", "deduplicated": True}


def test_start_reads_stdin_and_waits_for_the_result(queuert: Run, worker: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    working = worker()
    working.line("serves")
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"n": 21}'))
    answer = queuert("start", "double", "-", *APP, "--wait", "--timeout", 20)
    assert json.loads(answer.out.partition("\n")[2]) == {"n": 42, "pid": working.pid}
    assert answer.err == ""
    failed = queuert("start", "fail", '{"n": 1}', *APP, "--wait", "--timeout", 20, "--json")
    assert "ValueError: no red way" in failed.trouble(1)
    assert "queuert retry" in failed.err


def test_start_that_waits_for_nobody_says_so(queuert: Run) -> None:
    answer = queuert("start", "double", '{"n": 1}', *APP, "--wait", "--timeout", 0.1)
    assert answer.code == 7
    assert "no worker serves double" in answer.err
    assert answer.err.count("\n") == 4


# --- the rest


def test_every_command_has_help(bare: Run) -> None:
    listed = bare().out
    for command in ("demo", "worker", "migrate", "status", "list", "show", "retry", "start", "cancel", "delete", "trigger", "reschedule"):
        assert f"  {command} " in listed
        assert f"Usage: queuert {command}" in bare(command, "--help").out
    assert "Exit codes" in listed
    assert bare("--version").out.startswith("queuert, version ")
