"""Around a handler in the types: batches, dependencies, middleware, codecs, opening and closing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import assert_type

from queuert_py import Continuation, Depends, Engine, Job, JobType, JobTypes, SyncJob
from queuert_py.integrations.sqlalchemy import SqlAlchemy
from queuert_py.job import Connection
from queuert_py.middleware import Middleware


class N(BaseModel):
    n: int


class M(BaseModel):
    m: int


engine = Engine("x")


@engine.batch_type("a", size=3)
async def b1(jobs: Sequence[Job[N]]) -> Sequence[M]:
    return [M(m=each.input.n) for each in jobs]


assert_type(b1, JobType[N, M])


@engine.batch_type("a2", size=3)
async def b2(jobs: Sequence[Job[N]]) -> Sequence[M | Exception]:
    return []


assert_type(b2, JobType[N, M])


@engine.batch_type("a3", size=3)
async def b3(jobs: Sequence[Job[N]]) -> list[M | N | Exception]:
    return []


assert_type(b3, JobType[N, M | N])  # E: mypy


@engine.batch_type("a4", size=3)
async def b4(jobs: Sequence[Job[N]]) -> list[None]:
    return []


assert_type(b4, JobType[N, None])


@engine.batch_type("a6", size=3)  # E
async def b6(job: Job[N]) -> list[M]:
    return []


@engine.batch_type("a7", size=3)  # E
async def b7(jobs: Sequence[Job[N]]) -> M:
    return M(m=1)


@engine.batch_type("a8")  # E
async def b8(jobs: Sequence[Job[N]]) -> Sequence[M]:
    return []


@engine.batch_type("a9", size=3)  # E
def b9(jobs: Sequence[Job[N]]) -> Sequence[M]:
    return []


@engine.batch_type("a10", size=3)  # E
async def b10(jobs: Sequence[Job[N]]) -> Sequence[Continuation[M]]:
    return []


def client() -> int:
    return 1


async def aclient() -> AsyncIterator[str]:
    yield "x"


def gclient() -> Iterator[bytes]:
    yield b""


async def cclient() -> float:
    return 1.0


@engine.job_type
async def d1(job: Job[N], c: int = Depends(client), a: str = Depends(aclient), g: bytes = Depends(gclient), f: float = Depends(cclient)) -> M:
    return M(m=c)


assert_type(d1, JobType[N, M])


@engine.job_type  # E: pyright
async def d2(job: Job[N], c: str = Depends(client)) -> M:  # E
    return M(m=1)


@engine.job_type  # E
async def d3(job: Job[N], c: int) -> M:
    return M(m=1)


@engine.job_type("d4")
def d4(job: SyncJob[N], c: int = Depends(client)) -> M | Continuation[N]:
    return M(m=1)


assert_type(d4, JobType[N, M | N])


class Mid(Middleware):
    @asynccontextmanager
    async def finalize(self, job: Job[Any, Any], tx: Connection) -> AsyncGenerator[None]:
        yield


class SMid(Middleware[AsyncSession]):
    @asynccontextmanager
    async def finalize(self, job: Job[Any, Any], tx: AsyncSession) -> AsyncGenerator[None]:
        yield


sengine = Engine(SqlAlchemy("x"))
engine.use(Mid())
sengine.use(SMid())
sengine.use(Mid())  # E
engine.use(SMid())  # E
engine.use(3)  # E
engine.batch_type("q", size="x")  # E


class Bad(Middleware):
    async def finalize(self, job: Job[Any, Any], tx: Connection) -> None: ...  # E


class Co:
    def encode(self, data: bytes, /) -> bytes:
        return data

    def decode(self, data: bytes, /) -> bytes:
        return data


Engine("x", codec=Co())
Engine("x", codec=3)  # E
engine.job_type(requires=(Mid,))
engine.job_type(requires=(int,))  # E
engine.job_type(isolation="fork")  # E
engine.job_type(on_blocker_failure="x")  # E


# --- opening and closing


async def opened() -> None:
    assert_type(engine.validate(), None)
    assert_type(await engine.open(), None)
    await engine.open(migrate=False)
    await engine.open(migrate="yes")  # E
    await engine.open(True)  # E
    assert_type(await engine.migrate(lanes=4), list[str])
    assert_type(await engine.close(), None)
    async with engine as same:
        assert_type(same, Engine[Connection])
    assert_type(jobs.names(), list[str])


jobs = JobTypes()
Engine(3)  # E
