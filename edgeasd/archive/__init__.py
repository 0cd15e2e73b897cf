"""Archives: thousands of recordings through the line of the node, on all cores, in shares, from where it stopped.

Every recording is played by itself, wherever: what is said of it does not depend on what else is played, so that the
tables are the same to the last byte however the work was divided.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial

from edgeasd.archive.holding import joining, parts_beside
from edgeasd.archive.parts import Parts, Played
from edgeasd.archive.playing import Broke, Setup, facts, open_player, player, settled
from edgeasd.archive.raying import play_on_ray
from edgeasd.archive.takes import Shard, Take, longest_first, share_of, survey, worthwhile_processes
from edgeasd.assembly import Bench, plan_judges, seat_judges
from edgeasd.capture.wav import shown_name
from edgeasd.errors import CannotWriteError, EdgeasdError, InputError, SelfTestError
from edgeasd.replay import ReplayJob, ReplayResult, TablePaths, warn_of_truncation
from edgeasd.workers import Lost, endless, usable_cores, work_apart

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArchiveOptions:
    """How the work on an archive is divided."""

    jobs: int | None = None
    """Processes; None: as many as are worth their start, one a core at most."""
    shard: Shard | None = None
    """Play this share only; whoever ends the last share writes the tables."""
    resume: bool = False
    """Go on with what an earlier replay has left."""
    ray: str | None = None
    """Address of a Ray cluster to play on; "local" starts one here."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay of an archive has come."""

    n_done: int
    """Of the recordings that are played now."""
    n_takes: int
    heard_s: float
    total_s: float
    wall_s: float

    @property
    def speed(self) -> float:
        """Return how many times faster than real time it goes."""
        return self.heard_s / max(1e-9, self.wall_s)

    @property
    def left_s(self) -> float | None:
        """Return how long the rest will take at the speed so far; None while that is not known."""
        return (self.total_s - self.heard_s) / self.speed if self.heard_s else None


Outcomes = Iterator[tuple[Take, Played | Broke | Lost]]
Watch = Callable[[Progress], None]
"""Hears of each recording that is done."""


def replay_archive(
    job: ReplayJob, tables: TablePaths, options: ArchiveOptions = ArchiveOptions(), *, watch: Watch | None = None
) -> ReplayResult:
    """Replay recordings into tables; they appear when all is done.

    A recording that cannot be read is passed over and counted when it was found in a tree, and has no rows; one that
    was named ends the replay by an InputError once all others are done. One over which the judges break, or die, is
    tried once more by itself before it counts as such. What is done when an error or a signal ends the replay is kept.
    """
    began_s = time.monotonic()
    names = tuple(each.name for each in fields(tables) if getattr(tables, each.name) is not None)
    assert names, "an archive is replayed into tables"
    takes = survey(job)
    _make_places(tables, names)
    with ExitStack() as judges:
        bench = judges.enter_context(seat_judges(plan_judges(job.judges)))  # what cannot be judged is refused here
        job = replace(job, judges=settled(job.judges, bench))
        first = getattr(tables, names[0])
        with parts_beside(first, facts(job, names), shard=options.shard, resume=options.resume) as parts:
            run = _Run(takes, takes if options.shard is None else share_of(options.shard, takes), parts, watch)
            outcomes = _outcomes(Setup(job, parts, names), run.missing(), options, bench=bench, judges=judges)
            with _kept(parts):
                run.play(outcomes, again=partial(_alone, Setup(job, parts, names)))
                run.join(tables, names, forgiving=bool(job.trees()))
    run.result.wall_s = time.monotonic() - began_s
    return run.result


class _Run:
    """One replay on its way: what is done of which recordings."""

    def __init__(self, takes: Sequence[Take], share: Sequence[Take], parts: Parts, watch: Watch | None) -> None:
        self._takes, self._share = takes, share
        self._parts = parts
        self._watch = watch
        self.result = ReplayResult()
        self._played: dict[Take, Played] = {}
        for take in share:
            played = parts.recall(take)
            if played is not None and played.bad is None:  # a bad one may have been mended
                self._played[take] = played
        self.result.n_before = len(self._played)

    def missing(self) -> list[Take]:
        """Return what is to be played, the longest first."""
        left = [take for take in self._share if take not in self._played]
        return [left[place] for place in longest_first(left)]

    def play(self, outcomes: Outcomes, *, again: Callable[[Take], Outcomes]) -> None:
        """Take what comes of each recording; give those that broke their judges one more try."""
        left = self.missing()
        began_s = time.monotonic()
        total_s = sum(take.duration_s for take in left)
        n_done, done_s = 0, 0.0
        for take, outcome in _with_second_tries(outcomes, self._parts, again):
            self._played[take] = outcome
            n_done, done_s = n_done + 1, done_s + take.duration_s
            self.result.heard_s += outcome.heard_s
            if outcome.truncated:
                warn_of_truncation(take.path)
            if self._watch is not None:
                self._watch(Progress(n_done, len(left), done_s, total_s, time.monotonic() - began_s))

    def join(self, tables: TablePaths, names: Sequence[str], *, forgiving: bool) -> None:
        """Put the tables in their places, unless other shards are still to come."""
        with joining(self._parts):
            there = self._parts.folder.exists()  # else whoever ended with us has joined them
            others = [take for take in self._takes if take not in self._played] if there else []
            known = {take: played for take in others if (played := self._parts.recall(take)) is not None}
            self.result.n_missing = len(others) - len(known)
            whole = there and not self.result.n_missing
            takes = self._takes if whole else self._share
            self._played |= known
            self._count(takes, forgiving=forgiving)
            if whole:
                good = [take for take in takes if self._played[take].bad is None]
                for name in names:
                    self._parts.join(name, getattr(tables, name), good)
                self._parts.remove()

    def _count(self, takes: Sequence[Take], *, forgiving: bool) -> None:
        """Sum up; InputError when nothing, or not all that was named, could be played: SelfTestError by the judges."""
        result = self.result
        result.bad = [bad for take in takes if (bad := self._played[take].bad) is not None]
        result.n_recordings = len(takes) - len(result.bad)
        refusal = SelfTestError if any(self._played[take].judges_broke for take in takes) else InputError
        if result.bad and not forgiving:
            more = f"; {len(result.bad) - 1} others neither" if len(result.bad) > 1 else ""
            raise refusal(result.bad[0] + more)
        for bad in result.bad:
            log.warning("passed over: %s", bad)
        if takes and not result.n_recordings:
            raise refusal(f"none of the {len(takes)} recordings can be read: {result.bad[0]}")
        result.n_windows = sum(self._played[take].n_windows for take in takes)
        result.n_events = sum(self._played[take].n_events for take in takes)


def _with_second_tries(
    outcomes: Outcomes, parts: Parts, again: Callable[[Take], Outcomes]
) -> Iterator[tuple[Take, Played]]:
    broken: list[Take] = []
    for take, outcome in outcomes:
        if isinstance(outcome, Played):
            yield take, outcome
        else:
            log.warning("%s: %s; it will be tried once more, by itself", shown_name(take.path), outcome.reason)
            broken.append(take)
    for take in broken:
        for _, outcome in again(take):
            if isinstance(outcome, Played):
                yield take, outcome
            else:
                line = f"{shown_name(take.path)}: cannot be judged: {outcome.reason}, twice"
                with parts.workbench() as bench:
                    yield take, parts.keep(take, Played(bad=line, judges_broke=True), {}, bench=bench)


def _outcomes(
    setup: Setup, takes: Sequence[Take], options: ArchiveOptions, *, bench: Bench, judges: ExitStack
) -> Outcomes:
    """Play recordings where the options say; `judges` closes `bench`, which is done where others are seated."""
    if options.ray is not None:
        judges.close()
        return play_on_ray(setup, takes, address=options.ray, seats=options.jobs)
    processes = min(options.jobs or worthwhile_processes(takes, cores=usable_cores()), len(takes))
    if processes <= 1:
        return _here(setup, takes, bench)
    judges.close()
    return work_apart(partial(open_player, setup), takes, workers=processes, patience_s=endless, mortal=True)


def _here(setup: Setup, takes: Sequence[Take], bench: Bench) -> Outcomes:
    with player(setup, bench) as play:
        yield from ((take, play(take)) for take in takes)


def _alone(setup: Setup, take: Take) -> Outcomes:
    return work_apart(partial(open_player, setup), [take], workers=1, patience_s=endless, mortal=True)


def _make_places(tables: TablePaths, names: Sequence[str]) -> None:
    for path in (getattr(tables, name) for name in names):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc
        if path.is_dir():
            raise CannotWriteError(f"{path}: cannot be written: Is a directory")


@contextmanager
def _kept(parts: Parts) -> Iterator[None]:
    """Say of what ends a replay that nothing that is done is lost."""
    try:
        yield
    except EdgeasdError as exc:
        if not (n_done := parts.n_done()):
            raise
        raise type(exc)(f"{exc} ({_going_on(n_done)})") from exc
    except (KeyboardInterrupt, SystemExit):
        if n_done := parts.n_done():
            log.warning("stopped; %s", _going_on(n_done))
        raise


def _going_on(n_done: int) -> str:
    return f"{n_done} recordings are done and kept: go on with --resume"
