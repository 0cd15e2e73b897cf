"""Training hears what the node hears: torchaudio's log mel against the node's own, within 1e-3 dB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import FloatArray
from edgeasd_train.features import MelTwin
from tests.conftest import MakeSoundscape

SPECS = {
    "default": MelSpec(),
    "slaney": MelSpec(n_mels=128, hop_frames=512, mel_scale="slaney", norm="slaney", floor_mode="add", floor=1e-12),
    "upper half": MelSpec(n_mels=128, rows=(64, 128)),
    "third quarter": MelSpec(n_mels=256, rows=(128, 192)),
    "band limited": MelSpec(sample_rate_hz=22050, n_fft=2048, hop_frames=512, f_min_hz=280.0, f_max_hz=7600.0),
    "short": MelSpec(sample_rate_hz=8000, n_fft=256, hop_frames=100, n_mels=40),
}


def both(spec: MelSpec, samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    twin: FloatArray = MelTwin(spec)(torch.from_numpy(samples)).numpy()
    return twin, MelFrontEnd(spec).window_log_mel(samples)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("gain_db", [0.0, -40.0])
def test_generated_sound_gives_the_same_log_mel(name: str, gain_db: float, make_soundscape: MakeSoundscape) -> None:
    spec = SPECS[name]
    scape = make_soundscape(4.0, seed=1, rate_hz=spec.sample_rate_hz, events=((1.0, 2.0),))
    twin, own = both(spec, scape.samples * np.float32(10 ** (gain_db / 20)))
    assert twin.shape == own.shape == (spec.n_rows, spec.n_frames(len(scape.samples)))
    assert float(np.abs(twin - own).max()) <= 1e-3


def test_real_recordings_give_the_same_log_mel(recordings: Path) -> None:
    import soundfile

    for path in sorted((recordings / "streams").glob("*.flac")):
        samples, rate_hz = soundfile.read(path, frames=20 * 16000, dtype="float32")
        twin, own = both(MelSpec(sample_rate_hz=rate_hz), samples)
        assert float(np.abs(twin - own).max()) <= 1e-3, path.name


def test_linear_power_agrees_as_well(make_soundscape: MakeSoundscape) -> None:
    twin, own = both(MelSpec(scale="power"), make_soundscape(2.0, seed=2).samples)
    np.testing.assert_allclose(twin, own, rtol=1e-4, atol=1e-9)


def test_silence_sits_on_the_floor_in_both() -> None:
    twin, own = both(MelSpec(), np.zeros(16000, np.float32))
    assert np.array_equal(twin, np.full((64, 38), -100.0, np.float32))
    assert np.abs(twin - own).max() <= 1e-3


def test_a_batch_of_waveforms_is_the_same_as_each_alone(make_soundscape: MakeSoundscape) -> None:
    waves = torch.from_numpy(make_soundscape(3.0, seed=3).samples.reshape(3, 16000))
    twin = MelTwin(MelSpec())
    torch.testing.assert_close(twin(waves), torch.stack([twin(wave) for wave in waves]), rtol=0, atol=1e-4)
