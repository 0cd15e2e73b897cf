"""Every setting with its unit, its default and its limits."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from edgeasd.settings.mqtt import MqttSettings
from edgeasd.settings.types import (
    AnyPath,
    BundlePath,
    Channel,
    Device,
    FalseAlarmRate,
    Finite,
    Host,
    Port,
    Rate,
    Section,
    Slug,
    contradiction,
)

_MAX_SOURCES = 128


def slug(text: str) -> str:
    """Return `text` as a name that fits in a topic: lower case, anything odd turned into a dash."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:64] or "node"


def _node_name() -> str:
    return slug(os.uname().nodename.partition(".")[0])


def _state_dir() -> Path:
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]  # systemd: StateDirectory=
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edgeasd"


class NodeSettings(Section):
    """This machine."""

    name: Slug = Field(default_factory=_node_name, examples=["w097"])
    """Name of the node in every topic. Default: the host name."""


class SourceSettings(Section):
    """One microphone, or one channel of it."""

    name: Slug = "mic0"
    """Name of the source in every topic; each source has its own."""
    device: Device = Field(examples=["hw:CARD=USB"])
    """Sound card: an ALSA or PortAudio name, hw:1, hw:CARD=x, or a part of the name; `edgeasd devices` lists them.
    Or a pipe of raw samples: fifo:PATH, - for stdin."""
    channel: Channel = 0
    """Channel to listen to, counted from 0, or mix for the mean of all."""
    native_rate_hz: int | None = Field(default=None, ge=4000, le=384000, examples=[48000])
    """Rate to open the card at. Default: the model's rate where the card offers it, else the card's own."""


class WindowSettings(Section):
    """How the sound is cut into windows; their length comes with the bundle."""

    hop_s: Finite = Field(default=0.5, ge=0.01, le=60)
    """Time from the start of one window to the start of the next."""
    max_backlog_s: Finite = Field(default=10.0, ge=2, le=300)
    """Sound that may wait to be scored; beyond it whole windows are dropped, oldest first, and counted."""


class NoveltySettings(Section):
    """The second opinion that needs no training: how unlike its own past a second is."""

    enabled: bool = True
    """Run it. Alone without a bundle, beside the model with one."""


class AlarmSettings(Section):
    """When scores become events."""

    false_alarms: FalseAlarmRate = Field(default=Rate(12, "hour"), json_schema_extra={"default": "12/hour"})
    """False-alarm budget a source: N/hour, N/day or N/week. The threshold follows from it."""
    by: Literal["auto", "novelty", "model", "either"] = "auto"
    """Whose opinion starts events; auto takes what measurement on recorded streams favours."""
    release_s: Finite = Field(default=3.0, gt=0, le=600)
    """An event ends after this long below the lower threshold."""
    merge_s: Finite = Field(default=2.0, ge=0, le=600)
    """Events that lie closer together than this are one."""
    update_s: Finite = Field(default=10.0, ge=1, le=3600)
    """An event that goes on is told again this often."""


class OutboxSettings(Section):
    """What is kept on disk while the broker is away."""

    max_mb: int = Field(default=64, ge=1, le=10240)
    """Size of the outbox; when it is full the oldest scores go first, events last."""
    max_age_h: Finite = Field(default=168.0, gt=0, le=8760)
    """Messages older than this are dropped and counted."""


class MetricsSettings(Section):
    """Figures for Prometheus."""

    port: Port | None = Field(default=None, examples=[9108])
    """Port to serve /metrics on. Default: none."""
    host: Host = "127.0.0.1"
    """Address to serve on."""


class LogSettings(Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important kind of line to write."""
    format: Literal["auto", "journal", "json", "text"] = "auto"
    """auto writes for the journal under systemd, else text."""


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="EDGEASD_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        validate_default=False,
    )

    node: NodeSettings = Field(default_factory=NodeSettings)
    state_dir: AnyPath = Field(default_factory=_state_dir, examples=["/var/lib/edgeasd"])
    """Where the outbox and the site calibration live. Default: $STATE_DIRECTORY, else ~/.local/state/edgeasd."""
    bundle: BundlePath | None = Field(default=None, examples=["/etc/edgeasd/model.edgeasd"])
    """Model to run. Default: none, the untrained second opinion judges alone."""
    trusted_keys_dir: AnyPath = Path("/etc/edgeasd/trust.d")
    """Public keys, files NAME.pub. Where it holds one, or is set, only bundles signed by one of them are loaded."""
    engine: Literal["auto", "onnx", "torch", "tensorrt"] = "auto"
    """What runs the model; auto measures and takes the fastest that passes the golden test."""
    precision: Literal["auto", "fp32", "fp16", "int8"] = "fp32"
    """In which numbers it computes, of those that the bundle has a graph for; auto takes the fastest."""
    sources: tuple[SourceSettings, ...] = Field(default=(), max_length=_MAX_SOURCES)
    windows: WindowSettings = Field(default_factory=WindowSettings)
    novelty: NoveltySettings = Field(default_factory=NoveltySettings)
    alarm: AlarmSettings = Field(default_factory=AlarmSettings)
    mqtt: MqttSettings = Field(default_factory=MqttSettings)
    outbox: OutboxSettings = Field(default_factory=OutboxSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    health_interval_s: Finite = Field(default=30.0, ge=1, le=3600)
    """Time between health messages."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature belongs to pydantic-settings
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the caller alone: load_settings merges the layers, to tell where each value is from."""
        return (init_settings,)

    @property
    def client_id(self) -> str:
        """Return the MQTT client identifier."""
        return self.mqtt.client_id or f"edgeasd-{self.node.name}"

    @property
    def engine_cache_dir(self) -> Path:
        """Return where engines keep what they build and what was measured of them."""
        return self.state_dir / "engines"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise contradiction(f"sources: two are named {name}")
        if len({(source.device, source.channel) for source in self.sources}) < len(self.sources):
            raise contradiction("sources: two listen to the same channel of the same device")
        if self.bundle is None and not self.novelty.enabled:
            raise contradiction("novelty.enabled: without it and without a bundle nothing judges the sound")
        if self.engine == "torch" and self.precision not in ("auto", "fp32"):
            raise contradiction(f"precision: {self.precision} needs another engine: torch computes in fp32 only")
        if self.alarm.by in ("model", "either") and self.bundle is None:
            raise contradiction(f"alarm.by: {self.alarm.by} needs a bundle")
        if self.alarm.by in ("novelty", "either") and not self.novelty.enabled:
            raise contradiction(f"alarm.by: {self.alarm.by} needs novelty.enabled: true")
        return self


def without_effect(settings: Settings) -> tuple[str, ...]:
    """Return one line for each setting that was given but changes nothing, and for passwords sent in the clear."""
    mqtt, lines = settings.mqtt, []
    if mqtt.address is None:
        given = sorted(mqtt.model_fields_set) + [f"outbox.{key}" for key in sorted(settings.outbox.model_fields_set)]
        lines += [f"{key if '.' in key else f'mqtt.{key}'} has no effect: no broker is set" for key in given]
    elif not mqtt.tls:
        files = [key for key in ("ca_file", "cert_file", "key_file") if getattr(mqtt, key)]
        lines += [f"mqtt.{key} has no effect: mqtt.tls is false, the line is not encrypted" for key in files]
        if mqtt.password and mqtt.host not in ("127.0.0.1", "::1", "localhost"):
            lines.append("mqtt.password is sent unencrypted: set mqtt.tls")
    if settings.metrics.port is None and "host" in settings.metrics.model_fields_set:
        lines.append("metrics.host has no effect: metrics.port is not set")
    if settings.bundle is None:
        given = [key for key in ("engine", "precision") if key in settings.model_fields_set]
        lines += [f"{key} has no effect unless a bundle is installed: none is set" for key in given]
    return tuple(lines)


def digest(settings: Settings) -> str:
    """Return 12 hexadecimal digits that change when a setting does; secrets play no part in it."""
    text = json.dumps(dump(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def dump(settings: Settings) -> dict[str, Any]:
    """Return all settings as plain values, the password as asterisks."""
    return settings.model_dump(mode="json")
