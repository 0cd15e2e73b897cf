"""`edgeasd evaluate`: how good a bundle is, on recordings whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgeasd.assembly import JudgeOptions
from edgeasd.errors import UsageError
from edgeasd.manifest import Precision
from edgeasd.replay import ReplayJob
from edgeasd.scoring.jury import AlarmPolicy, By
from edgeasd.settings.types import Rate
from edgeasd_train.commands.options import channel_of
from edgeasd_train.evaluate import ClipJob, evaluate_clips, evaluate_streams, kind_of
from edgeasd_train.judging.clips import Aggregate, ClipOptions
from edgeasd_train.judging.dcase import YEARS, Year
from edgeasd_train.judging.streams import alarm_table, window_table
from edgeasd_train.judging.tables import clip_table, mean_table, notes


def evaluate(  # noqa: PLR0913  # one parameter an option
    bundle: Annotated[
        str,
        typer.Argument(help="The bundle; a folder of bundles MACHINE.edgeasd; or `novelty`, the second opinion alone."),
    ],
    paths: Annotated[list[Path], typer.Argument(help="Labelled clips or annotated recordings, or folders of them.")],
    *,
    channel: Annotated[str, typer.Option(metavar="N|mix", help="Channel to listen to, or the mean of all.")] = "mix",
    precision: Annotated[Precision, typer.Option(help="Which of the bundle's graphs to judge.")] = "fp32",
    out: Annotated[Path, typer.Option(help="Where tables and pictures are written.")] = Path("evaluation"),
    hop: Annotated[float, typer.Option(help="Time from window to window, s.")] = 0.5,
    aggregate: Annotated[Aggregate, typer.Option(help="Clips: how windows become one score.")] = "mean",
    year: Annotated[
        int | None, typer.Option(help="Clips: whose rule, 2020 to 2026. Default: that of the layout.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Clips: draws for the intervals; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Clips: seed of the draws.")] = 0,
    events: Annotated[
        Path | None,
        typer.Option(help="CSV with onset, offset and, for several recordings, file. Default: beside each recording."),
    ] = None,
    false_alarms: Annotated[
        str, typer.Option(help="Recordings: budget of the node's own threshold: N/hour, N/day.")
    ] = "12/hour",
    by: Annotated[By, typer.Option(help="Recordings: whose opinion starts events.")] = "auto",
) -> None:
    """Judge a bundle on labelled clips or annotated recordings."""
    console = Console(stderr=True)
    if bundle != "novelty" and kind_of(paths, events=events) == "clips":
        job = ClipJob(
            Path(bundle),
            tuple(paths),
            ClipOptions(hop_s=hop, aggregate=aggregate, channel=channel_of(channel), precision=precision),
            year=_year(year),
            n_draws=bootstrap,
            seed=seed,
        )
        report = evaluate_clips(job, out=out, console=console)
        Console().print(clip_table(report), mean_table(report.judgement), sep="\n")
        for line in notes(report):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        return
    judges = JudgeOptions(
        bundle=None if bundle == "novelty" else Path(bundle),
        engine="onnx",
        precision=precision,
        hop_s=hop,
        policy=AlarmPolicy(false_alarms_per_hour=_per_hour(false_alarms), by=by),
    )
    streams = ReplayJob(tuple(paths), judges, channel=channel_of(channel))
    figures = evaluate_streams(streams, annotations=events, out=out)
    Console().print(window_table(figures), alarm_table(figures, budget=false_alarms), sep="\n")


def _per_hour(text: str) -> float:
    try:
        return Rate.parse(text).per_hour
    except ValueError as exc:
        raise UsageError(f"--false-alarms: {exc}") from exc


def _year(year: int | None) -> Year | None:
    if year is None:
        return None
    if year not in YEARS:
        raise UsageError(f"--year {year}: is none of {YEARS[0]} to {YEARS[-1]}")
    return year
