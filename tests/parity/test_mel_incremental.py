"""Incremental log mel equals the whole window, to the last bit, however the sound arrives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeasd.features.mel import MelBank, MelFrontEnd, MelSpec, StftPower

SOUND = (np.random.default_rng(7).standard_normal(80_000) * 0.1).astype(np.float32)


def in_blocks(front: MelFrontEnd, sound: np.ndarray, blocks: list[int]) -> np.ndarray:
    """Push `sound` in blocks of the given lengths, over and over, and return (k, n_rows)."""
    rows, first, turn = [], 0, 0
    while first < len(sound):
        size = blocks[turn % len(blocks)]
        rows.append(front.push(sound[first : first + size]))
        first, turn = first + size, turn + 1
    return np.concatenate(rows)


@pytest.mark.parametrize("n_mels", [32, 64, 128])
@pytest.mark.parametrize("floor_mode", ["clamp", "add"])
@pytest.mark.parametrize("blocks", [[80_000], [8000], [400], [1600], [1], [1023, 1, 4097], [441, 160, 20_000]])
def test_blocks_of_any_length_give_the_same_bits(n_mels: int, floor_mode: str, blocks: list[int]) -> None:
    sound = SOUND[:9000] if blocks == [1] else SOUND
    front = MelFrontEnd(MelSpec(n_mels=n_mels, floor_mode=floor_mode))  # type: ignore[arg-type]
    np.testing.assert_array_equal(in_blocks(front, sound, blocks).T, front.window_log_mel(sound))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=12))
def test_random_blocks_give_the_same_bits(blocks: list[int]) -> None:
    front = MelFrontEnd(MelSpec())
    np.testing.assert_array_equal(in_blocks(front, SOUND[:40_000], blocks).T, front.window_log_mel(SOUND[:40_000]))


def test_every_overlapping_window_equals_the_frames_of_the_stream() -> None:
    front = MelFrontEnd(MelSpec(n_mels=128))
    stream = in_blocks(front, SOUND, [8000])
    for first in range(0, len(SOUND) - 16_000 + 1, 4000):
        rows = stream[first // 400 : first // 400 + 38]
        np.testing.assert_array_equal(rows.T, front.window_log_mel(SOUND[first : first + 16_000]))


def test_a_bank_gives_a_frame_the_same_bits_in_any_company() -> None:
    power = StftPower(1024, 400).push(SOUND)
    bank = MelBank(MelSpec(n_mels=128))
    together = bank.log_mel(power)
    for size in (1, 2, 3, 5, 7, 13, 20, 38):
        parts = [bank.log_mel(power[first : first + size]) for first in range(0, len(power), size)]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_reset_forgets_the_samples_held_back() -> None:
    front = MelFrontEnd(MelSpec())
    front.push(SOUND[:1500])
    front.reset()
    np.testing.assert_array_equal(front.push(SOUND[20_000:36_000]).T, front.window_log_mel(SOUND[20_000:36_000]))


def test_a_whole_window_in_between_leaves_the_stream_alone() -> None:
    front = MelFrontEnd(MelSpec())
    first = front.push(SOUND[:9000])
    front.window_log_mel(SOUND[30_000:46_000])
    second = front.push(SOUND[9000:20_000])
    np.testing.assert_array_equal(np.concatenate([first, second]).T, front.window_log_mel(SOUND[:20_000]))
