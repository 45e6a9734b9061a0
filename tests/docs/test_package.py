"""What the pages name is there: files, extras, loggers."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from tests.docs.test_blocks import PAGES, ROOT

LINK = re.compile(r"\]\(([\w./-]+)(?:#[\w-]*)?\)")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_source_distribution_has_the_whole_repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    wanted = {name.partition("/")[0] for name in tracked if name} - {".gitignore", "pyproject.toml"}
    assert set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]) == wanted


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    for link in LINK.findall((ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_every_logger_is_named_where_it_is_said_what_is_logged() -> None:
    code = "".join(file.read_text() for file in (ROOT / "queuert_py").rglob("*.py"))
    said = (ROOT / "docs/how-to/failures.md").read_text().partition("## What is logged")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(queuert_py\.\w+)`", said)) == set(re.findall(r'getLogger\("([^"]+)"\)', code))


def test_every_extra_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {name for name in PYPROJECT["project"]["optional-dependencies"] if f"`{name}`" not in readme} == set()
