"""A TCP proxy between a node and its broker, which does to a line what the world does to it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

T = TypeVar("T")

Way = Literal["up", "down"]
"""From the node to the broker, or back."""
_CHUNK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Conduct:
    """How one way of the line behaves; the default passes everything on at once."""

    delay_s: float = 0.0
    """Every chunk arrives so much later."""
    bytes_per_s: float | None = None
    stalled: bool = False
    """Nothing passes, not even the end of a connection, and nothing is lost: it comes once the stall is over."""
    garble_one_in: int | None = None
    """One byte of so many, on average, has one of its bits flipped."""


class _Link:
    """One connection through the proxy."""

    def __init__(self, node: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.far: dict[Way, asyncio.StreamWriter] = {"up": broker, "down": node}
        self.ended: set[Way] = set()

    def end(self, way: Way) -> None:
        """End the sending on one way; what comes for it afterwards is thrown away."""
        self.ended.add(way)
        with contextlib.suppress(OSError, RuntimeError):
            self.far[way].write_eof()

    def abort(self) -> None:
        """Reset both connections."""
        for writer in self.far.values():
            writer.transport.abort()


class Proxy:
    """Listens on a free loopback port and connects each caller to `broker_port`; switched while it runs.

    `connections` counts the callers so far. Flipped bits are drawn from a seeded generator.
    """

    def __init__(self, broker_port: int, *, seed: int = 0) -> None:
        self._broker_port = broker_port
        self._random = random.Random(seed)
        self._conducts: dict[Way, Conduct] = {"up": Conduct(), "down": Conduct()}
        self._flows: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._switch({})
        self._links: set[_Link] = set()
        self.connections = 0
        self.garbled_bytes = 0
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._carry, sock=listener))
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()

    def behave(self, *, up: Conduct | None = None, down: Conduct | None = None) -> None:
        """Change both ways, of the connections that are open too; None passes everything on."""
        self._call(lambda: self._switch({"up": up or Conduct(), "down": down or Conduct()}))

    def stall(self) -> None:
        """Let nothing through either way: the line is dead, and neither end is told."""
        self.behave(up=Conduct(stalled=True), down=Conduct(stalled=True))

    def close(self, *, way: Way | None = None) -> None:
        """Reset all open connections; with `way` only end the sending on that way, as a half-close does."""
        self._call(lambda: self._end(way))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(lambda: self._end(None))
        self._loop.call_soon_threadsafe(self._server.close)
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def _switch(self, conducts: dict[Way, Conduct]) -> None:
        self._conducts |= conducts
        for way, flows in self._flows.items():
            (flows.clear if self._conducts[way].stalled else flows.set)()

    def _call(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10.0)

    def _end(self, way: Way | None) -> None:
        for link in list(self._links):
            if way is None:
                link.abort()
            else:
                link.end(way)

    async def _cancel_all(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _carry(self, node_in: asyncio.StreamReader, node_out: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            broker_in, broker_out = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            node_out.transport.abort()
            return
        link = _Link(node_out, broker_out)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump("up", node_in, link), self._pump("down", broker_in, link))
        except OSError:  # one end has reset: so does the other, once nothing is stalled
            await self._flowing("up")
            await self._flowing("down")
        finally:
            link.abort()
            self._links.discard(link)

    async def _pump(self, way: Way, reader: asyncio.StreamReader, link: _Link) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            conduct = await self._flowing(way)
            if conduct.delay_s:
                await asyncio.sleep(conduct.delay_s)
            for piece in [bytes([byte]) for byte in data] if conduct.bytes_per_s else [data]:
                if way not in link.ended:
                    link.far[way].write(self._garbled(piece, conduct.garble_one_in))
                    await link.far[way].drain()
                if conduct.bytes_per_s:
                    await asyncio.sleep(1.0 / conduct.bytes_per_s)
        await self._flowing(way)
        link.end(way)

    async def _flowing(self, way: Way) -> Conduct:
        await self._flows[way].wait()
        return self._conducts[way]

    def _garbled(self, data: bytes, one_in: int | None) -> bytes:
        if one_in is None:
            return data
        spoilt = bytearray(data)
        for place in range(len(spoilt)):
            if self._random.randrange(one_in) == 0:
                spoilt[place] ^= 1 << self._random.randrange(8)
                self.garbled_bytes += 1
        return bytes(spoilt)
