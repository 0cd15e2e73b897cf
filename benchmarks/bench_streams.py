"""Long recordings: learn each one's part before its first event, listen to the rest, print the figures of the field.

    python -m benchmarks.bench_streams [STREAMS] [--seeds 3] [--out DIR] [--by auto]

STREAMS holds recordings with a CSV of events (onset, offset) beside each; default ../shared/audio/streams. Prints a
Markdown table with the rows that other systems reach on the same files by the same rules.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.machine import machine_line, one_thread

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
MAIN = ("forest_day", "ambient_mix", "compressor")
"""The streams whose mean is the headline; machine_uav is nearly solved by loudness alone."""
PEERS = {
    "dense autoencoder, MSE": (0.638, 0.16, 0.27),
    "anomaly_bird, log mel": (0.615, 0.16, 0.27),
    "anomaly_bird as shipped": (0.679, 0.13, 0.24),
    "Mahalanobis on mean log mel": (0.571, 0.18, 0.21),
    "nearest neighbour in the own past": (0.878, 0.10, 0.53),
    "the published second opinion, at once": (0.917, 0.14, 0.59),
    "the published second opinion, confirmed": (0.946, 0.59, 0.88),
}
"""AUC, recall at 6 and at 60 false alarms an hour, mean of MAIN, as measured by others on these files."""
LANES = ("model", "prompt", "confirmed", "score")

Row = dict[str, str]


def run_stream(recording: Path, *, seed: int, work: Path, by: str) -> tuple[list[Row], Row]:
    """Train, replay and judge one recording; return its rows of windows.csv and its row of alarms.csv."""
    with recording.with_suffix(".csv").open(newline="") as handle:
        first_onset_s = min(float(row["onset"]) for row in csv.DictReader(handle))
    bundle, out = work / f"{recording.stem}-{seed}.edgeasd", work / f"{recording.stem}-{seed}"
    train = [EDGEASD, "train", str(recording), "-o", str(bundle), "--seed", str(seed)]
    _run([*train, "--set", f"data.end_s={first_onset_s - 5.0}", "--cache-dir", str(work / "cache")])
    _run([EDGEASD, "evaluate", str(bundle), str(recording), "--out", str(out), "--by", by])
    return _rows(out / "windows.csv"), _rows(out / "alarms.csv")[0]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread())
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")


def _rows(path: Path) -> list[Row]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def figures(rows: list[Row], lane: str) -> tuple[float, float, float]:
    """Return AUC and recall at 6 and 60 an hour of one lane, averaged over `rows`."""
    wanted = [row for row in rows if row["lane"] == lane]
    keys = ("auc", "recall_at_6", "recall_at_60")
    auc, recall_6, recall_60 = (float(np.mean([float(row[key]) for row in wanted])) for key in keys)
    return auc, recall_6, recall_60


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "audio" / "streams"
    parser.add_argument("streams", type=Path, nargs="?", default=default)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep bundles and tables here")
    parser.add_argument("--by", default="auto")
    arguments = parser.parse_args()
    recordings = sorted(path for path in arguments.streams.iterdir() if path.suffix in {".flac", ".ogg", ".wav"})
    if not recordings:
        raise SystemExit(f"{arguments.streams}: no recordings")
    work = arguments.out or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    windows: dict[str, list[Row]] = {}
    alarms: dict[str, list[Row]] = {}
    for recording in recordings:
        for seed in range(arguments.seeds):
            print(f"{recording.stem}, seed {seed}", file=sys.stderr, flush=True)
            rows, alarm = run_stream(recording, seed=seed, work=work, by=arguments.by)
            windows.setdefault(recording.stem, []).extend(rows)
            alarms.setdefault(recording.stem, []).append(alarm)
    report(windows, alarms, seeds=arguments.seeds)
    if arguments.out is None:
        shutil.rmtree(work)


def report(windows: dict[str, list[Row]], alarms: dict[str, list[Row]], *, seeds: int) -> None:
    """Print the tables in Markdown."""
    groups = {
        "mean of the three": [name for name in MAIN if name in windows],
        "mean of x_": [name for name in windows if name.startswith("x_")],
    }
    print(f"{machine_line()}; {seeds} seed(s)\n")
    print("| recording | " + " | ".join(f"{lane}: AUC / R6 / R60" for lane in LANES) + " | events: recall @ per hour |")
    print("|---|" + "---|" * (len(LANES) + 1))
    for name, members in [*((name, [name]) for name in windows), *groups.items()]:
        if not members:
            continue
        rows = [row for member in members for row in windows[member]]
        cells = ["{:.3f} / {:.2f} / {:.2f}".format(*figures(rows, lane)) for lane in LANES]
        reported = [row for member in members for row in alarms[member]]
        recall = float(np.mean([float(row["recall"]) for row in reported]))
        per_hour = float(np.mean([float(row["false_alarms_per_hour"]) for row in reported]))
        print(f"| {name} | " + " | ".join(cells) + f" | {recall:.2f} @ {per_hour:.1f} |")
    if set(MAIN) <= set(windows):
        print("\n| others, mean of the three | AUC / R6 / R60 |\n|---|---|")
        for name, row in PEERS.items():
            print("| {} | {:.3f} / {:.2f} / {:.2f} |".format(name, *row))


if __name__ == "__main__":
    main()
