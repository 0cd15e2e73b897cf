"""Judging bundles on what is at hand: clips whose names carry labels, or long recordings with annotated events.

What is judged is what ships: the exported bundle, fed by the node's own reader and front end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from edgeasd.capture.files import discover
from edgeasd.errors import CannotWriteError, InputError
from edgeasd.replay import ReplayJob, TablePaths, label_of, replay
from edgeasd_train.corpus.annotations import annotations_for
from edgeasd_train.judging.alarms import Rules
from edgeasd_train.judging.clipfiles import ClipReport, write_files
from edgeasd_train.judging.clips import ClipOptions, MachineClips, bundle_for, find_clips, hear_machine
from edgeasd_train.judging.dcase import Year, judge_clips
from edgeasd_train.judging.plots import draw_clips
from edgeasd_train.judging.streamplots import draw_recording
from edgeasd_train.judging.streams import SILENT, RecordingFigures, judge, read_played, write_figures

Kind = Literal["clips", "streams"]


@dataclass(frozen=True, slots=True)
class ClipJob:
    """What to judge a bundle, or a folder of bundles named after machines, by."""

    bundles: Path
    paths: tuple[Path, ...]
    options: ClipOptions = ClipOptions()
    year: Year | None = None
    """Whose rule; None takes that of the layout."""
    n_draws: int = 1000
    """Of the bootstrap; 0 leaves out the intervals."""
    seed: int = 0


def kind_of(paths: Sequence[Path], *, events: Path | None) -> Kind:
    """Return what recordings are judged by; InputError says what was looked for when there is nothing."""
    recordings = discover(paths)
    if events is not None:
        return "streams"
    if find_clips(recordings):
        return "clips"
    if any(path.with_suffix(".csv").is_file() for path in recordings):
        return "streams"
    raise InputError(
        f"{recordings[0]}: nothing to judge by: no name says normal or anomaly (as in DCASE's trees, or normal_1.wav), "
        f"and no table of events, {recordings[0].with_suffix('.csv').name}, lies beside it; --events names another"
    )


def evaluate_clips(job: ClipJob, *, out: Path, console: Console | None = None) -> ClipReport:
    """Judge every machine found below the paths and write all tables and pictures into `out`."""
    machines = find_clips(discover(job.paths))
    if not machines:
        raise InputError(f"{job.paths[0]}: no file name says normal or anomaly")
    bundles = [bundle_for(job.bundles, clips.machine) for clips in machines]
    _make(out)
    heard = []
    with Progress(console=console or Console(quiet=True), transient=True) as progress:
        task = progress.add_task("listening", total=sum(len(one.train) + len(one.test) for one in machines))
        for clips, bundle in zip(machines, bundles, strict=True):
            heard.append(hear_machine(clips, bundle, job.options, on_clip=lambda: progress.advance(task)))
    judgement = judge_clips(
        [section for machine in heard for section in machine.sections],
        thresholds={machine.machine: machine.threshold.value for machine in heard},
        year=job.year or _year_of(machines),
        n_draws=job.n_draws,
        seed=job.seed,
    )
    report = ClipReport(tuple(heard), judgement)
    root = job.paths[0] if len(job.paths) == 1 and job.paths[0].is_dir() else Path()
    write_files(out, report, root=root)
    draw_clips(out, report)
    return report


def evaluate_streams(job: ReplayJob, *, annotations: Path | None, out: Path) -> list[RecordingFigures]:
    """Replay the job's recordings into `out`, judge each by its annotations, write figures and pictures there."""
    trees = job.trees()
    recordings = {path: label_of(path, trees) for path in job.recordings()}
    if len(set(recordings.values())) < len(recordings):
        raise InputError("two recordings have the same name; name the folder that holds both instead")
    wanted = {label: annotations_for(path, annotations, label=label) for path, label in recordings.items()}
    scores_csv, events_csv = out / "scores.csv", out / "events.csv"
    replay(job, TablePaths(scores=scores_csv, events=events_csv))
    played = read_played(scores_csv, events_csv)
    judged = [judge(file, played.get(file, SILENT), events, rules=Rules()) for file, events in wanted.items()]
    figures = [one.figures for one in judged]
    write_figures(out, figures)
    for one in judged:
        draw_recording(out / f"{one.figures.alarms.recording.replace('/', '_')}.png", one)
    return figures


def _year_of(machines: Sequence[MachineClips]) -> Year:
    """Return the year whose layout the clips have: 2020 has no domains, 2021 a folder for each."""
    clips = [clip for machine in machines for clip in machine.test]
    if any(clip.path.parent.name in ("source_test", "target_test") for clip in clips):
        return 2021
    return 2023 if any(clip.facts.domain or "section_" in clip.path.name for clip in clips) else 2020


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CannotWriteError(f"{out}: cannot be written: {exc.strerror}") from exc
