"""Rules that every statement keeps (docs: storage, "Rules of concurrency"). Text only: no server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import pytest

from queuert_py.postgres.store import MARKER

FOLDERS = ("sql", "migrations")
TABLES = (
    "live_job",
    "finished_job",
    "job_blocker",
    "attempt_log",
    "queue",
    "schedule",
    "worker",
    "stat",
    "setting",
    "migration",
    "job",
    "sequence",
)
FULL_LOCKS = {"end_jobs", "lock_failed", "lock_finished", "lock_to_delete"}
"""`for update` only where a row is about to be moved away and blockers are read `for key share`."""


def texts(*folders: str) -> Iterator[tuple[str, str]]:
    """Name and text without comments, of every file."""
    for folder in folders:
        for file in sorted(files("queuert_py.postgres").joinpath(folder).iterdir(), key=lambda each: each.name):
            if file.name.endswith(".sql"):
                yield file.name.removesuffix(".sql"), " ".join(re.sub(r"--[^\n]*", "", file.read_text("utf-8")).split())


ALL = list(texts(*FOLDERS))
STATEMENTS = list(texts("sql"))
each_file = pytest.mark.parametrize(("name", "text"), ALL, ids=[name for name, _ in ALL])
each_statement = pytest.mark.parametrize(("name", "text"), STATEMENTS, ids=[name for name, _ in STATEMENTS])


def unmarked_tables(text: str) -> list[str]:
    """Tables that are named where a table stands, without the marker before them."""
    after = r"\b(?:from|join|into|update|using|table|view|on|references)\s+"
    found = re.findall(after + r"(?:only\s+)?(" + "|".join(TABLES) + r")\b(?!\.|\s*=)", text)
    return [name for name in found if name not in common_names(text)]


def common_names(text: str) -> set[str]:
    return set(re.findall(r"(?:with(?: recursive)?|,) (\w+) as (?:materialized )?\(", text))


def bare_clocks(text: str) -> list[str]:
    """Clocks that stand still in a transaction."""
    return re.findall(r"\bnow\(\)|\bcurrent_timestamp\b|\bstatement_timestamp\(\)|\btransaction_timestamp\(\)|\blocaltimestamp\b", text)


def locking_selects(text: str) -> Iterator[str]:
    """Every select that locks, from its `select` to its locking clause."""
    for lock in re.finditer(r"\bfor (?:no key update|update|key share|share)\b", text):
        yield text[max(text.rfind("select ", 0, lock.start()), 0) : lock.end()]


@each_file
def test_every_table_has_the_schema_marker_before_it(name: str, text: str) -> None:
    assert unmarked_tables(text) == []
    assert "queuert." not in text
    assert text.count("/*") == text.count(MARKER), "no comment of another kind"


@each_file
def test_clocks_go_on_inside_a_transaction(name: str, text: str) -> None:
    assert bare_clocks(text) == []


@each_statement
def test_rows_are_locked_no_harder_than_needed(name: str, text: str) -> None:
    assert bool(re.search(r"\bfor update\b", text)) is (name in FULL_LOCKS)


@each_statement
def test_rows_are_locked_in_one_order(name: str, text: str) -> None:
    for select in locking_selects(text):
        one_row = re.search(r"l\.lane = %\(lane\)s\S* and l\.sequence_id = %\(sequence_id\)s", select)
        ordered = re.search(r"order by (?:\w\.step, )?(?:\w\.)?(?:lane|run_at), (?:\w\.)?sequence_id(?: limit %\(limit\)s)? for ", select)
        latest = select.endswith("limit 1 for key share")  # of each sequence in turn, as the rows come: sorted by who makes them
        assert one_row or ordered or latest, select


@each_statement
def test_a_time_that_bounds_a_scan_is_a_sub_select(name: str, text: str) -> None:
    """The bare call is volatile: a filter over every row, not a bound of the index."""
    where = re.findall(r"(?:run_at|leased_until) <=? (\S+ ?\S*)", text.split(" set ", maxsplit=1)[0])
    assert all(bound.startswith("(select") for bound in where), where


@each_statement
def test_the_locks_of_a_batch_skip_or_wait_on_purpose(name: str, text: str) -> None:
    """Those that wait: an attempt's own fence, a decision after a lost answer, unblocking, and operators."""
    waits = {
        "fence_job",
        "lock_failed",
        "lock_finished",
        "lock_jobs",
        "lock_live",
        "lock_to_delete",
        "release_claim",
        "replace_waiting",
        "revive_failed",
        "unblock_jobs",
    }
    locks = re.findall(r"for (?:no key )?update(?: of \w)?( skip locked)?", text)
    assert all(locks) or not locks or name in waits, f"{name} waits for rows"


@each_statement
def test_every_parameter_is_named(name: str, text: str) -> None:
    assert not re.search(r"%s|\$\d|%\((?!\w+\)s)", text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("select 1 from /* schema */live_job l", []),
        ("select 1 from live_job l", ["live_job"]),
        ("update live_job set x = 1", ["live_job"]),
        ("insert into finished_job (a) select 1", ["finished_job"]),
        ("with queue as (select 1) select * from queue", []),
        ("delete from /* schema */live_job l using worker w", ["worker"]),
    ],
)
def test_the_lint_finds_a_table_without_marker(text: str, found: list[str]) -> None:
    assert unmarked_tables(text) == found


@pytest.mark.parametrize("text", ["select now()", "select current_timestamp", "x > statement_timestamp()"])
def test_the_lint_finds_a_clock_that_stands_still(text: str) -> None:
    assert bare_clocks(text)
