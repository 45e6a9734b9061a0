"""Real PostgreSQL with nothing installed: one server per project folder, or a throw-away one for a test or a demo.

A server lives as long as somebody holds it. Each `Server` is such a hold, in any number of processes; when the last is
closed (or its process ends, kill -9 included), a small keeper process stops the server. See keeper.py for how.

Linux and macOS. It listens on a Unix socket only, in a folder that only the server's user and root may enter.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from queuert_py.embedded.binaries import WAY_OUT, Binaries, find_binaries
from queuert_py.errors import EmbeddedError

__all__ = ["Binaries", "Server", "default_path", "find_binaries", "open_server"]

_HINTS = {
    errno.ENOSPC: " The disk is full; a server needs about 60 MB to begin with.",
    errno.EDQUOT: " The disk quota is used up; a server needs about 60 MB to begin with.",
    errno.EACCES: " This user may not do that there: pass a path= it may write to.",
    errno.EPERM: " This user may not do that there: pass a path= it may write to.",
    errno.EROFS: " The file system is read-only: pass a path= on another one.",
    errno.ENOLCK: " The file system has no file locks: pass a path= on a local disk.",
}


class Server:
    """A client's hold on a running server: it runs at least until `close`, or until this process ends.

    `dsn` is a libpq URI for the database `queuert`, usable at once; `data` is the server's data folder. Its role is `postgres`: one named
    as the engine's schema would draw users' tables into that.
    A forked child shares its parent's hold; only the process that opened it gives it up.
    """

    def __init__(self, dsn: str, data: Path, release: Callable[[], None]) -> None:
        self.dsn = dsn
        self.data = data
        self._release = release

    def close(self) -> None:
        """Give up this hold. The last one out waits (at most 10 s) until the server has stopped and what is ephemeral is removed.

        Never raises for a second call.
        """
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server(dsn={self.dsn!r}, data={str(self.data)!r})"


def default_path() -> Path:
    """`.queuert` beside the nearest pyproject.toml of the current folder and those above it; else in the current folder."""
    here = Path.cwd()
    project = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").is_file()), here)
    return project / ".queuert"


def open_server(
    path: Path | None = None,
    *,
    ephemeral: bool = False,
    fsync: bool | None = None,
    settings: Mapping[str, str] = {},
) -> Server:
    """Attach to the server of `path`, starting it if need be. Blocks (typically 0.2 s, at most 60 s): call it in a thread.

    Persistent, the default: one server per `path` (default `default_path()`) for all its processes on this machine; its data
    stays. Run by root, the data lives under /var/lib/queuert, in a folder named by `path`, and belongs to the user
    `postgres`, or `nobody` where there is none: root may not run PostgreSQL.
    `ephemeral`: a server of its own in a fresh folder under TMPDIR, removed at the end; `path` must be None.
    `fsync`: whether a commit survives a power failure; None means True for a persistent server and False for an ephemeral one.
    `settings`: server settings, such as {"shared_buffers": "1GB"}.
    `fsync` and `settings` take effect when the server starts: a call that finds it running does not change it.

    Raises EmbeddedError, with the way out, when this machine cannot run it.
    """
    if sys.platform == "win32":
        raise EmbeddedError(f"The embedded PostgreSQL does not run on Windows: it needs Unix file locks. Use WSL, or {WAY_OUT}")
    if ephemeral and path is not None:
        raise EmbeddedError("An ephemeral server makes its own folder: leave out path=, or ephemeral=True.", path=str(path))
    from queuert_py.embedded.launcher import Launch

    try:
        project = None if ephemeral else (path or default_path()).resolve()
        dsn, data, release = Launch.of(project, fsync=fsync, settings=settings).open()
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "")
        raise EmbeddedError(f"The embedded PostgreSQL could not be opened: {error}.{hint} Or {WAY_OUT}") from error
    return Server(dsn, data, release)
