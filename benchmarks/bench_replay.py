"""Replay at full speed, from WAV to CSV: times real time, whole process, start-up included.

    python -m benchmarks.bench_replay [RECORDING] [--minutes 60] [--bundle FILE] [--jobs 1] [--rounds 3]

Without a recording an hour of seeded noise with a varying level is made. The rows take turns; wall seconds are the
median and the least of the rounds, times real time and processor seconds are of the least.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.machine import machine_line
from benchmarks.workload import (
    EDGEASD,
    Cost,
    alternate,
    least_cpu_s,
    least_wall_s,
    make_recording,
    run_measured,
    train_bundle,
    wall_text,
)

HOPS_S = (0.5, 1.0)


def replay(recording: Path, out: Path, *options: str) -> Cost:
    """Replay once, into both tables."""
    tables = ["--out", str(out / "scores.csv"), "--events", str(out / "events.csv")]
    return run_measured([EDGEASD, "replay", str(recording), *tables, *options])[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--bundle", type=Path, help="default: one trained here on a minute of the recording")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        recording = work / "recording.wav"
        make_recording(recording, source=asked.recording, minutes=asked.minutes)
        bundle = asked.bundle or train_bundle(recording, work)
        judges = {"model and second opinion": ["--bundle", str(bundle)], "second opinion alone": []}
        cases = {(name, hop_s): options for name, options in judges.items() for hop_s in HOPS_S}
        common = ["--jobs", str(asked.jobs)]
        runs = [
            partial(replay, recording, work, "--hop", str(hop_s), *common, *options)
            for (_, hop_s), options in cases.items()
        ]
        print(machine_line())
        print(f"\n{asked.minutes:g} min of sound, --jobs {asked.jobs}, {asked.rounds} rounds:\n")
        print("| judges | hop s | wall s, median / least | times real time | CPU s | windows / s |")
        print("|---|---|---|---|---|---|")
        heard_s = 60 * asked.minutes
        for (name, hop_s), costs in zip(cases, alternate(runs, rounds=asked.rounds), strict=True):
            wall_s = least_wall_s(costs)
            speed, rate = heard_s / wall_s, heard_s / hop_s / wall_s
            print(f"| {name} | {hop_s} | {wall_text(costs)} | {speed:.0f} | {least_cpu_s(costs):.2f} | {rate:.0f} |")


if __name__ == "__main__":
    main()
