"""The page to explore what a bundle hears: from recordings to one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from edgeasd.assembly import JudgeOptions
from edgeasd.bundle import Bundle, read_bundle
from edgeasd.capture.convert import Channel
from edgeasd.capture.files import FileSource
from edgeasd.disk import replace_file
from edgeasd.engine import LIVE_OUTPUTS, Engine, open_engine
from edgeasd.errors import CannotWriteError, InputError
from edgeasd.records import FloatArray
from edgeasd.replay import ReplayJob, label_of
from edgeasd_train.corpus.facts import facts_of
from edgeasd_train.explore.contents import Contents, columns_of, meta_of
from edgeasd_train.explore.facets import events_of, facets_of
from edgeasd_train.explore.gather import N_STRANGEST, Gatherer, picture_spec
from edgeasd_train.explore.geometry import lay_out
from edgeasd_train.explore.page import packed_arrays, packed_bytes, packed_files, render
from edgeasd_train.explore.pictures import pack_pictures
from edgeasd_train.explore.sounds import PIECE_S, Piece, encode_pieces, pieces_of
from edgeasd_train.listen import hear, read_samples

_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class ExploreOptions:
    """How to hear, and what to show."""

    hop_s: float = 0.5
    channel: Channel = "mix"
    n_clusters: int = 10
    max_windows: int = 10_000
    events: Path | None = None
    """Table of events; None looks beside each recording."""
    title: str | None = None
    sound: bool = True
    max_mb: float = 80.0
    """Size of the page beyond which no more sound is put into it."""


@dataclass(frozen=True, slots=True)
class PageReport:
    """What a page holds."""

    output: Path
    page_bytes: int
    n_recordings: int
    n_windows: int
    n_shown: int
    notes: tuple[str, ...]
    """What is not on it, and why: one sentence each."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What was heard, and what could not be."""

    gatherer: Gatherer
    bad: tuple[str, ...]


def explore(
    bundle_path: Path,
    paths: Sequence[Path],
    *,
    output: Path,
    options: ExploreOptions,
    console: Console | None = None,
) -> PageReport:
    """Hear recordings with a bundle and write the page `output`.

    InputError when no recording can be read, or one that was named cannot; CannotWriteError; BundleError.
    """
    console = console or Console(quiet=True)
    if not output.parent.is_dir():  # said before any work
        raise CannotWriteError(f"{output}: cannot be written: there is no directory {output.parent}")
    bundle = read_bundle(bundle_path)
    heard = _hear_all(
        bundle, ReplayJob(tuple(paths), JudgeOptions(), channel=options.channel), options, console=console
    )
    with console.status("drawing the map"):
        contents = _contents(bundle, heard.gatherer, options)
        elements = packed_arrays(columns_of(contents))
    with console.status("packing sound"):
        sound = _sound(contents, options, room_bytes=options.max_mb * 1e6 - sum(map(len, elements)))
    notes = _notes(contents, heard, options, sound=sound)
    files = {f"sound-{piece.recording}-{piece.number}": ogg for piece, ogg in sound.items()}
    facts = {"piece_s": PIECE_S, "n_pieces": len(sound)}
    page = render(meta_of(contents, title=options.title, notes=notes, sound=facts), [*elements, *packed_files(files)])
    replace_file(output, page)
    n_shown = len(contents.windows.score)
    return PageReport(output, len(page), len(contents.recordings), contents.n_windows, n_shown, notes)


def _hear_all(bundle: Bundle, job: ReplayJob, options: ExploreOptions, *, console: Console) -> _Heard:
    """Hear the recordings one after another; a bad one is passed over where it was found in a tree."""
    manifest, paths, trees = bundle.manifest, job.recordings(), job.trees()
    rate_hz, window_frames = manifest.sample_rate_hz, manifest.window_frames
    n_expected, bad = 0, []
    for path in paths:
        n_expected += _n_windows(path, rate_hz=rate_hz, window_s=window_frames / rate_hz, hop_s=options.hop_s)
    gatherer = Gatherer(picture_spec(manifest), window_frames, n_expected, options.max_windows)
    wanted = LIVE_OUTPUTS | {"reconstruction"}
    engine: Engine = open_engine(bundle, "onnx")
    with Progress(console=console, transient=True) as progress:
        for path in progress.track(paths, description="hearing the recordings"):
            label = label_of(path, trees)
            events = events_of(path, options.events, label=label)
            try:
                heard = hear(path, bundle, engine, hop_s=options.hop_s, channel=options.channel, wanted=wanted)
            except InputError as exc:
                if not trees:
                    raise
                bad.append(str(exc))
                continue
            gatherer.add(heard, label=label, events=events, facts=facts_of(path))
    engine.close()
    if not gatherer.n_windows:
        raise InputError(f"none of the {len(paths)} recordings can be read: {bad[0]}")
    return _Heard(gatherer, tuple(bad))


def _n_windows(path: Path, *, rate_hz: int, window_s: float, hop_s: float) -> int:
    """Return how many windows a recording should have by its header; none when that cannot be read."""
    try:
        source = FileSource(path, name="recording", rate_hz=rate_hz)
    except InputError:
        return 0
    source.close()
    return 1 + max(0, int((source.duration_s - window_s) / hop_s))


def _contents(bundle: Bundle, gatherer: Gatherer, options: ExploreOptions) -> Contents:
    windows, manifest = gatherer.shown(), bundle.manifest
    return Contents(
        bundle=bundle,
        spec=gatherer.spec,
        hop_s=options.hop_s,
        recordings=gatherer.recordings,
        windows=windows,
        geometry=lay_out(windows.place, n_clusters=options.n_clusters),
        facets=facets_of(
            gatherer.recordings, windows, window_frames=manifest.window_frames, rate_hz=manifest.sample_rate_hz
        ),
        pictures=pack_pictures(windows.pictures),
    )


def _sound(contents: Contents, options: ExploreOptions, *, room_bytes: float) -> Mapping[Piece, bytes]:
    if not options.sound:
        return {}
    rate_hz, window_frames = contents.rate_hz, contents.bundle.manifest.window_frames

    def read(recording: int) -> FloatArray:
        samples = read_samples(contents.recordings[recording].path, rate_hz=rate_hz, channel=options.channel)
        return np.resize(samples, max(len(samples), window_frames))  # a short one is repeated, as it was heard

    return encode_pieces(
        pieces_of(contents.windows, rate_hz=rate_hz),
        read,
        rate_hz=rate_hz,
        window_frames=window_frames,
        max_bytes=packed_bytes(int(room_bytes)),
    )


def _notes(
    contents: Contents, heard: _Heard, options: ExploreOptions, *, sound: Mapping[Piece, bytes]
) -> tuple[str, ...]:
    """Say what is missing from the page."""
    windows, notes = contents.windows, []
    n_shown = len(windows.score)
    if n_shown < contents.n_windows:
        notes.append(
            f"{n_shown:,} of {contents.n_windows:,} windows are drawn: the {min(N_STRANGEST, n_shown)} strangest and "
            "an even sample of the others. The histogram and the scores over time hold all."
        )
    if n_blank := sum(picture is None for picture in windows.pictures):
        notes.append(f"{n_blank:,} windows have no picture: all of them would be too large.")
    if not options.sound:
        notes.append("There is no sound on this page, as was asked for.")
    else:
        needed = pieces_of(windows, rate_hz=contents.rate_hz)
        missing = [piece for piece in needed if piece not in sound]
        if missing:
            silent = {piece.recording for piece in needed} - {piece.recording for piece in sound}
            names = _some([contents.recordings[i].label for i in sorted(silent)])
            notes.append(
                f"{len(missing):,} of {len(needed):,} pieces of sound ({PIECE_S:g} s each) are left out to keep the "
                f"page near {options.max_mb:g} MB; the strangest are there."
                + (f" No sound at all: {names}." if silent else "")
            )
    if heard.bad:
        notes.append(f"{len(heard.bad)} recordings could not be read: {_some(heard.bad)}.")
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
