"""Replay at full speed, from WAV to CSV: times real time, whole process, start-up included.

    python -m benchmarks.bench_replay [RECORDING] [--minutes 60] [--bundle FILE]

Without a recording an hour of seeded noise with a varying level is made. Three runs each, the median is told.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.machine import machine_line, one_thread

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
RATE_HZ = 16000
RUNS = 3


def make_recording(path: Path, *, source: Path | None, minutes: float) -> None:
    """Write a 16-bit mono WAV of the wanted length, from a recording repeated or from noise."""
    n = round(minutes * 60 * RATE_HZ)
    if source is not None:
        sound, rate_hz = soundfile.read(source, dtype="float32", always_2d=True)
        if rate_hz != RATE_HZ:
            raise SystemExit(f"{source}: {rate_hz} Hz; this benchmark wants {RATE_HZ} Hz")
        samples = np.resize(sound[:, 0], n)
    else:
        rng = np.random.default_rng(0)
        level = np.interp(np.arange(n), np.linspace(0, n, 400), rng.uniform(0.01, 0.1, 400))
        samples = (rng.standard_normal(n, dtype=np.float32) * level).astype(np.float32)
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")


def time_replay(recording: Path, out: Path, *more: str) -> tuple[float, float]:
    """Return wall and CPU seconds of one replay, the median of some runs by wall time."""
    found = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began_s = time.perf_counter()
        command = [EDGEASD, "replay", str(recording), "--out", str(out / "scores.csv"), "--events", str(out / "e.csv")]
        subprocess.run([*command, *more], check=True, capture_output=True, env=one_thread())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((time.perf_counter() - began_s, cpu_s))
    return sorted(found)[len(found) // 2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--bundle", type=Path, help="default: one trained here on a minute of the recording")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        recording = work / "recording.wav"
        make_recording(recording, source=arguments.recording, minutes=arguments.minutes)
        bundle = arguments.bundle
        if bundle is None:
            bundle = work / "bench.edgeasd"
            options = ["--set", "data.end_s=60", "--cache-dir", str(work / "cache")]
            command = [EDGEASD, "train", str(recording), "-o", str(bundle), *options]
            subprocess.run(command, check=True, capture_output=True, env=one_thread())
        print(machine_line())
        heard_s = arguments.minutes * 60
        print("\n| judges | hop s | wall s | times real time | CPU s | windows / s |\n|---|---|---|---|---|---|")
        for name, options in {
            "model and second opinion": ["--bundle", str(bundle)],
            "second opinion alone": [],
        }.items():
            for hop_s in (0.5, 1.0):
                wall_s, cpu_s = time_replay(recording, work, "--hop", str(hop_s), *options)
                speed, rate = heard_s / wall_s, heard_s / hop_s / wall_s
                print(f"| {name} | {hop_s} | {wall_s:.2f} | {speed:.0f} | {cpu_s:.2f} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    main()
