"""Options that several verbs share."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from edgeasd.errors import UsageError
from edgeasd.settings.types import Channel

_CHANNEL: TypeAdapter[Channel] = TypeAdapter(Channel)


def channel_of(text: str) -> Channel:
    """Return what --channel says: mix, or a number counted from 0; UsageError for anything else."""
    try:
        return _CHANNEL.validate_python(text)
    except ValidationError as exc:
        raise UsageError(f"--channel: {text!r} is neither a channel number (0 to 63) nor mix") from exc
