"""engine.override: what a dependency is made by instead provides the same, whatever kinds of functions both are."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from functools import partial
from typing import Any, Protocol
from unittest.mock import AsyncMock, MagicMock

from typing_extensions import assert_type

from queuert_py import Engine
from queuert_py.dependencies import Override


class Db:
    def read(self) -> int:
        return 1


class FakeDb(Db):
    pass


class Other:
    pass


class Reads(Protocol):
    def read(self) -> int: ...


class Duck:
    def read(self) -> int:
        return 3


class Client:
    def __init__(self, base: str = "") -> None:
        self.base = base


class FakeClient(Client):
    pass


class Callme:
    async def __call__(self) -> Db:
        return Db()


async def coroutine() -> Db:
    return Db()


async def async_generator() -> AsyncGenerator[Db, None]:
    yield Db()


async def async_iterator() -> AsyncIterator[Db]:
    yield Db()


def generator() -> Generator[Db, None, None]:
    yield Db()


def iterator() -> Iterator[Db]:
    yield Db()


def plain(url: str = "", *, more: int = 3) -> Db:
    return Db()


def reads() -> Reads:
    return Db()


def nothing() -> None:
    pass


def maybe() -> Db | None:
    return None


def text() -> str:
    return ""


async def fake_coroutine() -> FakeDb:
    return FakeDb()


async def fake_async_generator() -> AsyncGenerator[FakeDb, None]:
    yield FakeDb()


async def fake_async_iterator() -> AsyncIterator[FakeDb]:
    yield FakeDb()


def fake_generator() -> Generator[FakeDb, None, None]:
    yield FakeDb()


def fake_iterator() -> Iterator[FakeDb]:
    yield FakeDb()


def fake(a: int = 3) -> FakeDb:
    return FakeDb()


def anything() -> Any: ...


async def wrong_coroutine() -> Other:
    return Other()


async def wrong_async_generator() -> AsyncGenerator[Other, None]:
    yield Other()


async def wrong_async_iterator() -> AsyncIterator[Other]:
    yield Other()


def wrong_generator() -> Generator[Other, None, None]:
    yield Other()


def wrong_iterator() -> Iterator[Other]:
    yield Other()


def wrong() -> Other:
    return Other()


engine = Engine("postgresql://")

of_coroutine = engine.override(coroutine)
assert_type(of_coroutine, Override[Db])
of_coroutine.by(fake_coroutine)
of_coroutine.by(fake_async_generator)
of_coroutine.by(fake_async_iterator)
of_coroutine.by(fake_generator)
of_coroutine.by(fake_iterator)
of_coroutine.by(fake)
of_coroutine.by(FakeDb)
of_coroutine.by(anything)
of_coroutine.by(lambda: FakeDb())
of_coroutine.by(partial(fake, 3))
of_coroutine.by(MagicMock())
of_coroutine.by(AsyncMock())
of_coroutine.by(wrong_coroutine)  # E
of_coroutine.by(wrong_async_generator)  # E
of_coroutine.by(wrong_async_iterator)  # E
of_coroutine.by(wrong_generator)  # E
of_coroutine.by(wrong_iterator)  # E
of_coroutine.by(wrong)  # E
of_coroutine.by(Other)  # E
of_coroutine.by(FakeDb())  # E
of_coroutine.by(lambda: Other())  # E
of_coroutine.by(partial(wrong))  # E
of_coroutine.by(maybe)  # E
of_coroutine.by(nothing)  # E
of_coroutine.by(3)  # E

of_async_generator = engine.override(async_generator)
assert_type(of_async_generator, Override[Db])
of_async_generator.by(fake_coroutine)
of_async_generator.by(fake_async_generator)
of_async_generator.by(fake_async_iterator)
of_async_generator.by(fake_generator)
of_async_generator.by(fake_iterator)
of_async_generator.by(fake)
of_async_generator.by(FakeDb)
of_async_generator.by(anything)
of_async_generator.by(lambda: FakeDb())
of_async_generator.by(partial(fake, 3))
of_async_generator.by(MagicMock())
of_async_generator.by(AsyncMock())
of_async_generator.by(wrong_coroutine)  # E
of_async_generator.by(wrong_async_generator)  # E
of_async_generator.by(wrong_async_iterator)  # E
of_async_generator.by(wrong_generator)  # E
of_async_generator.by(wrong_iterator)  # E
of_async_generator.by(wrong)  # E
of_async_generator.by(Other)  # E
of_async_generator.by(FakeDb())  # E
of_async_generator.by(lambda: Other())  # E
of_async_generator.by(partial(wrong))  # E
of_async_generator.by(maybe)  # E
of_async_generator.by(nothing)  # E
of_async_generator.by(3)  # E

of_async_iterator = engine.override(async_iterator)
assert_type(of_async_iterator, Override[Db])
of_async_iterator.by(fake_coroutine)
of_async_iterator.by(fake_async_generator)
of_async_iterator.by(fake_async_iterator)
of_async_iterator.by(fake_generator)
of_async_iterator.by(fake_iterator)
of_async_iterator.by(fake)
of_async_iterator.by(FakeDb)
of_async_iterator.by(anything)
of_async_iterator.by(lambda: FakeDb())
of_async_iterator.by(partial(fake, 3))
of_async_iterator.by(MagicMock())
of_async_iterator.by(AsyncMock())
of_async_iterator.by(wrong_coroutine)  # E
of_async_iterator.by(wrong_async_generator)  # E
of_async_iterator.by(wrong_async_iterator)  # E
of_async_iterator.by(wrong_generator)  # E
of_async_iterator.by(wrong_iterator)  # E
of_async_iterator.by(wrong)  # E
of_async_iterator.by(Other)  # E
of_async_iterator.by(FakeDb())  # E
of_async_iterator.by(lambda: Other())  # E
of_async_iterator.by(partial(wrong))  # E
of_async_iterator.by(maybe)  # E
of_async_iterator.by(nothing)  # E
of_async_iterator.by(3)  # E

of_generator = engine.override(generator)
assert_type(of_generator, Override[Db])
of_generator.by(fake_coroutine)
of_generator.by(fake_async_generator)
of_generator.by(fake_async_iterator)
of_generator.by(fake_generator)
of_generator.by(fake_iterator)
of_generator.by(fake)
of_generator.by(FakeDb)
of_generator.by(anything)
of_generator.by(lambda: FakeDb())
of_generator.by(partial(fake, 3))
of_generator.by(MagicMock())
of_generator.by(AsyncMock())
of_generator.by(wrong_coroutine)  # E
of_generator.by(wrong_async_generator)  # E
of_generator.by(wrong_async_iterator)  # E
of_generator.by(wrong_generator)  # E
of_generator.by(wrong_iterator)  # E
of_generator.by(wrong)  # E
of_generator.by(Other)  # E
of_generator.by(FakeDb())  # E
of_generator.by(lambda: Other())  # E
of_generator.by(partial(wrong))  # E
of_generator.by(maybe)  # E
of_generator.by(nothing)  # E
of_generator.by(3)  # E

of_iterator = engine.override(iterator)
assert_type(of_iterator, Override[Db])
of_iterator.by(fake_coroutine)
of_iterator.by(fake_async_generator)
of_iterator.by(fake_async_iterator)
of_iterator.by(fake_generator)
of_iterator.by(fake_iterator)
of_iterator.by(fake)
of_iterator.by(FakeDb)
of_iterator.by(anything)
of_iterator.by(lambda: FakeDb())
of_iterator.by(partial(fake, 3))
of_iterator.by(MagicMock())
of_iterator.by(AsyncMock())
of_iterator.by(wrong_coroutine)  # E
of_iterator.by(wrong_async_generator)  # E
of_iterator.by(wrong_async_iterator)  # E
of_iterator.by(wrong_generator)  # E
of_iterator.by(wrong_iterator)  # E
of_iterator.by(wrong)  # E
of_iterator.by(Other)  # E
of_iterator.by(FakeDb())  # E
of_iterator.by(lambda: Other())  # E
of_iterator.by(partial(wrong))  # E
of_iterator.by(maybe)  # E
of_iterator.by(nothing)  # E
of_iterator.by(3)  # E

of_plain = engine.override(plain)
assert_type(of_plain, Override[Db])
of_plain.by(fake_coroutine)
of_plain.by(fake_async_generator)
of_plain.by(fake_async_iterator)
of_plain.by(fake_generator)
of_plain.by(fake_iterator)
of_plain.by(fake)
of_plain.by(FakeDb)
of_plain.by(anything)
of_plain.by(lambda: FakeDb())
of_plain.by(partial(fake, 3))
of_plain.by(MagicMock())
of_plain.by(AsyncMock())
of_plain.by(wrong_coroutine)  # E
of_plain.by(wrong_async_generator)  # E
of_plain.by(wrong_async_iterator)  # E
of_plain.by(wrong_generator)  # E
of_plain.by(wrong_iterator)  # E
of_plain.by(wrong)  # E
of_plain.by(Other)  # E
of_plain.by(FakeDb())  # E
of_plain.by(lambda: Other())  # E
of_plain.by(partial(wrong))  # E
of_plain.by(maybe)  # E
of_plain.by(nothing)  # E
of_plain.by(3)  # E

of_callme = engine.override(Callme())
assert_type(of_callme, Override[Db])
of_callme.by(fake_coroutine)
of_callme.by(fake_async_generator)
of_callme.by(fake_async_iterator)
of_callme.by(fake_generator)
of_callme.by(fake_iterator)
of_callme.by(fake)
of_callme.by(FakeDb)
of_callme.by(anything)
of_callme.by(lambda: FakeDb())
of_callme.by(partial(fake, 3))
of_callme.by(MagicMock())
of_callme.by(AsyncMock())
of_callme.by(wrong_coroutine)  # E
of_callme.by(wrong_async_generator)  # E
of_callme.by(wrong_async_iterator)  # E
of_callme.by(wrong_generator)  # E
of_callme.by(wrong_iterator)  # E
of_callme.by(wrong)  # E
of_callme.by(Other)  # E
of_callme.by(FakeDb())  # E
of_callme.by(lambda: Other())  # E
of_callme.by(partial(wrong))  # E
of_callme.by(maybe)  # E
of_callme.by(nothing)  # E
of_callme.by(3)  # E

of_db = engine.override(Db)
assert_type(of_db, Override[Db])
of_db.by(fake_coroutine)
of_db.by(fake_async_generator)
of_db.by(fake_async_iterator)
of_db.by(fake_generator)
of_db.by(fake_iterator)
of_db.by(fake)
of_db.by(FakeDb)
of_db.by(anything)
of_db.by(lambda: FakeDb())
of_db.by(partial(fake, 3))
of_db.by(MagicMock())
of_db.by(AsyncMock())
of_db.by(wrong_coroutine)  # E
of_db.by(wrong_async_generator)  # E
of_db.by(wrong_async_iterator)  # E
of_db.by(wrong_generator)  # E
of_db.by(wrong_iterator)  # E
of_db.by(wrong)  # E
of_db.by(Other)  # E
of_db.by(FakeDb())  # E
of_db.by(lambda: Other())  # E
of_db.by(partial(wrong))  # E
of_db.by(maybe)  # E
of_db.by(nothing)  # E
of_db.by(3)  # E

engine.override(reads).by(Duck)
engine.override(reads).by(coroutine)
engine.override(reads).by(Other)  # E
engine.override(maybe).by(plain)
engine.override(maybe).by(nothing)
engine.override(maybe).by(wrong)  # E
engine.override(nothing).by(plain)  # E
engine.override(text).by(lambda: "x")
engine.override(text).by(plain)  # E
engine.override(Client).by(FakeClient)
engine.override(Client).by(lambda: Client("x"))
engine.override(Client).by(Db)  # E
engine.override(FakeDb).by(Db)  # E

with contextlib.ExitStack() as stack:
    stack.enter_context(engine.override(plain).by(fake_coroutine))
    stack.enter_context(engine.override(plain).by(wrong_coroutine))  # E
with engine.override(coroutine).by(fake), engine.override(plain).by(fake_generator):
    pass


def unknown(a: Any, b: Callable[..., Any]) -> None:
    with engine.override(a).by(plain), engine.override(b).by(plain), engine.override(plain).by(a), engine.override(plain).by(b):
        pass


with engine.override(plain):  # E
    pass
engine.override("plain")  # E
engine.override(plain, fake)  # E
engine.override()  # E
