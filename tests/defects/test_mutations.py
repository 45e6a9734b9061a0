"""The tests of defects are worth something: each fails without the protection that it is about (`pytest -m slow tests/defects`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.defects.mutations import DEFECTS, MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
BROKEN = re.compile(r"SyntaxError|IndentationError|ImportError|Undefined(Column|Table|Function)|AmbiguousColumn|NameError|ERROR at setup")
"""What says that the mutation itself is no good."""


def name_of(mutation: Mutation) -> str:
    same = [each for each in MUTATIONS if each.defect == mutation.defect]
    return f"{mutation.defect} {same.index(mutation) + 1}".replace(" ", "_")


each_mutation = pytest.mark.parametrize("mutation", MUTATIONS, ids=map(name_of, MUTATIONS))


def mutated(package: Path, mutation: Mutation) -> Iterable[tuple[Path, str]]:
    texts: dict[Path, str] = {}
    for change in mutation.changes:
        file = package / change.file
        text = texts.get(file) or file.read_text("utf-8")
        assert text.count(change.old) == 1, f"{change.file} has changed: say anew what is taken out ({mutation.out})"
        texts[file] = text.replace(change.old, change.new)
    return texts.items()


def test_every_defect_has_a_mutation() -> None:
    assert tuple(dict.fromkeys(each.defect for each in MUTATIONS)) == tuple(DEFECTS)


@each_mutation
def test_a_mutation_can_be_made_and_its_test_is_there(mutation: Mutation) -> None:
    assert list(mutated(ROOT / "queuert_py", mutation))
    file, _, test = mutation.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text("utf-8")


@pytest.mark.slow
@each_mutation
def test_without_the_protection_the_test_fails(mutation: Mutation, server: str, tmp_path: Path) -> None:
    """In a copy of everything, on databases of its own."""
    for folder in ("queuert_py", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, text in mutated(tmp_path / "queuert_py", mutation):
        file.write_text(text, "utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", mutation.test, "-n", "0", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "QUEUERT_TEST_DSN": server},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 1, f"it did not fail without this: {mutation.out}\n{ran.stdout}{ran.stderr}"
    assert not BROKEN.search(ran.stdout), f"the mutation is broken: {ran.stdout}"
    assert mutation.shows in ran.stdout, f"it failed for another reason: {ran.stdout}"
