"""Checks of the broker, stage by stage: name, line, encryption, login, publishing, commands."""

from __future__ import annotations

import json
import queue
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeasd.commands.checks import Finding, Reporter
from edgeasd.commands.client import make_client, tls_of
from edgeasd.errors import EdgeasdError, SettingsError, UnavailableError
from edgeasd.publish.wire import Wire

if TYPE_CHECKING:
    from edgeasd.settings import Settings

_PATIENCE_S = 8.0
_UNAVAILABLE = UnavailableError.exit_code

_say = Reporter("broker")


class _StageError(Exception):
    """A stage failed; the finding says how."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Yield a finding a stage, up to the first that fails."""
    if settings.mqtt.address is None:
        yield _say.warn(
            "settings", "no broker: scores and events go to stdout", fix="set mqtt.url if that is not meant"
        )
        return
    host, port = settings.mqtt.address
    try:
        yield _resolve(host, port)
        with _connect(host, port) as line:
            yield _say.ok("tcp", f"{host} port {port} answers")
            if settings.mqtt.tls:
                yield _encrypt(line, settings)
        yield from _log_in_and_publish(settings)
    except _StageError as stage:
        yield stage.finding


def _resolve(host: str, port: int) -> Finding:
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as exc:
        raise _failed("dns", f"{host}: {exc.strerror or exc}", fix="check mqtt.host and /etc/resolv.conf") from exc
    return _say.ok("dns", f"{host} is {', '.join(sorted(addresses))}")


def _connect(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=_PATIENCE_S)
    except OSError as exc:
        fix = "check mqtt.port, that the broker runs, and the firewall between"
        raise _failed("tcp", f"{host} port {port}: {exc.strerror or exc}", fix=fix) from exc


def _encrypt(line: socket.socket, settings: Settings) -> Finding:
    try:
        context = tls_of(settings)
        assert context is not None
        with context.wrap_socket(line, server_hostname=settings.mqtt.host) as encrypted:
            certificate: dict[str, Any] = dict(encrypted.getpeercert() or {})
            return _say.ok("tls", f"{encrypted.version()}, certificate until {certificate.get('notAfter', 'unknown')}")
    except SettingsError as exc:
        raise _failed("tls", str(exc), fix="check mqtt.ca_file, cert_file and key_file", code=exc.exit_code) from exc
    except (OSError, ssl.SSLError) as exc:
        reason = getattr(exc, "verify_message", None) or exc.strerror or str(exc)
        fix = "check mqtt.ca_file, that the host name is the one in the certificate, and the clock"
        raise _failed("tls", reason, fix=fix) from exc


def _log_in_and_publish(settings: Settings) -> Iterator[Finding]:
    """Log in, publish once at QoS 1 under the node's own topics, where nobody listens, and listen as the node would."""
    news: queue.Queue[tuple[str, Any]] = queue.Queue(8)
    try:
        client = make_client(settings, role="check")
    except EdgeasdError as exc:
        raise _failed("connect", str(exc), fix="check the mqtt settings", code=exc.exit_code) from exc
    client.on_connect = lambda _client, _data, _flags, reason, _properties: news.put(("connect", reason))
    client.on_publish = lambda _client, _data, _mid, reason, _properties: news.put(("publish", reason))
    client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: news.put(("commands", _worst(reasons)))
    client.on_disconnect = lambda _client, _data, _flags, reason, _properties: news.put(("disconnect", reason))
    client.connect_timeout = _PATIENCE_S
    assert settings.mqtt.address is not None
    host, port = settings.mqtt.address
    try:
        client.connect(host, port, keepalive=30)
        client.loop_start()
        yield _stage(news, "connect", settings, fix="check mqtt.username, the password, and mqtt.protocol")
        topic = f"{settings.mqtt.base_topic}/{settings.node.name}/check"
        client.publish(topic, json.dumps({"node": settings.node.name}), qos=1)
        yield _stage(news, "publish", settings, fix=f"allow this user to write {topic.rpartition('/')[0]}/#")
        if settings.mqtt.commands:
            filters = Wire(settings.node.name, base_topic=settings.mqtt.base_topic).command_filters
            client.subscribe([(topic, 1) for topic in filters])
            yield _stage(news, "commands", settings, fix=f"allow this user to read {', '.join(filters)}")
    except OSError as exc:
        raise _failed("connect", exc.strerror or str(exc), fix="check the broker's log") from exc
    finally:
        client.on_disconnect = None
        client.disconnect()
        client.loop_stop()


def _worst(reasons: Sequence[Any]) -> Any:
    return next((reason for reason in reasons if reason.is_failure), reasons[0])


def _stage(news: queue.Queue[tuple[str, Any]], stage: str, settings: Settings, *, fix: str) -> Finding:
    try:
        happened, reason = news.get(timeout=_PATIENCE_S)
    except queue.Empty:
        raise _failed(stage, f"no answer within {_PATIENCE_S:.0f} s", fix="check the broker's log") from None
    if happened != stage or getattr(reason, "is_failure", False):
        raise _failed(stage, f"refused: {reason}", fix=fix)
    if stage == "connect":
        return _say.ok(stage, f"MQTT {settings.mqtt.protocol} as {settings.mqtt.username or 'anonymous'}")
    if stage == "commands":
        return _say.ok(stage, "subscribed; a broker may grant this and still let nothing through")
    if settings.mqtt.protocol != "5":
        fix = "set mqtt.protocol: 5 where the broker speaks it"
        return _say.warn(stage, "acknowledged, but MQTT 3.1.1 acknowledges what it refuses as well", fix=fix)
    return _say.ok(stage, "acknowledged")


def _failed(stage: str, detail: str, *, fix: str, code: int = _UNAVAILABLE) -> _StageError:
    return _StageError(_say.fail(stage, detail, fix=fix, exit_code=code))
