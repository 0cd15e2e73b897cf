"""Brokers that misbehave as no mosquitto does: scripted, byte by byte."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from edgeasd.publish.target import MqttTarget
from tests.rig.broker import wait_for
from tests.system.mqtt_rig import QUICK, event, publishing


class ScriptedBroker:
    """Speaks just enough MQTT to misbehave: a test says what to answer to CONNECT and to each PUBLISH."""

    def __init__(self, *, connack: Callable[[int], bytes | None], puback: Callable[[int, bytes], bytes | None]) -> None:
        self._connack = connack
        self._puback = puback
        self.published: list[bytes] = []
        self.levels: list[int] = []
        """Protocol level of each CONNECT: 4 is MQTT 3.1.1."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = MqttTarget("127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="scripted broker")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10.0)

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError, EOFError):
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        level = 0
        while True:
            command, body = self._packet(connection)
            if command >> 4 == 1:
                level = body[6]
                self.levels.append(level)
                answer = self._connack(level)
            elif command >> 4 == 3:
                (n_topic,) = struct.unpack_from("!H", body)
                (mid,) = struct.unpack_from("!H", body, 2 + n_topic)
                self.published.append(body[2 : 2 + n_topic])
                answer = self._puback(mid, body)
            else:
                return
            if answer is None:
                return
            connection.sendall(answer)

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


ACCEPT_5 = b"\x20\x03\x00\x00\x00"
ACCEPT_3 = b"\x20\x02\x00\x00"
REFUSE_VERSION = b"\x20\x02\x00\x01"


def puback(mid: int, *, code: int = 0, level: int = 5) -> bytes:
    return struct.pack("!BBHBB", 0x40, 4, mid, code, 0) if level == 5 else struct.pack("!BBH", 0x40, 2, mid)


@pytest.mark.parametrize("refusal", [REFUSE_VERSION, None], ids=["says so", "closes without a word"])
def test_broker_without_mqtt_5_is_spoken_to_in_3_1_1_with_a_warning(
    tmp_path: Path, refusal: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        ScriptedBroker(
            connack=lambda level: ACCEPT_3 if level == 4 else refusal, puback=lambda mid, _: puback(mid, level=4)
        ) as broker,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        publisher.publish(event("one"))
        wait_for(lambda: publisher.stats().published >= 2, what="the delivery", timeout_s=10.0)
        assert publisher.stats().protocol == "3.1.1"
        assert publisher.stats().spool_rows == 0
    assert "refusals will be silent" in caplog.text


def test_broker_that_never_acknowledges_is_given_up_again_and_again_and_nothing_is_lost(tmp_path: Path) -> None:
    with (
        ScriptedBroker(connack=lambda _: ACCEPT_5, puback=lambda mid, _: b"") as broker,
        publishing(broker.target, tmp_path / "state", options=replace(QUICK, ack_timeout_s=0.2)) as publisher,
    ):
        publisher.publish(event("one"))
        wait_for(lambda: publisher.stats().stalls >= 3, what="three stalls", timeout_s=10.0)
        assert publisher.stats().spool_rows == 1
        assert publisher.stats().quarantined == 0


def test_quota_pauses_and_tries_again_instead_of_setting_aside(tmp_path: Path) -> None:
    refusals = iter([0x97, 0x97, 0x97, 0x97])

    def answer(mid: int, body: bytes) -> bytes:
        return puback(mid, code=next(refusals, 0) if b"event_id" in body else 0)

    with ScriptedBroker(connack=lambda _: ACCEPT_5, puback=answer) as broker:
        with publishing(broker.target, tmp_path / "state") as publisher:
            publisher.publish(event("one"))
            wait_for(lambda: publisher.stats().spool_rows == 0, what="the delivery", timeout_s=10.0)
            assert publisher.stats().quarantined == 0
            assert publisher.stats().reconnects == 0
        assert broker.published.count(b"edgeasd/w097/mic0/event") == 5


def test_refusals_that_do_not_pass_end_in_quarantine(tmp_path: Path) -> None:
    def answer(mid: int, body: bytes) -> bytes:
        return puback(mid, code=0x83 if b"event_id" in body else 0)

    with ScriptedBroker(connack=lambda _: ACCEPT_5, puback=answer) as broker:
        with publishing(broker.target, tmp_path / "state") as publisher:
            publisher.publish(event("one"))
            wait_for(lambda: publisher.stats().quarantined == 1, what="the quarantine", timeout_s=10.0)
        assert broker.published.count(b"edgeasd/w097/mic0/event") == 3


@pytest.mark.parametrize("garbage", [b"\x20\x03\x00\x77\x00", b"\x20\xff\xff\xff\xff\x7f", b"HTTP/1.1 400\r\n\r\n"])
def test_garbled_answer_is_survived(tmp_path: Path, garbage: bytes) -> None:
    answers = iter([garbage, garbage])
    with (
        ScriptedBroker(connack=lambda _: next(answers, ACCEPT_5), puback=lambda mid, _: puback(mid)) as broker,
        publishing(broker.target, tmp_path / "state") as publisher,
    ):
        publisher.publish(event("one"))
        wait_for(lambda: publisher.stats().spool_rows == 0, what="the delivery", timeout_s=15.0)
