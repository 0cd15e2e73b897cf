from __future__ import annotations

from datetime import UTC, datetime

import pytest

from edgeasd.capture.timestamps import start_utc_ns
from edgeasd.capture.wav import WavInfo

RATE_HZ = 16_000


def info(*, bext: bytes | None = None, guano: bytes | None = None) -> WavInfo:
    return WavInfo(RATE_HZ, 1, 1000, "pcm16", truncated=False, bext=bext, guano=guano)


def bext(date: str, clock: str, n_frames: int = 0) -> bytes:
    """The first 346 bytes of a broadcast extension chunk, and some of the rest."""
    return b"\0" * 320 + date.encode() + clock.encode() + n_frames.to_bytes(8, "little") + b"\0" * 256


def iso(name: str, about: WavInfo | None = None) -> str | None:
    began_ns = start_utc_ns(name, about)
    if began_ns is None:
        return None
    seconds, rest_ns = divmod(began_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1000, tzinfo=None).isoformat()


@pytest.mark.parametrize(
    ("name", "began"),
    [
        ("20260115_063000.wav", "2026-01-15T06:30:00"),
        ("SMM01234_20260115_063000.wav", "2026-01-15T06:30:00"),
        ("2026-01-15T06-30-00Z.flac", "2026-01-15T06:30:00"),
        ("hall_2026-01-15_06-30-00_ch1.WAV", "2026-01-15T06:30:00"),
        ("20260115T063000Z.wav", "2026-01-15T06:30:00"),
        ("20190416T093000+1000_REC.wav", "2019-04-15T23:30:00"),
        ("20190416T093000-0430.wav", "2019-04-16T14:00:00"),
        ("20260115_063000-1000.wav", "2026-01-15T06:30:00"),
        ("20260115_063000T.WAV", "2026-01-15T06:30:00"),
        ("S4A01_20260115$063000.wav", "2026-01-15T06:30:00"),
        ("20260115063000.wav", "2026-01-15T06:30:00"),
        ("99999999_20260115_063000.wav", "2026-01-15T06:30:00"),
        ("5E1A6B80.WAV", "2020-01-12T00:42:40"),
        ("clip.wav", None),
        ("20261315_063000.wav", None),
        ("20260115_256000.wav", None),
        ("18990101_000000.wav", None),
        ("120260115_063000.wav", None),
        ("20260115.wav", None),
        ("DEADBEEFCAFE.wav", None),
        ("00000000.wav", None),
    ],
)
def test_file_name_tells_when(name: str, began: str | None) -> None:
    assert iso(name) == began


@pytest.mark.parametrize(
    ("line", "began"),
    [
        ("Timestamp: 2016-03-12T21:02:24.123-05:00", "2016-03-13T02:02:24.123000"),
        ("Timestamp: 2016-03-12T21:02:24Z", "2016-03-12T21:02:24"),
        ("Timestamp:2016-03-12T21:02:24", "2016-03-12T21:02:24"),
        ("Timestamp: yesterday", None),
        ("Timestamp: 0001-01-01T00:00:00+14:00", None),
        ("Timestamp Note: 2016-03-12T21:02:24Z", None),
        ("Timestamp: 1970-01-01T00:00:00Z", None),
    ],
)
def test_guano_tells_when(line: str, began: str | None) -> None:
    guano = f"GUANO|Version: 1.0\nMake: X\n{line}\nNote: \xe4\0".encode()
    assert iso("clip.wav", info(guano=guano)) == began


@pytest.mark.parametrize(
    ("chunk", "began"),
    [
        (bext("2026-01-15", "06:30:00"), "2026-01-15T06:30:00"),
        (bext("2026:01:15", "06-30-00"), "2026-01-15T06:30:00"),
        (bext("2026-01-15", "06:30:00", RATE_HZ * 23400 + RATE_HZ // 4), "2026-01-15T06:30:00.250000"),
        (bext("2026-01-15", "06:30:00", RATE_HZ * 1000), "2026-01-15T06:30:00"),
        (bext("2026-01-15", "06:30:00", 2**64 - 1), "2026-01-15T06:30:00"),
        (bext("\0" * 10, "\0" * 8), None),
        (bext("2026-99-15", "06:30:00"), None),
        (b"short", None),
    ],
)
def test_bext_tells_when(chunk: bytes, began: str | None) -> None:
    assert iso("clip.wav", info(bext=chunk)) == began


def test_guano_goes_before_bext_before_the_name() -> None:
    both = info(bext=bext("2026-01-02", "00:00:00"), guano=b"Timestamp: 2026-01-01T00:00:00Z")
    assert iso("20260103_000000.wav", both) == "2026-01-01T00:00:00"
    assert iso("20260103_000000.wav", info(bext=bext("2026-01-02", "00:00:00"))) == "2026-01-02T00:00:00"
    assert iso("20260103_000000.wav", info(guano=b"\xff\xfe garbage")) == "2026-01-03T00:00:00"
