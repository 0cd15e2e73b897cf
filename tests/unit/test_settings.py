"""Which place wins, and what is said of a setting that is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeasd.errors import SettingsError
from edgeasd.settings import (
    InvalidSettingsError,
    Places,
    Rate,
    Resolved,
    Settings,
    digest,
    resolve_settings,
    without_effect,
)

pytestmark = pytest.mark.usefixtures("bare_environment")

Load = Callable[..., Settings]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "credentials").mkdir()
    return Places(credential_dirs=(tmp_path / "credentials",), config_files=(tmp_path / "config.yaml",))


@pytest.fixture
def resolve(places: Places) -> Callable[..., Resolved]:
    """resolve(yaml, flags): settings from a file with this text, and these flags."""

    def call(text: str | None = None, flags: dict[str, Any] | None = None) -> Resolved:
        if text is not None:
            places.config_files[0].write_text(text)
            places.config_files[0].chmod(0o600)
        return resolve_settings(None, flags, places=places)

    return call


@pytest.fixture
def load(resolve: Callable[..., Resolved]) -> Load:
    return lambda *args: resolve(*args).settings


def _line(load: Load, *args: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(*args)
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)
    return str(caught.value)


LEVELS = "up to eight levels of letters, digits, - . and _ with / between them"
LAYERS = ("flags", "environment", "credentials", "file")


@pytest.mark.parametrize(
    "present", [chosen for n in range(1, 5) for chosen in itertools.combinations(LAYERS, n)], ids="+".join
)
def test_the_highest_place_wins(
    present: tuple[str, ...], places: Places, resolve: Callable[..., Resolved], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "environment" in present:
        monkeypatch.setenv("EDGEASD_MQTT__USERNAME", "environment")
    if "credentials" in present:
        (places.credential_dirs[0] / "mqtt-username").write_text("credentials\n")
    text = "mqtt:\n  username: file\n" if "file" in present else None
    flags = {"mqtt": {"username": "flags" if "flags" in present else None}}

    resolved = resolve(text, flags)

    assert resolved.settings.mqtt.username == present[0]
    assert (
        resolved.origin(("mqtt", "username"))
        == {
            "flags": "the command line",
            "environment": "EDGEASD_MQTT__USERNAME",
            "credentials": "credential mqtt-username",
            "file": f"{places.config_files[0]} line 2",
        }[present[0]]
    )
    assert resolved.origin(("mqtt", "port")) == ""


def test_places_fill_in_what_higher_ones_leave_out(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEASD_MQTT__PORT", "2")
    settings = load("mqtt: {host: file, port: 1, keepalive_s: 7}", {"mqtt": {"host": "flag", "port": None}})
    assert (settings.mqtt.host, settings.mqtt.port, settings.mqtt.keepalive_s) == ("flag", 2, 7)


def test_a_url_on_the_command_line_replaces_host_and_port_of_the_file(load: Load) -> None:
    mqtt = load("mqtt: {host: a, port: 8883, tls: true}", {"mqtt": {"url": "mqtt://b/site/one"}}).mqtt
    assert (mqtt.address, mqtt.tls, mqtt.base_topic, mqtt.url) == (("b", 1883), False, "site/one", "mqtt://b:1883")


@pytest.mark.parametrize(
    ("url", "address", "tls"),
    [
        ("mqtt://h", ("h", 1883), False),
        ("mqtts://h", ("h", 8883), True),
        ("mqtts://h:1/", ("h", 1), True),
        ("mqtt://[::1]:9", ("::1", 9), False),
    ],
)
def test_url_stands_for_host_port_and_tls(load: Load, url: str, address: tuple[str, int], *, tls: bool) -> None:
    mqtt = load(f"mqtt: {{url: '{url}'}}").mqtt
    assert (mqtt.address, mqtt.tls) == (address, tls)


def test_without_anything_the_defaults_hold(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load()
    assert settings.mqtt.address is None
    assert settings.alarm.false_alarms.per_hour == 12
    assert settings.state_dir == tmp_path / ".local" / "state" / "edgeasd"
    assert settings.client_id == f"edgeasd-{settings.node.name}"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edgeasd:/other")
    assert load().state_dir == Path("/var/lib/edgeasd")


def test_scalars_of_a_file_mean_what_they_look_like(load: Load) -> None:
    settings = load(
        "mqtt: {scores: off, client_id: 0123, username: no, protocol: 5}\nsources: [{device: 1:30, channel: 1}]"
    )
    assert (settings.mqtt.scores, settings.mqtt.client_id, settings.mqtt.username) == ("off", "0123", "no")
    assert (settings.sources[0].device, settings.sources[0].channel) == ("1:30", 1)


def test_paths_in_a_file_are_relative_to_it(load: Load, tmp_path: Path) -> None:
    settings = load("bundle: models/a.edgeasd\nstate_dir: ~/state\nmqtt: {ca_file: /etc/ca.pem}")
    assert settings.bundle == tmp_path / "models" / "a.edgeasd"
    assert settings.state_dir == tmp_path / "state"
    assert settings.mqtt.ca_file == Path("/etc/ca.pem")
    assert load(None, {"bundle": "b.edgeasd"}).bundle == Path("b.edgeasd")


def test_sources_from_the_environment_are_json(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEASD_SOURCES", '[{"name": "yard", "device": "hw:1", "channel": "mix"}]')
    (source,) = load("sources: [{name: file, device: x}]").sources
    assert (source.name, source.channel) == ("yard", "mix")


def test_variables_of_a_kubernetes_service_are_no_settings(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"EDGEASD_{name}", "tcp://10.0.0.1:80")
    assert load() == load()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"mqtt": {"port": 70000}}, "mqtt.port: 70000 is above 65535"),
        ({"mqtt": {"port": 0}}, "mqtt.port: 0 is below 1"),
        ({"mqtt": {"port": "http"}}, "mqtt.port: 'http' is not a whole number"),
        ({"mqtt": {"prot": 1}}, "mqtt.prot: unknown setting, did you mean mqtt.port?"),
        ({"mqtt": {"qqq": 1}}, "mqtt.qqq: unknown setting"),
        ({"mqtt": 7}, "mqtt: 7 is not a group of settings"),
        ({"mqtt": {"url": "http://h"}}, "mqtt.url: expected mqtt[s]://HOST[:PORT][/BASE/TOPIC]"),
        ({"mqtt": {"url": "mqtt://h:1", "port": 1}}, "mqtt.port: given in mqtt.url as well"),
        ({"mqtt": {"host": "a b"}}, "mqtt.host: 'a b' is not a host name or an IP address"),
        ({"mqtt": {"key_file": "k"}}, "mqtt.key_file: needs cert_file as well"),
        ({"mqtt": {"base_topic": "a/#"}}, f"mqtt.base_topic: 'a/#' is not {LEVELS}"),
        ({"mqtt": {"base_topic": "{0.__class__}"}}, f"mqtt.base_topic: '{{0.__class__}}' is not {LEVELS}"),
        ({"engine": "cuda"}, "engine: 'cuda' is not one of 'auto', 'onnx', 'torch', 'tensorrt'"),
        ({"sources": "x"}, "sources: 'x' is not a list"),
        ({"sources": [{}]}, "sources[0].device: must be given"),
        ({"sources": [{"device": "1"}]},
         "sources[0].device: 1 means another device after the next boot; give a name or hw:1"),
        ({"sources": [{"device": "x"}] * 129}, "sources: 129 are more than 128"),
        ({"sources": [{"device": "x", "channel": "left"}]},
         "sources[0].channel: 'left' is neither a channel number (0 to 63) nor mix"),
        ({"sources": [{"device": "x", "name": "Mic 1"}]},
         "sources[0].name: 'Mic 1' is not 1 to 64 characters out of a-z, 0-9, - and _"),
        ({"sources": [{"device": "x"}, {"device": "y"}]}, "sources: two are named mic0"),
        ({"sources": [{"device": "x"}, {"device": "x", "name": "b"}]},
         "sources: two listen to the same channel of the same device"),
        ({"windows": {"hop_s": 0}}, "windows.hop_s: 0 is below 0.01"),
        ({"windows": {"hop_s": "nan"}}, "windows.hop_s: nan is not a finite number"),
        ({"windows": {"max_backlog_s": 1e9}}, "windows.max_backlog_s: 1000000000.0 is above 300"),
        ({"alarm": {"false_alarms": "often"}}, "alarm.false_alarms: 'often' is not N/hour, N/day or N/week"),
        ({"alarm": {"false_alarms": 12}}, "alarm.false_alarms: 12 is not N/hour, N/day or N/week"),
        ({"alarm": {"false_alarms": "0/day"}}, "alarm.false_alarms: 0/day is not above 0 and at most 3600/hour"),
        ({"alarm": {"by": "model"}}, "alarm.by: model needs a bundle"),
        ({"alarm": {"by": "either"}}, "alarm.by: either needs a bundle"),
        ({"alarm": {"by": "novelty"}, "novelty": {"enabled": False}, "bundle": "a.edgeasd"},
         "alarm.by: novelty needs novelty.enabled: true"),
        ({"novelty": {"enabled": False}}, "novelty.enabled: without it and without a bundle nothing judges the sound"),
        ({"novelty": {"enabled": "maybe"}}, "novelty.enabled: 'maybe' is not true or false"),
        ({"bundle": "../../etc/passwd"}, "bundle: '../../etc/passwd' does not end in .edgeasd"),
        ({"state_dir": "a\0b"}, "state_dir: is not a path"),
        ({"node": {"name": ""}}, "node.name: '' is not 1 to 64 characters out of a-z, 0-9, - and _"),
        ({"_env_file": "/etc/shadow"}, "_env_file: unknown setting"),
        ({"self": 1}, "self: unknown setting"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(load: Load, flags: dict[str, Any], line: str) -> None:
    said = _line(load, None, flags)
    assert said.removesuffix(" (from the command line)") == line


def test_a_complaint_names_the_line_of_the_file(load: Load, places: Places) -> None:
    said = _line(load, "node:\n  name: a\nmqtt:\n\n  port: 70000\n")
    assert said == f"mqtt.port: 70000 is above 65535 (from {places.config_files[0]} line 5)"


def test_a_complaint_names_the_variable(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEASD_OUTBOX__MAX_MB", "-1")
    assert _line(load) == "outbox.max_mb: -1 is below 1 (from EDGEASD_OUTBOX__MAX_MB)"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("EDGEASD_MQT__HOST", "x", "EDGEASD_MQT__HOST: unknown setting (from the environment)"),
        ("EDGEASD_ENGINE__X", "x", "EDGEASD_ENGINE__X: unknown setting (from the environment)"),
        ("EDGEASD_MQTT__HOSTS", "x", "mqtt.hosts: unknown setting, did you mean mqtt.host? (from EDGEASD_MQTT__HOSTS)"),
        ("EDGEASD_SOURCES", "mic", "environment: not valid JSON: EDGEASD_SOURCES"),
        ("EDGEASD_SOURCES", "[" * 30000, "environment: not valid JSON: a variable nested too deep"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(name, value)
    assert _line(load) == line


def test_an_empty_variable_says_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEASD_METRICS__PORT", "")
    assert load().metrics.port is None


def test_several_complaints_are_counted_and_kept(load: Load) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        load(None, {"mqtt": {"port": 0}, "engine": "x", "zzz": 1})
    assert str(caught.value).endswith("(and 2 more: edgeasd config validate)")
    assert len(caught.value.lines) == 3


def test_a_missing_file_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"config: cannot read .*/none\.yaml: no such file or directory"):
        resolve_settings(tmp_path / "none.yaml")


def test_settings_cannot_be_changed(load: Load) -> None:
    settings: Any = load()
    with pytest.raises(ValueError, match="frozen"):
        settings.mqtt.port = 1
    with pytest.raises(ValueError, match="frozen"):
        settings.engine = "onnx"


@pytest.mark.parametrize(
    ("text", "per_hour"), [("12/hour", 12), ("2/day", 2 / 24), ("1/week", 1 / 168), ("0.5 per day", 0.5 / 24)]
)
def test_false_alarms_are_a_rate(text: str, per_hour: float) -> None:
    rate = Rate.parse(text)
    assert rate.per_hour == pytest.approx(per_hour)
    assert Rate.parse(str(rate)) == rate


def test_settings_that_change_nothing_are_named(load: Load) -> None:
    settings = load(None, {"engine": "onnx", "mqtt": {"port": 1}, "outbox": {"max_mb": 2}, "metrics": {"host": "::1"}})
    assert without_effect(settings) == (
        "mqtt.port has no effect: no broker is set",
        "outbox.max_mb has no effect: no broker is set",
        "metrics.host has no effect: metrics.port is not set",
        "engine has no effect unless a bundle is installed: none is set",
    )
    assert without_effect(load("mqtt: {host: far, ca_file: ca, username: u, password: p}")) == (
        "mqtt.ca_file has no effect: mqtt.tls is false, the line is not encrypted",
        "mqtt.password is sent unencrypted: set mqtt.tls",
    )
    assert without_effect(load("mqtt: {host: localhost, port: 1, username: u, password: p}")) == ()


def test_the_digest_follows_settings_but_not_secrets(load: Load) -> None:
    plain = digest(load("mqtt: {host: a, password: one}"))
    assert plain == digest(load("mqtt: {host: a, password: two}"))
    assert plain != digest(load("mqtt: {host: b, password: one}"))


def test_a_budget_in_the_environment_needs_no_json(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEASD_ALARM__FALSE_ALARMS", "2/day")

    assert load("").alarm.false_alarms == Rate(2, "day")
