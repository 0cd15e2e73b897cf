"""Settings on paper: the JSON schema, a commented example, and what is in force with where it came from."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edgeasd.settings.complaints import section_of
from edgeasd.settings.load import Resolved
from edgeasd.settings.model import Settings, SourceSettings, dump
from edgeasd.settings.mqtt import URL_DOC, MqttSettings

_HEADER = """\
Settings of an edgeasd node. Everything is optional; a line behind # holds a default or an example.
Flags and EDGEASD_ variables (EDGEASD_MQTT__HOST) win over this file, and so do credentials. Paths are relative to it.
Check it with `edgeasd config validate FILE`; `edgeasd config schema` prints a JSON schema for editors.
"""
_PLAIN = re.compile(r"(?!(?:on|off|yes|no|true|false|null|y|n)$)[A-Za-z/][A-Za-z0-9_./:=-]*")
_WIDTH = 112


def explained(section: type[BaseModel]) -> dict[str, str]:
    """Return what stands under each setting in the source.

    pydantic gives the same with `use_attribute_docstrings`, but reads all the sources at every start of a node.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        setting.target.id: inspect.cleandoc(text.value.value)
        for setting, text in pairwise(tree.body)
        if isinstance(setting, ast.AnnAssign) and isinstance(setting.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def schema() -> str:
    """Return the JSON schema of a configuration file."""
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}
    _explain(document["properties"], Settings)
    for name, field in Settings.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:  # one whose lines are all comments is null
            _explain(document["$defs"][section.__name__]["properties"], section)
            found = document["properties"][name]
            document["properties"][name] = {"anyOf": [found, {"type": "null"}]}
    return json.dumps(document, indent=2) + "\n"


def example() -> str:
    """Return a configuration file that changes nothing and explains everything."""
    lines = [f"# {line}" for line in _HEADER.splitlines()]
    texts = explained(Settings)
    for name, field in Settings.model_fields.items():
        section = section_of(field.annotation)
        lines.append("")
        if section is None:
            lines += [*_comment(texts[name], ""), f"#{name}: {_scalar(_sample(field))}"]
        else:
            lines += [*_comment(section.__doc__, ""), f"{name}:", *_section(section)]
    return "\n".join(lines) + "\n"


def shown(resolved: Resolved) -> str:
    """Return the settings in force as YAML, each that is not a default with the place it came from, secrets hidden."""
    return "\n".join(_show(dump(resolved.settings), (), resolved)) + "\n"


def _explain(properties: dict[str, Any], section: type[BaseModel]) -> None:
    for name, text in explained(section).items():
        properties[name] = dict(sorted({**properties[name], "description": text}.items()))


def _section(section: type[BaseModel]) -> Iterator[str]:
    if section is MqttSettings:
        yield from _comment(URL_DOC, "  ")
        yield "  #url: mqtt://broker.example.org:1883"
    marks = iter(("- ",)) if section is SourceSettings else iter(())
    indent = "  " if section is SourceSettings else ""
    texts = explained(section)
    for name, field in section.model_fields.items():
        yield from _comment(texts[name], "  ")
        yield f"  #{next(marks, indent)}{name}: {_scalar(_sample(field))}"


def _comment(text: str | None, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(text or "", _WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False)


def _sample(field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    return "secret" if field.default is None else field.default


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _show(value: Any, path: tuple[str | int, ...], resolved: Resolved) -> Iterator[str]:
    indent = "  " * len(path)
    for key, inner in value.items():
        here = (*path, key)
        if isinstance(inner, dict):
            yield f"{indent}{key}:"
            yield from _show(inner, here, resolved)
        elif isinstance(inner, list):
            yield f"{indent}{key}:" + ("" if inner else " []")
            for index, item in enumerate(inner):
                first, *rest = _show(item, (*here, index), resolved)
                yield "- ".join((first[: len(indent) + 2], first[len(indent) + 4 :]))
                yield from rest
        else:
            origin = resolved.origin(here)
            yield f"{indent}{key}: {_scalar(inner)}" + (f"  # from {origin}" if origin else "")
