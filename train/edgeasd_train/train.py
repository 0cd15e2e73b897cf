"""From recordings to a bundle: the story of a training, in order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from edgeasd import __version__
from edgeasd.bundle import CalibrationTable, Inputs, Manifest, Provenance, read_bundle, write_bundle
from edgeasd.engine import open_engine
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.errors import CannotWriteError, InputError
from edgeasd.features.mel import MelSpec
from edgeasd.scoring.calibration import MIN_SCORES, fit_calibration
from edgeasd_train.calibrate import node_inputs, score_windows
from edgeasd_train.card import model_card
from edgeasd_train.corpus import Corpus, WindowIndex, discover, open_corpus, write_bad_files
from edgeasd_train.detectors import Detector, build_detector
from edgeasd_train.export import GOLDEN_WINDOWS, export_onnx
from edgeasd_train.features import LogMelCache, LogMelWindows
from edgeasd_train.fit import FitData, FitResult, fit
from edgeasd_train.recipe import Recipe, dump_recipe

DEFAULT_CACHE_DIR = Path("~/.cache/edgeasd")


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did, for the summary a user reads."""

    output: Path
    run_dir: Path
    manifest: Manifest
    corpus: Corpus
    n_train_windows: int
    n_held_out_windows: int
    fitted: FitResult
    bundle_bytes: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class _Material:
    """All that is known before anything is learned."""

    recipe: Recipe
    spec: MelSpec
    corpus: Corpus
    train: WindowIndex
    held_out: WindowIndex


def train(
    recordings: Sequence[Path],
    *,
    output: Path,
    recipe: Recipe,
    cache_dir: Path = DEFAULT_CACHE_DIR,
    console: Console | None = None,
) -> TrainingReport:
    """Train on recordings and directories of them, and write the bundle `output`.

    What belongs to the run (the recipe as resolved, checkpoints, losses, unusable files) goes to a directory beside it,
    whose name ends in .run. Stages and progress are shown on `console`.
    """
    started_s = time.monotonic()
    console = console or Console(quiet=True)
    if recordings:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"paths": list(recordings)})})
    torch.manual_seed(recipe.seed)
    detector, spec = build_detector(recipe)
    run_dir = _make_run_dir(output, recipe)
    corpus = _open_corpus(recipe, spec, cache_dir=cache_dir.expanduser(), console=console)
    if corpus.bad_files:
        write_bad_files(run_dir / "bad-files.csv", corpus.bad_files)
    material = _Material(recipe, spec, corpus, *_index(corpus, recipe))
    data = _compute_features(material, cache_dir=cache_dir.expanduser(), console=console)
    fitted = fit(detector, data, recipe=recipe, run_dir=run_dir, console=console)
    manifest = _ship(detector, material, fitted, output=output)
    return TrainingReport(
        output=output,
        run_dir=run_dir,
        manifest=manifest,
        corpus=corpus,
        n_train_windows=len(material.train),
        n_held_out_windows=len(material.held_out),
        fitted=fitted,
        bundle_bytes=output.stat().st_size,
        elapsed_s=time.monotonic() - started_s,
    )


def _make_run_dir(output: Path, recipe: Recipe) -> Path:
    """Make the directory of this run, empty but for the recipe; what cannot be written fails before the training."""
    run_dir = output.with_suffix(".run")
    try:
        if (run_dir / "recipe.yaml").exists():
            shutil.rmtree(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "recipe.yaml").write_text(dump_recipe(recipe))
    except OSError as exc:
        raise CannotWriteError(f"{run_dir}: cannot be written: {exc.strerror}") from exc
    return run_dir


def _open_corpus(recipe: Recipe, spec: MelSpec, *, cache_dir: Path, console: Console) -> Corpus:
    recordings = discover(recipe.data.paths, glob=recipe.data.glob, max_files=recipe.data.max_files)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("reading the recordings", total=len(recordings))
        return open_corpus(
            recordings,
            recipe.data,
            cache_dir=cache_dir,
            grid_frames=spec.hop_frames,
            on_file=lambda _: progress.advance(task),
        )


def _index(corpus: Corpus, recipe: Recipe) -> tuple[WindowIndex, WindowIndex]:
    """Return the windows to train on and those held out, as numbers; InputError when there are too few."""
    data, rate_hz = recipe.data, recipe.data.sample_rate_hz
    train, held_out = (
        WindowIndex(stretches, window_frames=data.window_frames, hop_frames=round(hop_s * rate_hz))
        for stretches, hop_s in ((corpus.train, data.hop_s), (corpus.held_out, data.held_out_hop_s))
    )
    if len(train) < recipe.fit.batch_size or len(held_out) < MIN_SCORES:
        raise InputError(
            f"{corpus.train_s + corpus.held_out_s:.1f} s of usable sound give {len(train)} windows to train on and "
            f"{len(held_out)} to calibrate on; it takes {recipe.fit.batch_size} and {MIN_SCORES}"
        )
    return train, held_out


def _compute_features(material: _Material, *, cache_dir: Path, console: Console) -> FitData:
    spec, sounds = material.spec, material.corpus.sounds
    cache = LogMelCache(cache_dir, spec)
    with Progress(console=console, transient=True) as progress:
        for sound in progress.track(sounds, description="computing log mel"):
            cache.frames(sound)
    return FitData(
        LogMelWindows(sounds, material.train, cache, spec=spec),
        LogMelWindows(sounds, material.held_out, cache, spec=spec),
    )


def _ship(detector: Detector, material: _Material, fitted: FitResult, *, output: Path) -> Manifest:
    """Export, calibrate with what was exported, write the bundle, and open it as a node would."""
    recipe, index = material.recipe, material.held_out
    numbers = np.linspace(0, len(index) - 1, GOLDEN_WINDOWS).astype(np.int64)
    inputs = node_inputs(material.corpus, index, numbers, spec=material.spec)
    model_onnx, golden = export_onnx(detector, inputs)
    manifest = Manifest(
        name=_bundle_name(output),
        version=int(f"{datetime.now(UTC):%Y%m%d%H%M%S}"),
        detector=recipe.detector.name,
        sample_rate_hz=recipe.data.sample_rate_hz,
        window_frames=recipe.data.window_frames,
        inputs=Inputs(log_mel=material.spec),
        outputs=list(detector.outputs),
        calibration=_calibrate(model_onnx, material),
        provenance=_provenance(material, fitted),
    )
    card = model_card(manifest, material.corpus, limits=detector.limits)
    manifest = write_bundle(output, manifest=manifest, model_onnx=model_onnx, golden=golden, card=card)
    open_engine(read_bundle(output), "onnx").close()
    return manifest


def _calibrate(model_onnx: bytes, material: _Material) -> CalibrationTable:
    data = material.recipe.data
    engine = OnnxEngine(model_onnx)
    try:
        scores = score_windows(engine, material.corpus, material.held_out, spec=material.spec)
    finally:
        engine.close()
    return fit_calibration(scores, window_s=data.window_s, hop_s=data.held_out_hop_s)


def _bundle_name(output: Path) -> str:
    """Return the file's stem, with what a manifest's name may not hold replaced."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in output.stem)
    return name.lstrip("._-")[:64] or "model"


def _provenance(material: _Material, fitted: FitResult) -> Provenance:
    corpus = material.corpus
    return Provenance(
        created_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        code_version=__version__,
        seed=material.recipe.seed,
        seconds_heard=corpus.train_s + corpus.held_out_s,
        corpus_sha256=corpus.sha256(),
        recipe=material.recipe.model_dump(mode="json"),
        metrics={
            "train_s": corpus.train_s,
            "held_out_s": corpus.held_out_s,
            "epochs": fitted.n_epochs,
            "steps": fitted.n_steps,
            "train_loss": fitted.train_loss,
            "held_out_loss": fitted.held_out_loss,
        },
    )
