"""An archive on a Ray cluster: Ray Data deals out the recordings, actors that hold the judges play them."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeasd.archive.parts import Parts, Played
from edgeasd.archive.playing import Broke, Setup, open_player
from edgeasd.archive.takes import Take
from edgeasd.errors import CannotWriteError, EdgeasdError, UnavailableError
from edgeasd.workers import Lost, endless, work_apart


class Seat:
    """An actor: plays recordings where it sits, and hands back what came of each, with the parts of the tables.

    The judges sit in a process beside it, so that a recording that kills them is told of: Ray would play it for ever.
    """

    def __init__(self, setup: Setup) -> None:
        self._folder = TemporaryDirectory(prefix="edgeasd-")
        self._parts = Parts(Path(self._folder.name))
        play = partial(open_player, replace(setup, parts=self._parts))
        self._next: Take | None = None
        self._outcomes = work_apart(play, iter(lambda: self._next, None), workers=1, patience_s=endless, mortal=True)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Play one recording; rows hold pickles, which only the two ends look into."""
        take: Take = pickle.loads(row["take"])  # noqa: S301  # made by `_rows`
        self._next = take
        outcome: Played | Broke | Lost | EdgeasdError
        try:
            _, outcome = next(self._outcomes)
        except EdgeasdError as exc:
            outcome = exc
        tables: dict[str, bytes] = {}
        if isinstance(outcome, Played):
            for table in outcome.n_bytes:
                path = self._parts.part(take, table)
                tables[table] = path.read_bytes()
                path.unlink()
        return {"take": row["take"], "answer": pickle.dumps((outcome, tables))}


def play_on_ray(
    setup: Setup, takes: Sequence[Take], *, address: str, seats: int | None
) -> Iterator[tuple[Take, Played | Broke | Lost]]:
    """Yield what came of each recording, as they come, its parts kept; `seats` actors, by default one a CPU.

    The recordings must be where every node of the cluster sees them, and edgeasd must be installed there.
    UnavailableError when Ray is not installed, cannot be reached or gives up.
    """
    if not takes:
        return
    with _cluster(address, cpus=seats) as ray, setup.parts.workbench() as bench:
        try:
            for row in _rows(ray, setup, takes, seats=seats):
                take: Take = pickle.loads(row["take"])  # noqa: S301  # ours, see `_rows`
                yield take, _kept(setup.parts, take, row["answer"], bench=bench)
        except ray.exceptions.RayError as exc:
            raise UnavailableError(f"--ray {address}: the cluster gave up: {str(exc).splitlines()[0]}") from exc


def _kept(parts: Parts, take: Take, answer: bytes, *, bench: Path) -> Played | Broke | Lost:
    outcome, tables = pickle.loads(answer)  # noqa: S301  # ours, see Seat
    if isinstance(outcome, EdgeasdError):
        raise outcome
    if not isinstance(outcome, Played):
        assert isinstance(outcome, Broke | Lost)
        return outcome
    made = {table: bench / table for table in tables}
    try:
        for table, path in made.items():
            path.write_bytes(tables[table])
    except OSError as exc:
        raise CannotWriteError(f"{parts.folder}: cannot be written: {exc.strerror}") from exc
    return parts.keep(take, outcome, made, bench=bench)


@contextmanager
def _cluster(address: str, *, cpus: int | None) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine that nobody else reaches and that reports to nobody."""
    try:
        import ray  # half a gigabyte, for those who ask for it
        import ray.data
    except ModuleNotFoundError as exc:
        raise UnavailableError("--ray: Ray is not installed: pip install 'edgeasd[ray]'") from exc
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address=address, logging_level=logging.ERROR, log_to_driver=False, **(here if address == "local" else {})
        )
    except (OSError, RuntimeError, ValueError) as exc:
        raise UnavailableError(f"--ray {address}: cannot be reached: {exc}") from exc
    try:
        yield ray
    finally:
        ray.shutdown()


def _rows(ray: Any, setup: Setup, takes: Sequence[Take], *, seats: int | None) -> Iterator[Mapping[str, bytes]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    n_seats = min(seats or int(ray.cluster_resources().get("CPU", 1)), len(takes))
    rows = ray.data.from_items([{"take": pickle.dumps(take)} for take in takes], override_num_blocks=len(takes))
    pool = ray.data.ActorPoolStrategy(size=n_seats, max_tasks_in_flight_per_actor=1)
    played = rows.map(Seat, fn_constructor_args=(setup,), compute=pool, num_cpus=1)
    yield from played.iter_rows()
