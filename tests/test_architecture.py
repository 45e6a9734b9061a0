"""The shape of the package: which way imports run, where SQL, clocks and chance may be, and how large things get."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import queuert_py

ROOT = Path(queuert_py.__file__).parent
FILES = sorted(file for file in ROOT.rglob("*.py") if "__pycache__" not in file.parts)
each_module = pytest.mark.parametrize("name", [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES])

# A module may import its own layer and those above it in this list. The first name that a module's name begins with counts.
LAYERS: list[set[str]] = [
    {"errors", "ids"},
    {"values", "payload", "control"},
    {"decisions"},
    {"sequence", "options", "why"},
    {"looking"},
    {"job", "job_types", "annotations", "dependencies", "middleware", "memo", "events"},
    {"postgres"},
    {"starting", "joining", "failing", "completing"},
    {"runtime"},
    {"results"},
    {"engine"},
    {"__init__", "cli", "testing", "dashboard", "integrations"},
]
EXEMPT = {("engine.core", "embedded")}
"""Engine.embedded() opens a server; `embedded` itself knows nothing of engines."""
NAMES_PSYCOPG = {"job", "joining", "engine", "starting", "results", "runtime"}
"""Outside postgres/ these may name psycopg's types and errors; the statements are all in postgres/."""
CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}


def module(name: str) -> ast.Module:
    return parsed(ROOT.joinpath(*name.split(".")).with_suffix(".py"))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def imports(tree: ast.AST, *, typing: bool = True) -> Iterator[str]:
    """What is imported, dotted; without what only a type checker imports, if so wished."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, typing=typing)


def own_imports(name: str) -> Iterator[str]:
    """The modules of the package that a module imports, below `queuert_py`."""
    for imported in imports(module(name), typing=False):
        if imported.startswith("queuert_py.") and imported != "queuert_py.__version__":
            yield imported.removeprefix("queuert_py.")


def layer_of(name: str) -> int:
    top = name.split(".", maxsplit=1)[0]
    found = [number for number, names in enumerate(LAYERS) if top in names]
    assert found, f"{name} has no layer yet: say in LAYERS where it stands"
    return found[0]


def texts(name: str) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The strings of a module that are no docstrings."""
    tree = module(name)
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if id(node) not in documented and (
            isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))
        ):
            yield node


def calls(name: str) -> Iterator[str]:
    for node in ast.walk(module(name)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


# --- imports


@each_module
def test_imports_run_one_way(name: str) -> None:
    if name.split(".", maxsplit=1)[0] == "embedded":
        assert {imported.split(".")[0] for imported in own_imports(name)} <= {"embedded", "errors"}
        return
    for imported in own_imports(name):
        top = imported.split(".")[0]
        if (name, top) in EXEMPT or (
            layer_of(name) == len(LAYERS) - 1 and (top == "embedded" or top not in {each for names in LAYERS for each in names})
        ):
            continue
        assert layer_of(imported) <= layer_of(name), f"{name} imports {imported}"


def test_no_module_is_imported_in_a_ring() -> None:
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in FILES}
    edges = {name: {found for found in _modules(name, names) if found != name} for name in names if name != "__init__"}
    done: set[str] = set()
    while free := [name for name in edges if name not in done and edges[name] <= done | {"__init__"}]:
        done.update(free)
    assert edges.keys() - done == set()


def _modules(name: str, names: set[str]) -> Iterator[str]:
    file = ROOT.joinpath(*name.split("."))
    tree = parsed(file / "__init__.py" if file.is_dir() else file.with_suffix(".py"))
    for node in tree.body:  # what is imported inside a function is imported later
        for imported in imports(ast.Module([node], []), typing=False):
            found = imported.removeprefix("queuert_py.")
            of_module = found if found in names else found.rpartition(".")[0]
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if imported.startswith("queuert_py.") and of_module and not later:
                yield of_module


@each_module
def test_psycopg_is_used_in_postgres_and_named_in_few_other_places(name: str) -> None:
    users = {imported.split(".")[0] for imported in imports(module(name))} & {"psycopg", "psycopg_pool"}
    if name.split(".", maxsplit=1)[0] in ("postgres", "cli", "testing", "integrations", "embedded"):
        return
    assert not users or name.split(".", maxsplit=1)[0] in NAMES_PSYCOPG


def test_nothing_of_the_tests_or_of_an_optional_extra_is_imported_at_the_top() -> None:
    extras = {"pytest", "hypothesis", "rich", "sqlalchemy", "asyncpg", "psycopg2", "django", "testcontainers", "procrastinate", "tests"}
    for file in FILES:
        if file.relative_to(ROOT).parts[0] in ("cli", "integrations") or file.parent.name == "plugin":  # pytest itself imports that one
            continue
        top = {imported.split(".")[0] for node in parsed(file).body for imported in imports(ast.Module([node], []))}
        assert not top & extras, file.name


# --- decisions are pure


@each_module
def test_decisions_do_nothing_but_decide(name: str) -> None:
    if not name.startswith("decisions."):
        return
    tree = module(name)
    assert not [
        node for node in ast.walk(tree) if isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.AsyncWith, ast.AsyncFor, ast.Global))
    ]
    used = {imported.split(".")[0] for imported in imports(tree)}
    assert not used & {"time", "random", "secrets", "uuid", "os", "asyncio", "anyio", "threading", "logging", "psycopg", "socket"}
    assert not [call for call in calls(name) if re.fullmatch(r"(.*\.)?(now|utcnow|today|monotonic|uuid4|urandom|open|print)", call)]


# --- SQL, clocks, and what has no place


@each_module
def test_sql_is_in_files(name: str) -> None:
    begins = re.compile(
        r"\s*(select\s.+|insert into\s.+|update \S+ set\s.+|delete from\s.+|with \w+ as\s*\(.*|"
        r"create (table|schema|index|view)\s.+|alter table\s.+|truncate\s.+|drop table\s.+)",
        re.IGNORECASE | re.DOTALL,
    )
    if name.startswith("cli.demo"):  # it plays a user, who has tables of his own
        return
    found = [text for text in map(written, texts(name)) if begins.fullmatch(text)]
    allowed = {
        "postgres.migrate": 7,
        "testing.clock": 4,  # of test databases only
        "testing.databases": 7,
        "postgres.calls": 1,
        "postgres.listener": 1,
        "embedded.keeper": 9,
        "embedded.template": 9,
        "embedded.launcher": 9,
    }
    assert len(found) <= allowed.get(name, 0), found


@each_module
def test_sql_is_never_made_by_formatting(name: str) -> None:
    """f-strings and the like with SQL words in them; identifiers go through psycopg.sql or the schema marker."""
    words = re.compile(
        r"^\s*(select|insert|update|delete|with|create|drop|alter|set|listen|notify|copy)\b.*\b(from|into|table|schema|where|stdin|local)\b",
        re.DOTALL,
    )
    formatted = [node for node in texts(name) if isinstance(node, ast.JoinedStr)]
    if not name.startswith("embedded."):
        assert not [text for text in map(written, formatted) if words.match(text)]


def written(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values)
    return node.value.decode("utf-8", "replace") if isinstance(node.value, bytes) else str(node.value)


@each_module
def test_the_clock_of_this_machine_decides_nothing(name: str) -> None:
    """Instants are the database's; spans are monotonic. Only an id shows when it was made."""
    if name in ("ids", "embedded.keeper", "embedded.template") or name.startswith("cli."):
        return
    found = {tuple(call.split(".")[-2:]) for call in calls(name) if "." in call}
    assert not found & CLOCKS
    assert not set(imports(module(name))) & {f"{first}.{second}" for first, second in CLOCKS}


@each_module
def test_what_has_no_place_is_not_there(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports(module(name))}
    assert not used & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    found = set(calls(name))
    assert not found & {"eval", "exec", "compile", "__import__", "os.system", "breakpoint"}
    assert "print" not in found or name.startswith("cli.")
    assert not [node for node in ast.walk(module(name)) if isinstance(node, ast.ExceptHandler) and node.type is None], "a bare except"


@each_module
def test_every_module_says_what_it_is_for(name: str) -> None:
    tree = module(name)
    assert ast.get_docstring(tree), name


# --- sizes


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_file_can_be_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text("utf-8").splitlines()) <= 500


@each_module
def test_a_function_can_be_seen_at_once(name: str) -> None:
    for node in ast.walk(module(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = node.body[0].end_lineno or 0 if ast.get_docstring(node) else node.lineno
            assert (node.end_lineno or 0) - documented <= 80, node.name


LONG_STATEMENTS = {"unblock_jobs.sql": 65}
"""One that cannot be cut: what it finds, locks and counts down has to be of one snapshot."""


def test_statements_are_short() -> None:
    for file in ROOT.joinpath("postgres", "sql").iterdir():
        assert len(file.read_text("utf-8").splitlines()) <= LONG_STATEMENTS.get(file.name, 45), file.name


# --- the public names


def test_the_package_has_at_most_25_names_and_all_are_there() -> None:
    names = queuert_py.__all__
    assert len(names) <= 25
    assert sorted(names) == sorted(set(names))
    assert all(hasattr(queuert_py, name) for name in names)
    public = {
        alias.asname or alias.name for node in parsed(ROOT / "__init__.py").body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert public == set(names), "what is imported there is exported, and nothing else is"


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").is_file()


def test_every_error_has_a_code_of_its_own_and_one_base() -> None:
    from queuert_py import errors

    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    codes = [kind.code for kind in kinds if issubclass(kind, errors.QueuertError)]
    assert len(codes) == len(kinds)
    assert len(set(codes)) == len(codes)
    assert all(kind.__doc__ for kind in kinds)
