"""From windows to log mel, each STFT frame computed once however much windows overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from edgeasd.features.mel import MelBank, MelSpec, StftPower
from edgeasd.records import FloatArray, Window

_JOINED_FRAMES = 1 << 16
"""Windows that follow each other are transformed together, in pieces of about this much sound, for the cache."""


class SharedFrontEnd:
    """Log mel of one source's windows in several filter banks that share one short-time spectrum.

    All specs must agree in rate, n_fft and hop. State: the frames that the next window shares with the last.
    """

    def __init__(self, specs: Sequence[MelSpec], *, window_frames: int, hop_frames: int) -> None:
        framing = specs[0]
        assert all((s.n_fft, s.hop_frames) == (framing.n_fft, framing.hop_frames) for s in specs)
        assert hop_frames % framing.hop_frames == 0
        self._power = StftPower(framing.n_fft, framing.hop_frames)
        self._bank = MelBank(*specs)
        self._row_ends = list(accumulate((spec.n_rows for spec in specs), initial=0))
        self._n_frames = framing.n_frames(window_frames)
        self._n_new = min(hop_frames // framing.hop_frames, self._n_frames)  # frames of a window not in the one before
        self._hop_frames = hop_frames
        is_whole = self._n_new == hop_frames // framing.hop_frames  # no frames between windows that none covers
        self._n_joined = max(1, _JOINED_FRAMES // hop_frames) if is_whole else 1  # so many windows are made one sound
        self._first_new = (self._n_frames - self._n_new) * framing.hop_frames
        self._kept: FloatArray | None = None  # (n_rows of all banks, n_frames - n_new)

    def push(self, windows: Sequence[Window], samples: Sequence[FloatArray]) -> list[list[FloatArray]]:
        """Return, for each bank, one array (n_rows, n_frames) per window.

        `samples` holds what to hear of each window, shape (window_frames,): a faulty input is silenced by the caller.
        """
        rows: list[list[FloatArray]] = [[] for _ in self._row_ends[1:]]
        start = 0
        for stop in range(1, len(windows) + 1):
            if stop == len(windows) or not windows[stop].follows:
                self._push_run(samples[start:stop], rows, follows=windows[start].follows)
                start = stop
        return rows

    def _push_run(self, samples: Sequence[FloatArray], rows: list[list[FloatArray]], *, follows: bool) -> None:
        known = np.empty((self._row_ends[-1], self._n_frames + (len(samples) - 1) * self._n_new), np.float32)
        first_frame = n_known = 0
        if follows and self._kept is not None:
            n_known = self._kept.shape[1]
            known[:, :n_known] = self._kept
            first_frame = self._first_new
        for power in self._power.batches(self._sounds(samples, first_frame)):
            known[:, n_known : n_known + len(power)] = self._bank.columns(power)
            n_known += len(power)
        for index, (top, bottom) in enumerate(pairwise(self._row_ends)):
            firsts = range(0, len(samples) * self._n_new, self._n_new)
            rows[index].extend(known[top:bottom, first : first + self._n_frames] for first in firsts)
        self._kept = known[:, len(samples) * self._n_new :].copy()

    def _sounds(self, samples: Sequence[FloatArray], first_frame: int) -> Iterator[FloatArray]:
        """Yield sounds that hold the new frames of successive windows, of the first those from `first_frame` on."""
        for first in range(0, len(samples), self._n_joined):
            own = samples[first][first_frame if first == 0 else self._first_new :]
            later = samples[first + 1 : first + self._n_joined]
            yield np.concatenate([own, *(one[-self._hop_frames :] for one in later)]) if later else own
