"""The kinds of value a setting can have, and what to say of one that is not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import NoDecode

_SLUG = r"^[a-z0-9_-]{1,64}$"
_TEXT = r"^[^\x00-\x1f\x7f]{1,256}$"
_HOST = r"^[A-Za-z0-9_.:-]{1,253}$"
_TOPIC = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){0,7}$"

PATTERN_WORDS = {
    _SLUG: "1 to 64 characters out of a-z, 0-9, - and _",
    _TEXT: "1 to 256 characters without control characters",
    _HOST: "a host name or an IP address",
    _TOPIC: "up to eight levels of letters, digits, - . and _ with / between them",
}
"""What each pattern asks for, as an operator reads it."""

Slug = Annotated[str, StringConstraints(pattern=_SLUG)]
Text = Annotated[str, StringConstraints(pattern=_TEXT)]
Host = Annotated[str, StringConstraints(pattern=_HOST)]
Topic = Annotated[str, StringConstraints(pattern=_TOPIC, max_length=128)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


def contradiction(text: str) -> PydanticCustomError:
    """Return the error for settings that exclude each other; `text` starts with the name of the one to change."""
    return PydanticCustomError("contradiction", "{text}", {"text": text})


def _path(value: object) -> object:
    if isinstance(value, str | Path):
        text = str(value)
        if not text.strip() or "\0" in text:
            raise ValueError("is not a path")
        return Path(text).expanduser()
    return value


def _bundle_path(value: object) -> object:
    path = _path(value)
    if isinstance(path, Path) and path.suffix != ".edgeasd":
        raise ValueError(f"{str(path)!r} does not end in .edgeasd")
    return path


AnyPath = Annotated[Path, BeforeValidator(_path)]
BundlePath = Annotated[Path, BeforeValidator(_bundle_path)]


def _channel(value: object) -> object:
    text = str(value).strip()
    if text == "mix":
        return text
    if not re.fullmatch(r"[0-9]{1,2}", text) or int(text) > 63 or isinstance(value, bool):
        raise ValueError(f"{text!r} is neither a channel number (0 to 63) nor mix")
    return int(text)


def _device(value: str) -> str:
    if value.isdigit():
        raise ValueError(f"{value} means another device after the next boot; give a name or hw:{value}")
    return value


Device = Annotated[Text, AfterValidator(_device)]
Channel = Annotated[int | Literal["mix"], BeforeValidator(_channel)]

Period = Literal["hour", "day", "week"]
_PERIOD_HOURS = {"hour": 1, "day": 24, "week": 168}
_RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(?:/|per)\s*(hour|day|week)", re.ASCII)
_MOST_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen, as an operator writes it: 12/hour, 2/day, 1/week."""

    count: float
    period: Period

    def __post_init__(self) -> None:
        assert self.period in get_args(Period)

    @property
    def per_hour(self) -> float:
        """Return events per hour."""
        return self.count / _PERIOD_HOURS[self.period]

    def __str__(self) -> str:
        return f"{self.count:f}".rstrip("0").rstrip(".") + f"/{self.period}"

    @classmethod
    def parse(cls, value: object) -> Rate:
        """Read `N/hour`, `N/day` or `N/week`; raise ValueError for anything else."""
        if isinstance(value, Rate):
            return value
        found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"{_shown(value)} is not N/hour, N/day or N/week")
        rate = cls(count=float(found[1]), period=found[2])  # type: ignore[arg-type]  # the pattern allows no other
        if not 0 < rate.per_hour <= _MOST_PER_HOUR:
            raise ValueError(f"{value} is not above 0 and at most {_MOST_PER_HOUR}/hour")
        return rate


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


FalseAlarmRate = Annotated[
    Rate,
    NoDecode,  # an environment variable holds 12/hour as it is, no JSON
    BeforeValidator(Rate.parse),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_RATE.pattern}$", "examples": ["12/hour", "2/day"]}),
]
