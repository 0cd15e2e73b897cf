"""From settings to a publisher: a broker with its outbox, or JSON lines where no broker is set."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edgeasd.publish import CommandBox, Publisher, Wire
from edgeasd.publish.jsonl import JsonLinesPublisher
from edgeasd.publish.outbox import Outbox, OutboxLimits
from edgeasd.publish.target import MqttOptions, MqttTarget, TlsFiles
from edgeasd.settings import Settings
from edgeasd.settings.mqtt import MqttSettings

_CLOSE_S = 3.0
"""For sending what can still be sent at the end; the outbox keeps the rest."""


def target_of(settings: Settings) -> MqttTarget:
    """Return the broker that the settings name; they name one."""
    mqtt = settings.mqtt
    assert mqtt.address is not None
    host, port = mqtt.address
    password = None if mqtt.password is None else mqtt.password.get_secret_value()
    return MqttTarget(
        host=host, port=port, tls=mqtt.tls, user=mqtt.username, password=password, base_topic=mqtt.base_topic
    )


def tls_files_of(settings: Settings) -> TlsFiles | None:
    """Return the certificate files in force, None for an open line."""
    mqtt = settings.mqtt
    return TlsFiles(ca_file=mqtt.ca_file, cert_file=mqtt.cert_file, key_file=mqtt.key_file) if mqtt.tls else None


def without_broker(settings: Settings) -> Settings:
    """Return the settings of a node that prints its messages."""
    given = {key: getattr(settings.mqtt, key) for key in settings.mqtt.model_fields_set & {"scores"}}
    return settings.model_copy(update={"mqtt": MqttSettings(**given)})


@contextmanager
def open_publisher(settings: Settings, wire: Wire) -> Iterator[Publisher]:
    """Open the way out; on leaving, what is at hand is sent within three seconds or kept for the next start.

    A node that ends by an error says no `stopped`: the broker then says `offline`.
    """
    if settings.mqtt.address is None:
        lines = JsonLinesPublisher(sys.stdout, scores=settings.mqtt.scores)
        lines.publish(wire.node_status("online"))
        try:
            yield lines
        finally:
            lines.publish(wire.node_status("stopped"))
            lines.close(_CLOSE_S)
        return
    from edgeasd.publish.mqtt import MqttPublisher  # noqa: PLC0415  # paho loads only where there is a broker

    options = MqttOptions(
        client_id=settings.client_id,
        protocol=settings.mqtt.protocol,
        scores=settings.mqtt.scores,
        keepalive_s=settings.mqtt.keepalive_s,
        tls_files=tls_files_of(settings),
    )
    limits = OutboxLimits(max_bytes=settings.outbox.max_mb * 2**20, max_age_s=settings.outbox.max_age_h * 3600.0)
    with Outbox(settings.state_dir, limits=limits) as outbox:
        names = [source.name for source in settings.sources]
        commands = CommandBox(wire, sources=names) if settings.mqtt.commands else None
        publisher = MqttPublisher(target_of(settings), wire=wire, outbox=outbox, options=options, commands=commands)
        try:
            yield publisher
        except BaseException:
            publisher.close(_CLOSE_S, farewell=False)
            raise
        publisher.close(_CLOSE_S)
