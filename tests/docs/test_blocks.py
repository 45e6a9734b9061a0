"""Every code block of README.md and docs/ runs: python blocks make the files they name (or run by themselves), sh blocks run beside them.

Not run here: the two commands of the README, which .ci/run and the tests of the demo run, and the block that repeats one in CONTRIBUTING.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# (\w+\.py)\n")
INSTALLS = "python3 -m venv .venv"
DEMO = "python3 -m venv .venv && .venv/bin/python -m pip install -q -e '.[demo]' && .venv/bin/queuert demo"
TESTS = "python3 -m venv .venv && .venv/bin/python -m pip install -q -e '.[test]' && .venv/bin/python -m pytest"


def test_the_two_commands_stand_in_the_readme_word_for_word() -> None:
    commands = [block[1].strip() for block in BLOCK.findall((ROOT / "README.md").read_text()) if INSTALLS in block[1]]
    assert commands == [DEMO, TESTS]


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, dsn: str, tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / page).read_text())
    unknown = {language for language, _ in blocks} - {"python", "sh", "text"}
    assert not unknown, f"{page}: a block needs one of the languages python, sh, text, not {unknown}"
    runnable = [(language, text) for language, text in blocks if language != "text" and INSTALLS not in text]
    if not runnable:
        return
    environment = {
        **os.environ,
        "QUEUERT_DSN": dsn,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    script = ["set -eu"]
    for language, text in runnable:
        if language == "sh":
            script.append(text)
        elif found := NAME.match(text):
            with (tmp_path / found[1]).open("a") as file:
                file.write(text.replace("Engine.embedded()", "Engine()"))
            script.append(f"{shlex.quote(sys.executable)} {found[1]}")
        else:
            raise AssertionError(f"{page}: a python block begins with the name of its file, `# app.py`:\n{text}")
    done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{page}:\n{done.stdout}\n{done.stderr}"
