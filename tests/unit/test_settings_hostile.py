"""Hostile files, secrets that must not leak, and whatever Hypothesis comes up with."""

from __future__ import annotations

import os
import time
import traceback
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeasd.errors import SettingsError
from edgeasd.settings import Places, Settings, resolve_settings
from edgeasd.settings.document import shown

pytestmark = pytest.mark.usefixtures("bare_environment")

CANARY = "c4n4ry-Passw0rd"

NOWHERE = Places(credential_dirs=(), config_files=())


def _load(path: Path) -> Settings:
    return resolve_settings(path, places=NOWHERE).settings


def _config(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe\x00", "is not UTF-8 (byte 0)"),
        (b"node: {name: caf\xe9}", "is not UTF-8 (byte 16)"),
        ("#" * (256 * 1024 + 1), "is larger than 256 KiB"),
        ("- a\n- b\n", "expected settings as `key: value`"),
        ("hello", "expected settings as `key: value`"),
        ("a: [1, 2", " line 2: did not find expected ',' or ']'"),
        ("node:\n\tname: x", " line 2: found character that cannot start any token"),
        ("engine: onnx\nengine: torch\n", " line 2: 'engine' is given twice"),
        ("a: &x [1]\nb: *x\n", " line 2: aliases (*name) are not accepted"),
        ("&a [*a]", "line 1: aliases (*name) are not accepted"),
        ("a: !!python/object/apply:os.system ['id']", " line 1: tags (!name) are not accepted"),
        ("a: !!int 3", " line 1: tags (!name) are not accepted"),
        ("engine: onnx\n---\nengine: torch\n", " line 2: a second document starts"),
        ("? [a]\n: 1\n", " line 1: a key must be a word"),
        ("a: " + "[" * 9 + "]" * 9, " line 1: nested too deep"),
        ("{" * 200_000, " line 1: a key must be a word"),
        ("a: " + "[" * 200_000, "nested too deep"),
        ("a: \x01", "control characters are not allowed"),
        ("a: 'x", "found unexpected end of stream"),
    ],
    ids=range(19),
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = _config(tmp_path, content)
    started = time.perf_counter()
    with pytest.raises(SettingsError) as caught:
        _load(path)
    assert time.perf_counter() - started < 1.0
    assert problem in str(caught.value)
    assert str(caught.value).startswith("config: ")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_of_aliases_costs_nothing(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(SettingsError, match="aliases"):
        _load(_config(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
    "content", ["", "# nothing\n", "---\n", "~", "node:\nmqtt:\n  # host: x\nsources:\n", "\ufeff"]
)
def test_a_file_that_says_nothing_is_fine(tmp_path: Path, content: str) -> None:
    assert _load(_config(tmp_path, content)) == resolve_settings(places=NOWHERE).settings


def test_only_files_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(SettingsError, match=r"is not a file|is a directory"):
            _load(path)


def test_a_loop_of_links_is_one_line(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    with pytest.raises(SettingsError, match="cannot read"):
        _load(loop)


@pytest.mark.parametrize(
    "text",
    [
        "windows: {hop_s: -1}",
        "windows: {hop_s: 0}",
        "windows: {hop_s: 61}",
        "windows: {hop_s: .nan}",
        "windows: {max_backlog_s: 1e9}",
        "alarm: {false_alarms: nan/day}",
        "alarm: {release_s: .nan}",
        "windows: {hop_s: 1e400}",
        "windows: {hop_s: .inf}",
        "windows: {max_backlog_s: 99999999999999999999}",
        "outbox: {max_mb: 1000000000000000000000000000000}",
        "health_interval_s: 0",
        "mqtt: {base_topic: '{0.__class__}'}",
        'mqtt: {client_id: "a\\0b"}',
        "mqtt: {keepalive_s: 5.5}",
        "bundle: ../../../etc/passwd",
        'bundle: "model\\0.edgeasd"',
        "node: {name: ../x}",
        "node: {name: 'a/b'}",
        "log: {level: ''}",
        "metrics: {host: 'a;b'}",
        "sources: {device: x}",
        "sources: [x]",
        "sources: [{device: ''}]",
        "sources: [{device: x, native_rate_hz: 0}]",
        "sources: [{device: x, channel: -1}]",
        "sources: [{device: x, channel: true}]",
        "threads: 10000",
        "novelty: [true]",
        "engine: [onnx]",
        '"\\x1b[31m": 1',
    ],
)  # fmt: skip
def test_impossible_values_are_one_printable_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(_config(tmp_path, text))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_password_file_wins_over_a_password(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{CANARY}\n")
    (tmp_path / "secret").chmod(0o600)
    loaded = _load(_config(tmp_path, "mqtt: {username: u, password: other, password_file: secret}"))
    assert loaded.mqtt.password is not None
    assert loaded.mqtt.password.get_secret_value() == CANARY


def test_a_higher_password_replaces_a_lower_password_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEASD_MQTT__PASSWORD", CANARY)
    loaded = _load(_config(tmp_path, "mqtt: {password_file: /nowhere}"))
    assert loaded.mqtt.password is not None
    assert (loaded.mqtt.password.get_secret_value(), loaded.mqtt.password_file) == (CANARY, None)


def test_credentials_stand_for_user_password_and_certificates(tmp_path: Path) -> None:
    for name in ("mqtt-username", "mqtt-password", "mqtt-ca", "mqtt-client-cert", "mqtt-client-key"):
        (tmp_path / name).write_text(name)
    places = Places(credential_dirs=(tmp_path / "absent", tmp_path), config_files=())
    mqtt = resolve_settings(None, {"mqtt": {"url": "mqtts://h"}}, places=places).settings.mqtt
    assert mqtt.password is not None
    assert (mqtt.username, mqtt.password.get_secret_value()) == ("mqtt-username", "mqtt-password")
    assert (mqtt.ca_file, mqtt.cert_file, mqtt.key_file) == (
        tmp_path / "mqtt-ca",
        tmp_path / "mqtt-client-cert",
        tmp_path / "mqtt-client-key",
    )


@pytest.mark.parametrize("mode", [0o644, 0o604])
def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    secret.chmod(mode)
    with pytest.raises(SettingsError, match=r"mqtt.password_file: .*secret can be read by everybody; chmod 600 it"):
        _load(_config(tmp_path, "mqtt: {password_file: secret}"))
    config = _config(tmp_path, f"mqtt: {{password: {CANARY}}}")
    config.chmod(mode)
    with pytest.raises(SettingsError, match=r"mqtt.password: .*config.yaml can be read by everybody") as caught:
        _load(config)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b"\xff", b"a\0b", b"x" * 65_537])
def test_a_password_file_without_a_password_is_refused(tmp_path: Path, content: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(content)
    secret.chmod(0o600)
    with pytest.raises(SettingsError, match=r"mqtt\.password_file: "):
        _load(_config(tmp_path, "mqtt: {password_file: secret}"))


@pytest.mark.parametrize(
    "flags", [{"mqtt": {"password": CANARY}}, {"mqtt": {"url": f"mqtt://u:{CANARY}@h"}}], ids=["password", "url"]
)
def test_a_password_on_the_command_line_is_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="on the command line every user can read it") as caught:
        resolve_settings(None, flags, places=NOWHERE)
    assert CANARY not in str(caught.value)


def _told(path: Path) -> str:
    """Everything that could reach a screen or a log when this file is loaded, whether it is right or wrong."""
    try:
        resolved = resolve_settings(path, places=NOWHERE)
    except SettingsError as exc:
        return "".join(traceback.format_exception(exc))
    return "\n".join([repr(resolved), str(resolved.settings), shown(resolved), resolved.settings.model_dump_json()])


@pytest.mark.parametrize(
    "text",
    [
        "mqtt: {host: h, username: u, password: CANARY}",
        "mqtt: {url: 'mqtt://u:CANARY@h'}",
        "mqtt: {url: 'mqtt://u:CANARY@h:port'}",
        "mqtt: {url: 'http://u:CANARY@h'}",
        "mqtt: {url: 'mqtt://u:CANARY@h', username: u}",
        "mqtt: {url: ['mqtt://u:CANARY@h']}",
        "mqtt: {password: [CANARY]}",
        "mqtt: {password: CANARY, port: 0}",
        "mqtt: {password: CANARY, nonsense: 1}",
        "mqtt: {password: CANARY, protocol: 3.1.1}",
        "mqtt: [CANARY]",
        "mqtt: {password: 'CANARY",
        "mqtt: {password: CANARY, password: CANARY}",
        "mqtt: {password: *CANARY}",
        "engine: x\nmqtt: {password: CANARY}",
    ],
)
def test_a_password_is_never_shown(tmp_path: Path, text: str) -> None:
    assert CANARY not in _told(_config(tmp_path, text.replace("CANARY", CANARY)))


_NAMES = st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True)
_PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_categories=("Cc", "Cs"))
_TEXTS = st.text(_PRINTABLE, min_size=1, max_size=30)

_SOURCE: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": _NAMES, "device": _TEXTS.map("card {}".format), "channel": st.integers(0, 63) | st.just("mix")},
    optional={"native_rate_hz": st.integers(4000, 384000)},
)
_SOURCES: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    _SOURCE, max_size=4, unique_by=(itemgetter("name"), itemgetter("device"))
)

GOOD = st.fixed_dictionaries(
    {},
    optional={
        "node": st.fixed_dictionaries({"name": _NAMES}),
        "engine": st.sampled_from(["auto", "onnx", "torch", "tensorrt"]),
        "sources": _SOURCES,
        "windows": st.fixed_dictionaries({"hop_s": st.floats(0.01, 60), "max_backlog_s": st.floats(2, 300)}),
        "alarm": st.fixed_dictionaries(
            {"false_alarms": st.builds("{}/{}".format, st.integers(1, 3600), st.sampled_from(["hour", "day", "week"]))}
        ),
        "mqtt": st.fixed_dictionaries(
            {"host": st.just("h"), "port": st.integers(1, 65535), "tls": st.booleans(), "username": _TEXTS},
            optional={"password": _TEXTS, "scores": st.sampled_from(["window", "second", "off"])},
        ),
        "metrics": st.fixed_dictionaries({"port": st.integers(1, 65535) | st.none()}),
    },
)


@given(values=GOOD)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_written_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = _config(tmp_path_factory.mktemp("round"), yaml.safe_dump(values, allow_unicode=True, width=10_000))
    assert _load(path) == resolve_settings(None, None, places=NOWHERE).settings.model_validate(values)
