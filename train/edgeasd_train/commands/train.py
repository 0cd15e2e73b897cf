"""`edgeasd train`: from recordings to a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgeasd.errors import EdgeasdError, UsageError
from edgeasd_train.card import DEBUG_WARNING
from edgeasd_train.mlflow_log import check_uri
from edgeasd_train.ranks import current_ranks
from edgeasd_train.recipe import DEFAULT_RECIPE, load_recipe
from edgeasd_train.train import DEFAULT_CACHE_DIR, TrainingReport
from edgeasd_train.train import train as train_bundle


def train(  # noqa: PLR0913  # one parameter an option
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
    prune_every: Annotated[
        int | None, typer.Option(min=1, metavar="EPOCHS", help="Leave out what sticks out, so often.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that was cut off, if there is one.")
    ] = False,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Log to this MLflow tracking store too.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Try everything on a handful of files, in seconds.")] = False,
    cache_dir: Annotated[Path, typer.Option(help="Where decoded sound is kept.")] = DEFAULT_CACHE_DIR,
) -> None:
    """Train a detector on recordings; gives a bundle."""
    if output.suffix != ".edgeasd":
        raise UsageError(f"--output {output}: a bundle's name ends in .edgeasd")
    if mlflow is not None:
        check_uri(mlflow)
    shortcuts = {"seed": seed, "prune.every_epochs": prune_every}
    given = [f"{key}={value}" for key, value in shortcuts.items() if value is not None]
    chosen = load_recipe(recipe, overrides=[*(overrides or ()), *given])
    console = Console(stderr=True)
    ranks = current_ranks()
    try:
        report = train_bundle(
            recordings or [], output=output, recipe=chosen, cache_dir=cache_dir, console=console,
            resume=resume, mlflow_uri=mlflow, debug=debug,
        )  # fmt: skip
    except EdgeasdError as exc:
        if ranks.is_first:
            raise
        raise type(exc)(f"rank {ranks.rank}: {exc}") from exc
    if ranks.is_first:
        for line in _summary(report):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _summary(report: TrainingReport) -> Iterator[str]:
    corpus, table, fitted = report.corpus, report.manifest.calibration, report.fitted
    quantiles = ", ".join(f"{percent} % {table.quantiles[round(2.56 * percent)]:.3g}" for percent in (50, 90, 99, 100))
    pruned = f", {fitted.n_pruned} of them pruned" if fitted.n_pruned else ""
    yield f"bundle           {report.output} ({report.bundle_bytes / 1e6:.2f} MB)"
    yield f"precisions       {', '.join(('fp32', *report.manifest.precisions))}"
    yield f"recordings       {len(corpus.sounds)}"
    if fitted.n_folds:
        held_out, purpose = f"{fitted.n_folds} parts left out in turn", "to calibrate on"
        yield f"heard            {corpus.train_s + corpus.held_out_s:.1f} s, {held_out}"
    else:
        purpose = "held out"
        yield f"heard            {corpus.train_s:.1f} s, and {corpus.held_out_s:.1f} s held out"
    yield f"windows          {report.n_train_windows} to train on{pruned}; {report.n_held_out_windows} {purpose}"
    yield f"training         {_course(report)}"
    yield f"time             {_cost(report)}"
    yield f"held-out scores  {quantiles}; worth {table.n_effective:.0f} independent ones"
    if corpus.bad_files:
        yield f"left out         {len(corpus.bad_files)} unusable files, listed in {report.run_dir / 'bad-files.csv'}"
    if report.debug:
        yield DEBUG_WARNING


def _course(report: TrainingReport) -> str:
    fitted = report.fitted
    if not fitted.n_steps:
        return f"measured; mean deviation {fitted.train_loss:.4g}, held out {fitted.held_out_loss:.4g}"
    losses = f"loss {fitted.train_loss:.4g}, held out {fitted.held_out_loss:.4g}"
    return f"{fitted.n_epochs} epochs, {fitted.n_steps} steps; {losses}"


def _cost(report: TrainingReport) -> str:
    corpus = report.corpus
    learned_s = corpus.train_s + (corpus.held_out_s if report.fitted.n_folds else 0.0)
    per_hour_s = report.fit_s / (learned_s / 3600.0)
    ranks = f", {report.n_ranks} ranks" if report.n_ranks > 1 else ""
    fitting = f"{report.fit_s:.3g} s learning, {per_hour_s:.3g} s per hour of audio{ranks}"
    return f"{report.elapsed_s:.1f} s in all; {fitting}"
