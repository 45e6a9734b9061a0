"""The pytest plugin in a user's project: with anyio, with pytest-asyncio, in `def` tests, in several processes; warnings are errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APP = """
from pydantic import BaseModel

from queuert_py import Engine, Job

engine = Engine.embedded()


class Number(BaseModel):
    n: int


@engine.job_type
async def double(job: Job[Number]) -> Number:
    async with job.finalize() as tx:
        await tx.execute("insert into done values (%s)", [job.input.n])
        return Number(n=job.input.n * 2)
"""
CONFTEST = """
import psycopg
import pytest

import app


def tables(dsn):
    with psycopg.connect(dsn) as connection:
        connection.execute("create table done (n int); create table kept (n int); insert into kept values (1)")


@pytest.fixture(scope="session")
def queuert_setup():
    return tables
"""
ASYNC = """
import psycopg
import pytest

import app
from queuert_py.testing import drain

pytestmark = pytest.mark.{mark}


@pytest.mark.parametrize("n", range(6))
async def test_double(queuert, n):
    async with queuert(app.engine) as engine:
        sequence = await engine.start_sequence(app.double, app.Number(n=n))
        await drain(engine)
        assert (await sequence.result(timeout=10)).n == 2 * n
    with psycopg.connect(queuert.dsn) as connection:
        assert connection.execute("select n from done").fetchall() == [(n,)]
        assert connection.execute("select n from kept").fetchall() == [(1,)]


async def test_a_worker(queuert):
    async with queuert(app.engine) as engine, engine.worker():
        assert (await engine.run(app.double, app.Number(n=1))).n == 2
"""
SYNC = """
import app
from queuert_py.testing import drain


def test_double(queuert):
    with queuert(app.engine) as engine:
        sequence = queuert.run(engine.start_sequence(app.double, app.Number(n=3)))
        queuert.run(drain(engine))
        assert queuert.run(sequence.result(timeout=10)).n == 6


def test_the_sync_facade(queuert):
    with queuert(app.engine) as engine:
        sequence = engine.sync.start_sequence(app.double, app.Number(n=3))
        queuert.run(drain(engine))
        assert engine.sync.result(sequence, timeout=10).n == 6
"""
FIXTURE = """
import pytest{more}

import app
from queuert_py.testing import drain


@{decorator}
async def engine(queuert):
    async with queuert(app.engine) as engine:
        yield engine


@pytest.mark.{mark}
async def test_double(engine):
    await engine.start_sequence(app.double, app.Number(n=1))
    assert (await drain(engine)).outcomes == {{"completed": 1}}
"""


def run(folder: Path, *arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in {"app": APP, "conftest": CONFTEST, **files}.items():
        (folder / f"{name}.py").write_text(text)
    loops = "" if "no:asyncio" in arguments else "asyncio_default_fixture_loop_scope = function\n"
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{loops}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def passed(done: subprocess.CompletedProcess[str], number: int) -> bool:
    assert f"{number} passed" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


BACKEND = '\n\n@pytest.fixture\ndef anyio_backend():\n    return "asyncio"\n'
WITHOUT_ASYNCIO = ["-p", "no:asyncio"]


def test_with_anyio(tmp_path: Path) -> None:
    tests = {"test_app": ASYNC.format(mark="anyio"), "test_fixture": FIXTURE.format(mark="anyio", decorator="pytest.fixture", more="")}
    assert passed(run(tmp_path, *WITHOUT_ASYNCIO, **tests, conftest=CONFTEST + BACKEND), 8)


def test_with_pytest_asyncio(tmp_path: Path) -> None:
    pytest.importorskip("pytest_asyncio")
    fixture = FIXTURE.format(mark="asyncio", decorator="pytest_asyncio.fixture", more="\nimport pytest_asyncio")
    assert passed(run(tmp_path, "-p", "no:anyio", test_app=ASYNC.format(mark="asyncio"), test_fixture=fixture), 8)


def test_in_def_tests(tmp_path: Path) -> None:
    assert passed(run(tmp_path, *WITHOUT_ASYNCIO, test_app=SYNC), 2)


def test_in_several_processes(tmp_path: Path) -> None:
    tests = {"test_app": ASYNC.format(mark="anyio"), "test_sync": SYNC}
    assert passed(run(tmp_path, *WITHOUT_ASYNCIO, "-n", "2", **tests, conftest=CONFTEST + BACKEND), 9)


def test_on_a_server_that_is_there(tmp_path: Path, server: str) -> None:
    before = dict(os.environ)
    os.environ["QUEUERT_TEST_DSN"] = server
    try:
        assert passed(run(tmp_path, *WITHOUT_ASYNCIO, test_app=SYNC), 2)
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_pytest_starts_without_the_package() -> None:
    heavy = "('queuert_py', 'psycopg', 'pydantic')"
    code = f"import sys, queuert_pytest; assert not [name for name in sys.modules if name.split('.')[0] in {heavy}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_plugin_is_registered_by_its_entry_point(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("queuert")
