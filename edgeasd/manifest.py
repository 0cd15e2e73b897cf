"""What a bundle says about itself, validated: unknown keys and impossible values are refused."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from edgeasd.features.mel import MelSpec

FORMAT_VERSION: Literal[1] = 1
N_QUANTILES = 257
MAX_FFT = 1 << 16
MAX_MELS = 1024
MAX_WINDOW_FRAMES = 1 << 23
MAX_GOLDEN_TOLERANCE = 0.25
"""A graph of fewer bits that is farther off than this is another model."""
_MAX_FAULT_CHARS = 300

Precision = Literal["fp32", "fp16", "int8"]
"""In which numbers a graph computes: it says so itself, an engine is never told."""

OutputName = Literal["score", "embedding", "logits", "residual", "reconstruction"]
"""Every name a graph output may have; score is never missing."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _known_mel_keys(value: Any) -> Any:
    """Refuse unknown keys, which pydantic lets pass in a standard dataclass."""
    if isinstance(value, dict) and (unknown := sorted(set(value) - set(MelSpec.__dataclass_fields__))):
        raise ValueError(f"unknown key {unknown[0]}")
    return value


def _sane_mel(spec: MelSpec) -> MelSpec:
    """Refuse a front end that no honest recipe asks for: its tables would fill the memory of a node."""
    for name, value, limit in (("n_fft", spec.n_fft, MAX_FFT), ("n_mels", spec.n_mels, MAX_MELS)):
        if value > limit:
            raise ValueError(f"{name}: {value} is above {limit}")
    if spec.n_mels > spec.n_bins:
        raise ValueError(f"n_mels: {spec.n_mels} is above the {spec.n_bins} bins of an FFT of {spec.n_fft}")
    if not math.isfinite(spec.floor):
        raise ValueError("floor: is not finite")
    return spec


StrictMelSpec = Annotated[MelSpec, BeforeValidator(_known_mel_keys), AfterValidator(_sane_mel)]
"""A MelSpec as it is read from a file: unknown keys and absurd sizes are refused."""


class CalibrationTable(_Strict):
    """How often normal sound scores how high: empirical quantiles, and a generalised Pareto tail."""

    quantiles: Annotated[list[float], Field(min_length=N_QUANTILES, max_length=N_QUANTILES)]
    """Scores at the probabilities 0, 1/256, .. 1, never decreasing."""
    tail_start: float
    """Score from which the fitted tail takes over."""
    tail_p: Annotated[float, Field(gt=0, lt=1)]
    """Probability of a score beyond `tail_start`."""
    tail_scale: Annotated[float, Field(gt=0)]
    tail_shape: Annotated[float, Field(gt=0, lt=1)]
    n_scores: Annotated[int, Field(ge=1)]
    n_effective: Annotated[float, Field(gt=0)]
    """Independent windows that carry as much as these overlapping and correlated ones."""
    cluster_windows: Annotated[float, Field(ge=1)]
    """Mean number of windows that exceed `tail_start` together, as one alarm would."""
    window_s: Annotated[float, Field(gt=0)]
    hop_s: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(b < a for a, b in zip(self.quantiles, self.quantiles[1:], strict=False)):
            raise ValueError("quantiles: decrease somewhere")
        return self


class ReducedPrecision(_Strict):
    """What a graph of fewer bits says differently from the one in float32."""

    golden_tolerance: Annotated[float, Field(gt=0, le=MAX_GOLDEN_TOLERANCE)]
    """Largest deviation from a golden output s that is its rounding, as a share of 1 + |s|."""
    calibration: CalibrationTable
    """From its own scores of the same held-out normal sound."""


class Inputs(_Strict):
    """What the graph is fed: log mel as the spec says, the waveform, or both."""

    log_mel: StrictMelSpec | None = None
    waveform: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.log_mel is None and not self.waveform:
            raise ValueError("inputs: neither log_mel nor waveform")
        return self


class Provenance(_Strict):
    """Where the model comes from, enough to make it again."""

    created_utc: str
    code_version: str
    seed: int
    seconds_heard: float
    corpus_sha256: str
    recipe: dict[str, JsonValue]
    metrics: dict[str, float] = {}


class Manifest(_Strict):
    """What a bundle says about itself; `sha256` is filled in by `write_bundle`."""

    format_version: Literal[1] = FORMAT_VERSION
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: Annotated[int, Field(ge=1)]
    """Grows from one training to the next; the date and time in digits by default."""
    detector: str
    sample_rate_hz: Annotated[int, Field(ge=1000, le=384_000)]
    window_frames: Annotated[int, Field(ge=1, le=MAX_WINDOW_FRAMES)]
    inputs: Inputs
    outputs: list[OutputName]
    labels: list[str] = []
    calibration: CalibrationTable
    precisions: dict[Literal["fp16", "int8"], ReducedPrecision] = {}
    """The graphs of fewer bits that the bundle holds beside model.onnx."""
    provenance: Provenance
    sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "score" not in self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs: must name score, and each output once")
        if (spec := self.inputs.log_mel) is not None:
            if spec.sample_rate_hz != self.sample_rate_hz:
                raise ValueError(f"log_mel: {spec.sample_rate_hz} Hz is not the model's {self.sample_rate_hz} Hz")
            if spec.n_frames(self.window_frames) < 1:
                raise ValueError(f"window_frames: {self.window_frames} is shorter than one FFT of {spec.n_fft}")
        return self

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one window in each graph input."""
        shapes: dict[str, tuple[int, ...]] = {}
        if (spec := self.inputs.log_mel) is not None:
            shapes["log_mel"] = (spec.n_rows, spec.n_frames(self.window_frames))
        if self.inputs.waveform:
            shapes["waveform"] = (self.window_frames,)
        return shapes


def first_fault(error: ValidationError) -> str:
    """Return the first thing pydantic objects to, as one printable clause: where, and what is wrong there."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    text = f"{where}: {what}" if where else what
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_FAULT_CHARS])  # a key may be anything
