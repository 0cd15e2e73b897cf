"""When a recording began: from what is written in the file, or in its name.

Times without a zone are taken as UTC, as recorders that are set up for analysis keep it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from edgeasd.capture.wav import WavInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""What lies outside was never set, or is no time."""

_IN_NAME = re.compile(
    r"(?<!\d)(\d{4})([-_.]?)(\d\d)\2(\d\d)"  # 20260115, 2026-01-15
    r"(?P<t>[T_ $-]?)"
    r"(\d\d)([-_.:]?)(\d\d)\7(\d\d)(?!\d)"  # 063000, 06-30-00
    r"(?P<zone>Z|[+-]\d{4}(?!\d))?"
)
_HEX_NAME = re.compile(r"(?<![0-9A-Za-z])([0-9A-F]{8})(?![0-9A-Za-z])")


def start_utc_ns(name: str, info: WavInfo | None = None) -> int | None:
    """Return when a recording began, UTC nanoseconds since 1970: from GUANO, BWF, then its file name; else None."""
    began: datetime | None = None
    if info is not None and info.guano is not None:
        began = _plausible(_from_guano(info.guano))
    if began is None and info is not None and info.bext is not None:
        began = _plausible(_from_bext(info.bext, info.rate_hz))
    if began is None:
        began = _from_name(name)
    if began is None:
        return None
    since = began - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000


def _plausible(moment: datetime | None) -> datetime | None:
    return moment if moment is not None and _FIRST <= moment < _LAST else None


def _from_guano(raw: bytes) -> datetime | None:
    for line in raw.decode("utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Timestamp":
            try:
                moment = datetime.fromisoformat(value.strip(" \t\0"))
                return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            except (ValueError, OverflowError):
                return None
    return None


def _from_bext(raw: bytes, rate_hz: int) -> datetime | None:
    """Take OriginationDate and OriginationTime, refined by TimeReference where that tells the same time of day."""
    date, clock = raw[320:330], raw[330:338]
    digits = re.fullmatch(rb"(\d{4}).(\d\d).(\d\d)(\d\d).(\d\d).(\d\d)", date + clock, re.DOTALL)
    if digits is None or len(raw) < 346:
        return None
    coarse = _moment([int(part) for part in digits.groups()])
    if coarse is None:
        return None
    n_frames = int.from_bytes(raw[338:346], "little")
    if n_frames >= 86_400 * rate_hz:
        return coarse
    fine = coarse.replace(hour=0, minute=0, second=0) + timedelta(seconds=n_frames / rate_hz)
    return fine if n_frames and abs(fine - coarse) < timedelta(seconds=1.5) else coarse


def _from_name(name: str) -> datetime | None:
    for match in _IN_NAME.finditer(name):
        numbers = [int(match[index]) for index in (1, 3, 4, 6, 8, 9)]
        zone = match["zone"] if match["t"] == "T" else None  # elsewhere -1000 is some other number
        moment = _plausible(_moment(numbers, zone=zone))
        if moment is not None:
            return moment
    for match in _HEX_NAME.finditer(name):  # AudioMoth: seconds since 1970
        moment = _plausible(_EPOCH + timedelta(seconds=int(match[1], 16)))
        if moment is not None and moment.year >= 2015:
            return moment
    return None


def _moment(numbers: list[int], *, zone: str | None = None) -> datetime | None:
    year, month, day, hour, minute, second = numbers
    ahead = timedelta(0)
    if zone is not None and zone != "Z":
        ahead = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:])) * (-1 if zone[0] == "-" else 1)
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone(ahead)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
