"""The broker: where it is, who we are to it, and how the line is secured."""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, GetJsonSchemaHandler, SecretStr, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from edgeasd.settings.types import AnyPath, Host, Port, Section, Text, Topic, contradiction

_TLS_OF_SCHEME = {"mqtt": False, "mqtts": True}
_URL_FORM = "mqtt[s]://HOST[:PORT][/BASE/TOPIC]"
URL_DOC = f"Short for host, port, tls and base_topic: {_URL_FORM}, mqtts for TLS."


def split_url(url: object) -> dict[str, Any]:
    """Return the settings that a broker URL stands for; raise ValueError, which never repeats the URL."""
    if not isinstance(url, str) or any(char.isspace() or not char.isprintable() for char in url):
        raise ValueError(f"url: expected {_URL_FORM}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ValueError("url: the port is not a number from 1 to 65535, or the address is malformed") from exc
    if parts.scheme not in _TLS_OF_SCHEME or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ValueError(f"url: expected {_URL_FORM}")
    tls = _TLS_OF_SCHEME[parts.scheme]
    found = {
        "base_topic": unquote(parts.path).strip("/"),
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
    }
    known = {key: value for key, value in found.items() if value}
    return {"host": parts.hostname, "port": port or default_port(tls=tls), "tls": tls, **known}


def default_port(*, tls: bool) -> int:
    """Return the port that brokers listen on."""
    return 8883 if tls else 1883


def expand_url(values: dict[str, Any]) -> dict[str, Any]:
    """Return the `mqtt` section with `url` replaced by what it stands for; raise ValueError if both are given."""
    if values.get("url") is None:
        return {key: value for key, value in values.items() if key != "url"}
    found = split_url(values["url"])
    rest = {key: value for key, value in values.items() if key != "url"}
    for key in sorted(found.keys() & {key for key, value in rest.items() if value is not None}):
        raise ValueError(f"{key}: given in mqtt.url as well")
    return rest | found


class MqttSettings(Section):
    """The MQTT broker that scores and events go to; without host or url they are written to stdout as JSON lines."""

    host: Host | None = Field(default=None, examples=["broker.example.org"])
    """Name or address of the broker."""
    port: Port | None = Field(default=None, examples=[1883])
    """Port of the broker. Default: 1883, with tls 8883."""
    tls: bool = False
    """Encrypt the line (TLS 1.2 or later) and verify the broker's certificate."""
    ca_file: AnyPath | None = Field(default=None, examples=["/etc/edgeasd/ca.pem"])
    """Certificates to trust instead of the system's. Credential: mqtt-ca."""
    cert_file: AnyPath | None = Field(default=None, examples=["/etc/edgeasd/client.pem"])
    """Client certificate. Credential: mqtt-client-cert."""
    key_file: AnyPath | None = Field(default=None, examples=["/etc/edgeasd/client.key"])
    """Key of the client certificate. Refused when everybody may read it. Credential: mqtt-client-key."""
    username: Text | None = Field(default=None, examples=["edgeasd"])
    """User name. Credential: mqtt-username."""
    password: SecretStr | None = None
    """Password; better in a file. Refused on the command line. Credential: mqtt-password."""
    password_file: AnyPath | None = Field(default=None, examples=["/etc/edgeasd/mqtt-password"])
    """File that holds the password; wins over password. Refused when everybody may read it."""
    protocol: Literal["5", "3.1.1"] = "5"
    """MQTT version. Brokers tell why they refuse a message in version 5 only."""
    base_topic: Topic = "edgeasd"
    """First level of every topic: BASE/NODE/SOURCE/score."""
    client_id: Text | None = Field(default=None, examples=["edgeasd-w097"])
    """Name of this client, unique at the broker. Default: edgeasd- and the node's name."""
    keepalive_s: int = Field(default=20, ge=5, le=3600)
    """Silence after which the line is tried. The broker gives up after 1.5 times this, the node after twice this."""
    scores: Literal["window", "second", "off"] = "window"
    """Which scores are sent: one per window, the highest of each second, or none. Events are always sent."""

    commands: bool = False
    """Take commands from the broker: thresholds, sources on and off, feedback. Let only those write who may."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Return host and port, or None without a broker."""
        return None if self.host is None else (self.host, self.port or default_port(tls=self.tls))

    @property
    def url(self) -> str | None:
        """Return the broker's address for people, without user and password."""
        if self.address is None:
            return None
        host, port = self.address
        return f"mqtt{'s' if self.tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        try:
            return expand_url(values)
        except ValueError as exc:
            raise contradiction(str(exc)) from None  # the cause would carry the URL, and with it a password

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.cert_file and not self.key_file:
            raise contradiction("cert_file: needs key_file as well")
        if self.key_file and not self.cert_file:
            raise contradiction("key_file: needs cert_file as well")
        if self.protocol == "3.1.1" and (self.password or self.password_file) and not self.username:
            raise contradiction("username: MQTT 3.1.1 takes no password without a user name")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        target = handler.resolve_ref_schema(schema)
        url = {"type": "string", "title": "Url", "description": URL_DOC, "pattern": "^mqtts?://"}
        target["properties"] = {"url": url} | target["properties"]
        return schema
