"""The site calibration: what a bundle's scores mean where this node stands. It lies in the state directory and wins."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from edgeasd.bundle import Bundle, CalibrationTable
from edgeasd.disk import read_small, replace_file
from edgeasd.errors import CannotWriteError, SettingsError
from edgeasd.manifest import Precision

_MAX_BYTES = 1 << 20


def site_path(state_dir: Path, bundle: Bundle, precision: Precision = "fp32") -> Path:
    """Return where the calibration of a bundle lies: its name holds the bundle's digest, so it fits no other."""
    of_fewer_bits = "" if precision == "fp32" else f"-{precision}"
    return state_dir / f"calibration-{bundle.sha256[:16]}{of_fewer_bits}.json"


def site_calibration(state_dir: Path, bundle: Bundle, precision: Precision = "fp32") -> CalibrationTable | None:
    """Return the site calibration of a bundle in a precision, None where there is none.

    SettingsError when it is damaged.
    """
    path = site_path(state_dir, bundle, precision)
    try:
        return CalibrationTable.model_validate_json(read_small(path, max_bytes=_MAX_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as exc:
        raise SettingsError(f"{path}: the site calibration cannot be read; repeat `edgeasd calibrate`") from exc


def save_site_calibration(
    state_dir: Path, bundle: Bundle, table: CalibrationTable, precision: Precision = "fp32"
) -> Path:
    """Put a site calibration in its place at once, or not at all; CannotWriteError says why not."""
    path = site_path(state_dir, bundle, precision)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc
    replace_file(path, table.model_dump_json(indent=1).encode())
    return path
