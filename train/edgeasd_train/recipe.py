"""A recipe says everything about a training: data, features, detector, fit, prune. YAML, validated, strict."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from edgeasd.errors import SettingsError
from edgeasd.features.mel import MelSpec
from edgeasd.manifest import StrictMelSpec, first_fault

DEFAULT_RECIPE = "bird-ae"
_RECIPES = Path(__file__).with_name("recipes")
_MAX_RECIPE_BYTES = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Span(_Strict):
    """The part of a recording to use."""

    start_s: Annotated[float, Field(ge=0)] = 0.0
    end_s: float | None = None
    """None is the end of the recording."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s {self.end_s:g} is not after start_s {self.start_s:g}")
        return self


class DataRecipe(_Strict):
    """Which sound to learn from, and how it is cut."""

    paths: list[Path] = []
    """Recordings and directories of them; those on the command line replace them."""
    glob: str = "**/*"
    """What to take within a directory; always WAV, FLAC and Ogg files only."""
    layout: Literal["auto", "plain", "dcase"] = "auto"
    """How a tree is read: in a DCASE tree only the training clips are used, and names say section, domain, attributes.
    auto takes a tree for DCASE's when its file names are."""
    max_files: Annotated[int, Field(ge=1)] | None = None
    """Take this many, spread evenly over the sorted list; the environment's AUDIO_FILE_CAP stands in when unset."""
    train_list: Path | None = None
    """Text file of recordings to train on, one a line, below `paths`; None takes all that no other list names."""
    held_out_list: Path | None = None
    """Recordings to calibrate on and to watch the training by, likewise; `held_out` has no effect then."""
    test_list: Path | None = None
    """Recordings to leave alone, likewise."""
    annotations: Path | None = None
    """CSV with file, onset, offset: what it marks is no normal sound, and is cut out of what is trained on."""
    channel: Literal["mix"] | Annotated[int, Field(ge=0, lt=64)] = "mix"
    """Mean of all channels, or one of them, counted from 0."""
    start_s: Annotated[float, Field(ge=0)] = 0.0
    """Where the part used of every recording begins."""
    end_s: float | None = None
    """Where it ends; None is the end of the recording."""
    spans: dict[str, Span] = {}
    """The part used of recordings whose file name matches a pattern; the first match wins over start_s and end_s."""
    sample_rate_hz: Annotated[int, Field(ge=1000, le=384_000)] = 16_000
    window_s: Annotated[float, Field(gt=0, le=60)] | Literal["clip"] = 1.0
    """clip: as long as the shortest recording trained on, which `resolve_window` finds out."""
    train_window_s: Annotated[float, Field(gt=0, le=60)] | None = None
    """What is learned from, where a detector learns from pieces of what it will judge; None is the window itself."""
    hop_s: Annotated[float, Field(gt=0)] = 0.1
    """Between the windows learned on; a multiple of the mel hop."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Share kept away from training, for the calibration."""
    held_out_learned: bool = False
    """Learn from that share too, as the DCASE baselines do, whose split runs through every recording: more to learn
    from, but the calibration and the held-out loss flatter. Measured detectors learn from all of it anyway, unseen."""
    held_out_hop_s: Annotated[float, Field(gt=0)] = 0.5
    """Between the windows calibrated on: best the hop of the node."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        Span(start_s=self.start_s, end_s=self.end_s)
        return self

    @property
    def window_frames(self) -> int:
        """Return the window in audio frames."""
        assert self.window_s != "clip", "resolve_window was not called"
        return round(self.window_s * self.sample_rate_hz)

    @property
    def train_window_frames(self) -> int:
        """Return the windows learned from, in audio frames."""
        return self.window_frames if self.train_window_s is None else round(self.train_window_s * self.sample_rate_hz)

    def span_of(self, path: Path) -> Span:
        """Return the part to use of the recording at `path`."""
        named = (span for pattern, span in self.spans.items() if fnmatch(path.name, pattern))
        return next(named, None) or Span(start_s=self.start_s, end_s=self.end_s)


class DetectorRecipe(_Strict):
    """Which detector, and its options; each detector checks its own."""

    name: str = "bird-ae"
    options: dict[str, JsonValue] = {}


class FitRecipe(_Strict):
    """How to fit: `epochs` passes, but never fewer than `min_steps` optimizer steps nor more than `max_steps`."""

    epochs: Annotated[int, Field(ge=1)] = 20
    min_steps: Annotated[int, Field(ge=1)] = 400
    max_steps: Annotated[int, Field(ge=1)] = 20_000
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Windows per optimizer step, over all ranks and accumulated batches together."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts a rank cuts its share of a batch into, one after another, to need less memory."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Highest of the schedule."""
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-7
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Longest gradient that is followed in full."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    patience_epochs: Annotated[int, Field(ge=1)] | None = None
    """Stop when the held-out loss has not improved for so long, and keep the best; None trains to the end."""
    keep_best: Annotated[int, Field(ge=0)] = 3
    """Checkpoints of lowest held-out loss to keep beside the last one."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    """At most so long between checkpoints to resume from; one is written after every epoch too."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU threads of one process; more pays only for networks much larger than these."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_steps < self.min_steps:
            raise ValueError(f"max_steps {self.max_steps} is below min_steps {self.min_steps}")
        return self


class PruneRecipe(_Strict):
    """Leaving out, while training, what does not fit with the rest: unlabelled recordings hold anomalies.

    The scheme of anomaly_bird: every so often all windows still kept are judged, and those that stick out are dropped.
    """

    every_epochs: Annotated[int, Field(ge=1)] | None = None
    """None never prunes. A detector without epochs prunes `rounds` times instead."""
    rounds: Annotated[int, Field(ge=1)] | None = None
    """At most so many prunes; None sets no limit."""
    by: Literal["z", "fraction"] = "z"
    z_max: Annotated[float, Field(gt=0)] = 3.0
    """Drop what lies more than so many standard deviations above the mean."""
    fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """Drop this share of what is kept, the worst."""
    unit: Literal["window", "recording"] = "window"
    """Drop single windows, or whole recordings by the mean over their windows."""
    max_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Never drop more than this share of the training windows in all."""


class ExportRecipe(_Strict):
    """What the bundle holds beside the graph in float32; a finished run, resumed with other values, ships again."""

    precisions: list[Literal["fp16", "int8"]] = ["fp16", "int8"]
    """The same graph in fewer bits; each ships only where held-out sound is judged alike."""
    program: bool = False
    """The torch program (model.pt2) too: as large as the graph again, and of use only on GPU nodes that have torch."""


class Recipe(_Strict):
    """Everything about a training but the recordings and the seed given on the command line."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    data: DataRecipe = DataRecipe()
    features: StrictMelSpec = MelSpec()
    detector: DetectorRecipe = DetectorRecipe()
    fit: FitRecipe = FitRecipe()
    prune: PruneRecipe = PruneRecipe()
    export: ExportRecipe = ExportRecipe()

    @model_validator(mode="before")
    @classmethod
    def _one_rate(cls, values: Any) -> Any:
        """Let the mel front end follow the data's sample rate when it names none."""
        if isinstance(values, dict) and isinstance(values.get("data", {}), dict):
            rate = (values.get("data") or {}).get("sample_rate_hz")
            features = values.get("features", {})
            if rate is not None and isinstance(features, dict) and "sample_rate_hz" not in features:
                return {**values, "features": {**features, "sample_rate_hz": rate}}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        data, mel = self.data, self.features
        if mel.sample_rate_hz != data.sample_rate_hz:
            raise ValueError(f"features.sample_rate_hz {mel.sample_rate_hz} is not the data's {data.sample_rate_hz}")
        for name in ("window_s", "train_window_s"):
            window_s = getattr(data, name)
            if window_s not in (None, "clip") and mel.n_frames(round(window_s * data.sample_rate_hz)) < 1:
                raise ValueError(f"data.{name} {window_s:g} is shorter than one FFT of {mel.n_fft} frames")
        for name in ("hop_s", "held_out_hop_s"):
            hops = getattr(data, name) * data.sample_rate_hz / mel.hop_frames
            if round(hops) < 1 or abs(hops - round(hops)) > 1e-6:
                raise ValueError(f"data.{name} is no whole number of mel hops of {mel.hop_frames} frames")
        return self


MAX_WINDOW_S = 60.0


def resolve_window(recipe: Recipe, shortest_s: float) -> Recipe:
    """Return the recipe with a window of `clip` made definite: as long as the shortest recording, on the mel grid."""
    if recipe.data.window_s != "clip":
        return recipe
    mel = recipe.features
    n_frames = mel.n_frames(round(min(shortest_s, MAX_WINDOW_S) * mel.sample_rate_hz))
    if n_frames < 1:
        raise SettingsError(f"data.window_s: the shortest clip, {shortest_s:g} s, is shorter than one FFT")
    window_s = ((n_frames - 1) * mel.hop_frames + mel.n_fft) / mel.sample_rate_hz
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"window_s": window_s})})


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the workshop."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def load_recipe(name_or_file: str = DEFAULT_RECIPE, *, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of that name or in that YAML file, with `a.b=value` overrides applied in order."""
    values = _parse(_read(name_or_file), name_or_file)
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as exc:
        raise SettingsError(f"recipe {name_or_file}: {first_fault(exc)}") from exc


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe, every default written out, as YAML that `load_recipe` reads back to the same."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _read(name_or_file: str) -> str:
    path = Path(name_or_file)
    try:
        if path.suffix in (".yaml", ".yml"):
            if path.stat().st_size > _MAX_RECIPE_BYTES:
                raise SettingsError(f"recipe {path}: is longer than {_MAX_RECIPE_BYTES} bytes")
            return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"recipe {path}: cannot be read: {exc}") from exc
    if name_or_file not in recipe_names():
        known = ", ".join(recipe_names())
        raise SettingsError(f"recipe {name_or_file}: is neither a .yaml file nor one of those known: {known}")
    return (_RECIPES / f"{name_or_file}.yaml").read_text("utf-8")


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise SettingsError(f"recipe {name}: is not YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(values, dict):
        raise SettingsError(f"recipe {name}: is not a mapping of keys to values")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key, creating the levels above it; whether the key exists is for validation to say."""
    dotted, equals, text = override.partition("=")
    *parents, last = dotted.strip().split(".")
    if not equals or not all((*parents, last)):
        raise SettingsError(f"--set {override}: is not of the form key.key=value")
    level = values
    for parent in parents:
        below = level.setdefault(parent, {})
        if not isinstance(below, dict):
            raise SettingsError(f"--set {override}: {parent} is a value, not a group of keys")
        level = below
    try:
        level[last] = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise SettingsError(f"--set {override}: the value is not YAML") from exc
