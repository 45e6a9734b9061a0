"""Whose files they are and where they lie: the server's user, the checked folders.

Run by an ordinary user, everything is that user's. Root may not run PostgreSQL, and what lies under a 0700 home no other user
can reach; so for root programs, template and data lie under /var/lib/queuert. That is made and checked here; permissions
elsewhere stay as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from queuert_py.embedded.binaries import WAY_OUT
from queuert_py.errors import EmbeddedError

ROOT = Path("/var/lib/queuert")
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  (mkdtemp makes private folders in them)
SOCKET = ".s.PGSQL.5432"

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
            raise EmbeddedError(f"{command[0]} failed with exit code {error.returncode}:\n{said}\nRepair that, or {WAY_OUT}") from error
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
    """A folder for all projects of the caller: root's /var/lib/queuert, else the cache, or a temporary one if need be."""
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
        places = [base for base in places if all(part.stat().st_mode & stat.S_IXOTH for part in (base.resolve(), *base.resolve().parents))]
    if not places:
        raise EmbeddedError(f"There is no temporary folder that user {account.name} may enter: set TMPDIR to one, or {WAY_OUT}")
    fresh = Path(tempfile.mkdtemp(dir=places[0], prefix="queuert-"))
    fresh.chmod(mode)
    return fresh
