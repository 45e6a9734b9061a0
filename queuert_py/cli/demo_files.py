"""The demo's input: the text files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MOST_FILES = 2000
MOST_BYTES = 1_000_000
MOST_TOTAL = 8_000_000
"""Files, bytes of one, and of all: what keeps the demo under a quarter of a minute on two cores."""
_SKIPPED = {"node_modules", "venv", "env", "build", "dist", "target", "site-packages"}


def default_folder() -> Path:
    """That of the nearest pyproject.toml, here or above; else the current one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)


def text_files(folder: Path, most: int = MOST_FILES) -> tuple[list[str], bool]:
    """Paths below the folder, in order: no hidden ones, no caches or environments, nothing binary, large or unreadable.

    With whether there are more than `most`, or than MOST_TOTAL bytes.
    """
    found: list[str] = []
    total = 0
    for path in _files(folder):
        if is_text(path):
            total += path.stat().st_size
            if len(found) == most or total > MOST_TOTAL:
                return found, True
            found.append(str(path.relative_to(folder)))
    return found, False


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_skipped(Path(place, name)))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def is_skipped(folder: Path) -> bool:
    """Caches, environments, version control."""
    name = folder.name
    return name.startswith((".", "__")) or name in _SKIPPED or name.endswith(".egg-info") or (folder / "pyvenv.cfg").exists()


def is_text(path: Path) -> bool:
    """A regular file that can be read, is not large, and has no NUL at its beginning; its name must be storable, too."""
    try:
        str(path).encode()
        if not path.is_file() or path.is_symlink() or path.stat().st_size > MOST_BYTES:
            return False
        with path.open("rb") as file:
            return b"\0" not in file.read(8192)
    except (OSError, UnicodeEncodeError):
        return False
