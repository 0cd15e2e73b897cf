"""The example and the schema in deploy/ are what the code says, and agree with what it accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from edgeasd.errors import SettingsError
from edgeasd.settings import Places, Resolved, Settings, resolve_settings
from edgeasd.settings.complaints import section_of
from edgeasd.settings.document import example, explained, schema, shown

NOWHERE = Places(credential_dirs=(), config_files=())


def _resolve(tmp_path: Path, text: str) -> Resolved:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return resolve_settings(path, places=NOWHERE)


def _uncommented(text: str) -> str:
    return re.sub(r"^( *)#(?! \S)", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "render"), [("config.yaml", example), ("config.schema.json", schema)])
def test_deploy_holds_what_the_code_says(project_root: Path, name: str, render: Any) -> None:
    command = "init" if name == "config.yaml" else "schema"
    assert (project_root / "deploy" / name).read_text() == render(), f"edgeasd config {command} > deploy/{name}"


def test_the_example_changes_nothing(tmp_path: Path) -> None:
    assert _resolve(tmp_path, example()).settings == resolve_settings(places=NOWHERE).settings


def test_the_example_names_every_setting() -> None:
    document = yaml.safe_load(_uncommented(example()))
    assert list(document) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            held = document[name][0] if name == "sources" else document[name]
            assert [key for key in held if key != "url"] == list(section.model_fields)


def test_the_example_works_with_every_line_in_force(tmp_path: Path) -> None:
    alone = {"host", "port", "tls", "base_topic", "password_file"}  # url and password stand for the same
    lines = [
        line for line in _uncommented(example()).splitlines() if line.strip().partition(":")[0] not in alone
        or line.startswith("    ")
    ]  # fmt: skip
    settings = _resolve(tmp_path, "\n".join(lines)).settings
    assert settings.mqtt.address == ("broker.example.org", 1883)
    assert settings.sources[0].device == "hw:CARD=USB"


def test_every_setting_is_explained() -> None:
    for name, field in Settings.model_fields.items():
        section = section_of(field.annotation)
        assert explained(Settings).get(name) or (section and section.__doc__), name
        texts = explained(section) if section else {}
        for key in section.model_fields if section else ():
            assert texts.get(key, "").endswith("."), f"{name}.{key}"


def test_the_schema_is_a_schema_and_takes_the_example() -> None:
    document = json.loads(schema())
    jsonschema.Draft202012Validator.check_schema(document)
    validator = jsonschema.Draft202012Validator(document)
    validator.validate(yaml.safe_load(example()) or {})
    validator.validate({"mqtt": {"url": "mqtt://h"}, "sources": [{"device": "x", "channel": "mix"}]})


@pytest.mark.parametrize(
    "values",
    [
        {"mqtt": {"port": 70000}},
        {"mqtt": {"prot": 1}},
        {"engine": "cuda"},
        {"sources": [{"name": "a"}]},
        {"sources": [{"device": "x", "name": "A"}]},
        {"alarm": {"false_alarms": "often"}},
        {"unknown": 1},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_code_refuses(tmp_path: Path, values: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(json.loads(schema())).is_valid(values)
    with pytest.raises(SettingsError):
        _resolve(tmp_path, yaml.safe_dump(values))


def test_what_is_shown_says_where_it_is_from_and_can_be_read_back(tmp_path: Path) -> None:
    resolved = _resolve(
        tmp_path,
        "sources:\n- {name: a, device: 'hw:1'}\n- {name: b, device: x, channel: mix}\nmqtt:\n  host: h\n",
    )
    text = shown(resolved)
    assert f"  host: h  # from {tmp_path}/config.yaml line 5" in text
    assert "  port: null\n" in text
    assert _resolve(tmp_path, text).settings == resolved.settings
