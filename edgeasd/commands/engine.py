"""`edgeasd engine`: build what engines need, see which there are, measure them, forget what was built."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeasd.commands.common import (
    ConfigOption,
    EngineOption,
    HopOption,
    JsonOption,
    PrecisionOption,
    print_json,
)
from edgeasd.errors import EdgeasdError, UsageError

if TYPE_CHECKING:
    from edgeasd.bundle import Bundle
    from edgeasd.engine import EngineName
    from edgeasd.engine.benching import Figures
    from edgeasd.engine.choosing import Candidate
    from edgeasd.settings import Settings

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

BATCHES = (1, 8, 64, 512)

BundleArgument = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", help="A bundle, NAME.edgeasd. Default: the one to run here.")
]


@app.command()
def build(
    file: BundleArgument = None,
    *,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Build what the engines of the settings need and choose among them, so that the node starts at once.

    As root it is done as the user of the node, to whom the state directory belongs.
    """
    from edgeasd.engine.choosing import candidates_of, choose_engine, open_candidate

    settings, bundle = _settings_and_bundle(file, config, {"engine": engine, "precision": precision})
    cache_dir, wish = settings.engine_cache_dir, (settings.engine, settings.precision)
    for candidate in candidates_of(bundle, wish[0], wish[1]):
        began_s, before = time.perf_counter(), _kept(cache_dir)
        try:
            opened = open_candidate(bundle, candidate, cache_dir=cache_dir)
        except EdgeasdError as exc:
            print(f"{candidate!s:<14} {exc}")
            continue
        spent_s, fresh = time.perf_counter() - began_s, [row for row in _kept(cache_dir) if row not in before]
        built = ", ".join(f"{row['kind']} of {_size(row['n_bytes'])}" for row in fresh) or "nothing"
        print(f"{candidate!s:<14} ready in {spent_s:.2f} s on {opened.device}, kept: {built}", flush=True)
        opened.close()
    chosen = choose_engine(bundle, wish[0], precision=wish[1], cache_dir=cache_dir)
    print(f"the node runs  {chosen.engine.name} {chosen.engine.precision}: {chosen.why}")
    chosen.engine.close()


@app.command()
def info(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Say which engines can run here, what the others need, and what was built and kept."""
    from edgeasd.engine.machine import gpu_name
    from edgeasd.settings import load_settings

    settings = load_settings(config)
    _become_owner(settings)
    facts = {
        "gpu": gpu_name(),
        "engines": [_engine_facts("onnx"), _engine_facts("torch"), _engine_facts("tensorrt")],
        "cache": {"folder": str(settings.engine_cache_dir), "entries": _kept(settings.engine_cache_dir)},
    }
    if as_json:
        print_json(facts)
    else:
        print("\n".join(_told(facts)))


@app.command()
def bench(
    file: BundleArgument = None,
    *,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    hop: HopOption = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=60, help="Time to spend on each figure.")] = 0.5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every engine in every precision of a bundle, each in a process of its own."""
    overrides = {"engine": engine or "auto", "precision": precision or "auto", "windows": {"hop_s": hop}}
    settings, bundle = _settings_and_bundle(file, config, overrides)
    rows: list[dict[str, Any]] = []
    failures: list[EdgeasdError] = []
    for candidate, figures in _measured(settings, bundle, budget_s=seconds):
        if isinstance(figures, EdgeasdError):
            failures.append(figures)
        rows.append(_row(candidate, figures, hop_s=settings.windows.hop_s))
    if as_json:
        print_json({"bundle_sha256": bundle.sha256, "hop_s": settings.windows.hop_s, "engines": rows})
    else:
        _print_table(rows)
    if len(failures) == len(rows):
        raise failures[0]


@app.command()
def clear(config: ConfigOption = None) -> None:
    """Forget what was built and measured; the next start builds and measures anew."""
    from edgeasd.engine.plans import PlanCache
    from edgeasd.settings import load_settings

    settings = load_settings(config)
    _become_owner(settings)
    n_files = PlanCache(settings.engine_cache_dir).clear() if settings.engine_cache_dir.is_dir() else 0
    print(f"{settings.engine_cache_dir}: {n_files} files removed")


def _settings_and_bundle(file: Path | None, config: Path | None, overrides: dict[str, Any]) -> tuple[Settings, Bundle]:
    """Return the settings and the bundle, that of the node where none is named; from here on we act as the node."""
    from edgeasd.bundle import read_bundle
    from edgeasd.models.choosing import choose, trust_of
    from edgeasd.settings import load_settings

    settings = load_settings(config, overrides)
    if file is not None:
        bundle = read_bundle(file, trust=trust_of(settings))
    elif (choice := choose(settings)) is not None:
        bundle = choice.bundle
    else:
        raise UsageError("BUNDLE: none given, and the settings name none")
    _become_owner(settings)
    return settings, bundle


def _become_owner(settings: Settings) -> None:
    """As root, take on the user whose state directory it is: what root builds the node neither reads nor trusts."""
    import os
    import pwd

    if os.geteuid() != 0 or not settings.state_dir.is_dir():
        return
    owner = settings.state_dir.stat()
    if owner.st_uid == 0:
        return
    try:
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)  # a GPU may ask for the group video
    except KeyError:  # a container that knows the number alone
        os.setgroups([owner.st_gid])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def _measured(
    settings: Settings, bundle: Bundle, *, budget_s: float
) -> Iterator[tuple[Candidate, Figures | EdgeasdError]]:
    """Yield what each engine was measured at, or why it was not."""
    from edgeasd.engine.benching import measure
    from edgeasd.engine.choosing import ENGINES, paired

    kinds = ENGINES if settings.engine == "auto" else (settings.engine,)
    precisions = bundle.precisions if settings.precision == "auto" else (settings.precision,)
    for candidate in paired(kinds, precisions):
        if sys.stderr.isatty():
            print(f"\r\x1b[Kmeasuring {candidate}", end="", file=sys.stderr, flush=True)
        try:
            figures: Figures | EdgeasdError = measure(
                bundle, candidate, batches=BATCHES, budget_s=budget_s, cache_dir=settings.engine_cache_dir
            )
        except EdgeasdError as exc:
            figures = exc
        yield candidate, figures
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _row(candidate: Candidate, figures: Figures | EdgeasdError, *, hop_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": candidate.kind, "precision": candidate.precision}
    if isinstance(figures, EdgeasdError):
        return {**row, "trouble": str(figures)}
    batches = [
        {"windows": n, "ms": ms, "windows_per_s": 1e3 * n / ms, "times_real_time": 1e3 * n / ms * hop_s}
        for n, ms in figures.batch_ms.items()
    ]
    return {
        **row,
        "trouble": None,
        "device": figures.device,
        "open_s": figures.open_s,
        "golden_deviation": figures.deviation,
        "peak_bytes": figures.peak_bytes,
        "batches": batches,
    }


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("engine", "precision", "device", "opens in", "golden off by", "memory"):
        table.add_column(heading)
    for heading in ("batch", "ms", "windows/s", "x real time"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row["trouble"] is None:
            _add_batches(table, row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if table.row_count:
        console.print(table)
    for trouble in dict.fromkeys(row["trouble"] for row in rows if row["trouble"]):
        print(trouble)


def _add_batches(table: Any, row: dict[str, Any]) -> None:
    facts = [row["engine"], row["precision"], row["device"], f"{row['open_s']:.2f} s"]
    facts += [f"{row['golden_deviation']:.1e}", _size(row["peak_bytes"])]
    for one in row["batches"]:
        figures = [f"{one['ms']:.3g}", f"{one['windows_per_s']:.0f}", f"{one['times_real_time']:.0f}"]
        table.add_row(*facts, str(one["windows"]), *figures)
        facts = [""] * len(facts)


def _engine_facts(name: EngineName) -> dict[str, Any]:
    from edgeasd.engine.machine import gpu_name, has_module, versions

    module = "onnxruntime" if name == "onnx" else name
    found = [text for key, text in versions().items() if key.startswith(module)]
    facts: dict[str, Any] = {"name": name, "version": found[-1] if found else None, "device": None, "trouble": None}
    if not has_module(module):
        facts["trouble"] = f"is not installed: pip install 'edgeasd[{name}]'"
    elif name == "tensorrt" and gpu_name() is None:
        facts["trouble"] = "is installed, and needs a CUDA device"
    elif name == "onnx":
        from edgeasd.engine.onnx import likely_device

        facts["device"] = likely_device()
    else:
        facts["device"] = gpu_name() or "cpu, where only engine: torch uses it"
    return facts


def _kept(cache_dir: Path) -> list[dict[str, Any]]:
    """Return what the cache holds; looking does not make one."""
    from dataclasses import asdict

    from edgeasd.engine.plans import PlanCache

    if not cache_dir.is_dir():
        return []
    return [
        {**asdict(entry.key), "n_bytes": entry.n_bytes, "used_utc_s": entry.used_utc_s}
        for entry in PlanCache(cache_dir).entries()
    ]


def _told(facts: dict[str, Any]) -> Iterator[str]:
    yield f"GPU: {facts['gpu'] or 'none'}"
    for one in facts["engines"]:
        yield f"{one['name']:<9} {one['version'] or '':<10} {one['trouble'] or 'runs on ' + one['device']}"
    entries = facts["cache"]["entries"]
    yield f"{facts['cache']['folder']}: {len(entries)} kept, {_size(sum(one['n_bytes'] for one in entries))}"
    for one in entries:
        of = f"of {one['source_sha256'][:12]} for {one['device']} by {one['library']}"
        yield f"  {one['kind']} {one['precision']} {of}, {_size(one['n_bytes'])}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.1f} KiB"
