"""The detectors by name. To add one: write its file, and name it here."""

from __future__ import annotations

from pydantic import ValidationError

from edgeasd.errors import SettingsError
from edgeasd.features.mel import MelSpec
from edgeasd.manifest import first_fault
from edgeasd_train.detectors import bird_ae
from edgeasd_train.detectors.contract import Batch, Detector, DetectorKind, Shapes
from edgeasd_train.recipe import Recipe

DETECTORS: dict[str, DetectorKind] = {
    "bird-ae": bird_ae.KIND,
}

__all__ = ["DETECTORS", "Batch", "Detector", "Shapes", "build_detector"]


def build_detector(recipe: Recipe) -> tuple[Detector, MelSpec]:
    """Return the detector a recipe asks for, untrained, and the mel front end it is to be fed from."""
    kind = DETECTORS.get(recipe.detector.name)
    if kind is None:
        raise SettingsError(f"detector.name: {recipe.detector.name} is none of {', '.join(sorted(DETECTORS))}")
    try:
        options = kind.options.model_validate(recipe.detector.options)
        spec = kind.front_end(recipe.features, options)
    except ValidationError as exc:
        raise SettingsError(f"detector.options: {first_fault(exc)}") from exc
    except ValueError as exc:
        raise SettingsError(f"detector.options: {exc}") from exc
    window_frames = recipe.data.window_frames
    shapes = Shapes(spec.n_rows, spec.n_frames(window_frames), window_frames, spec.sample_rate_hz)
    return kind.build(shapes, options), spec
