"""A real mosquitto on a free loopback port, and a durable subscriber that remembers everything."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeasd.publish.target import MqttTarget

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
NO_MOSQUITTO = "mosquitto is not installed"


@dataclass(frozen=True)
class Certificates:
    """PEM files of a throw-away authority, a server on loopback, and one client."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


@dataclass(frozen=True)
class BrokerSetup:
    """What a test wants of its broker."""

    persistence: bool = False
    certificates: Certificates | None = None
    client_certificates: bool = False
    users: dict[str, str] = field(default_factory=dict)
    acl: str = ""
    lines: tuple[str, ...] = ()
    """Further lines of mosquitto.conf."""


class Broker:
    """Runs mosquitto in a scratch directory; the port stays the same over restarts."""

    def __init__(self, directory: Path, setup: BrokerSetup | None = None, *, started: bool = True) -> None:
        assert MOSQUITTO is not None, NO_MOSQUITTO
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._setup = setup or BrokerSetup()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._config = directory / "mosquitto.conf"
        self._config.write_text("\n".join(self._config_lines()) + "\n")
        if started:
            self.start()

    @property
    def url(self) -> str:
        """Return where the broker listens."""
        return f"{'mqtts' if self._setup.certificates else 'mqtt'}://127.0.0.1:{self.port}"

    @property
    def target(self) -> MqttTarget:
        """Return the broker as a publisher knows it."""
        return MqttTarget("127.0.0.1", self.port, tls=self._setup.certificates is not None)

    @property
    def log(self) -> str:
        """Return what mosquitto logged."""
        return (self._directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the broker and wait until it takes connections."""
        assert self._process is None, "the broker runs already"
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([str(MOSQUITTO), "-c", str(self._config)], stdout=log, stderr=log)
        wait_for(self._listens, what="mosquitto to listen", timeout_s=10.0)

    def stop(self) -> None:
        """End it with SIGTERM, which lets it save what it keeps."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop it without closing its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self.kill()

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None, "the broker does not run"
        self._process.send_signal(number)
        self._process.wait(10.0)
        self._process = None

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"mosquitto ended: {self.log}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _config_lines(self) -> list[str]:
        setup = self._setup
        lines = [f"listener {self.port} 127.0.0.1", "user root" if os.geteuid() == 0 else ""]
        lines.append(f"allow_anonymous {'false' if setup.users else 'true'}")
        if setup.persistence:
            lines += ["persistence true", f"persistence_location {self._directory}/", "autosave_interval 1"]
        if setup.users:
            lines.append(f"password_file {self._password_file()}")
        if setup.acl:
            acl = self._directory / "acl"
            acl.write_text(setup.acl)
            acl.chmod(0o600)
            lines.append(f"acl_file {acl}")
        if setup.certificates:
            files = setup.certificates
            lines += [f"cafile {files.ca}", f"certfile {files.server}", f"keyfile {files.server_key}"]
            lines.append(f"require_certificate {'true' if setup.client_certificates else 'false'}")
        return [*lines, *setup.lines]

    def _password_file(self) -> Path:
        path = self._directory / "passwords"
        path.write_text("".join(f"{user}:{password}\n" for user, password in self._setup.users.items()))
        path.chmod(0o600)
        subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True, capture_output=True)
        return path


@dataclass(frozen=True)
class Received:
    """One message as it reached the subscriber."""

    topic: str
    body: bytes
    retain: bool
    at_ns: int
    """Monotonic clock."""

    @property
    def json(self) -> dict[str, Any]:
        """Return the payload as a JSON object."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def text(self) -> str:
        """Return the payload as text."""
        return self.body.decode()


class Subscriber:
    """Subscribes to a topic filter at QoS 1 with a session that outlives its connections, and collects."""

    def __init__(
        self,
        port: int,
        topics: str = "#",
        *,
        name: str = "subscriber",
        user: tuple[str, str] | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._news = threading.Condition()
        self._messages: list[Received] = []
        self._subscribed = False
        self._topics = topics
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
        client.on_connect = self._subscribe
        client.on_subscribe = lambda *_: self._note_subscribed()
        client.on_message = lambda _client, _userdata, message: self._note(message)
        client.reconnect_delay_set(1, 1)
        if user is not None:
            client.username_pw_set(*user)
        if certificates is not None:
            client.tls_set(str(certificates.ca), str(certificates.client), str(certificates.client_key))
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        session.SessionExpiryInterval = 3600
        client.connect_async("127.0.0.1", port, keepalive=30, clean_start=False, properties=session)
        client.loop_start()

    def wait_subscribed(self, *, timeout_s: float = 10.0) -> Self:
        """Wait until the broker has confirmed the subscription."""
        with self._news:
            assert self._news.wait_for(lambda: self._subscribed, timeout_s), "not subscribed in time"
        return self

    def messages(self, suffix: str = "") -> list[Received]:
        """Return what has come so far, of topics that end so."""
        with self._news:
            return [message for message in self._messages if message.topic.endswith(suffix)]

    def wait(
        self, condition: Callable[[list[Received]], object], *, suffix: str = "", timeout_s: float = 10.0
    ) -> list[Received]:
        """Wait until `condition` holds for the messages of topics that end so, and return these."""

        def held() -> list[Received]:
            return [message for message in self._messages if message.topic.endswith(suffix)]

        with self._news:
            fulfilled = self._news.wait_for(lambda: condition(held()), timeout_s)
            assert fulfilled, f"not in {timeout_s} s; the last messages: {held()[-5:]}"
            return held()

    def __enter__(self) -> Self:
        return self.wait_subscribed()

    def __exit__(self, *exc: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _subscribe(self, client: paho.Client, _userdata: Any, flags: Any, *_: Any) -> None:
        if not flags.session_present:  # else the subscription is still there, and repeating it repeats what is retained
            client.subscribe(self._topics, qos=1)

    def _note_subscribed(self) -> None:
        with self._news:
            self._subscribed = True
            self._news.notify_all()

    def _note(self, message: paho.MQTTMessage) -> None:
        received = Received(message.topic, bytes(message.payload), message.retain, time.monotonic_ns())
        with self._news:
            self._messages.append(received)
            self._news.notify_all()


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def wait_for(condition: Callable[[], object], *, what: str, timeout_s: float) -> None:
    """Wait for a condition that nobody announces."""
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        pause.wait(0.01)


def make_certificates(directory: Path, *, host: str = "localhost", expired: bool = False) -> Certificates:
    """Write a new authority and what it signs: for `host` on loopback, valid until tomorrow or until yesterday."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgeasd test authority")])
    ca = _certificate(ca_name, ca_key, issuer=ca_name, issuer_key=ca_key)
    files = Certificates(
        *(directory / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    )
    files.ca.write_bytes(ca)
    for common_name, certificate, key_file in (
        ("localhost", files.server, files.server_key),
        ("edgeasd-w097", files.client, files.client_key),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        signed = _certificate(name, key, issuer=ca_name, issuer_key=ca_key, host=host, valid_days=-1 if expired else 1)
        certificate.write_bytes(signed)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        key_file.chmod(0o600)
    return files


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    host: str = "localhost",
    valid_days: int = 1,
) -> bytes:
    now = dt.datetime.now(dt.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if host == "localhost" else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=valid_days))
        .add_extension(x509.BasicConstraints(ca=subject == issuer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host), *addresses]), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
