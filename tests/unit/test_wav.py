from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeasd.capture.wav import WavReader
from edgeasd.errors import InputError
from edgeasd.records import FloatArray

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")
N_FRAMES = 1000
PAYLOAD = np.random.default_rng(7).integers(-32768, 32768, N_FRAMES, dtype="<i2").tobytes()
LIMIT_S = 0.1


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


def read_all(path: Path, *, block_frames: int = 300) -> tuple[FloatArray, WavReader]:
    with WavReader(path) as reader:
        blocks = [reader.read(block_frames)]
        while len(blocks[-1]):
            blocks.append(reader.read(block_frames))
        return np.concatenate(blocks), reader


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "x.wav"
        path.write_bytes(content)
        return path

    return write


SAMPLES = np.random.default_rng(3).uniform(-1, 1, (N_FRAMES, 2))


def encoded(encoding: str) -> tuple[bytes, int, int]:
    """Return the samples as bytes, the format tag and the bits of a sample."""
    if encoding == "pcm24":
        wide = np.round(SAMPLES * (2**23 - 1)).astype("<i4")
        return wide.view(np.uint8).reshape(N_FRAMES, 2, 4)[:, :, :3].tobytes(), PCM, 24
    if encoding.startswith("pcm"):
        bits = int(encoding[3:])
        return np.round(SAMPLES * (2 ** (bits - 1) - 1)).astype(f"<i{bits // 8}").tobytes(), PCM, bits
    bits = int(encoding[5:])
    return SAMPLES.astype(f"<f{bits // 8}").tobytes(), FLOAT, bits


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("encoding", ["pcm16", "pcm24", "pcm32", "float32", "float64"])
def test_every_encoding_reads_back(put: Callable[[bytes], Path], encoding: str, extensible: bool) -> None:
    body, tag, bits = encoded(encoding)
    extra = struct.pack("<HHIH", 22, bits, 3, tag) + SUBFORMAT_TAIL if extensible else b""
    path = put(riff(fmt(EXTENSIBLE if extensible else tag, 2, 48000, bits, extra=extra), data(body)))
    samples, reader = read_all(path)
    assert samples.dtype == np.float32
    assert (reader.info.rate_hz, reader.info.n_channels, reader.info.n_frames) == (48000, 2, N_FRAMES)
    assert reader.info.encoding == encoding
    assert not reader.truncated
    step = 2.0 ** (1 - bits) if tag == PCM else 0
    np.testing.assert_allclose(samples, SAMPLES, atol=1.6 * step + 1e-7)


def test_sixteen_bits_are_exact_at_both_ends(put: Callable[[bytes], Path]) -> None:
    body = np.array([-32768, -1, 0, 1, 32767], dtype="<i2").tobytes()
    samples, _ = read_all(put(riff(fmt(), data(body))))
    np.testing.assert_array_equal(samples[:, 0] * 32768, [-32768, -1, 0, 1, 32767])


def test_twenty_four_bits_keep_their_sign(put: Callable[[bytes], Path]) -> None:
    body = bytes([0, 0, 0x80, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF, 0x7F])
    samples, _ = read_all(put(riff(fmt(bits=24), data(body))))
    np.testing.assert_array_equal(samples[:, 0] * 2**23, [-(2**23), -1, 1, 2**23 - 1])


@pytest.mark.parametrize("n_channels", [1, 3, 8])
@pytest.mark.parametrize("rate_hz", [4000, 384_000])
def test_limits_themselves_are_read(put: Callable[[bytes], Path], n_channels: int, rate_hz: int) -> None:
    samples, _ = read_all(put(riff(fmt(channels=n_channels, rate=rate_hz), data(PAYLOAD[: n_channels * 20]))))
    assert samples.shape == (10, n_channels)


REFUSED = {
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


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_sentence_and_at_once(put: Callable[[bytes], Path], case: str) -> None:
    content, says = REFUSED[case]
    path = put(content)
    began = time.perf_counter()
    with pytest.raises(InputError) as refused:
        WavReader(path)
    assert time.perf_counter() - began < LIMIT_S
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message


READ = {
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


@pytest.mark.parametrize("case", READ)
def test_reads_what_is_there(put: Callable[[bytes], Path], case: str) -> None:
    content, n_frames, truncated = READ[case]
    samples, reader = read_all(put(content))
    assert reader.truncated == truncated
    expected = np.frombuffer(PAYLOAD, "<i2")[: samples.size].reshape(samples.shape) / 32768
    assert len(samples) == n_frames
    np.testing.assert_array_equal(samples, expected)


def test_what_float_can_hold_passes_through_to_the_health_check(put: Callable[[bytes], Path]) -> None:
    odd = [np.nan, np.inf, -np.inf, 3e38, 1e-42, 1.0]
    samples, _ = read_all(put(riff(fmt(FLOAT, bits=32), data(np.array(odd, dtype="<f4").tobytes()))))
    np.testing.assert_array_equal(samples[:, 0], np.array(odd, dtype=np.float32))
    samples, _ = read_all(put(riff(fmt(FLOAT, bits=64), data(np.array([1e300, np.nan, 0.5], dtype="<f8").tobytes()))))
    np.testing.assert_array_equal(samples[:, 0], np.array([np.inf, np.nan, 0.5], dtype=np.float32))


def test_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    forbidden = {
        tmp_path / "pipe.wav": "not a regular file",
        Path("/dev/zero"): "not a regular file",
        tmp_path: "a directory",
        tmp_path / "missing.wav": "no such file",
        tmp_path / "nul\0.wav": "not a valid file name",
    }
    for path, says in forbidden.items():
        began = time.perf_counter()
        with pytest.raises(InputError, match=says):
            WavReader(path)
        assert time.perf_counter() - began < LIMIT_S


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_refuses_what_it_may_not_read(put: Callable[[bytes], Path]) -> None:
    path = put(riff(fmt(), data()))
    path.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        WavReader(path)


def test_follows_a_link_it_is_given(put: Callable[[bytes], Path], tmp_path: Path) -> None:
    link = tmp_path / "link.wav"
    link.symlink_to(put(riff(fmt(), data())))
    samples, _ = read_all(link)
    assert len(samples) == N_FRAMES


def test_odd_file_names_do_not_break_the_message(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/line\nbreak\xff.wav"))
    path.write_bytes(b"")
    with pytest.raises(InputError) as refused:
        WavReader(path)
    assert "\n" not in str(refused.value)
    str(refused.value).encode()


def test_file_that_shrinks_while_it_is_read_ends_early(put: Callable[[bytes], Path]) -> None:
    path = put(riff(fmt(), data()))
    with WavReader(path) as reader:
        assert len(reader.read(300)) == 300
        os.truncate(path, 44 + 2 * 400 + 1)
        assert len(reader.read(300)) == 100
        assert reader.truncated
        assert len(reader.read(300)) == 0


def test_file_that_grows_or_is_replaced_while_it_is_read_stays_what_it_was(put: Callable[[bytes], Path]) -> None:
    path = put(riff(fmt(), data()))
    with WavReader(path) as reader:
        with path.open("ab") as file:
            file.write(b"\1" * 5000)
        other = path.with_name("other")
        other.write_bytes(b"<html>")
        other.replace(path)
        assert len(reader.read(5000)) == N_FRAMES


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    n_bytes = 400 << 20
    with path.open("wb") as file:
        file.write(riff(fmt(), data(b"", n_bytes=n_bytes)))
        file.truncate(44 + n_bytes)  # sparse
    tracemalloc.start()
    with WavReader(path) as reader:
        n_read = 0
        for _ in range(100):
            n_read += len(reader.read(64_000))
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_read == 6_400_000
    assert peak < 4 << 20


VALID = riff(
    chunk(b"bext", b"\0" * 700),
    fmt(),
    chunk(b"LIST", b"INFO"),
    data(PAYLOAD[:200]),
    chunk(b"guan", b"GUANO|Version: 1.0"),
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8),
    length=st.integers(0, len(VALID)),
)
def test_no_mangled_file_does_more_than_be_refused(
    put: Callable[[bytes], Path], edits: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(VALID)
    for at, value in edits:
        content[at] = value
    began = time.perf_counter()
    try:
        samples, _ = read_all(put(bytes(content[: length or None])))
        assert samples.size <= len(VALID) // 2
    except InputError:
        pass
    assert time.perf_counter() - began < LIMIT_S
