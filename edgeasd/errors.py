"""The one tree of errors edgeasd raises on purpose, each with the exit code a shell or systemd sees.

Codes follow sysexits(3), so that `systemctl status` prints a name beside the number.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeasdError(Exception):
    """Anything edgeasd refuses or gives up on; its text is the one line a user reads."""

    exit_code: ClassVar[int] = 1


class UsageError(EdgeasdError):
    """Raised when flags or arguments contradict each other."""

    exit_code = 2


class BundleError(EdgeasdError):
    """Raised when a bundle is malformed, altered, or fails its golden test."""

    exit_code = 65


class InputError(EdgeasdError):
    """Raised when a recording is missing, unreadable or malformed."""

    exit_code = 66


class UnavailableError(EdgeasdError):
    """Raised when a device or an engine that was asked for cannot be had."""

    exit_code = 69


class SelfTestError(EdgeasdError):
    """Raised when a check that edgeasd runs on itself fails."""

    exit_code = 70


class CannotWriteError(EdgeasdError):
    """Raised when an output file or directory cannot be written."""

    exit_code = 73


class InputOutputError(EdgeasdError):
    """Raised when reading or writing fails half-way."""

    exit_code = 74


class TemporaryError(EdgeasdError):
    """Raised when trying again later may work, such as a second instance holding the state directory."""

    exit_code = 75


class NoPermissionError(EdgeasdError):
    """Raised when the process may not do what was asked, such as opening a sound card."""

    exit_code = 77


class SettingsError(EdgeasdError):
    """Raised when a setting is unknown, impossible or contradicts another."""

    exit_code = 78
