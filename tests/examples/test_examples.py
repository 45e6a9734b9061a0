"""Each program of examples/ prints what its docstring says."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(example: Path, dsn: str) -> None:
    said = ast.get_docstring(ast.parse(example.read_text())) or ""
    expected = textwrap.dedent(said.partition("Prints:\n")[2]).strip()
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], env={**os.environ, "QUEUERT_DSN": dsn}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
