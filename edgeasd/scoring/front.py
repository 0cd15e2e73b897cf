"""From windows to log mel, each STFT frame computed once however much windows overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeasd.features.mel import MelBank, MelSpec, StftPower
from edgeasd.records import FloatArray, Window


class SharedFrontEnd:
    """Log mel of one source's windows in several filter banks that share one short-time spectrum.

    All specs must agree in rate, n_fft and hop. State: the tail of the last window, as rows of each bank.
    """

    def __init__(self, specs: Sequence[MelSpec], *, window_frames: int, hop_frames: int) -> None:
        framing = specs[0]
        assert all((s.n_fft, s.hop_frames) == (framing.n_fft, framing.hop_frames) for s in specs)
        assert hop_frames % framing.hop_frames == 0
        self._power = StftPower(framing.n_fft, framing.hop_frames)
        self._banks = [MelBank(spec) for spec in specs]
        self._n_frames = framing.n_frames(window_frames)
        self._step = hop_frames // framing.hop_frames
        self._hop_frames = hop_frames
        self._kept: list[FloatArray] = []
        self._skip = 0  # rows between two windows that no window covers, when the hop is longer than the window's rows

    def push(self, windows: Sequence[Window], samples: Sequence[FloatArray]) -> list[list[FloatArray]]:
        """Return, for each bank, one array (n_frames, n_rows) per window; views, valid until the next push.

        `samples` holds what to hear of each window, shape (window_frames,): a faulty input is silenced by the caller.
        """
        rows: list[list[FloatArray]] = [[] for _ in self._banks]
        start = 0
        for stop in range(1, len(windows) + 1):
            if stop == len(windows) or not windows[stop].follows:
                self._push_run(samples[start:stop], rows, follows=windows[start].follows)
                start = stop
        return rows

    def _push_run(self, samples: Sequence[FloatArray], rows: list[list[FloatArray]], *, follows: bool) -> None:
        if not follows or not self._kept:
            self._power.reset()
            self._kept, self._skip = [], 0
            fresh = [samples[0], *(s[-self._hop_frames :] for s in samples[1:])]
        else:
            fresh = [s[-self._hop_frames :] for s in samples]
        power = self._power.push(fresh[0] if len(fresh) == 1 else np.concatenate(fresh))[self._skip :]
        kept, next_start = [], len(samples) * self._step
        for index, bank in enumerate(self._banks):
            new = bank.log_mel(power)
            known = np.concatenate([self._kept[index], new]) if self._kept else new
            rows[index].extend(known[j * self._step : j * self._step + self._n_frames] for j in range(len(samples)))
            kept.append(known[next_start:].copy())
            self._skip = max(0, next_start - len(known))
        self._kept = kept
