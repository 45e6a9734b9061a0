"""Engine(SqlAlchemy(…)): handlers get sessions; a web request starts a sequence in the session that it has anyway.

Prints:
    rolled back: 0 users, 0 sequences
    committed: 1 users, 1 sequences
    ada@example.org is confirmed
"""

import asyncio
import os

from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queuert_py import Engine, Job, JobSequence
from queuert_py.integrations.sqlalchemy import SqlAlchemy

known = conninfo_to_dict(os.environ["QUEUERT_DSN"])
database = create_async_engine(
    URL.create(
        "postgresql+psycopg",
        username=str(known["user"]),
        password=str(known["password"]) if "password" in known else None,
        database=str(known["dbname"]),
        query={"host": str(known["host"]), "port": str(known.get("port", 5432))},
    )
)
sessions = async_sessionmaker(database, expire_on_commit=False)
engine = Engine(SqlAlchemy(database))


class Base(DeclarativeBase):
    """The tables of this application."""


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    confirmed: Mapped[bool] = mapped_column(default=False)


class Confirm(BaseModel):
    user_id: int


class Confirmed(BaseModel):
    email: str


@engine.job_type
async def confirm(job: Job[Confirm, AsyncSession]) -> Confirmed:
    async with job.finalize() as session:
        user = await session.get_one(User, job.input.user_id)
        user.confirmed = True  # flushed at the end of the block, committed together with the job
        return Confirmed(email=user.email)


async def sign_up(email: str, *, works: bool) -> JobSequence[Confirmed]:
    async with sessions() as session:
        user = User(email=email)
        session.add(user)
        await session.flush()
        sequence = await engine.start_sequence(confirm, Confirm(user_id=user.id), tx=session)
        await (session.commit() if works else session.rollback())
        users = await session.scalar(select(func.count()).select_from(User))
    print(f"{'committed' if works else 'rolled back'}: {users} users, {len(await engine.list_sequences())} sequences")
    return sequence


async def main() -> None:
    async with database.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with engine, engine.worker():
        await sign_up("ada@example.org", works=False)
        sequence = await sign_up("ada@example.org", works=True)
        print((await sequence.result(timeout=10)).email, "is confirmed")
    await database.dispose()


if __name__ == "__main__":
    asyncio.run(main())
