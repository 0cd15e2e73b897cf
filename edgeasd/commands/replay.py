"""`edgeasd replay`: recordings through the line that hears microphones."""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgeasd.commands.archiving import ended_by_sigterm, shard_of, shown_progress
from edgeasd.commands.common import BundleOption, ConfigOption, EngineOption, HopOption, MqttOption, PrecisionOption
from edgeasd.errors import UsageError
from edgeasd.publish.wire import checked_name

if TYPE_CHECKING:
    from edgeasd.assembly import Bench
    from edgeasd.line import Taker
    from edgeasd.replay import ReplayJob, ReplayResult, TablePaths
    from edgeasd.settings import Settings

FOUND_ANOMALIES = 3
"""Exit code of --fail-on-anomaly when an event was found."""


def replay(  # noqa: PLR0913  # one parameter an option
    paths: Annotated[list[Path], typer.Argument(help="Recordings, or folders of WAV, FLAC and Ogg files.")],
    *,
    bundle: BundleOption = None,
    hop: HopOption = None,
    speed: Annotated[str, typer.Option(metavar="1|N|max", help="Times real time; max is as fast as it goes.")] = "max",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write scores, one row a window.")] = None,
    events: Annotated[Path | None, typer.Option(metavar="FILE", help="Write events that were not taken back.")] = None,
    notices: Annotated[Path | None, typer.Option(metavar="FILE", help="Write notices of new lasting states.")] = None,
    mqtt: MqttOption = None,
    publish: Annotated[bool, typer.Option("--publish", help="Publish to the broker of the settings.")] = False,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the node in messages. Default: this one's, and -replay.")
    ] = None,
    source: Annotated[str, typer.Option(metavar="NAME", help="Name of the source in messages.")] = "replay",
    channel: Annotated[str, typer.Option(metavar="N|mix", help="Channel to listen to, or the mean of all.")] = "mix",
    glob: Annotated[str | None, typer.Option(metavar="PATTERN", help="In folders: only files like this.")] = None,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help=f"Exit with {FOUND_ANOMALIES} when an event was found.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes. Default: one a core, where it is worth it.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N shares; the last to end writes the tables.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a replay into these tables stopped.")] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="local|auto|ADDRESS", help="Play on a Ray cluster. Needs edgeasd[ray].")
    ] = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Replay recordings through the very line that hears microphones.

    Without --out, --events and --notices, and without a broker, the messages are printed as JSON lines.
    """
    from edgeasd.daemon import judge_options
    from edgeasd.models.choosing import choose
    from edgeasd.publishing import without_broker
    from edgeasd.replay import ReplayJob, TablePaths
    from edgeasd.settings import load_settings

    judges = {"bundle": bundle, "engine": engine, "precision": precision}
    overrides = {**judges, "windows": {"hop_s": hop}, "mqtt": {"url": mqtt}}
    settings = load_settings(config, overrides)
    to_broker = publish or mqtt is not None
    if to_broker and settings.mqtt.address is None:
        raise UsageError("--publish: no broker is set; give --mqtt URL, or mqtt.url in the settings")
    job = ReplayJob(
        paths=tuple(paths),
        judges=judge_options(settings, None if bundle is not None else choose(settings)),
        glob=glob,
        channel=_channel(channel),
        speed=_speed(speed),
        source=source,
    )
    tables = TablePaths(
        _apart("--out", out), _apart("--events", events, out), _apart("--notices", notices, out, events)
    )
    division = {"--jobs": jobs, "--shard": shard, "--resume": resume or None, "--ray": ray}
    given = [flag for flag, value in division.items() if value is not None]
    if to_broker or not (out or events or notices) or job.speed is not None:
        if given:
            raise UsageError(f"{given[0]}: only where recordings are replayed into tables, at full speed, unpublished")
        outlet = _beside_the_node(settings, node) if to_broker else without_broker(settings)
        result = _one_by_one(job, tables, outlet, publishes=to_broker or not (out or events or notices))
    else:
        result = _divided(job, tables, jobs=jobs, shard=shard, resume=resume, ray=ray)
    print(_summary(result), file=sys.stderr)
    if fail_on_anomaly and result.n_events:
        raise typer.Exit(FOUND_ANOMALIES)


def _one_by_one(job: ReplayJob, tables: TablePaths, outlet: Settings, *, publishes: bool) -> ReplayResult:
    """Replay in this process: at a pace, or into messages."""
    from edgeasd.replay import replay as run_replay
    from edgeasd.reporter import reporting

    def publisher(bench: Bench, stack: ExitStack) -> Taker:
        return stack.enter_context(reporting(outlet, bench, [job.source]))

    return run_replay(job, tables, also=publisher if publishes else None, report=_progress)


def _divided(
    job: ReplayJob, tables: TablePaths, *, jobs: int | None, shard: str | None, resume: bool, ray: str | None
) -> ReplayResult:
    """Replay into tables, on as many cores as there are."""
    from edgeasd.archive import ArchiveOptions, replay_archive

    options = ArchiveOptions(jobs=jobs, shard=shard_of(shard), resume=resume, ray=ray)
    with ended_by_sigterm(), shown_progress() as watch:
        return replay_archive(job, tables, options, watch=watch)


def _beside_the_node(settings: Settings, name: str | None) -> Settings:
    """Return settings under which a replay leaves a node alone that runs on this machine, and its retained topics."""
    node = settings.node.model_copy(
        update={"name": checked_name(name or f"{settings.node.name}-replay", what="--node")}
    )
    mqtt = settings.mqtt.model_copy(update={"client_id": f"{settings.client_id}-replay"})
    return settings.model_copy(update={"mqtt": mqtt, "node": node, "state_dir": settings.state_dir / "replay"})


def _apart(flag: str, path: Path | None, *others: Path | None) -> Path | None:
    """Return `path`; UsageError when another table goes there already."""
    if path is not None and path.resolve() in [other.resolve() for other in others if other is not None]:
        raise UsageError(f"{flag}: {path} is where another table goes")
    return path


def _channel(text: str) -> int | Literal["mix"]:
    if text == "mix":
        return "mix"
    if not text.isdecimal() or int(text) > 63:
        raise UsageError(f"--channel: {text!r} is neither a channel number (0 to 63) nor mix")
    return int(text)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0.0 < speed <= 1e4:
        raise UsageError(f"--speed: {text!r} is neither a number above 0 (at most 10000) nor max")
    return speed


def _progress(result: ReplayResult, path: Path) -> None:
    if sys.stderr.isatty():
        print(
            f"\r\x1b[K{result.n_recordings} done, {result.heard_s / 3600:.2f} h: {path.name}", end="", file=sys.stderr
        )


def _summary(result: ReplayResult) -> str:
    speed = result.heard_s / max(1e-9, result.wall_s)
    before = f" ({result.n_before} of them before)" if result.n_before else ""
    bad = f", {len(result.bad)} passed over" if result.bad else ""
    missing = f"; the tables wait for {result.n_missing} recordings of other shards" if result.n_missing else ""
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    return (
        f"{start}{result.n_recordings} recordings{before}{bad}, {result.heard_s:.1f} s in {result.wall_s:.2f} s "
        f"({speed:.0f} x): {result.n_windows} windows, {result.n_events} events{missing}"
    )
