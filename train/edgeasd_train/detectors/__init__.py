"""The detectors by name. To add one: write its file with its KIND, and name it here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from edgeasd.errors import SettingsError
from edgeasd.features.mel import MelSpec
from edgeasd.manifest import first_fault
from edgeasd_train.detectors.measured import MeasuredDetector, MeasuredKind
from edgeasd_train.detectors.options import Shapes
from edgeasd_train.recipe import Recipe

if TYPE_CHECKING:
    from edgeasd_train.detectors.contract import Detector, LearnedKind

DETECTORS = {
    "bird-ae": "edgeasd_train.detectors.bird_ae",
    "cnn-ae": "edgeasd_train.detectors.cnn_ae",
    "dense-ae": "edgeasd_train.detectors.dense_ae",
    "mahalanobis": "edgeasd_train.detectors.mahalanobis",
}
"""Module of each; only that of the detector asked for is imported, and with it torch where it needs torch."""

__all__ = ["DETECTORS", "build_detector", "kind_of"]


def kind_of(name: str) -> LearnedKind | MeasuredKind:
    """Return how detectors of that name are made; SettingsError when there is none."""
    if name not in DETECTORS:
        raise SettingsError(f"detector.name: {name} is none of {', '.join(sorted(DETECTORS))}")
    kind: LearnedKind | MeasuredKind = importlib.import_module(DETECTORS[name]).KIND
    return kind


def build_detector(recipe: Recipe) -> tuple[Detector | MeasuredDetector, MelSpec]:
    """Return the detector a recipe asks for, untrained, and the mel front end it is to be fed from."""
    kind = kind_of(recipe.detector.name)
    if recipe.data.train_window_s is not None and not getattr(kind, "learns_from_pieces", False):
        raise SettingsError(f"data.train_window_s: {recipe.detector.name} learns from the windows it judges")
    try:
        options = kind.options.model_validate(recipe.detector.options)
        spec = kind.front_end(recipe.features, options)
        window_frames = recipe.data.window_frames
        shapes = Shapes(spec.n_rows, spec.n_frames(window_frames), window_frames, spec.sample_rate_hz)
        return kind.build(shapes, options), spec
    except ValidationError as exc:
        raise SettingsError(f"detector.options: {first_fault(exc)}") from exc
    except ValueError as exc:
        raise SettingsError(f"detector.options: {exc}") from exc
