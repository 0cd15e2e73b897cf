"""What a fit tells its run: Lightning's figures, and pictures of what the detector makes of held-out sound."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import lightning
import matplotlib as mpl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from edgeasd.records import FloatArray
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.detectors.contract import Batch, Detector
from edgeasd_train.runlog import Run
from edgeasd_train.tensorboard_log import Rgb

_DRAWN = 2
"""Windows of each sort."""
_CHOSEN_FROM = 1024
_JUDGED_TOGETHER = 256
_PAUSE_TIMES = 20.0
"""After pictures that took a second none are drawn for so many: they shall not cost what the training costs."""
_ZOOM = 3
_GAP = 6
_COLOURS = "magma"


class RunLogger(Logger):
    """Hands Lightning's figures to the run."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        """Return what the run is called."""
        return self._run.directory.stem

    @property
    def version(self) -> str:
        """Return nothing: a run directory holds one run."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Note figures down under the optimizer step they belong to."""
        self._run.log(metrics, step=step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: recipe.yaml has them."""


class Pictures(Callback):
    """After an epoch, draws a few held-out windows, what the detector expected, and the difference.

    Always the same windows: of those judged after the first epoch the strangest and the most ordinary ones.
    """

    def __init__(self, detector: Detector, windows: LogMelWindows, run: Run) -> None:
        self._detector = detector
        self._windows = windows
        self._run = run
        self._chosen: list[int] = []
        self._not_before_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to draw the same windows."""
        return {"chosen": self._chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the windows that were drawn before."""
        self._chosen = list(state_dict["chosen"])

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw, unless it was done just now; the last epoch is always drawn."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if not self._run.ranks.is_first or (time.monotonic() < self._not_before_s and not last):
            return
        began_s = time.monotonic()
        was_training = self._detector.network.training
        self._detector.network.eval()
        with torch.random.fork_rng(), torch.no_grad():
            self._draw(pl_module.device, step=trainer.global_step)
        self._detector.network.train(was_training)
        now_s = time.monotonic()
        self._not_before_s = now_s + _PAUSE_TIMES * (now_s - began_s)

    def _draw(self, device: torch.device, *, step: int) -> None:
        if not self._chosen:
            self._chosen = self._choose(device)
        batch = self._batch(np.array(self._chosen, np.int64), device)
        served = self._detector.serve()
        answers = served(batch["log_mel"])
        answers = answers if isinstance(answers, tuple) else (answers,)
        outputs = dict(zip(self._detector.outputs, answers, strict=True))
        expected = outputs["reconstruction"].cpu().numpy() if "reconstruction" in outputs else None
        for place, log_mel in enumerate(batch["log_mel"].cpu().numpy()):
            name = f"{'strangest' if place < _DRAWN else 'typical'}/{place % _DRAWN + 1}"
            self._run.log_image(name, drawn(log_mel, None if expected is None else expected[place]), step=step)

    def _choose(self, device: torch.device) -> list[int]:
        n_windows = min(len(self._windows), _CHOSEN_FROM)
        numbers = np.arange(n_windows, dtype=np.int64) * len(self._windows) // n_windows
        parts = (numbers[first : first + _JUDGED_TOGETHER] for first in range(0, n_windows, _JUDGED_TOGETHER))
        deviations = [self._detector.deviation(self._batch(part, device)).cpu().numpy() for part in parts]
        order = np.argsort(-np.concatenate(deviations), kind="stable")
        middle = len(order) // 2
        chosen: list[int] = numbers[np.concatenate([order[:_DRAWN], order[middle : middle + _DRAWN]])].tolist()
        return chosen

    def _batch(self, numbers: np.ndarray[Any, np.dtype[np.int64]], device: torch.device) -> Batch:
        return {name: torch.from_numpy(array).to(device) for name, array in self._windows.batch(numbers).items()}


def drawn(log_mel: FloatArray, expected: FloatArray | None) -> Rgb:
    """Return a picture of a window (n_rows, n_frames), low rows below; beside it what was expected, and the error.

    Window and expectation share their scale; the error, absolute, has its own, from 0.
    """
    low, high = np.percentile(log_mel, (1, 99))
    panels = [_coloured(log_mel, low, high)]
    if expected is not None:
        error = np.abs(log_mel - expected)
        panels += [_coloured(expected, low, high), _coloured(error, 0.0, float(error.max()))]
    gap = np.full((len(panels[0]), _GAP, 3), 255, np.uint8)
    with_gaps = [part for panel in panels for part in (panel, gap)][:-1]
    return np.concatenate(with_gaps, axis=1)


def _coloured(values: FloatArray, low: float, high: float) -> Rgb:
    scaled = np.clip((values[::-1] - low) / max(high - low, 1e-6), 0.0, 1.0)
    colours: Rgb = mpl.colormaps[_COLOURS](scaled, bytes=True)[..., :3]
    return colours.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
