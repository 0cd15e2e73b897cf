"""The mel front end: its filters, its decibels, its borders."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import pytest

from edgeasd.features.mel import MelBank, MelFrontEnd, MelSpec, StftPower, mel_points_hz

SCALES: list[Literal["htk", "slaney"]] = ["htk", "slaney"]
NORMS: list[Literal["none", "slaney"]] = ["none", "slaney"]


def noise(n_samples: int, *, seed: int = 0, gain: float = 0.1) -> np.ndarray:
    white = np.random.default_rng(seed).standard_normal(n_samples)
    samples: np.ndarray = (white * gain).astype(np.float32)
    return samples


def naive_log_mel(samples: np.ndarray, spec: MelSpec) -> np.ndarray:
    """Mel by definition, in double precision, frame by frame."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.n_fft) / spec.n_fft)
    columns = []
    for first in range(0, len(samples) - spec.n_fft + 1, spec.hop_frames):
        power = np.abs(np.fft.rfft(samples[first : first + spec.n_fft].astype(float) * hann)) ** 2
        columns.append(spec.filter_bank().astype(float) @ power)
    decibels: np.ndarray = 10 * np.log10(np.maximum(np.array(columns).T, spec.floor))
    return decibels


@pytest.mark.parametrize("mel_scale", SCALES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n_mels", "f_min_hz", "f_max_hz"), [(32, 0.0, None), (64, 50.0, 7000.0), (128, 0.0, 7800.0)])
def test_agrees_with_torchaudio(
    mel_scale: Literal["htk", "slaney"],
    norm: Literal["none", "slaney"],
    n_mels: int,
    f_min_hz: float,
    f_max_hz: float | None,
) -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchaudio.transforms")
    spec = MelSpec(n_mels=n_mels, f_min_hz=f_min_hz, f_max_hz=f_max_hz, mel_scale=mel_scale, norm=norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchaudio mentions bands that hold no FFT bin
        twin = transforms.MelSpectrogram(
            16000, 1024, hop_length=400, f_min=f_min_hz, f_max=f_max_hz, n_mels=n_mels, center=False,
            norm=None if norm == "none" else norm, mel_scale=mel_scale,
        )  # fmt: skip
    samples = noise(32000)
    theirs = 10 * np.log10(np.maximum(twin(torch.from_numpy(samples)).numpy(), spec.floor))
    ours = MelFrontEnd(spec).window_log_mel(samples)
    assert ours.shape == theirs.shape == (n_mels, spec.n_frames(32000))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mel_scale", SCALES)
def test_filter_bank_agrees_with_librosa(mel_scale: Literal["htk", "slaney"], norm: Literal["none", "slaney"]) -> None:
    filters = pytest.importorskip("librosa.filters")
    spec = MelSpec(n_mels=64, f_min_hz=20.0, mel_scale=mel_scale, norm=norm)
    theirs = filters.mel(
        sr=16000, n_fft=1024, n_mels=64, fmin=20.0, htk=mel_scale == "htk", norm=None if norm == "none" else norm
    )
    np.testing.assert_allclose(spec.filter_bank(), theirs, rtol=0, atol=1e-7)


def test_agrees_with_the_definition_in_double_precision() -> None:
    spec = MelSpec(n_mels=32)
    samples = noise(16000)
    np.testing.assert_allclose(MelFrontEnd(spec).window_log_mel(samples), naive_log_mel(samples, spec), atol=1e-3)


def test_a_tone_lands_in_the_band_whose_edges_hold_it() -> None:
    spec = MelSpec(n_mels=32)
    tone = np.sin(2 * np.pi * 1234.0 * np.arange(16000) / 16000).astype(np.float32)
    low_hz, high_hz = spec.band_edges_hz()[np.argmax(MelFrontEnd(spec).window_log_mel(tone).mean(axis=1))]
    assert low_hz <= 1234.0 <= high_hz


@pytest.mark.parametrize("mel_scale", SCALES)
def test_band_edges_tile_the_axis(mel_scale: Literal["htk", "slaney"]) -> None:
    spec = MelSpec(n_mels=40, mel_scale=mel_scale, rows=(8, 24))
    edges = spec.band_edges_hz()
    corners = mel_points_hz(spec)
    assert edges.shape == (16, 2)
    np.testing.assert_allclose(edges[1:, 0], edges[:-1, 1])
    assert np.all(corners[8:24] < edges[:, 0])
    assert np.all(edges[:, 1] < corners[10:26])


def test_cropped_rows_are_the_rows_of_the_whole_bank() -> None:
    samples = noise(16000)
    whole = MelFrontEnd(MelSpec(n_mels=64)).window_log_mel(samples)
    part = MelFrontEnd(MelSpec(n_mels=64, rows=(16, 48))).window_log_mel(samples)
    np.testing.assert_array_equal(part, whole[16:48])


def test_power_scale_is_the_decibels_undone() -> None:
    samples = noise(16000)
    power = MelFrontEnd(MelSpec(n_mels=32, scale="power")).window_log_mel(samples)
    decibels = MelFrontEnd(MelSpec(n_mels=32)).window_log_mel(samples)
    np.testing.assert_allclose(10 * np.log10(power), decibels, atol=1e-4)


def test_silence_reaches_the_floor_in_both_modes() -> None:
    silence = np.zeros(16000, np.float32)
    clamp = MelFrontEnd(MelSpec(floor=1e-8)).window_log_mel(silence)
    added = MelFrontEnd(MelSpec(floor=1e-8, floor_mode="add")).window_log_mel(silence)
    np.testing.assert_allclose(clamp, -80.0, atol=1e-3)
    np.testing.assert_allclose(added, -80.0, atol=1e-3)


def test_floor_modes_differ_where_sound_is_near_the_floor() -> None:
    samples = noise(16000)
    clamp = MelFrontEnd(MelSpec(n_mels=32, floor=1.0)).window_log_mel(samples)
    added = MelFrontEnd(MelSpec(n_mels=32, floor=1.0, floor_mode="add")).window_log_mel(samples)
    expected = 10 * np.log10(10 ** (MelFrontEnd(MelSpec(n_mels=32)).window_log_mel(samples) / 10.0) + 1.0)
    assert np.all(clamp >= 0.0)
    np.testing.assert_allclose(added, expected, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sound_that_is_not_finite_spoils_its_own_frames_only(bad: float) -> None:
    samples = noise(16000)
    clean = MelFrontEnd(MelSpec()).window_log_mel(samples)
    samples[8000] = bad
    spoilt = MelFrontEnd(MelSpec()).window_log_mel(samples)
    touched = [f for f in range(38) if f * 400 <= 8000 < f * 400 + 1024]
    assert not np.isfinite(spoilt[:, touched]).all()
    others = np.delete(np.arange(38), touched)
    np.testing.assert_array_equal(spoilt[:, others], clean[:, others])


def test_frames_are_counted_without_padding() -> None:
    spec = MelSpec()
    assert [spec.n_frames(n) for n in (0, 1023, 1024, 1423, 1424, 16000)] == [0, 0, 1, 1, 2, 38]
    assert MelFrontEnd(spec).window_log_mel(noise(1000)).shape == (64, 0)
    assert StftPower(1024, 400).push(noise(1000)).shape == (0, 513)


def test_bank_takes_no_frames() -> None:
    assert MelBank(MelSpec(n_mels=32)).log_mel(np.empty((0, 513), np.float32)).shape == (0, 32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_mels", 0),
        ("sample_rate_hz", 0),
        ("n_fft", 1023),
        ("hop_frames", 0),
        ("hop_frames", 2048),
        ("f_min_hz", 9000.0),
        ("f_max_hz", 9000.0),
        ("floor", 0.0),
        ("rows", (3, 3)),
        ("rows", (0, 65)),
    ],
)
def test_impossible_specs_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        MelSpec(**{field: value})  # type: ignore[arg-type]
