"""What the benchmarks of speed share: sound to work on, a bundle, the cost of a run, and rounds of contestants."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.machine import one_thread

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
RATE_HZ = 16000


def noise(n_frames: int) -> NDArray[np.float32]:
    """Return seeded noise of a varying level, shape (n_frames,)."""
    rng = np.random.default_rng(0)
    level = np.interp(np.arange(n_frames), np.linspace(0, n_frames, 400), rng.uniform(0.01, 0.1, 400))
    return (rng.standard_normal(n_frames, dtype=np.float32) * level).astype(np.float32)


def make_recording(path: Path, *, source: Path | None, minutes: float) -> None:
    """Write a 16-bit mono WAV of the wanted length, from a recording repeated or from noise."""
    n_frames = round(minutes * 60 * RATE_HZ)
    soundfile.write(path, recorded(source, n_frames) if source else noise(n_frames), RATE_HZ, subtype="PCM_16")


def recorded(source: Path, n_frames: int) -> NDArray[np.float32]:
    """Return the first channel of a recording, repeated or cut to n_frames."""
    sound, rate_hz = soundfile.read(source, dtype="float32", always_2d=True)
    if rate_hz != RATE_HZ:
        raise SystemExit(f"{source}: {rate_hz} Hz; this benchmark wants {RATE_HZ} Hz")
    return np.resize(sound[:, 0], n_frames)


def make_folder(folder: Path, *, source: Path | None, minutes: float, n_files: int) -> list[Path]:
    """Write FOLDER.wav as `make_recording` does, and its sound in pieces of equal length, to be shared among cores."""
    folder.mkdir()
    whole = folder.with_suffix(".wav")
    make_recording(whole, source=source, minutes=minutes)
    samples, _ = soundfile.read(whole, dtype="int16")
    paths = [folder / f"{index:02}.wav" for index in range(n_files)]
    for path, piece in zip(paths, np.array_split(samples, n_files), strict=True):
        soundfile.write(path, piece, RATE_HZ, subtype="PCM_16")
    return paths


def train_bundle(recording: Path, work: Path, *, program: bool = False) -> Path:
    """Train a bird-ae on the first minute of a recording; its run, with the checkpoints, lies beside the bundle.

    It holds the graph in float32, and with `program` the torch program.
    """
    bundle = work / "bench.edgeasd"
    wanted = ["data.end_s=60", "export.precisions=[]", f"export.program={str(program).lower()}"]
    options = ["--cache-dir", str(work / "cache"), *(word for setting in wanted for word in ("--set", setting))]
    command = [EDGEASD, "train", str(recording), "-o", str(bundle), *options]
    subprocess.run(command, check=True, capture_output=True, env=one_thread())
    return bundle


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took."""

    wall_s: float
    cpu_s: float
    """Of all its threads and children."""


@contextmanager
def on_cores(n_cores: int) -> Iterator[None]:
    """Keep this process, and the children it starts meanwhile, to so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:n_cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run_measured(command: Sequence[str]) -> tuple[Cost, str]:
    """Run a program with one thread for each numeric library; return its cost and its standard output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=one_thread())
    wall_s = time.perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), done.stdout


def alternate(contestants: Sequence[Callable[[], Cost]], *, rounds: int) -> list[list[Cost]]:
    """Run contestants in turn, round after round, so that a slow minute of the machine hits all; one list for each."""
    costs: list[list[Cost]] = [[] for _ in contestants]
    for number in range(rounds):
        order = range(len(contestants))
        for index in order if number % 2 == 0 else reversed(order):
            costs[index].append(contestants[index]())
    return costs


def timed(work: Callable[[], object]) -> Cost:
    """Return what a call took in this process."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - began_s, time.process_time() - began_cpu_s)


def wall_text(costs: Sequence[Cost]) -> str:
    """Return median and minimum of wall seconds."""
    walls_s = [cost.wall_s for cost in costs]
    return f"{statistics.median(walls_s):.3g} / {min(walls_s):.3g}"


def least_wall_s(costs: Sequence[Cost]) -> float:
    """Return the shortest of some runs: what the machine can do when nobody else uses it."""
    return min(cost.wall_s for cost in costs)


def least_cpu_s(costs: Sequence[Cost]) -> float:
    """Return the least processor time of some runs."""
    return min(cost.cpu_s for cost in costs)
