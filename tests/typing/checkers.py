"""Runs mypy --strict and pyright strict over files of marked lines.

A line that ends in `# E` must be an error in both, one that ends in `# E: mypy` or `# E: pyright` in that one alone, and no other
line may be. Everything is copied into one folder first: pyright looks only below its configuration.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Checker: TypeAlias = Literal["mypy", "pyright"]
Place: TypeAlias = tuple[str, int]
"""A file's name and a line."""

REPO = Path(__file__).parents[2]
_MARK = re.compile(r"#\s*E(?::\s*(?P<checker>mypy|pyright))?\s*$")
_QUIET = ("reportUnusedFunction", "reportUnusedExpression", "reportUnusedVariable", "reportPrivateUsage", "reportUnusedCoroutine")


@dataclass(frozen=True)
class Found:
    """What a checker said of a folder: the messages of each line."""

    folder: Path
    errors: Mapping[Place, Sequence[str]]


def marks(file: Path, checker: Checker) -> set[int]:
    """The lines of a file that must be errors in a checker."""
    found: set[int] = set()
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        mark = _MARK.search(line)
        if mark is not None and mark["checker"] in (None, checker):
            found.add(number)
    return found


def gather(files: Sequence[Path], folder: Path) -> Path:
    """Copies of the files, in one folder."""
    for file in files:
        assert not (folder / file.name).exists(), f"two files called {file.name}"
        shutil.copy(file, folder)
    return folder


def run_mypy(folder: Path, cache: Path) -> Found:
    options = ["--strict", "--no-pretty", "--no-error-summary", "--hide-error-context", "--config-file=", f"--cache-dir={cache}"]
    answer = _run(
        ["-m", "mypy", *options, "--python-version=3.11", "--follow-imports=silent", *sorted(map(str, folder.glob("*.py")))], folder
    )
    assert answer.returncode in (0, 1), f"mypy could not run:\n{answer.stdout}{answer.stderr}"
    errors: dict[Place, list[str]] = {}
    for path, line, message in re.findall(r"^(.+?):(\d+)(?::\d+)?: error: (.*)$", answer.stdout, re.MULTILINE):
        errors.setdefault((Path(path).name, int(line)), []).append(message)
    return Found(folder, errors)


def run_pyright(folder: Path) -> Found:
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(REPO)], **dict.fromkeys(_QUIET, False)}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    answer = _run(["-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)], folder)
    assert answer.returncode in (0, 1), f"pyright could not run:\n{answer.stdout}{answer.stderr}"
    errors: dict[Place, list[str]] = {}
    for row in json.loads(answer.stdout)["generalDiagnostics"]:
        if row["severity"] == "error":
            place = (Path(row["file"]).name, int(row["range"]["start"]["line"]) + 1)
            errors.setdefault(place, []).append(str(row["message"]))
    return Found(folder, errors)


def differences(files: Sequence[Path], found: Found, checker: Checker) -> list[str]:
    """Where marks and errors disagree, a line each."""
    shown: list[str] = []
    for file in files:
        lines = file.read_text("utf-8").splitlines()
        wanted = marks(file, checker)
        for number, line in enumerate(lines, 1):
            messages = found.errors.get((file.name, number), ())
            if number in wanted and not messages:
                shown.append(f"{file.name}:{number}: {checker} accepts it: {line.strip()}")
            elif number not in wanted and messages:
                shown.append(f"{file.name}:{number}: {checker} refuses it: {line.strip()}\n    {'; '.join(messages)}")
    return shown


def _run(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("MYPYPATH", "")]))
    environment = {**os.environ, "MYPYPATH": path, "PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, timeout=120, check=False
    )
