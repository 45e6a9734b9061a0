"""A proxy that speaks enough of PostgreSQL's protocol to cut a connection after any message, or to freeze it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

CANCEL = 80877102
LABELS = (
    (b"pg_try_advisory_lock(", "heartbeat"),
    (b"pg_try_advisory_xact_lock_shared", "settle"),
    (b"pg_postmaster_start_time", "settle"),
    (b"done.reason", "settle"),
    (b"as setback", "settle"),
    (b"with setback", "settle"),
    (b"as scan (lane", "claim"),
    (b"'completed', null, output", "finish"),
    (b"'continued'", "finish"),
    (b"listen ", "listen"),
    (b"pg_notify(", "notify"),
)
"""What tells the engine's own connections apart: a text of their first statements. Others are of the pool."""


class Wire:
    """One client's connection: `label` says whose, `messages` counts both directions."""

    def __init__(self, proxy: Proxy, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._proxy = proxy
        self._client_reader, self._client = client
        self._server_reader: asyncio.StreamReader | None = None
        self._server: asyncio.StreamWriter | None = None
        self.label = ""
        self.cut = False
        self.passed = 0
        self._prepared: dict[bytes, bytes] = {}
        self.asks, self.answers = asyncio.Event(), asyncio.Event()  # cleared: nothing goes that way
        self.flow()

    def flow(self) -> None:
        self.asks.set()
        self.answers.set()

    def freeze(self) -> None:
        """Half open: the socket stays, nothing passes."""
        self.asks.clear()
        self.answers.clear()

    async def run(self) -> None:
        """Carry messages until either end closes, or the wire is cut."""
        try:
            self._server_reader, self._server = await self._proxy.dial()
            header = await self._client_reader.readexactly(8)
            length, code = struct.unpack("!II", header)
            self._server.write(header + await self._client_reader.readexactly(length - 8))
            if code == CANCEL:
                return
            pumps = [
                asyncio.ensure_future(self._pump(self._client_reader, self._server, from_client=True)),
                asyncio.ensure_future(self._pump(self._server_reader, self._client, from_client=False)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            await self.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                header = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!I", header[1:])[0] - 4)
                await (self.asks if from_client else self.answers).wait()
                if self._is_cut():
                    return
                if from_client:
                    self._look(header[:1], body)
                writer.write(header + body)
                self.passed += 1
                await self._proxy.passed(self)
                await writer.drain()

    def _is_cut(self) -> bool:
        return self.cut

    def _look(self, kind: bytes, body: bytes) -> None:
        if kind in (b"P", b"Q"):
            self._name(body)
        if kind == b"P":
            name, query = body.split(b"\0")[:2]
            self._prepared[name] = query
        elif kind == b"B" and self._proxy.holds(self._prepared.get(body.split(b"\0")[1], b"")):
            self.answers.clear()

    def _name(self, query: bytes) -> None:
        if self.label not in ("", "own"):
            return
        self.label = next((label for text, label in LABELS if text in query), self.label or "pool")
        if b"enable_seqscan" in query:
            self.label = "own"

    async def close(self) -> None:
        """What was passed on still arrives; nothing more does."""
        self.cut = True
        self.flow()
        for writer in (self._server, self._client):
            if writer is not None:
                writer.close()
        self._proxy.wires.discard(self)


class Proxy:
    """Between an engine and its server. `arm(label, n)`: cut that connection after n more messages, whichever way they go."""

    def __init__(self, dsn: str) -> None:
        known = conninfo_to_dict(dsn)
        self._host, self._port = str(known.get("host") or "127.0.0.1"), int(known.get("port") or 5432)
        self._upstream = dsn
        self._armed: tuple[str, int] | None = None
        self.wires: set[Wire] = set()
        self.hold: bytes | None = None
        """Hold back the answer of the next statement with this text; `Wire.flow` lets it go."""
        self.fired = False
        self.dsn = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, dsn: str) -> AsyncGenerator[Self]:
        proxy = cls(dsn)
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            wire = Wire(proxy, (reader, writer))
            proxy.wires.add(wire)
            task = asyncio.ensure_future(wire.run())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        proxy.dsn = make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        try:
            yield proxy
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    def arm(self, label: str, after: int) -> None:
        self._armed, self.fired = (label, after), False

    def disarm(self) -> bool:
        """Was the connection cut?"""
        self._armed = None
        return self.fired

    def holds(self, query: bytes) -> bool:
        """Is this the statement whose answer is to be held back?"""
        if self.hold is None or self.hold not in query:
            return False
        self.hold = None
        return True

    def of(self, label: str) -> list[Wire]:
        return [wire for wire in self.wires if wire.label == label]

    async def passed(self, wire: Wire) -> None:
        if self._armed is None or self._armed[0] != wire.label:
            return
        self._armed = (wire.label, self._armed[1] - 1)
        if self._armed[1] <= 0:
            self._armed, self.fired = None, True
            await wire.close()
