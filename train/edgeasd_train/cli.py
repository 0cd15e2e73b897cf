"""The workshop's verbs, as typer functions that `edgeasd` mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgeasd.assembly import JudgeOptions
from edgeasd.errors import UsageError
from edgeasd.replay import ReplayJob
from edgeasd.scoring.jury import AlarmPolicy, By
from edgeasd.settings.types import Rate
from edgeasd_train.evaluate import alarm_table, window_table
from edgeasd_train.evaluate import evaluate as evaluate_recordings
from edgeasd_train.recipe import DEFAULT_RECIPE, load_recipe
from edgeasd_train.train import DEFAULT_CACHE_DIR, TrainingReport
from edgeasd_train.train import train as train_bundle


def train(
    recordings: Annotated[
        list[Path] | None, typer.Argument(help="WAV, FLAC or Ogg files, or directories of them; all normal sound.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the bundle.")],
    recipe: Annotated[str, typer.Option(help="Name of a recipe, or a YAML file.")] = DEFAULT_RECIPE,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as fit.epochs=50.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=(1 << 32) - 1, help="Overrides the recipe's seed.")] = None,
    cache_dir: Annotated[Path, typer.Option(help="Where decoded sound is kept.")] = DEFAULT_CACHE_DIR,
) -> None:
    """Train a detector on recordings; gives a bundle."""
    if output.suffix != ".edgeasd":
        raise UsageError(f"--output {output}: a bundle's name ends in .edgeasd")
    chosen = load_recipe(recipe, overrides=[*(overrides or ()), *([] if seed is None else [f"seed={seed}"])])
    console = Console(stderr=True)
    report = train_bundle(recordings or [], output=output, recipe=chosen, cache_dir=cache_dir, console=console)
    for line in _summary(report):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def evaluate(
    bundle: Annotated[str, typer.Argument(help="The bundle, or `novelty` for the untrained second opinion alone.")],
    paths: Annotated[list[Path], typer.Argument(help="Annotated recordings, or folders of them.")],
    *,
    events: Annotated[
        Path | None,
        typer.Option(help="CSV with onset, offset and, for several recordings, file. Default: beside each recording."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where scores, events and figures are written.")] = Path("evaluation"),
    hop: Annotated[float, typer.Option(help="Time from window to window, s.")] = 0.5,
    false_alarms: Annotated[str, typer.Option(help="Budget of the node's own threshold: N/hour, N/day.")] = "12/hour",
    by: Annotated[By, typer.Option(help="Whose opinion starts events.")] = "auto",
) -> None:
    """Judge a bundle on annotated recordings."""
    try:
        per_hour = Rate.parse(false_alarms).per_hour
    except ValueError as exc:
        raise UsageError(f"--false-alarms: {exc}") from exc
    judges = JudgeOptions(
        bundle=None if bundle == "novelty" else Path(bundle),
        hop_s=hop,
        policy=AlarmPolicy(false_alarms_per_hour=per_hour, by=by),
    )
    figures = evaluate_recordings(ReplayJob(tuple(paths), judges), annotations=events, out=out)
    Console().print(window_table(figures), alarm_table(figures, budget=false_alarms), sep="\n")


def _summary(report: TrainingReport) -> Iterator[str]:
    corpus, table, fitted = report.corpus, report.manifest.calibration, report.fitted
    quantiles = ", ".join(f"{percent} % {table.quantiles[round(2.56 * percent)]:.3g}" for percent in (50, 90, 99, 100))
    yield f"bundle           {report.output} ({report.bundle_bytes / 1e6:.2f} MB)"
    yield f"recordings       {len(corpus.sounds)}"
    yield f"heard            {corpus.train_s:.1f} s, and {corpus.held_out_s:.1f} s held out"
    yield f"windows          {report.n_train_windows} to train on, {report.n_held_out_windows} held out"
    yield f"training         {fitted.n_epochs} epochs, {fitted.n_steps} steps, {report.elapsed_s:.1f} s in all"
    yield f"loss             {fitted.train_loss:.4g}, held out {fitted.held_out_loss:.4g}"
    yield f"held-out scores  {quantiles}; worth {table.n_effective:.0f} independent ones"
    if corpus.bad_files:
        yield f"left out         {len(corpus.bad_files)} unusable files, listed in {report.run_dir / 'bad-files.csv'}"
