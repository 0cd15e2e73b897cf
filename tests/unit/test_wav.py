from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeasd.capture.wav import WavReader
from edgeasd.errors import InputError
from edgeasd.records import FloatArray
from tests.rig.hostile_wav import EXTENSIBLE, FLOAT, N_FRAMES, PAYLOAD, PCM, READ, SUBFORMAT_TAIL, data, fmt, riff


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
