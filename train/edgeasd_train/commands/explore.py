"""`edgeasd explore`: what a bundle hears in recordings, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgeasd_train.commands.options import channel_of
from edgeasd_train.explore import ExploreOptions
from edgeasd_train.explore import explore as write_page


def explore(  # noqa: PLR0913  # one parameter an option
    bundle: Annotated[Path, typer.Argument(help="The bundle that listens.")],
    paths: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the page.")] = Path("report.html"),
    hop: Annotated[float, typer.Option(min=0.01, help="Time from window to window, s.")] = 0.5,
    channel: Annotated[str, typer.Option(metavar="N|mix", help="Channel to listen to, or the mean of all.")] = "mix",
    clusters: Annotated[int, typer.Option(min=1, max=50, help="Groups to find among the windows.")] = 10,
    max_windows: Annotated[int, typer.Option(min=100, help="Draw at most so many; more are thinned evenly.")] = 10_000,
    events: Annotated[
        Path | None, typer.Option(help="CSV with onset, offset, label and file. Default: beside each recording.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    sound: Annotated[bool, typer.Option(help="Put the sound into the page.")] = True,
    max_mb: Annotated[float, typer.Option(min=0, help="Put no more sound in when the page is so large, MB.")] = 80.0,
) -> None:
    """Draw what a bundle hears as a page to explore."""
    options = ExploreOptions(
        hop_s=hop,
        channel=channel_of(channel),
        n_clusters=clusters,
        max_windows=max_windows,
        events=events,
        title=title,
        sound=sound,
        max_mb=max_mb,
    )
    console = Console(stderr=True)
    report = write_page(bundle, paths, output=output, options=options, console=console)
    lines = (
        f"page        {report.output} ({report.page_bytes / 1e6:.1f} MB)",
        f"recordings  {report.n_recordings}",
        f"windows     {report.n_windows}, {report.n_shown} of them drawn",
        *(f"note        {note}" for note in report.notes),
    )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
