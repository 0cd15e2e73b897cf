"""`edgeasd version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from edgeasd import __version__
from edgeasd.commands.common import JsonOption, print_json

_LIBRARIES = ("numpy", "scipy", "onnxruntime", "sounddevice", "soundfile", "soxr", "paho-mqtt", "torch", "tensorrt")


def version(*, as_json: JsonOption = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"edgeasd": __version__, "python": platform.python_version(), "libraries": libraries()})
    else:
        print(f"edgeasd {__version__}")


def libraries() -> dict[str, str | None]:
    """Return the versions of the libraries that matter, None for those that are not installed."""
    found: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            found[name] = version_of(name)
        except PackageNotFoundError:
            found[name] = None
    return found
