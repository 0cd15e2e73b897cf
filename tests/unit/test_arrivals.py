from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from edgeasd.capture.arrivals import Arrivals

RATE_HZ = 16_000
BLOCK = 1600
S = 1_000_000_000


def losses(arrivals: Arrivals, late_s: Iterable[float], *, rate: float = 1.0) -> list[tuple[int, int]]:
    """Feed 0.1 s blocks, each so much later than it ought to be; return (block, frames lost)."""
    found = []
    end_frame = 0
    for index, late in enumerate(late_s):
        end_frame += BLOCK
        now_ns = round((1000 + (index + 1) * 0.1 / rate + late) * S)
        if not arrivals.started:
            arrivals.start(end_frame, now_ns)
        n_lost = arrivals.observe(end_frame, now_ns)
        if n_lost:
            found.append((index, n_lost))
            end_frame += n_lost
    return found


def test_jitter_is_no_loss() -> None:
    late = np.random.default_rng(1).exponential(0.03, 3000)
    assert losses(Arrivals(RATE_HZ, block_frames=RATE_HZ // 10), late) == []


def test_lost_sound_is_found_within_four_seconds_to_the_frame() -> None:
    found = losses(Arrivals(RATE_HZ, block_frames=RATE_HZ // 10), [0.0] * 50 + [0.3] * 100)
    assert len(found) == 1
    block, n_lost = found[0]
    assert 50 + 20 <= block <= 50 + 40
    assert n_lost == pytest.approx(4800, abs=50)


def test_a_burst_after_a_stall_is_no_loss() -> None:
    piled_up = [6.0 - 0.1 * index for index in range(60)]
    for before in range(40):  # wherever in a period the stall begins
        assert (
            losses(Arrivals(RATE_HZ, block_frames=RATE_HZ // 10), [0.0] * (21 + before) + piled_up + [0.0] * 60) == []
        )


def test_sound_lost_in_a_stall_is_found() -> None:
    piled_up = [5.6 + 0.1 * (3 - index) for index in range(4)]  # the card's buffer held 0.4 s, the rest is gone
    found = losses(Arrivals(RATE_HZ, block_frames=RATE_HZ // 10), [0.0] * 30 + piled_up + [5.6] * 60)
    assert sum(n_lost for _, n_lost in found) == pytest.approx(5.6 * RATE_HZ, abs=50)


def test_blocks_that_are_cut_elsewhere_after_a_hang_are_no_loss() -> None:
    assert losses(Arrivals(RATE_HZ, block_frames=RATE_HZ // 10), [0.0] * 50 + [0.09] * 3000) == []


def test_drift_is_followed_without_a_gap() -> None:
    for ppm in (-200, 200):
        assert losses(Arrivals(RATE_HZ, block_frames=RATE_HZ // 10), [0.0] * 20_000, rate=1 + ppm * 1e-6) == []


def test_small_losses_add_up() -> None:
    late = np.repeat(np.arange(200) * 0.02, 20)  # 20 ms every two seconds: far more than any drift
    found = losses(Arrivals(RATE_HZ, block_frames=RATE_HZ // 10), late)
    assert sum(n_lost for _, n_lost in found) / RATE_HZ == pytest.approx(late[-1], rel=0.1)


def test_frame_of_the_present_keeps_to_the_clock() -> None:
    arrivals = Arrivals(RATE_HZ, block_frames=RATE_HZ // 10)
    arrivals.start(BLOCK, 10 * S)
    assert arrivals.frame_at(10 * S) == BLOCK
    assert arrivals.frame_at(13 * S) == BLOCK + 3 * RATE_HZ
    arrivals.observe(2 * BLOCK, 10 * S + S // 20)  # early: the first block had been held up
    assert arrivals.frame_at(10 * S + S // 20) == 2 * BLOCK


def test_what_a_reopened_stream_delivers_early_does_not_move_the_present() -> None:
    arrivals = Arrivals(RATE_HZ, block_frames=RATE_HZ // 10)
    arrivals.start(BLOCK, 10 * S)
    arrivals.start(BLOCK + 5 * RATE_HZ, 15 * S)  # its first block had been held up: the next three come at once
    assert arrivals.observe(4 * BLOCK + 5 * RATE_HZ, 15 * S) == 0
    assert arrivals.frame_at(16 * S) == BLOCK + 6 * RATE_HZ


@pytest.mark.parametrize("rate", [1.01, 1.006, 3.0, 0.95, 0.919])
def test_a_card_at_another_rate_is_found_out_in_a_minute(rate: float) -> None:
    arrivals = Arrivals(RATE_HZ, block_frames=RATE_HZ // 10)
    losses(arrivals, [0.0] * round(620 * rate), rate=rate)
    assert arrivals.rate_error == pytest.approx(rate - 1, abs=0.005)


@pytest.mark.parametrize("rate", [1.0, 1.002, 0.99])
def test_a_card_about_at_its_rate_is_not(rate: float) -> None:
    arrivals = Arrivals(RATE_HZ, block_frames=RATE_HZ // 10)
    losses(arrivals, [0.0] * 3000, rate=rate)
    assert arrivals.rate_error is None


def test_a_large_loss_now_and_then_is_no_wrong_rate() -> None:
    arrivals = Arrivals(RATE_HZ, block_frames=RATE_HZ // 10)
    losses(arrivals, np.repeat([0.0, 6.0, 7.0, 7.0, 9.0, 9.0, 9.0], 500))
    assert arrivals.rate_error is None
