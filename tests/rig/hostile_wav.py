"""Hostile recordings by name, each with the refusal it earns or with what is to be read of it."""

from __future__ import annotations

import io
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")
N_FRAMES = 1000
PAYLOAD = np.random.default_rng(7).integers(-32768, 32768, N_FRAMES, dtype="<i2").tobytes()


def chunk(tag: bytes, body: bytes, *, n_bytes: int | None = None) -> bytes:
    return tag + struct.pack("<I", len(body) if n_bytes is None else n_bytes) + body + b"\0" * (len(body) % 2)


def fmt(
    tag: int = PCM,
    channels: int = 1,
    rate: int = 16000,
    bits: int = 16,
    *,
    align: int | None = None,
    extra: bytes = b"",
) -> bytes:
    align = channels * bits // 8 if align is None else align
    body = struct.pack("<HHIIHH", tag, channels % 65536, rate, rate * align % 2**32, align % 65536, bits)
    return chunk(b"fmt ", body + extra)


def riff(*chunks: bytes, form: bytes = b"RIFF", n_bytes: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return form + struct.pack("<I", len(body) if n_bytes is None else n_bytes) + body


def data(body: bytes = PAYLOAD, *, n_bytes: int | None = None) -> bytes:
    return chunk(b"data", body, n_bytes=n_bytes)


def ds64(data_bytes: int) -> bytes:
    return chunk(b"ds64", struct.pack("<QQQI", 2**63 - 1, data_bytes, 2**61, 0))


REFUSED: dict[str, tuple[bytes, str]] = {
    # name: (content, what the refusal says)
    "empty": (b"", "is empty"),
    "four_bytes": (b"RIFF", "not a WAV"),
    "twelve_bytes": (riff(), "no fmt"),
    "no_fmt": (riff(data()), "before its format"),
    "no_data": (riff(fmt()), "no data chunk"),
    "fmt_after_data": (riff(data(), fmt()), "before its format"),
    "two_fmt": (riff(fmt(), fmt(rate=8000), data()), "two fmt"),
    "two_fmt_behind": (riff(fmt(), data(), fmt(rate=8000)), "two fmt"),
    "short_fmt": (riff(chunk(b"fmt ", b"\1\0\1\0"), data()), "fmt chunk has 4 bytes"),
    "zero_data": (riff(fmt(), data(b"")), "no audio"),
    "zero_data_then_list": (riff(fmt(), data(b""), chunk(b"LIST", b"INFO" * 99)), "no audio"),
    "less_than_a_frame": (riff(fmt(channels=2), data(b"\0\0\0")), "no audio"),
    "no_channels": (riff(fmt(channels=0, align=2), data()), "0 channels"),
    "65535_channels": (riff(fmt(channels=65535), data()), "65535 channels"),
    "nine_channels": (riff(fmt(channels=9), data()), "9 channels"),
    "rate_0": (riff(fmt(rate=0), data()), "sample rate of 0"),
    "rate_3999": (riff(fmt(rate=3999), data()), "sample rate of 3999"),
    "rate_huge": (riff(fmt(rate=4294967295), data()), "sample rate of 4294967295"),
    "bits_0": (riff(fmt(bits=0, align=2), data()), "0-bit"),
    "bits_8": (riff(fmt(bits=8), data()), "8-bit"),
    "bits_33": (riff(fmt(bits=33, align=2), data()), "33-bit"),
    "float_16": (riff(fmt(FLOAT, bits=16), data()), "16-bit"),
    "align_0": (riff(fmt(align=0), data()), "0 bytes a frame"),
    "align_lies": (riff(fmt(align=7), data()), "7 bytes a frame"),
    "list_beyond_the_file": (riff(fmt(), chunk(b"LIST", b"", n_bytes=0xFFFFFFF0), data()), "no data chunk"),
    "200000_chunks": (riff(*[chunk(b"JUNK", b"")] * 200_000, fmt(), data()), "more than 1024 chunks"),
    "200000_chunks_behind": (riff(fmt(), data(), *[chunk(b"JUNK", b"")] * 200_000), "more than 1024 chunks"),
    "adpcm": (riff(fmt(2, bits=4, align=256, extra=b"\0" * 32), data()), "ADPCM"),
    "ima_adpcm": (riff(fmt(0x11, bits=4, align=256, extra=b"\0" * 4), data()), "IMA ADPCM"),
    "mu_law": (riff(fmt(7, bits=8), data()), "mu-law"),
    "a_law": (riff(fmt(6, bits=8), data()), "A-law"),
    "mp3_in_wav": (riff(fmt(0x55, bits=0, align=1), data()), "MP3"),
    "unknown_tag": (riff(fmt(0x1234), data()), "0x1234"),
    "extensible_short": (riff(fmt(EXTENSIBLE), data()), "extensible"),
    "extensible_odd": (riff(fmt(EXTENSIBLE, extra=b"\0" * 24), data()), "unknown extensible"),
    "extensible_adpcm": (
        riff(fmt(EXTENSIBLE, extra=struct.pack("<HHIH", 22, 16, 0, 2) + SUBFORMAT_TAIL), data()),
        "ADPCM",
    ),
    "flac": (b"fLaC" + b"\0" * 500, "holds FLAC"),
    "ogg": (b"OggS" + b"\0" * 500, "holds Ogg"),
    "mp3": (b"ID3\x04" + b"\0" * 500, "holds MP3"),
    "rifx": (riff(fmt(), data(), form=b"RIFX"), "big-endian"),
    "avi": (b"RIFF\x40\0\0\0AVI LIST" + b"\0" * 99, "not a WAV"),
    "html": (b"<!doctype html><title>404</title>" + b" " * 500, "not a WAV"),
    "pickle": (pickle.dumps({"a": [1] * 500}), "not a WAV"),
    "zeros": (b"\0" * 5000, "not a WAV"),
}

READ: dict[str, tuple[bytes, int, bool]] = {
    # name: (content, frames that are there, truncated)
    "data_size_0": (riff(fmt(), data(n_bytes=0)), N_FRAMES, False),
    "data_size_0_riff_size_0": (riff(fmt(), data(n_bytes=0), n_bytes=0), N_FRAMES, False),
    "data_size_ffffffff": (riff(fmt(), data(n_bytes=0xFFFFFFFF)), N_FRAMES, False),
    "data_size_80000000": (riff(fmt(), data(n_bytes=0x80000000)), N_FRAMES, False),
    "data_size_7fffffff": (riff(fmt(), data(n_bytes=0x7FFFFFFF)), N_FRAMES, False),
    "riff_size_0": (riff(fmt(), data(), n_bytes=0), N_FRAMES, False),
    "riff_size_ffffffff": (riff(fmt(), data(), n_bytes=0xFFFFFFFF), N_FRAMES, False),
    "truncated": (riff(fmt(), data(PAYLOAD[:-500], n_bytes=len(PAYLOAD))), N_FRAMES - 250, True),
    "truncated_within_a_frame": (riff(fmt(), data(PAYLOAD[:-501], n_bytes=len(PAYLOAD)))[:-1], N_FRAMES - 251, True),
    "odd_tail": (riff(fmt(channels=2), data(PAYLOAD[:1001])), 250, False),
    "rf64": (
        riff(ds64(len(PAYLOAD)), fmt(), data(n_bytes=0xFFFFFFFF), form=b"RF64", n_bytes=0xFFFFFFFF),
        N_FRAMES,
        False,
    ),
    "bw64": (
        riff(ds64(len(PAYLOAD)), fmt(), data(n_bytes=0xFFFFFFFF), form=b"BW64", n_bytes=0xFFFFFFFF),
        N_FRAMES,
        False,
    ),
    "rf64_lies": (riff(ds64(2**62), fmt(), data(n_bytes=0xFFFFFFFF), form=b"RF64", n_bytes=0xFFFFFFFF), N_FRAMES, True),
    "rf64_without_ds64": (riff(fmt(), data(n_bytes=0xFFFFFFFF), form=b"RF64", n_bytes=0xFFFFFFFF), N_FRAMES, False),
    "many_chunks": (riff(*[chunk(b"JUNK", b"odd")] * 1000, fmt(), data()), N_FRAMES, False),
    "chunk_beyond_the_end_behind": (riff(fmt(), data(), chunk(b"LIST", b"x", n_bytes=0xFFFFFFF0)), N_FRAMES, False),
    "garbage_behind": (riff(fmt(), data()) + b"\xff" * 333, N_FRAMES, False),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A file as it lies on the disk, and what must come of reading it."""

    name: str
    path: Path
    expected: str
    """What a refusal says, or `read: N frames`, with `truncated` behind it."""
    change: str = ""
    """What happens to the file once it is open: see `tests.rig.reader`."""

    def met_by(self, outcome: str) -> bool:
        """Return whether reading came to what is expected: the sound that is there, or one line of refusal."""
        if self.expected.startswith("read: "):
            return outcome == self.expected
        return outcome.startswith("refused: ") and self.expected in outcome and outcome.isprintable()


def lay_out(folder: Path) -> list[Case]:
    """Write the corpus into `folder`, which unprivileged users may enter, and return its cases."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    cases = [_lay(folder, f"{name}.wav", content, says) for name, (content, says) in REFUSED.items()]
    for name, (content, n_frames, truncated) in READ.items():
        cases.append(_lay(folder, f"{name}.wav", content, _whole(n_frames, truncated=truncated)))
    return [*cases, *_compressed(folder), *_large(folder), *_irregular(folder), *_changing(folder)]


def odd_floats() -> bytes:
    """Return half a minute of noise as a float WAV at 16 kHz; in it, two seconds apart, what no sound holds."""
    samples = np.random.default_rng(5).uniform(-0.1, 0.1, 30 * 16_000).astype("<f4")
    odd = [np.nan, np.inf, -np.inf, 3e38, -3e38, float(np.finfo(np.float32).max), 1e-42, -1e-45]
    for number, value in enumerate(odd):
        samples[(10 + 2 * number) * 16_000 + 4000] = value
    return riff(fmt(FLOAT, bits=32), data(samples.tobytes()))


def compressed(form: str, n_frames: int = 20_000) -> bytes:
    """Return noise at 16 kHz as a FLAC or OGG file."""
    import soundfile  # what only reads WAV does without

    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(6).uniform(-0.1, 0.1, n_frames), 16_000, format=form)
    return file.getvalue()


def _whole(n_frames: int, *, truncated: bool = False) -> str:
    return f"read: {n_frames} frames" + (" truncated" if truncated else "")


def _lay(folder: Path, name: str, content: bytes, expected: str, *, change: str = "") -> Case:
    path = folder / name
    path.write_bytes(content)
    return Case(name, path, expected, change)


def _compressed(folder: Path) -> list[Case]:
    flac, ogg = compressed("FLAC"), compressed("OGG")
    noise = np.random.default_rng(8).bytes(8 << 20)
    cases = {
        "whole.flac": (flac, _whole(20_000)),
        "whole.ogg": (ogg, _whole(20_000)),
        "truncated.flac": (flac[: len(flac) // 2], "damaged behind frame"),
        "header_only.flac": (flac[:100], "damaged behind frame"),
        "garbage_behind_header.flac": (flac[:86] + noise, "damaged behind frame"),
        "garbage.flac": (b"fLaC" + noise, "cannot be read as FLAC"),
        "zeros.flac": (b"fLaC" + b"\0" * (8 << 20), "cannot be read as FLAC"),
        "no_frame_count.flac": (_claiming(flac, 0), "does not say how long it is"),
        "huge_frame_count.flac": (_claiming(flac, 2**36 - 1), "does not say how long it is"),
        "riff_named.flac": (riff(fmt(), data()), "does not hold the FLAC"),
        "header_only.ogg": (ogg[:3000], "cannot be read as OGG"),
        "garbage.ogg": (b"OggS" + noise, "cannot be read as OGG"),
        "garbage_behind_header.ogg": (ogg[:5000] + noise, "holds no audio"),
        "empty.ogg": (b"", "does not hold the OGG"),
        "flac_inside.wav": (riff(fmt(0xF1AC), data(flac)), "holds FLAC"),
        "ogg_inside.wav": (riff(fmt(0x674F), data(ogg)), "unknown format"),
    }
    return [_lay(folder, name, content, expected) for name, (content, expected) in cases.items()]


def _claiming(flac: bytes, n_frames: int) -> bytes:
    """Return a FLAC file whose header claims so many frames."""
    content = bytearray(flac)
    content[21] = content[21] & 0xF0 | n_frames >> 32
    content[22:26] = (n_frames & 0xFFFF_FFFF).to_bytes(4, "big")
    return bytes(content)


def _large(folder: Path) -> list[Case]:
    """Files that are large, or claim to be; sparse, so that they take no room."""
    widest = folder / "widest.wav"
    n_bytes = 64 * 768_000
    with widest.open("wb") as file:
        file.write(riff(fmt(FLOAT, 8, 384_000, 64), data(b"", n_bytes=n_bytes)))
        file.truncate(file.tell() + n_bytes)
    described = folder / "a_thousand_descriptions.wav"
    head = riff(fmt())
    with described.open("wb") as file:
        file.write(head)
        for _ in range(1000):
            file.write(b"bext" + struct.pack("<I", 1 << 20))
            file.seek(1 << 20, os.SEEK_CUR)
        file.write(data())
    return [Case(widest.name, widest, _whole(32_000)), Case(described.name, described, _whole(N_FRAMES))]


def _irregular(folder: Path) -> list[Case]:
    target = _lay(folder, "forbidden.wav", riff(fmt(), data()), "permission denied", change="unprivileged")
    target.path.chmod(0)
    os.mkfifo(folder / "pipe.wav")
    os.mkfifo(folder / "pipe.flac")
    (folder / "folder.wav").mkdir()
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "to_a_device.wav").symlink_to("/dev/zero")
    (folder / "link.wav").symlink_to("odd_tail.wav")
    says = {
        "pipe.wav": "not a regular file",
        "pipe.flac": "not a regular file",
        "folder.wav": "is a directory",
        "loop.wav": "symbolic links",
        "to_a_device.wav": "not a regular file",
        "link.wav": _whole(READ["odd_tail"][1]),
        "missing.wav": "no such file",
        "nul\0.wav": "not a valid file name",
        "/dev/zero": "not a regular file",
        "/proc/self/mem": "input/output error",
    }
    return [target, *(Case(name, folder / name, expected) for name, expected in says.items())]


def _changing(folder: Path) -> list[Case]:
    whole = riff(fmt(), data())
    changes = {"grows": _whole(N_FRAMES), "replaced": _whole(N_FRAMES), "shrinks": _whole(400, truncated=True)}
    return [_lay(folder, f"{change}.wav", whole, expected, change=change) for change, expected in changes.items()]
