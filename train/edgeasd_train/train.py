"""From recordings to a bundle: the story of a training, in order. Torch is imported only where a detector needs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress

from edgeasd.bundle import Golden, Manifest, read_bundle
from edgeasd.errors import InputError
from edgeasd.features.mel import MelSpec
from edgeasd.scoring.calibration import MIN_SCORES
from edgeasd_train import measuring
from edgeasd_train.corpus import Corpus, Stretches, WindowIndex, open_corpus, write_bad_files
from edgeasd_train.corpus.logmel import LogMelStore, LogMelWindows
from edgeasd_train.corpus.windows import joined as joined_stretches
from edgeasd_train.debug import debug_recipe
from edgeasd_train.detectors import kind_of
from edgeasd_train.detectors.measured import Batch, MeasuredKind
from edgeasd_train.mlflow_log import MlflowLog
from edgeasd_train.preemption import queued_again
from edgeasd_train.ranks import Ranks, current_ranks, joined
from edgeasd_train.recipe import MAX_WINDOW_S, DataRecipe, Recipe, resolve_window
from edgeasd_train.result import FitResult
from edgeasd_train.runlog import ENVIRONMENT, MLFLOW, RECIPE, Run, flat, prepare_directory
from edgeasd_train.ship import Goods, ship
from edgeasd_train.together import once

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
    n_ranks: int
    bundle_bytes: int
    fit_s: float
    """Of which fitting or measuring took so long."""
    elapsed_s: float
    debug: bool


class Way(Protocol):
    """How one kind of detector goes through a training: `measuring` or `learned`."""

    def build(self, recipe: Recipe) -> tuple[Any, MelSpec]:
        """Return the detector a recipe asks for, and the mel front end it is fed from."""
        ...

    def fit(
        self,
        detector: Any,
        train: LogMelWindows,
        held_out: LogMelWindows,
        *,
        recipe: Recipe,
        run: Run,
        console: Console,
    ) -> FitResult:
        """Have the detector learn normal sound, on all ranks."""
        ...

    def export(self, detector: Any, batch: Batch) -> tuple[bytes, Golden]:
        """Return its graph, which has been run, and golden vectors of the windows of `batch`."""
        ...

    def program(self, detector: Any, golden: Golden) -> bytes:
        """Return its torch program, which has been run on the golden vectors."""
        ...


def train(
    recordings: Sequence[Path],
    *,
    output: Path,
    recipe: Recipe,
    cache_dir: Path = DEFAULT_CACHE_DIR,
    console: Console | None = None,
    resume: bool = False,
    mlflow_uri: str | None = None,
    debug: bool = False,
) -> TrainingReport:
    """Train on recordings and directories of them, and write the bundle `output`.

    What belongs to the run (the recipe as resolved, checkpoints, losses, unusable files) goes to a directory beside it,
    whose name ends in .run; with `resume` a run that was cut off goes on there. Stages and progress are shown on
    `console`. Of several ranks, as torchrun and SLURM start them, each calls this and gets the report; the first one
    writes and talks.
    """
    began_s = time.monotonic()
    ranks = current_ranks()
    console = console if console is not None and ranks.is_first else Console(quiet=True)
    cache_dir = cache_dir.expanduser()
    recipe = _as_asked(recipe, recordings, debug=debug)
    way = _way(recipe)
    _, spec = way.build(resolve_window(recipe, MAX_WINDOW_S))  # what cannot be built is told before anything is read
    logs = _run(output, ranks, console, resume=resume, mlflow_uri=mlflow_uri)
    with queued_again(ranks), joined(ranks), logs as run:
        corpus = _open_corpus(recipe.data, spec, cache_dir=cache_dir, ranks=ranks, console=console)
        recipe = resolve_window(recipe, _shortest_s(corpus))
        _note_down(run, recipe, corpus)
        windows = _windows(corpus, recipe, spec, cache_dir=cache_dir, run=run, console=console)
        detector, _ = way.build(recipe)
        fit_began_s = time.monotonic()
        fitted = way.fit(detector, *windows, recipe=recipe, run=run, console=console)
        fit_s = time.monotonic() - fit_began_s
        exports = partial(way.export, detector), partial(way.program, detector)
        goods = Goods(*exports, tuple(detector.outputs), tuple(detector.limits), recipe, *windows, fitted, debug=debug)
        manifest = once(ranks, partial(_ship, goods, output, run))
        return TrainingReport(
            output=output,
            run_dir=run.directory,
            manifest=manifest,
            corpus=corpus,
            n_train_windows=len(windows[0]),
            n_held_out_windows=len(windows[1]),
            fitted=fitted,
            n_ranks=ranks.size,
            bundle_bytes=output.stat().st_size,
            fit_s=fit_s,
            elapsed_s=time.monotonic() - began_s,
            debug=debug,
        )


def _as_asked(recipe: Recipe, recordings: Sequence[Path], *, debug: bool) -> Recipe:
    if recordings:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"paths": list(recordings)})})
    return debug_recipe(recipe) if debug else recipe


def _is_measured(recipe: Recipe) -> bool:
    return isinstance(kind_of(recipe.detector.name), MeasuredKind)


def _way(recipe: Recipe) -> Way:
    if _is_measured(recipe):
        return measuring
    from edgeasd_train import learned  # noqa: PLC0415  # brings torch

    return learned


@contextmanager
def _run(output: Path, ranks: Ranks, console: Console, *, resume: bool, mlflow_uri: str | None) -> Iterator[Run]:
    """Give the run, and close it, whatever happens."""
    directory = output.with_suffix(".run")
    resumes = once(ranks, partial(prepare_directory, directory, resume=resume, console=console))
    run = Run(directory, ranks=ranks, resumes=resumes)
    if mlflow_uri is not None and ranks.is_first:
        note = directory / MLFLOW
        run.mlflow = MlflowLog(mlflow_uri, note=note, name=output.stem, resumes=resumes, console=console)
    ok = False
    try:
        yield run
        ok = True
    finally:
        run.close(ok=ok)


def _progress(console: Console) -> Progress:
    """Return a bar for a terminal: elsewhere it would leave an empty line."""
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _open_corpus(data: DataRecipe, spec: MelSpec, *, cache_dir: Path, ranks: Ranks, console: Console) -> Corpus:
    with _progress(console) as progress:
        task = progress.add_task("reading the recordings", total=None)
        return open_corpus(
            data,
            cache_dir=cache_dir,
            grid_frames=spec.hop_frames,
            ranks=ranks,
            on_found=lambda n_files: progress.update(task, total=n_files),
            on_file=lambda _: progress.advance(task),
        )


def _shortest_s(corpus: Corpus) -> float:
    """Return the length of the shortest stretch of sound that is used."""
    lengths = [int(part.n_frames.min()) for part in (corpus.train, corpus.held_out) if len(part)]
    return min(lengths, default=0) / corpus.rate_hz


def _note_down(run: Run, recipe: Recipe, corpus: Corpus) -> None:
    run.begin(recipe, sys.argv)
    if run.ranks.is_first and corpus.bad_files:
        write_bad_files(run.directory / "bad-files.csv", corpus.bad_files)
    if run.mlflow is not None and not run.resumes:
        run.mlflow.params(flat(recipe))


def _windows(
    corpus: Corpus, recipe: Recipe, spec: MelSpec, *, cache_dir: Path, run: Run, console: Console
) -> tuple[LogMelWindows, LogMelWindows]:
    """Return the windows to train on and those held out; InputError when there are too few."""
    data = recipe.data
    sound = corpus.train, corpus.held_out
    if _is_measured(recipe) and data.held_out_list is None:  # parts are left out in turn, and all is learned from
        sound = (joined_stretches(*sound),) * 2
    elif data.held_out_learned:
        sound = joined_stretches(*sound), sound[1]
    train = _index(sound[0], data.train_window_frames, data.hop_s, data)
    held_out = _index(sound[1], data.window_frames, data.held_out_hop_s, data)
    if min(len(train), len(held_out)) < MIN_SCORES:  # fewer than a batch make one smaller batch
        raise InputError(
            f"{corpus.train_s + corpus.held_out_s:.1f} s of usable sound give {len(train)} windows to train on and "
            f"{len(held_out)} to calibrate on; it takes {MIN_SCORES} of each"
        )
    with _progress(console) as progress:
        task = progress.add_task("computing log mel", total=1.0)
        store = LogMelStore(
            corpus,
            spec,
            cache_dir=cache_dir,
            ranks=run.ranks,
            on_piece=lambda share: progress.update(task, completed=share),
        )
    return LogMelWindows(corpus, train, store), LogMelWindows(corpus, held_out, store)


def _index(stretches: Stretches, window_frames: int, hop_s: float, data: DataRecipe) -> WindowIndex:
    return WindowIndex(stretches, window_frames=window_frames, hop_frames=round(hop_s * data.sample_rate_hz))


def _ship(goods: Goods, output: Path, run: Run) -> Manifest:
    manifest = ship(goods, output)
    if run.mlflow is not None:
        run.mlflow.artifacts([run.directory / RECIPE, run.directory / ENVIRONMENT, output])
        run.mlflow.text("card.md", read_bundle(output).card)
    return manifest
