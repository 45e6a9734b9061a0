"""The fixture `queuert`: an application's engine on the test's database, in async and in sync tests."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from queuert_py import Engine, Job, JobTypes
from queuert_py.errors import ConfigurationError
from queuert_py.testing import Harness, drain
from tests.testing import app


async def test_a_sequence_of_three_steps_runs_to_its_end(queuert: Harness) -> None:
    async with queuert(app.jobs) as engine:
        sequence = await engine.start_sequence(app.order, app.Order(item="tea"))
        done = await drain(engine)
        assert [(each.type, each.outcome) for each in done.ran] == [("order", "continued"), ("pack", "continued"), ("send", "completed")]
        assert (await sequence.result(timeout=10)).text == "tea is on its way"


async def test_the_applications_own_engine_is_bound_to_the_test_for_a_while(queuert: Harness) -> None:
    async with queuert(app.engine) as engine:
        assert engine is app.engine
        id = UUID(await app.buy("tea"))
        await drain(engine)
        assert (await engine.get_sequence(id)).status == "completed"
    assert app.engine._source == "postgresql://nowhere.invalid/production"


def test_a_def_test_waits_by_run(queuert: Harness) -> None:
    with queuert(app.engine) as engine:
        id = UUID(queuert.run(app.buy("tea")))
        assert queuert.run(drain(engine)).outcomes == {"continued": 2, "completed": 1}
        assert queuert.run(engine.sequence(app.order, id).result(timeout=10)).text == "tea is on its way"


def test_run_outside_of_the_block_says_where_it_belongs(queuert: Harness) -> None:
    async def nothing() -> None: ...

    waiting = nothing()
    with pytest.raises(ConfigurationError, match="belongs inside `with queuert"):
        queuert.run(waiting)
    waiting.close()


async def test_an_engine_that_is_open_cannot_be_bound(queuert: Harness) -> None:
    async with queuert(app.engine):
        with pytest.raises(ConfigurationError, match="open already"):
            async with queuert(app.engine):
                pass


async def test_a_binding_that_fails_leaves_the_engine_as_it_was(queuert: Harness) -> None:
    broken = Engine("postgresql://nowhere.invalid/production")

    @broken.job_type
    async def odd(job: Job[Missing]) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]

    with pytest.raises(NameError):
        async with queuert(broken):
            pass
    assert broken._source == "postgresql://nowhere.invalid/production"


@pytest.mark.parametrize("number", range(3))
async def test_every_test_finds_the_database_empty(queuert: Harness, number: int) -> None:
    async with queuert(app.jobs) as engine:
        assert await engine.list_sequences() == []
        await engine.start_sequence(app.order, app.Order(item=str(number)), key="one")


async def test_a_schema_of_the_applications_own_is_made(queuert: Harness) -> None:
    async with queuert(Engine("postgresql://", app.jobs, schema="shop")) as engine:
        sequence = await engine.start_sequence(app.order, app.Order(item="tea"))
        await drain(engine)
        assert (await engine.get_sequence(sequence.id)).status == "completed"


async def test_several_registries_make_one_engine(queuert: Harness) -> None:
    class Number(BaseModel):
        n: int

    more = JobTypes()

    @more.job_type
    async def double(job: Job[Number]) -> Number:
        return Number(n=job.input.n * 2)

    async with queuert(app.jobs, more) as engine:
        assert set(engine.names()) >= {"order", "double"}


def test_the_dsn_is_for_connections_of_ones_own(queuert: Harness) -> None:
    with psycopg.connect(queuert.dsn) as connection:
        assert connection.execute("select count(*) from queuert.live_job").fetchone() == (0,)
