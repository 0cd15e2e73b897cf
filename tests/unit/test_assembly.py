"""Where windows begin, whatever mel frames the model wants."""

from __future__ import annotations

import pytest

from edgeasd.assembly import make_grid
from edgeasd.errors import SettingsError
from edgeasd.features.mel import MelSpec


@pytest.mark.parametrize(
    ("mel_hop_frames", "asked_s", "hop_frames"),
    [(400, 0.5, 8000), (512, 0.5, 8192), (512, 0.032, 512), (512, 1.0, 15872), (400, 0.99, 16000)],
)
def test_the_hop_is_the_nearest_whole_number_of_mel_frames(
    mel_hop_frames: int, asked_s: float, hop_frames: int
) -> None:
    grid = make_grid(window_frames=16000, hop_s=asked_s, framing=MelSpec(hop_frames=mel_hop_frames))
    assert (grid.rate_hz, grid.window_frames, grid.hop_frames) == (16000, 16000, hop_frames)


@pytest.mark.parametrize("hop_s", [0.01, 1.01, float("nan"), float("inf")])
def test_a_hop_that_no_window_or_mel_frame_can_meet_is_refused(hop_s: float) -> None:
    with pytest.raises(SettingsError, match=r"windows\.hop_s"):
        make_grid(window_frames=16000, hop_s=hop_s, framing=MelSpec())
