"""An archive on all cores: speed by processes and by threads, memory, what a restart costs, a thousand hours.

    python -m benchmarks.bench_archive [--bundle FILE] [--recordings 24] [--runs 3] [--jobs 1 2]

The recordings are seeded noise with a varying level, 5 to 20 minutes each. One way is timed after another, and again;
the best of each is told, whole processes, start-up included. `threads` are judges in threads of one process, start-up
not included, which edgeasd does not offer. Without a bundle one is trained on a minute of the first recording.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import soundfile

from benchmarks.machine import machine_line, one_thread
from edgeasd.archive.takes import longest_first, survey
from edgeasd.assembly import JudgeOptions, plan_judges, seat_judges
from edgeasd.replay import ReplayJob, TablePaths, Tables, play

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
RATE_HZ = 16000
SHORTEST_S, LONGEST_S = 300.0, 1200.0
SAMPLE_EVERY_S = 0.1
THOUSAND_HOURS_S = 3.6e6


@dataclass(frozen=True, slots=True)
class Cost:
    """What one replay took."""

    wall_s: float
    cpu_s: float = 0.0
    parent_mb: float = 0.0
    workers_mb: float = 0.0
    """Of all workers together, unique to them."""


def make_archive(folder: Path, n_recordings: int) -> float:
    """Write seeded 16-bit mono WAVs; return their length in all, s."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(round(LONGEST_S * RATE_HZ), dtype=np.float32)
    lengths_s = rng.uniform(SHORTEST_S, LONGEST_S, n_recordings)
    for index, length_s in enumerate(lengths_s):
        n_frames = round(float(length_s) * RATE_HZ)
        level = np.interp(np.arange(n_frames), np.linspace(0, n_frames, 100), rng.uniform(0.01, 0.1, 100))
        samples = np.roll(noise, int(rng.integers(len(noise))))[:n_frames] * level.astype(np.float32)
        soundfile.write(folder / f"{index:04}.wav", samples, RATE_HZ, subtype="PCM_16")
    return float(lengths_s.sum())


def command(archive: Path, bundle: Path, out: Path, *more: str) -> list[str]:
    """Return the command that replays the archive."""
    tables = ["--out", str(out / "scores.csv"), "--events", str(out / "events.csv")]
    return [EDGEASD, "replay", str(archive), "--bundle", str(bundle), *tables, *more]


def watched(arguments: list[str]) -> Cost:
    """Run a command to its end and note what it and its children take."""
    began_s = time.perf_counter()
    parent_mb = workers_mb = cpu_s = 0.0
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=one_thread()) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                times = parent.cpu_times()
                children = parent.children()
                cpu_s = max(cpu_s, sum(times[:4]) + sum(sum(each.cpu_times()[:2]) for each in children))
                parent_mb = max(parent_mb, parent.memory_full_info().uss / 1e6)
                workers_mb = max(workers_mb, sum(each.memory_full_info().uss for each in children) / 1e6)
            except psutil.Error:  # ended meanwhile
                pass
            time.sleep(SAMPLE_EVERY_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {process.returncode}")
    return Cost(time.perf_counter() - began_s, cpu_s, parent_mb, workers_mb)


def in_threads(archive: Path, bundle: Path, out: Path, n_threads: int) -> Cost:
    """Replay with the judges of each thread in this process; start-up of the judges is not counted."""
    job = ReplayJob((archive,), JudgeOptions(bundle=bundle))
    takes = survey(job)
    left = [takes[place] for place in longest_first(takes)]
    lock, ready = threading.Lock(), threading.Barrier(n_threads + 1)

    def work(folder: Path) -> None:
        with seat_judges(plan_judges(job.judges)) as bench:
            ready.wait()
            while True:
                with lock:
                    if not left:
                        return
                    take = left.pop(0)
                written = Tables(TablePaths(scores=folder / f"{take.key}.csv"), bench)
                play(job, take.path, bench, [written], written=written, label=take.label)
                written.close()

    threads = [threading.Thread(target=work, args=(out / f"thread{index}",)) for index in range(n_threads)]
    for thread in threads:
        thread.start()
    ready.wait()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    return Cost(time.perf_counter() - began_s, time.process_time() - began_cpu_s)


def restart(archive: Path, bundle: Path, out: Path) -> tuple[float, float, int]:
    """Kill a replay half-way; return the wall seconds before and after, and how many recordings were kept."""
    arguments = command(archive, bundle, out, "--jobs", "2")
    n_recordings = len(list(archive.iterdir()))
    parts = out / "scores.csv.parts"
    began_s = time.perf_counter()
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env=one_thread(), start_new_session=True)
    while len(list(parts.glob("*.json"))) < n_recordings // 2:
        if process.poll() is not None:
            raise SystemExit("the replay ended before it could be killed")
        time.sleep(0.01)
    os.killpg(process.pid, 9)
    process.wait()
    before_s, n_kept = time.perf_counter() - began_s, len(list(parts.glob("*.json")))
    return before_s, watched([*arguments, "--resume"]).wall_s, n_kept


def trained(archive: Path, work: Path) -> Path:
    """Return a bundle that was trained on a minute of the first recording."""
    bundle = work / "bench.edgeasd"
    options = ["--set", "data.end_s=60", "--cache-dir", str(work / "cache")]
    first = str(min(archive.iterdir()))
    subprocess.run([EDGEASD, "train", first, "-o", str(bundle), *options], check=True, env=one_thread())
    return bundle


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--recordings", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        archive = work / "archive"
        archive.mkdir()
        heard_s = make_archive(archive, arguments.recordings)
        bundle = arguments.bundle or trained(archive, work)
        ways: dict[str, Callable[[], Cost]] = {}
        for jobs in arguments.jobs:
            ways[f"--jobs {jobs}"] = partial(watched, command(archive, bundle, work, "--jobs", str(jobs)))
            if jobs > 1:
                ways[f"{jobs} threads"] = partial(in_threads, archive, bundle, work, jobs)
        best: dict[str, Cost] = {}
        for _ in range(arguments.runs):
            for name, way in ways.items():
                best[name] = min(best.get(name, Cost(float("inf"))), way(), key=lambda cost: cost.wall_s)
        print(machine_line())
        print(f"\n{arguments.recordings} recordings, {heard_s / 3600:.2f} h; best of {arguments.runs}\n")
        print("| way | wall s | times real time | CPU s | parent MB | workers MB | 1000 h take |")
        print("|---|---|---|---|---|---|---|")
        for name, cost in best.items():
            minutes = THOUSAND_HOURS_S / (heard_s / cost.wall_s) / 60
            print(
                f"| {name} | {cost.wall_s:.2f} | {heard_s / cost.wall_s:.0f} | {cost.cpu_s:.2f} | "
                f"{cost.parent_mb:.0f} | {cost.workers_mb:.0f} | {minutes:.0f} min |"
            )
        before_s, after_s, n_kept = restart(archive, bundle, work)
        whole_s = best["--jobs 2"].wall_s if "--jobs 2" in best else float("nan")
        print(
            f"\nkilled after {before_s:.2f} s with {n_kept} done, --resume took {after_s:.2f} s: "
            f"{before_s + after_s - whole_s:.2f} s more than without the kill"
        )


if __name__ == "__main__":
    main()
