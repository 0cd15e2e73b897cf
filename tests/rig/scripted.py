"""A broker that does what no mosquitto does: scripted, byte by byte."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from edgeasd.publish.target import MqttTarget
from tests.rig.broker import Received

ACCEPT_5 = b"\x20\x03\x00\x00\x00"
ACCEPT_3 = b"\x20\x02\x00\x00"
REFUSE_VERSION = b"\x20\x02\x00\x01"


class ScriptedBroker:
    """Speaks just enough MQTT to misbehave: a test says what to answer to CONNECT and to each PUBLISH.

    An answer of None closes the connection. Takes one connection at a time; pings are answered while `pongs` is true.
    """

    def __init__(self, *, connack: Callable[[int], bytes | None], puback: Callable[[int, bytes], bytes | None]) -> None:
        self._connack = connack
        self._puback = puback
        self.pongs = True
        self.published: list[Received] = []
        """Every message of QoS 1, answered or not."""
        self.levels: list[int] = []
        """Protocol level of each CONNECT: 4 is MQTT 3.1.1."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connection: socket.socket | None = None
        self.target = MqttTarget("127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="scripted broker")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10.0)

    def topics(self) -> list[str]:
        """Return the topics of what was published, in order."""
        return [each.topic for each in self.published]

    def more_is_there(self) -> bool:
        """Return, to a script that is about to answer, whether the other side has sent on without waiting for it."""
        assert self._connection is not None
        time.sleep(0.05)
        with suppress(BlockingIOError):
            return bool(self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                with self._connection, suppress(OSError, EOFError):
                    self._serve(self._connection)

    def _serve(self, connection: socket.socket) -> None:
        level = 0
        while True:
            command, body = self._packet(connection)
            answer: bytes | None = b""
            if command >> 4 == 1:
                level = body[6]
                self.levels.append(level)
                answer = self._connack(level)
            elif command >> 4 == 3 and command & 0b110:
                answer = self._take(body, level)
            elif command >> 4 == 12 and self.pongs:
                answer = b"\xd0\x00"
            elif command >> 4 == 14:
                return
            if answer is None:
                return
            connection.sendall(answer)

    def _take(self, body: bytes, level: int) -> bytes | None:
        (n_topic,) = struct.unpack_from("!H", body)
        (mid,) = struct.unpack_from("!H", body, 2 + n_topic)
        payload = body[4 + n_topic + (level == 5) :]  # MQTT 5: one byte says that there are no properties
        topic = body[2 : 2 + n_topic].decode()
        self.published.append(Received(topic, payload, retain=False, at_ns=time.monotonic_ns()))
        return self._puback(mid, payload)

    @staticmethod
    def _packet(connection: socket.socket) -> tuple[int, bytes]:
        def take(n_bytes: int) -> bytes:
            taken = b""
            while len(taken) < n_bytes:
                more = connection.recv(n_bytes - len(taken))
                if not more:
                    raise EOFError
                taken += more
            return taken

        command = take(1)[0]
        length, shift = 0, 0
        while True:
            byte = take(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return command, take(length)


def puback(mid: int, *, code: int = 0, level: int = 5) -> bytes:
    """Return the acknowledgement of a message."""
    return struct.pack("!BBHBB", 0x40, 4, mid, code, 0) if level == 5 else struct.pack("!BBH", 0x40, 2, mid)
