"""docs/reference.md says no less and no more than the code: names, verbs with their parameters, options, errors, events, commands."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest

import queuert_py
from queuert_py import Blocker, Engine, Job, JobSequence, SyncJob, control, errors, events, values, why
from queuert_py.cli.entry import queuert
from queuert_py.cli.trouble import CODES
from queuert_py.control import FailedFilter
from queuert_py.engine.sync import SyncEngine
from queuert_py.errors import QueuertError
from queuert_py.job_types import JobOptions
from queuert_py.looking import JobFilters, SequenceFilters
from queuert_py.values import ContinueOptions, Dedup, StartOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference.md").read_text("utf-8")
CODE = re.compile(r"`([^`]+)`")
CELL = re.compile(r"(?<!\\)\|")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SEPARATOR = re.compile(r"\|[-|]+\|")
VERBS = ("Declaring", "Opening", "Starting", "Waiting and looking", "Changing", "Working")
RENAMED = {"job_type": {"fn": "name"}}
"""A parameter that is called otherwise where it is documented: as its overloads call it."""
WORKERS_ASK = {
    *("database", "events", "find", "job_types", "joined", "left", "listener", "loop", "middleware_of", "model", "notifier", "overrides"),
    *("step_for", "waiters", "wire", "wrap", "embedded"),
}
"""What an engine has for its own parts, and `embedded`, which stands with the constructor."""


def section(title: str) -> str:
    """What stands under a heading, up to the next of its rank or above."""
    found = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^##? |^\1 |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference.md has no section {title!r}"
    return found[2]


def rows(title: str) -> list[list[str]]:
    """The rows of the tables of a section, without their headings."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    heads = {number - 1 for number, line in enumerate(lines) if SEPARATOR.fullmatch(line.replace(" ", ""))}
    kept = [line for number, line in enumerate(lines) if number not in heads and number - 1 not in heads]
    return [[cell.strip() for cell in CELL.split(line)[1:-1]] for line in kept]


def names(title: str) -> list[str]:
    """What the first column of a section's tables documents."""
    return [name for row in rows(title) for name in CODE.findall(row[0])]


def in_row(title: str, first: str) -> set[str]:
    """All the code in the row of which the first cell mentions `first`."""
    [row] = [row for row in rows(title) if first in CODE.findall(row[0])]
    return {code for cell in row[1:] for code in CODE.findall(cell)}


def documented_calls(title: str) -> dict[str, str]:
    """Name to signature, as written; of a property to ''."""
    return {name.partition("(")[0]: name for name in names(title)}


def public(owner: Any) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


def said(written: str) -> list[tuple[str, str]]:
    """The parameters of a documented call, with their defaults."""
    [function] = ast.parse(f"def {written}: ...").body
    assert isinstance(function, ast.FunctionDef)
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(given.defaults)), *given.defaults]
    found = [*zip(plain, defaults, strict=True), *([(given.vararg, None)] if given.vararg else [])]
    found += [*zip(given.kwonlyargs, given.kw_defaults, strict=True), *([(given.kwarg, None)] if given.kwarg else [])]
    return [(each.arg, "" if default is None else ast.unparse(default)) for each, default in found]


def meant(function: Any, renamed: dict[str, str]) -> list[tuple[str, str]]:
    """The same of the code."""
    given = list(inspect.signature(function).parameters.values())
    return [
        (renamed.get(each.name, each.name), "" if each.default is each.empty else repr(each.default))
        for each in given
        if each.name != "self"
    ]


def test_all_that_the_package_exports_is_named() -> None:
    assert sorted(names("Names")) == sorted(queuert_py.__all__)


def test_every_verb_of_the_engine_is_there_and_no_other() -> None:
    verbs = {name for title in VERBS for name in documented_calls(title)}
    assert verbs == (public(Engine) | {"sync"}) - WORKERS_ASK
    assert public(Engine) | {"loop", "overrides", "wire"} >= WORKERS_ASK, "a name that no engine has any more"


@pytest.mark.parametrize("title", VERBS)
def test_the_verbs_have_the_parameters_and_defaults_that_are_said(title: str) -> None:
    for name, written in documented_calls(title).items():
        if "(" in written:
            assert said(written) == meant(getattr(Engine, name), RENAMED.get(name, {})), name


def test_the_engine_is_made_as_is_said() -> None:
    first, second = [row[0].strip("`") for row in rows("The engine")[:2]]
    assert said(first) == meant(Engine.__init__, {})
    assert said(second.removeprefix("Engine.")) == meant(Engine.embedded, {})
    options = {name for row in rows("The engine")[2:] for name in CODE.findall(row[0])}
    assert options == {name for name, _ in (*meant(Engine.__init__, {}), *meant(Engine.embedded, {}))}


def test_every_verb_without_an_event_loop_is_there_and_no_other() -> None:
    listed = {code.partition("(")[0] for code in CODE.findall(section("Without an event loop"))}
    assert listed - {"engine.sync"} == public(SyncEngine)


@pytest.mark.parametrize(
    ("title", "options"),
    [("Options of a job type", JobOptions), ("Options of a start", StartOptions), ("Options of a continuation", ContinueOptions)],
)
def test_every_option_is_there_and_no_other(title: str, options: Any) -> None:
    assert sorted(names(title)) == sorted(options.__annotations__)


def test_the_options_that_a_start_may_give_as_well_are_marked() -> None:
    marked = {name for row in rows("Options of a job type") if row[0].endswith("*") for name in CODE.findall(row[0])}
    assert marked == JobOptions.__annotations__.keys() & StartOptions.__annotations__.keys()


def test_the_parts_of_a_dedup_are_said() -> None:
    [written] = [code for code in in_row("Options of a start", "dedup") if code.startswith("Dedup(")]
    known = {each.name for each in dataclasses.fields(Dedup)} - {"delay"}  # that is for debounce
    assert {name or "key" for name in re.findall(r"(\w+)=", written)} | {"key"} == known


def test_every_option_of_a_worker_is_there_and_no_other() -> None:
    assert sorted(names("Options of a worker")) == sorted(name for name, _ in meant(Engine.worker, {}))


@pytest.mark.parametrize(
    ("verb", "filters"), [("list_sequences", SequenceFilters), ("list_jobs", JobFilters), ("retry_sequences", FailedFilter)]
)
def test_every_filter_is_there_and_no_other(verb: str, filters: Any) -> None:
    assert in_row("Filters", verb) - {"job_type"} == filters.__annotations__.keys()


def test_every_member_of_a_job_is_there_and_no_other() -> None:
    assert documented_calls("What is on `job`").keys() == public(Job) == public(SyncJob)


def test_the_calls_of_a_job_have_the_parameters_that_are_said() -> None:
    for name, written in documented_calls("What is on `job`").items():
        if "(" in written:
            assert said(written) == meant(getattr(Job, name), {}), name


def test_every_member_of_a_handle_is_there_and_no_other() -> None:
    assert documented_calls("Handles").keys() == public(JobSequence) | public(Blocker)


def test_the_calls_of_a_handle_have_the_parameters_that_are_said() -> None:
    for name, written in documented_calls("Handles").items():
        if "(" in written:
            assert said(written) == meant(getattr(JobSequence, name), {}), name


@pytest.mark.parametrize("record", ["SequenceRecord", "JobRecord", "AttemptRecord", "LinkRecord", "Failure", "OpenJob"])
def test_every_field_of_a_record_is_there_and_no_other(record: str) -> None:
    kind: Any = getattr(values, record, None) or getattr(control, record)
    fields = {each.name for each in dataclasses.fields(kind) if not each.name.startswith("_")}
    assert in_row("Records", record) - {"decline()"} == fields | ({"input"} if record == "OpenJob" else set())


def test_a_dead_letter_has_the_fields_of_a_failure() -> None:
    assert control.DeadLetter.model_fields.keys() == in_row("Records", "DeadLetter")


def test_statuses_reasons_and_codes_are_all_there() -> None:
    text = section("Statuses and reasons")
    statuses, codes = text.partition("| reason |")[0], text.partition("`engine.why(id).code`")[2]
    assert set(CODE.findall(statuses)) == set(get_args(values.Status))
    assert sorted(names("Statuses and reasons")) == sorted(get_args(values.Reason))
    assert set(CODE.findall(codes)) == set(get_args(why.Code))
    assert in_row("What is on `job`", "abort_reason") == set(get_args(values.Abort))


def test_every_event_is_there_and_no_other() -> None:
    assert sorted(names("Events")) == sorted(events.__all__)


def every_error(family: type[QueuertError] = QueuertError) -> dict[str, type[QueuertError]]:
    found = {family.__name__: family}
    for each in family.__subclasses__():
        if each.__module__ == errors.__name__:
            found |= every_error(each)
    return found


def test_every_error_stands_with_its_code_under_its_base() -> None:
    listed = [(row[0], *CODE.findall(row[0]), *CODE.findall(row[1])) for row in rows("Errors") if CODE.search(row[0])]
    assert {name: code for _, name, code in listed} == {name: error.code for name, error in every_error().items()}
    above: dict[int, str] = {0: "QueuertError"}
    for cell, name, _ in listed[1:]:
        depth = cell.count("·")
        assert every_error()[name].__bases__[0].__name__ == above[depth], f"{name} does not stand under its base"
        above[depth + 1] = name


def test_the_concepts_name_every_error() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text("utf-8").partition("## Errors")[2]
    assert every_error().keys() - {code.rpartition(".")[2] for code in CODE.findall(text)} == set()


def test_every_environment_variable_is_there() -> None:
    source = "\n".join(file.read_text("utf-8") for file in (ROOT / "queuert_py").rglob("*.py"))
    used = set(re.findall(r"\bQUEUERT_[A-Z]+(?:_[A-Z]+)*\b", source)) - {"QUEUERT_PARENT_FD"}  # between a supervisor and its workers
    assert {name for name in names("Environment variables") if name.startswith("QUEUERT_")} == used


def test_every_command_is_there_with_its_options_and_no_other() -> None:
    commands = {CODE.findall(row[0])[0].split()[1]: row for row in rows("Commands")}
    assert commands.keys() == queuert.commands.keys()
    common = {"--app", "--app-dir", "--schema", "--debug", "--json"}
    for name, command in queuert.commands.items():
        known = {option for each in command.params if isinstance(each, click.Option) for option in each.opts} - common
        assert {code.split()[0] for code in CODE.findall(commands[name][1])} == known, name
    assert common <= {code.split()[0] for code in CODE.findall(section("Commands"))}


def test_the_exit_codes_are_those_of_the_command() -> None:
    plain = re.sub(r"\s+", " ", section("Commands").replace("`", ""))
    assert re.sub(r"\s+", " ", CODES) in plain


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        prose = CODE.sub("", FENCED.sub("", page.read_text("utf-8")))
        for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", prose)):
            if "://" in target:
                continue
            there = (page.parent / target).resolve() if target else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}, f"{page.name}: #{anchor}"
