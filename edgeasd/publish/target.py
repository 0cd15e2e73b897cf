"""Where to publish and how: plain records that the owner of the settings fills in."""

from __future__ import annotations

import select
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeasd.errors import SettingsError
from edgeasd.publish.intake import ScoresMode

MqttVersion = Literal["5", "3.1.1"]


@dataclass(frozen=True, slots=True)
class MqttTarget:
    """A broker, and who we are to it."""

    host: str
    port: int = 1883
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    base_topic: str = "edgeasd"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: whom to trust (None: what the system trusts) and, for mutual TLS, who we are."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """How to speak to a broker; the defaults suit a node in the field."""

    client_id: str | None = None
    """None: `edgeasd-<node>`."""
    protocol: MqttVersion = "5"
    """3.1.1 is also taken, with a warning, when the broker refuses 5."""
    scores: ScoresMode = "window"
    keepalive_s: int = 20
    """A line with nothing to say is tried this often, and given up after twice this without an answer."""
    will_delay_s: int = 5
    """How long the broker waits before it says `offline`, so that a short loss says nothing; MQTT 5 only."""
    connect_timeout_s: float = 4.0
    ack_timeout_s: float = 30.0
    """A connection with messages in flight and no acknowledgement for so long is given up."""
    retry_min_s: float = 1.0
    retry_max_s: float = 60.0
    max_in_flight: int = 20
    max_payload_bytes: int = 8192
    max_waiting: int = 1024
    """Messages kept in memory."""
    tls_files: TlsFiles | None = None


class _PromptSocket(ssl.SSLSocket):
    """Ends a handshake that does not end: the timeout of a socket is for each read, and a byte a second is in time."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  # the signature is that of ssl
        timeout_s = self.gettimeout()
        if timeout_s is None:
            super().do_handshake(block)
            return
        until_s = time.monotonic() + timeout_s
        self.settimeout(0.0)
        try:
            while not self._shaken(until_s):
                pass
        except OSError:
            self.close()  # paho would leave it to the garbage collector
            raise
        self.settimeout(timeout_s)

    def _shaken(self, until_s: float) -> bool:
        """Go on with the handshake and return whether it is done; else wait for the other side."""
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            wanted = select.POLLIN
        except ssl.SSLWantWriteError:
            wanted = select.POLLOUT
        else:
            return True
        poller = select.poll()
        poller.register(self, wanted)
        if not poller.poll(max(0.0, until_s - time.monotonic()) * 1000.0):
            raise TimeoutError("the TLS handshake takes too long")
        return False


def tls_context(target: MqttTarget, files: TlsFiles | None) -> ssl.SSLContext | None:
    """Return the TLS context for a target, None for plain MQTT; SettingsError when a file is missing or unfit."""
    if not target.tls:
        if files is not None:
            raise SettingsError(f"mqtt: certificate files are set, but {target} is not encrypted; write mqtts://")
        return None
    files = files or TlsFiles()
    if (files.cert_file is None) != (files.key_file is None):
        raise SettingsError("mqtt: a client certificate needs both its certificate file and its key file")
    try:
        context = ssl.create_default_context(cafile=None if files.ca_file is None else str(files.ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslsocket_class = _PromptSocket
        if files.cert_file is not None:
            # The empty password stops OpenSSL from asking for one on a terminal that a daemon does not have.
            context.load_cert_chain(files.cert_file, files.key_file, password="")
    except (OSError, ssl.SSLError) as exc:
        named = ", ".join(str(path) for path in (files.ca_file, files.cert_file, files.key_file) if path is not None)
        raise SettingsError(f"mqtt: certificates cannot be used ({named or 'those of the system'}): {exc}") from exc
    return context
