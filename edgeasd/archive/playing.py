"""What plays recordings of an archive, one after another, in this process or in another one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from edgeasd import __version__
from edgeasd.archive.parts import Parts, Played
from edgeasd.archive.takes import Take
from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges
from edgeasd.errors import BundleError, CannotWriteError, EdgeasdError, InputError, SettingsError, UnavailableError
from edgeasd.replay import ReplayJob, TablePaths, Tables, play

log = logging.getLogger(__name__)

_ELSEWHERE = frozenset({"bundle", "trust", "state_dir", "cache_dir"})
"""Fields of the options that say where things lie, not how is judged."""


@dataclass(frozen=True, slots=True)
class Broke:
    """What is returned for a recording over which the judges broke, through no fault of its file that is known."""

    reason: str


Player = Callable[[Take], Played | Broke]


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a process needs to play recordings."""

    job: ReplayJob
    parts: Parts
    tables: tuple[str, ...]
    """Names of the fields of TablePaths that are wanted."""


def settled(options: JudgeOptions, bench: Bench) -> JudgeOptions:
    """Return options under which every process, on any machine, judges as `bench` does.

    The bundle is at hand, carries the site calibration if there is one, and nothing is left to be measured.
    """
    if bench.model is None or bench.bundle is None:
        return replace(options, bundle=None, trust=None, state_dir=None)
    engine, manifest = bench.model.engine, bench.bundle.manifest
    table = bench.model.calibration.table
    if engine.precision == "fp32":
        manifest = manifest.model_copy(update={"calibration": table})
    else:
        reduced = manifest.precisions[engine.precision].model_copy(update={"calibration": table})
        manifest = manifest.model_copy(update={"precisions": {**manifest.precisions, engine.precision: reduced}})
    return replace(
        options,
        bundle=replace(bench.bundle, manifest=manifest),
        trust=None,
        state_dir=None,
        engine=engine.name,
        precision=engine.precision,
    )


def facts(job: ReplayJob, tables: tuple[str, ...]) -> dict[str, object]:
    """Return what the parts of a job with settled options depend on, for a comparison."""
    options, bundle = job.judges, job.judges.bundle
    assert not isinstance(bundle, Path), "not settled"
    how = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in _ELSEWHERE}
    how["policy"] = asdict(options.policy)
    if bundle is not None:
        assert options.precision != "auto", "not settled"
        calibration = bundle.calibration(options.precision).model_dump_json()
        how["bundle"] = bundle.sha256
        how["calibration"] = hashlib.sha256(calibration.encode()).hexdigest()
    return {"edgeasd": __version__, "tables": tables, "channel": job.channel, **how}


@contextmanager
def open_player(setup: Setup) -> Iterator[Player]:
    """Seat the judges of a process."""
    with seat_judges(plan_judges(setup.job.judges)) as bench, player(setup, bench) as play_take:
        yield play_take


@contextmanager
def player(setup: Setup, judges: Bench) -> Iterator[Player]:
    """Lend what plays a recording before judges that sit, and keeps its parts."""
    with setup.parts.workbench() as bench:
        paths = {table: bench / f"{table}.csv" for table in setup.tables}

        def play_take(take: Take) -> Played | Broke:
            try:
                played = _play_into(TablePaths(**paths), setup.job, take, judges)
            except InputError as exc:
                return setup.parts.keep(take, Played(bad=str(exc)), {}, bench=bench)
            except (CannotWriteError, BundleError, SettingsError, UnavailableError):
                raise  # would meet every recording
            except Exception as exc:  # the archive is worth more than one recording; said when it is given up
                log.debug("%s: the judges broke", take.path, exc_info=True)
                return Broke(str(exc) if isinstance(exc, EdgeasdError) else f"{type(exc).__name__}: {exc}")
            return setup.parts.keep(take, played, paths, bench=bench)

        yield play_take


def _play_into(paths: TablePaths, job: ReplayJob, take: Take, judges: Bench) -> Played:
    written = Tables(paths, judges)
    try:
        heard = play(job, take.path, judges, [written], written=written, label=take.label)
        written.close()
    finally:
        written.discard()
    return Played(heard.duration_s, written.n_windows, written.n_events, heard.truncated)
