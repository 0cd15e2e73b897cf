"""The shared front end: each window gets what it would get alone, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import FloatArray, Window
from edgeasd.scoring.front import SharedFrontEnd

WIDE = MelSpec(sample_rate_hz=8000, n_fft=256, hop_frames=64, n_mels=16)
CROPPED = replace(WIDE, n_mels=24, floor=1e-8, floor_mode="add", rows=(2, 20), mel_scale="slaney", norm="slaney")
WINDOW_FRAMES = 1000  # not a whole number of mel frames: samples are left over behind the last one


def _sound(n_frames: int, *, seed: int = 0) -> FloatArray:
    return (0.2 * np.random.default_rng(seed).standard_normal(n_frames)).astype(np.float32)


def _windows(sound: FloatArray, *, hop_frames: int, breaks: Sequence[int] = ()) -> list[Window]:
    """Cut windows; those numbered in `breaks` do not follow: a stretch of sound before them is lost."""
    windows: list[Window] = []
    first_frame = 0
    while first_frame + WINDOW_FRAMES <= len(sound):
        follows = bool(windows) and len(windows) not in breaks
        windows.append(Window("mic0", first_frame, sound[first_frame : first_frame + WINDOW_FRAMES].copy(), 0, follows))
        first_frame += hop_frames + (37 if len(windows) in breaks else 0)
    return windows


def _check(windows: Sequence[Window], *, hop_frames: int, seed: int) -> None:
    specs = (WIDE, CROPPED)
    shared = SharedFrontEnd(specs, window_frames=WINDOW_FRAMES, hop_frames=hop_frames)
    alone = [MelFrontEnd(spec) for spec in specs]
    random = np.random.default_rng(seed)
    start = 0
    while start < len(windows):
        batch = windows[start : start + int(random.integers(1, 8))]
        for front, spec, rows in zip(alone, specs, shared.push(batch, [w.samples for w in batch]), strict=True):
            assert len(rows) == len(batch)
            for window, found in zip(batch, rows, strict=True):
                assert found.shape == (spec.n_rows, spec.n_frames(WINDOW_FRAMES))
                np.testing.assert_array_equal(found, front.window_log_mel(window.samples))
        start += len(batch)


@pytest.mark.parametrize("hop_frames", [64, 128, 320, 768, 832, 960])
def test_every_window_gets_what_it_would_get_alone(hop_frames: int) -> None:
    # 768 and more leave frames between two windows that none of them covers.
    windows = _windows(_sound(12_000), hop_frames=hop_frames)
    assert len(windows) > 10
    for seed in range(3):
        _check(windows, hop_frames=hop_frames, seed=seed)


@pytest.mark.parametrize("hop_frames", [64, 320, 960])
def test_windows_behind_a_gap_start_afresh(hop_frames: int) -> None:
    for seed, breaks in enumerate([(1,), (3, 4, 5), (7,), (2, 9, 10)]):
        windows = _windows(_sound(16_000, seed=seed), hop_frames=hop_frames, breaks=breaks)
        _check(windows, hop_frames=hop_frames, seed=seed)


def test_a_hop_of_the_whole_window_shares_nothing() -> None:
    sound = _sound(8 * 1024)
    specs = (WIDE,)
    shared = SharedFrontEnd(specs, window_frames=1024, hop_frames=1024)
    windows = [Window("mic0", 1024 * i, sound[1024 * i : 1024 * (i + 1)], 0, i > 0) for i in range(8)]
    for start, stop in ((0, 1), (1, 4), (4, 5), (5, 8)):
        batch = windows[start:stop]
        (rows,) = shared.push(batch, [window.samples for window in batch])
        for window, found in zip(batch, rows, strict=True):
            np.testing.assert_array_equal(found, MelFrontEnd(WIDE).window_log_mel(window.samples))


def test_a_first_window_that_claims_to_follow_is_taken_whole() -> None:
    window = Window("mic0", 0, _sound(WINDOW_FRAMES), 0, follows=True)
    (rows,) = SharedFrontEnd((WIDE,), window_frames=WINDOW_FRAMES, hop_frames=64).push([window], [window.samples])
    np.testing.assert_array_equal(rows[0], MelFrontEnd(WIDE).window_log_mel(window.samples))


def test_nothing_in_nothing_out() -> None:
    assert SharedFrontEnd((WIDE, CROPPED), window_frames=WINDOW_FRAMES, hop_frames=64).push([], []) == [[], []]


def test_hostile_samples_do_not_reach_later_windows() -> None:
    windows = _windows(_sound(6000), hop_frames=512, breaks=(3,))
    specs = (WIDE,)
    shared = SharedFrontEnd(specs, window_frames=WINDOW_FRAMES, hop_frames=512)
    shared.push(windows[:3], [np.full(WINDOW_FRAMES, np.nan, np.float32) for _ in range(3)])
    (rows,) = shared.push(windows[3:5], [window.samples for window in windows[3:5]])
    for window, found in zip(windows[3:5], rows, strict=True):
        np.testing.assert_array_equal(found, MelFrontEnd(WIDE).window_log_mel(window.samples))
