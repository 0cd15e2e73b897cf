"""A line between a node and its broker that keeps all that passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

_CONNECT = 0x10


class Recorder:
    """Listens on a free loopback port, connects each caller to `broker_port`, and keeps what both say.

    `up` and `down` hold the bytes of each connection, to the broker and from it.
    """

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.up: list[bytearray] = []
        self.down: list[bytearray] = []
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10.0)

    def _begin(self, work: object, *arguments: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=arguments, name="recorder")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                node, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
                self._sockets += [node, broker]
                self.up.append(bytearray())
                self.down.append(bytearray())
                self._begin(self._carry, node, broker, self.up[-1])
                self._begin(self._carry, broker, node, self.down[-1])

    def _carry(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                kept += chunk
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def without_connect(stream: bytes) -> bytes:
    """Return what a client said over a plain connection behind its CONNECT, which is where a password belongs."""
    if not stream:
        return b""
    assert stream[0] & 0xF0 == _CONNECT, "not the beginning of an MQTT connection"
    length = shift = 0
    at = 1
    while True:
        length |= (stream[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not stream[at - 1] & 0x80:
            return bytes(stream[at + length :])
