"""One MQTT connection, from CONNECT to its end: the only place that knows paho.

paho's own thread, queue and reconnects stay unused: they keep messages in memory only and resend what they please. A
lost connection is thrown away with its client, and whoever owns the messages decides what is sent again.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeasd.publish.commands import CommandBox
from edgeasd.publish.message import Parcel
from edgeasd.publish.target import MqttOptions, MqttTarget, MqttVersion

UNSUPPORTED_PROTOCOL = 0x84
_FIRST_ERROR = 0x80
_PACKET_OVERHEAD_BYTES = 16
"""Fixed header, topic length, packet id and empty properties of a PUBLISH, rounded up."""
_MAX_INCOMING_BYTES = 8192
"""Acknowledgements and commands are small; what is larger is never read, let alone kept."""
_CLOSED = "Unspecified error"
_LOCAL_REASONS = {_CLOSED: "connection closed", "Keep alive timeout": "the broker stopped answering"}
"""What paho calls the ends that it makes out itself, in words."""


class Bell:
    """Wakes a thread that sleeps in poll(); rings before the sleep are not lost, many rings are one."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.settimeout(0.0)
        self._theirs.settimeout(0.0)
        self._rung = False

    def ring(self) -> None:
        """Wake the sleeper; callable from any thread."""
        if not self._rung:
            self._rung = True
            self._theirs.send(b"\0")

    def hush(self) -> None:
        """Take note of the rings so far; called by the sleeper before it looks for work."""
        with suppress(BlockingIOError):
            self._ours.recv(64)
        self._rung = False  # last: a ring that comes in between is for work the sleeper is about to see

    def fileno(self) -> int:
        """Return what poll() waits on."""
        return self._ours.fileno()

    def sleep(self, timeout_s: float) -> None:
        """Wait for a ring, or for the time to pass."""
        poller = select.poll()
        poller.register(self._ours, select.POLLIN)
        poller.poll(max(timeout_s, 0.0) * 1000.0)
        self.hush()

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self._theirs.close()


@dataclass(frozen=True, slots=True)
class Loss:
    """How a connection ended."""

    reason: str
    code: int = 0
    """MQTT 5 reason code of a refusal or of the broker's DISCONNECT; 0 when there was none."""
    by_peer: bool = False
    """True when the other side closed it."""


class _OversizeError(Exception):
    """Raised when the broker begins a packet that we do not want to hold."""


class _Client(paho.Client):
    """Refuses a packet by its announced length: MQTT 3.1.1 knows no other way to keep a broker from sending it."""

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > _MAX_INCOMING_BYTES:
            raise _OversizeError
        return super()._sock_recv(bufsize)


class Connection:
    """A TCP or TLS connection on which CONNECT has been sent; raises OSError when it cannot be made.

    Used by one thread. `accepted` turns true on CONNACK, `loss` is set once the connection is over.
    """

    def __init__(
        self,
        target: MqttTarget,
        *,
        options: MqttOptions,
        version: MqttVersion,
        will: Parcel,
        tls: ssl.SSLContext | None,
        commands: CommandBox | None = None,
    ) -> None:
        self.version: MqttVersion = version
        self.accepted = False
        self.loss: Loss | None = None
        self.max_in_flight = options.max_in_flight
        self.max_packet_bytes: int | None = None
        self._acknowledged: deque[tuple[int, int]] = deque()
        self._commands = commands
        self._listens = False
        self._client = client = self._build(options, version)
        if tls is not None:
            client.tls_set_context(tls)
        if target.user is not None:
            client.username_pw_set(target.user, target.password)
        is_5 = version == "5"
        will_properties = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=options.will_delay_s)
        client.will_set(will.topic, will.body, will.qos, will.retain, will_properties if is_5 else None)
        # The session outlives a loss just long enough for the will to be called off by a quick return.
        session = _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=2 * options.will_delay_s,
            MaximumPacketSize=_MAX_INCOMING_BYTES,
        )
        extra: dict[str, Any] = {"clean_start": False, "properties": session} if is_5 else {}
        client.connect(target.host, target.port, options.keepalive_s, **extra)
        self._poller = select.poll()
        self._poller.register(self._socket_fd(), select.POLLIN)
        self._bell_fd: int | None = None

    @property
    def clogged(self) -> bool:
        """Return whether bytes wait for a socket that takes no more."""
        return self._client.want_write()

    def fits(self, parcel: Parcel) -> bool:
        """Return whether the broker said it takes a packet of this size."""
        if self.max_packet_bytes is None:
            return True
        return len(parcel.topic) + len(parcel.body) + _PACKET_OVERHEAD_BYTES <= self.max_packet_bytes

    def send(self, parcel: Parcel) -> int:
        """Hand a parcel to the socket and return the packet id that its acknowledgement will carry."""
        return self._client.publish(parcel.topic, parcel.body, parcel.qos, parcel.retain).mid

    def take_acknowledged(self) -> list[tuple[int, int]]:
        """Return (packet id, reason code) of the acknowledgements since the last call; below 0x80 is success."""
        taken = list(self._acknowledged)
        self._acknowledged.clear()
        return taken

    def step(self, bell: Bell, *, timeout_s: float) -> None:
        """Wait for the broker or the bell, and do what the connection needs."""
        try:
            self._step(bell, timeout_s)
        except _OversizeError:
            self.loss = self.loss or Loss(f"the broker sends a packet of more than {_MAX_INCOMING_BYTES} bytes")
            if self._commands is not None:
                self._commands.swamped()
        except Exception as exc:  # noqa: BLE001 - paho's parser raises whatever a garbled packet leads it to
            self.loss = self.loss or Loss(f"garbled packet from the broker: {exc!r}")

    def give_up(self, reason: str) -> None:
        """End the connection without a word, so that the broker sends the will."""
        self.loss = self.loss or Loss(reason)
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def disconnect(self) -> None:
        """End the connection properly: the broker forgets the will."""
        self._client.disconnect()
        self.give_up("closed")

    def _step(self, bell: Bell, timeout_s: float) -> None:
        sock = self._client.socket()
        if sock is None:
            self.loss = self.loss or Loss("connection lost")
            return
        if self._bell_fd is None:
            self._bell_fd = bell.fileno()
            self._poller.register(self._bell_fd, select.POLLIN)
        self._poller.modify(sock.fileno(), select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        # Bytes that TLS has already decrypted do not wake poll().
        undelivered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        ready = dict(self._poller.poll(0 if undelivered else max(timeout_s, 0.0) * 1000.0))
        bell.hush()
        events = ready.get(sock.fileno(), 0)
        if undelivered or events & ~select.POLLOUT:
            self._client.loop_read()
        if events & select.POLLOUT:
            self._client.loop_write()
        self._client.loop_misc()
        self._listen()

    def _listen(self) -> None:
        """Subscribe to commands, once on each connection: whatever session the broker says it kept."""
        if not self.accepted or self._listens or self._commands is None or not self._commands.open:
            return
        self._listens = True
        # The flag of a retained command is wanted as it was published: on 3.1.1 the first delivery has lost it.
        if self.version == "5":
            how = SubscribeOptions(qos=1, retainAsPublished=True)
            self._client.subscribe([(topic, how) for topic in self._commands.filters])
        else:
            self._client.subscribe([(topic, 1) for topic in self._commands.filters])

    def _build(self, options: MqttOptions, version: MqttVersion) -> paho.Client:
        is_5 = version == "5"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id or "",
            protocol=paho.MQTTv5 if is_5 else paho.MQTTv311,
            clean_session=None if is_5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = options.connect_timeout_s
        client.max_inflight_messages_set(0)  # the sender keeps the window; paho must not queue behind it
        client.on_socket_open = _without_delay
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _socket_fd(self) -> int:
        sock = self._client.socket()
        if sock is None:
            raise ConnectionError("connection lost while connecting")
        return sock.fileno()

    def _on_connect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.loss = Loss(f"the broker refuses us: {str(reason).lower()}", code=reason.value, by_peer=True)
            return
        self.accepted = True
        self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        self.max_in_flight = min(self.max_in_flight, getattr(properties, "ReceiveMaximum", self.max_in_flight))

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, reason: Any, _properties: Any) -> None:
        self._acknowledged.append((mid, reason.value))

    def _on_subscribe(self, _client: Any, _userdata: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if self._commands is not None and any(reason.is_failure for reason in reasons):
            self._commands.denied()

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        # A session that the broker kept may bring commands to a node that takes none any more.
        if self._commands is not None:
            self._commands.put(message.topic, message.payload, retained=message.retain)

    def _on_disconnect(self, _client: Any, _userdata: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if self.loss is None:
            told = flags.is_disconnect_packet_from_server
            self.loss = Loss(
                f"the broker says: {str(reason).lower()}" if told else _LOCAL_REASONS.get(str(reason), str(reason)),
                code=reason.value if told else 0,
                by_peer=told or str(reason) == _CLOSED,
            )


def _properties(packet_type: int, **values: int) -> Properties:
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def _without_delay(_client: Any, _userdata: Any, sock: Any) -> None:
    # A score and the level behind it are two small writes: Nagle would hold the second back for a round trip.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
