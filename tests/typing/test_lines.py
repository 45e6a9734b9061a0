"""The package's types, held to marked lines: every `# E` is an error in mypy --strict and in pyright strict, and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest

from tests.typing.checkers import REPO, Checker, Found, differences, gather, marks, run_mypy, run_pyright

HERE = Path(__file__).parent
SHARED = REPO.parent / "shared" / "typing"
PROOFS = ("ok1.py", "ok2.py", "ok3.py", "limits.py")
OWN = sorted(HERE.glob("lines/*.py"))
SHIM = sorted(HERE.glob("shim/*.py"))
CHECKERS: Sequence[Checker] = get_args(Checker)


def proofs() -> list[Path]:
    """The shared proofs of the API, where they lie beside the checkout."""
    return [SHARED / name for name in PROOFS if (SHARED / name).is_file()]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Checker, Found]:
    """What each checker says; each runs once over all files."""
    folder = gather([*OWN, *SHIM, *proofs()], tmp_path_factory.mktemp("lines"))
    kept: pytest.Cache | None = getattr(request.config, "cache", None)  # mypy is twice as fast with what it remembers
    memory = kept.mkdir("queuert-mypy") if kept is not None else tmp_path_factory.mktemp("mypy")
    return {"mypy": run_mypy(folder, memory), "pyright": run_pyright(folder)}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_refuses_the_marked_lines_and_no_other(found: dict[Checker, Found], checker: Checker) -> None:
    assert not (wrong := differences(OWN, found[checker], checker)), "\n".join(wrong)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_agrees_with_the_proof_of_the_api(found: dict[Checker, Found], checker: Checker) -> None:
    if len(proofs()) < len(PROOFS):
        pytest.skip(f"the shared proofs are not beside this checkout ({SHARED})")
    assert not (wrong := differences([*SHIM, *proofs()], found[checker], checker)), "\n".join(wrong)


def test_the_files_have_lines_of_both_kinds() -> None:
    for file in OWN:
        for checker in CHECKERS:
            assert len(marks(file, checker)) >= 20, file.name
        assert file.read_text("utf-8").count("assert_type(") >= 8, file.name


def test_the_helper_tells_marks_and_errors_apart(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text("a  # E\nb  # E: mypy\nc  # E: pyright\nd\ne  # Else\n")
    assert marks(file, "mypy") == {1, 2}
    assert marks(file, "pyright") == {1, 3}
    said = Found(tmp_path, {("example.py", 1): ["no"], ("example.py", 4): ["never"]})
    assert differences([file], said, "mypy") == [
        "example.py:2: mypy accepts it: b  # E: mypy",
        f"example.py:4: mypy refuses it: d{os.linesep}    never",
    ]
