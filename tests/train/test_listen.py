"""Recordings as a node hears them, without the clock: the same scores as from whole windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.engine import open_engine
from edgeasd.errors import InputError
from edgeasd.features.mel import MelFrontEnd
from edgeasd.records import FloatArray
from edgeasd_train.listen import hear, read_samples
from tests.small_bundle import SPEC, WINDOW_FRAMES, small_answers, write_small_bundle

RATE_HZ = SPEC.sample_rate_hz


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path_factory.mktemp("bundle") / "small.edgeasd"))


def noise(n_frames: int, *, seed: int = 0) -> FloatArray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n_frames)).astype(np.float32)


def write(path: Path, samples: FloatArray) -> Path:
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    return path


@pytest.mark.parametrize("hop_frames", [128, 100])  # on the mel grid, and off it
def test_windows_are_scored_as_each_would_be_alone(tmp_path: Path, bundle: Bundle, hop_frames: int) -> None:
    samples = noise(20_000)
    path = write(tmp_path / "noise.wav", samples)
    heard = hear(path, bundle, open_engine(bundle, "onnx"), hop_s=hop_frames / RATE_HZ)
    firsts = np.arange(0, 20_000 - WINDOW_FRAMES + 1, hop_frames)
    np.testing.assert_array_equal(heard.first_frames, firsts)
    front_end = MelFrontEnd(SPEC)
    alone = np.stack([front_end.window_log_mel(samples[first : first + WINDOW_FRAMES]) for first in firsts])
    assert heard.log_mel is not None
    np.testing.assert_array_equal(heard.log_mel, alone)
    assert heard.outputs.score == pytest.approx(small_answers(alone)["score"], rel=1e-4)
    assert heard.outputs.residual is not None
    assert len(heard.outputs.residual) == len(firsts)
    assert heard.outputs.reconstruction is None


def test_a_recording_shorter_than_a_window_is_repeated(tmp_path: Path, bundle: Bundle) -> None:
    samples = noise(200, seed=1)
    heard = hear(write(tmp_path / "short.wav", samples), bundle, open_engine(bundle, "onnx"), hop_s=0.064)
    assert heard.first_frames.tolist() == [0]
    np.testing.assert_array_equal(heard.samples, np.resize(samples, WINDOW_FRAMES))


def test_one_channel_can_be_chosen_and_a_recording_without_sound_is_refused(tmp_path: Path) -> None:
    left, right = noise(500, seed=2), noise(500, seed=3)
    path = tmp_path / "two.wav"
    soundfile.write(path, np.stack([left, right], axis=1), RATE_HZ, subtype="FLOAT")
    np.testing.assert_array_equal(read_samples(path, rate_hz=RATE_HZ, channel=1), right)
    assert read_samples(path, rate_hz=RATE_HZ) == pytest.approx((left + right) / 2, abs=1e-6)
    soundfile.write(tmp_path / "empty.wav", np.empty(0, np.float32), RATE_HZ)
    with pytest.raises(InputError, match=r"no sound|empty"):
        read_samples(tmp_path / "empty.wav", rate_hz=RATE_HZ)
