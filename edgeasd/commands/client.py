"""An MQTT client for tools that look at a broker; what a node publishes goes through edgeasd.publish."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from edgeasd.publish.target import tls_context
from edgeasd.publishing import target_of, tls_files_of

if TYPE_CHECKING:
    import ssl

    from paho.mqtt.client import Client

    from edgeasd.settings import Settings


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context that the settings ask for, None for an open line."""
    return tls_context(target_of(settings), tls_files_of(settings))


def make_client(settings: Settings, *, role: str) -> Client:
    """Return a client that is not yet connected; its own identifier, so that it never pushes a running node out."""
    from paho.mqtt.client import Client, MQTTv5, MQTTv311
    from paho.mqtt.enums import CallbackAPIVersion

    target = target_of(settings)
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"{settings.client_id[:40]}-{role}-{secrets.token_hex(3)}",
        protocol=MQTTv5 if settings.mqtt.protocol == "5" else MQTTv311,
    )
    if target.user is not None or target.password is not None:
        client.username_pw_set(target.user, target.password)
    context = tls_of(settings)
    if context is not None:
        client.tls_set_context(context)
    return client
