"""From validation errors to lines a technician can act on: which setting, what is wrong, where it was given."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from edgeasd.settings.types import PATTERN_WORDS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_SECRET_KEYS = frozenset({"password", "url"})
_MAX_SHOWN = 60


def dotted(path: Sequence[str | int]) -> str:
    """Return a path as it is written: sources[0].device."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def complaint(error: ErrorDetails, *, model: type[BaseModel], where: Callable[[Sequence[str | int]], str]) -> str:
    """Return one line for one error; `where` tells the place a setting came from."""
    path = list(error["loc"])
    if error["type"] == "contradiction":
        name, _, problem = error["ctx"]["text"].partition(": ")
        path += name.split(".")
    else:
        problem = _PROBLEMS.get(error["type"], _other)(error)
    if error["type"] == "extra_forbidden":
        problem = "unknown setting" + _hint(path, model)
    origin = where(path)
    return f"{_printable(dotted(path))}: {problem}" + (f" (from {origin})" if origin else "")


def _shown(error: ErrorDetails) -> str:
    value = error["input"]
    if error["loc"] and error["loc"][-1] in _SECRET_KEYS:
        return "the value"
    if isinstance(value, dict):
        return "a group of settings"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) and not _is_number(value) else str(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isprintable() and text.strip() == text


def _printable(text: str) -> str:
    safe = "".join(char if char.isprintable() else "?" for char in text)
    return safe if len(safe) <= 2 * _MAX_SHOWN else safe[: 2 * _MAX_SHOWN - 3] + "..."


def _is_not(kind: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"{_shown(error)} is not {kind}"


def _limit(word: str, key: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"{_shown(error)} is {word} {error['ctx'][key]:g}"


def _choice(error: ErrorDetails) -> str:
    return f"{_shown(error)} is not one of {error['ctx']['expected']}".replace(" or ", ", ")


def _pattern(error: ErrorDetails) -> str:
    return f"{_shown(error)} is not {PATTERN_WORDS[error['ctx']['pattern']]}"


def _own(error: ErrorDetails) -> str:
    return str(error["ctx"]["error"])


def _other(error: ErrorDetails) -> str:
    return f"{_shown(error)}: {error['msg'][:1].lower()}{error['msg'][1:]}"


_WHOLE, _NUMBER, _SWITCH = _is_not("a whole number"), _is_not("a number"), _is_not("true or false")
_GROUP, _LIST, _TEXT = _is_not("a group of settings"), _is_not("a list"), _is_not("text")

_PROBLEMS: dict[str, Callable[[ErrorDetails], str]] = {
    "missing": lambda _: "must be given",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": _is_not("a finite number"),
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "string_type": _TEXT,
    "string_too_long": lambda error: f"longer than {error['ctx']['max_length']} characters",
    "string_pattern_mismatch": _pattern,
    "literal_error": _choice,
    "greater_than": _limit("not above", "gt"),
    "greater_than_equal": _limit("below", "ge"),
    "less_than": _limit("not below", "lt"),
    "less_than_equal": _limit("above", "le"),
    "too_long": lambda error: f"{error['ctx']['actual_length']} are more than {error['ctx']['max_length']}",
    "model_type": _GROUP,
    "model_attributes_type": _GROUP,
    "tuple_type": _LIST,
    "path_type": _is_not("a path"),
    "value_error": _own,
    "extra_forbidden": lambda _: "unknown setting",
}


def _hint(path: Sequence[str | int], model: type[BaseModel]) -> str:
    """Name the setting that was probably meant."""
    for part in path[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = section_of(model.model_fields[part].annotation) or model
    names = [*model.model_fields, *(["url"] if "host" in model.model_fields and "tls" in model.model_fields else [])]
    near = difflib.get_close_matches(str(path[-1]), names, n=1)
    return f", did you mean {dotted([*path[:-1], near[0]])}?" if near else ""


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the group of settings that a type holds, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section_of(arg))), None)
