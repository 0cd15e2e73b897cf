"""What an operator can set: flags over environment over credentials over YAML over defaults, refused when wrong."""

from edgeasd.settings.load import InvalidSettingsError, Places, Resolved, load_settings, resolve_settings
from edgeasd.settings.model import (
    AlarmSettings,
    LogSettings,
    MetricsSettings,
    NodeSettings,
    NoveltySettings,
    OutboxSettings,
    Settings,
    SourceSettings,
    WindowSettings,
    digest,
    without_effect,
)
from edgeasd.settings.mqtt import MqttSettings
from edgeasd.settings.types import Rate

__all__ = [
    "AlarmSettings",
    "InvalidSettingsError",
    "LogSettings",
    "MetricsSettings",
    "MqttSettings",
    "NodeSettings",
    "NoveltySettings",
    "OutboxSettings",
    "Places",
    "Rate",
    "Resolved",
    "Settings",
    "SourceSettings",
    "WindowSettings",
    "digest",
    "load_settings",
    "resolve_settings",
    "without_effect",
]
