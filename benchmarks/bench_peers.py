"""edgeasd replay beside what users do today, on the same recordings, cores and model, and beside the physical floor.

    python -m benchmarks.bench_peers [RECORDING] [--minutes 20] [--rounds 3] [--cores 1,all] [--bundle FILE] [--keep]

A bird-ae is trained on a minute of the sound (of a recording, or made noise), and all contestants judge all of it:
edgeasd replay      WAV to scores.csv and events.csv, second opinion and alarm beside the model
edgeasd, model only the same without the second opinion: what the others compute
librosa + torch     librosa.load, melspectrogram and power_to_db for each window, the network in eager torch
torchaudio + torch  MelSpectrogram and the network on batches of 64 windows, in eager torch
onnx loop           soundfile, numpy and scipy for each window, a run of ONNX Runtime for each, its default options
First all must give the same scores to 1e-3; then they take turns, each in a process of its own that is kept to the
cores it may use. On several cores the others share the files among as many processes, and edgeasd chooses itself.
`--keep` adds the tables to benchmarks/peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.bench_floor import Rates, Work, count_work, floor_lines, measure_rates
from benchmarks.machine import machine_line
from benchmarks.peers import read_scores
from benchmarks.workload import (
    EDGEASD,
    Cost,
    alternate,
    least_cpu_s,
    least_wall_s,
    make_folder,
    on_cores,
    run_measured,
    train_bundle,
    wall_text,
)
from edgeasd.bundle import read_bundle

N_FILES = 8
TOLERANCE = 1e-3
KEPT = Path(__file__).with_name("peers.md")
NAMES = {
    "edgeasd": "edgeasd replay",
    "edgeasd-model": "edgeasd, model only",
    "librosa": "librosa + torch",
    "torchaudio": "torchaudio + torch",
    "onnx": "onnx loop",
}


@dataclass(slots=True)
class Arena:
    """Where the contestants meet."""

    sound: Path
    bundle: Path
    hop_s: float
    work: Path
    loops: dict[str, list[Cost]] = field(default_factory=dict)
    """What the inner loops took, as the contestants say."""

    def command(self, name: str, jobs: int) -> list[str]:
        """Return the program of a contestant, which prints the cost of its inner loop."""
        options = ["--bundle", str(self.bundle), "--hop", str(self.hop_s), "--jobs", str(jobs)]
        return [sys.executable, "-m", "benchmarks.peers", name, str(self.sound), *options, "--out", str(self.out(name))]

    def out(self, name: str) -> Path:
        """Return where a contestant writes its scores."""
        return self.work / f"{name}.csv"

    def replay(self, jobs: int) -> Cost:
        """Run `edgeasd replay` as a user would: on several cores it chooses the number of processes itself."""
        out = self.out("edgeasd")
        options = ["--bundle", str(self.bundle), "--hop", str(self.hop_s), *(["--jobs", "1"] if jobs == 1 else [])]
        tables = ["--out", str(out), "--events", str(out.with_suffix(".events.csv"))]
        return run_measured([EDGEASD, "replay", str(self.sound), *options, *tables])[0]

    def run(self, name: str, jobs: int) -> Cost:
        """Run a contestant; return the cost of its whole process and take down that of its inner loop."""
        cost, said = run_measured(self.command(name, jobs))
        self.loops.setdefault(name, []).append(Cost(**json.loads(said)))
        return cost


def deviation(arena: Arena, name: str) -> float:
    """Return the largest difference between a contestant's scores and those of `edgeasd replay`."""
    ours, theirs = read_scores(arena.out("edgeasd")), read_scores(arena.out(name))
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{name}: scores {len(theirs)} windows, edgeasd {len(ours)}")
    return float(np.max(np.abs([ours[key] - theirs[key] for key in ours])))


def check_agreement(arena: Arena) -> dict[str, float]:
    """Run every contestant once; refuse to go on when one of them does not give the scores of the others."""
    arena.replay(1)
    found = {}
    for name in NAMES:
        if name != "edgeasd":
            arena.run(name, 1)
        found[name] = deviation(arena, name)
        if not found[name] <= TOLERANCE:
            raise SystemExit(f"{name}: its scores are off by {found[name]:.2g}: nothing to compare")
    arena.loops.clear()
    return found


def compete(arena: Arena, *, n_cores: int, rounds: int, agreement: dict[str, float], work: Work, rates: Rates) -> str:
    """Let the contestants take turns on so many cores; return the table."""
    arena.loops.clear()
    runs: list[Callable[[], Cost]] = [partial(arena.replay, n_cores)]
    runs += [partial(arena.run, name, n_cores) for name in NAMES]
    with on_cores(n_cores):
        whole, *others = alternate(runs, rounds=rounds)
    costs = dict(zip(NAMES, others, strict=True)) | {"edgeasd": whole}  # the command, not the process for its loop
    title = (
        f"{n_cores} core{'s' if n_cores > 1 else ''}, hop {arena.hop_s:g} s, {work.heard_s:.0f} s of sound in "
        f"{N_FILES} files, {rounds} rounds; wall s: median / least; ratio: its least to edgeasd's:"
    )
    lines = [
        title,
        "",
        "| contestant | wall s | CPU s | x real time | ratio | loop s | its CPU s | x real time | ratio | off by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    first, first_loop = least_wall_s(costs["edgeasd"]), least_wall_s(arena.loops["edgeasd"])
    for name, title in NAMES.items():
        wall_s, loop_s = least_wall_s(costs[name]), least_wall_s(arena.loops[name])
        lines.append(
            f"| {title} | {wall_text(costs[name])} | {least_cpu_s(costs[name]):.2f} | {work.heard_s / wall_s:.0f} | "
            f"{wall_s / first:.2f} | {wall_text(arena.loops[name])} | {least_cpu_s(arena.loops[name]):.2f} | "
            f"{work.heard_s / loop_s:.0f} | {loop_s / first_loop:.2f} | {agreement[name]:.1g} |"
        )
    floors = {"FFTs at their rate": work.at_fft_rate_s(rates), "all at matrix rate": work.at_gemm_rate_s(rates)}
    for title, seconds in floors.items():
        floor_s = seconds / n_cores
        lines.append(
            f"| floor, {title} | {floor_s:.3g} | {seconds:.2f} | {work.heard_s / floor_s:.0f} | "
            f"{floor_s / first:.2f} | {floor_s:.3g} | {seconds:.2f} | {work.heard_s / floor_s:.0f} | "
            f"{floor_s / first_loop:.2f} | |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--bundle", type=Path, help="with its run beside it; default: one trained here")
    parser.add_argument("--hop", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", default="1,all", help="numbers of cores, separated by commas")
    parser.add_argument("--keep", action="store_true", help="add the tables to benchmarks/peers.md")
    asked = parser.parse_args()
    n_all = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        recordings = make_folder(work / "sound", source=asked.recording, minutes=asked.minutes, n_files=N_FILES)
        arena = Arena(work / "sound", asked.bundle or train_bundle(work / "sound.wav", work), asked.hop, work)
        agreement = check_agreement(arena)
        bundle = read_bundle(arena.bundle)
        assert bundle.manifest.inputs.log_mel is not None
        parts = [machine_line()]
        with on_cores(1):
            rates, counted = (
                measure_rates(bundle.manifest.inputs.log_mel.n_fft),
                count_work(recordings, bundle, arena.hop_s),
            )
        parts.append("\n".join(floor_lines(counted, rates)))
        for text in dict.fromkeys(asked.cores.replace("all", str(n_all)).split(",")):
            options = {"n_cores": int(text), "rounds": asked.rounds}
            parts.append(compete(arena, **options, agreement=agreement, work=counted, rates=rates))
        print("\n\n".join(parts))
    if asked.keep:
        if not KEPT.exists():
            KEPT.write_text(
                "# Peers\n\nTables of `python -m benchmarks.bench_peers --keep`; README.md says how they are made.\n"
            )
        with KEPT.open("a") as file:
            file.write("\n## " + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
