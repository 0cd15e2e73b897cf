"""`edgeasd corpus`: what a tree of recordings holds, before anything is learned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from edgeasd.errors import CannotWriteError, UsageError
from edgeasd_train.commands.options import channel_of
from edgeasd_train.corpus.annotations import read_marks
from edgeasd_train.corpus.discover import discover
from edgeasd_train.corpus.report import Report, report_on
from edgeasd_train.corpus.report_files import as_json, write_csv, write_json
from edgeasd_train.corpus.report_tables import findings, tables
from edgeasd_train.corpus.survey import survey
from edgeasd_train.corpus.workers import default_workers


def corpus(  # noqa: PLR0913  # one parameter an option
    paths: Annotated[list[Path], typer.Argument(help="Recordings, or directories of them: WAV, FLAC, Ogg.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write corpus.csv (a row a file), corpus.json and corpus.png to."),
    ] = None,
    draw: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the picture alone, to this file.")] = None,
    as_json_text: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, not as tables.")] = False,
    channel: Annotated[
        str, typer.Option(metavar="N|mix", help="Channel that levels and spectra are those of, or the mean of all.")
    ] = "mix",
    glob: Annotated[str, typer.Option(help="What to take within a directory.")] = "**/*",
    max_files: Annotated[
        int | None,
        typer.Option(min=1, help="Take so many, spread evenly over the list. Default: AUDIO_FILE_CAP, or all."),
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="CSV with file, onset, offset and, maybe, label.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read. Default: one a core.")] = None,
) -> None:
    """Print and draw what a corpus holds.

    All files count, whatever the split. Levels are relative to full scale; RMS is without DC. Exit code 66 when
    nothing can be read; single broken files are listed.
    """
    if draw is not None and draw.suffix != ".png":
        raise UsageError(f"--draw {draw}: a picture's name ends in .png")
    listened = channel_of(channel)
    marks = None if annotations is None else read_marks(annotations)
    recordings = discover(paths, glob=glob, max_files=max_files, layout="plain")
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("reading", total=len(recordings))
        found = survey(
            recordings,
            channel=listened,
            workers=workers or default_workers(1),
            on_file=lambda: progress.advance(bar),
        )
    report = report_on(found, marks)
    if out is not None:
        _make(out)
        write_csv(out / "corpus.csv", found)
        write_json(out / "corpus.json", report)
    for picture in filter(None, (draw, out and out / "corpus.png")):
        from edgeasd_train.corpus.report_draw import draw_corpus  # noqa: PLC0415  # matplotlib only when it draws

        draw_corpus(picture, found, report, channel=listened)
    if as_json_text:
        typer.echo(as_json(report))
    else:
        _print(report)


def _print(report: Report) -> None:
    console = Console()
    for table in tables(report):
        console.print(table)
    for line in findings(report):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CannotWriteError(f"{directory}: cannot be made: {exc.strerror}") from exc
