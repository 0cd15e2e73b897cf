"""Log lines: for a terminal, for the journal, or as JSON. The one place that configures logging."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

Form = Literal["auto", "journal", "json", "text"]

_JOURNAL_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{_stamp(record)} {record.levelname.lower()} {_line(self, record)}"


class _Journal(logging.Formatter):
    """The journal has its own clock, and takes the level from the front of the line (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_JOURNAL_LEVELS.get(record.levelno, 6)}>{_line(self, record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "ts": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _line(self, record),
        }
        return json.dumps(fields)


class _Stderr(logging.StreamHandler[TextIO]):
    """The one handler, kept when logging is set up anew: it has a descriptor of its own."""


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + formatter.formatException(record.exc_info)
    return text


def set_up_logging(*, level: str, form: Form) -> None:
    """Send log lines to stderr, in the form asked for; auto knows the journal by JOURNAL_STREAM (systemd.exec(5))."""
    if form == "auto":
        form = "journal" if _stderr_is_journal() else "text"
    root = logging.getLogger()
    handler = next((each for each in root.handlers if isinstance(each, _Stderr)), None) or _Stderr(_own_stderr())
    handler.setFormatter({"journal": _Journal, "json": _Json, "text": _Text}[form]())
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def _own_stderr() -> TextIO:
    """Return stderr by a descriptor of our own: PortAudio's start points the common one to /dev/null for a while."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1, encoding="utf-8")
    except (OSError, ValueError):  # not a file: somebody captures it
        return sys.stderr


def _stderr_is_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isdecimal() and inode.isdecimal()):
        return False
    status = os.fstat(sys.stderr.fileno())
    return (status.st_dev, status.st_ino) == (int(device), int(inode))
