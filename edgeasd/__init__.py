"""Streaming acoustic anomaly detection for edge nodes."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("edgeasd")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
