"""What all detectors are made from: options out of the recipe, and the shapes of their input."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class DetectorOptions(BaseModel):
    """Base of every detector's options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Shapes:
    """What a detector is fed, per window."""

    n_rows: int
    n_frames: int
    """Mel frames."""
    window_frames: int
    """Audio frames."""
    sample_rate_hz: int
