"""What each precision costs and buys on a CPU: size, speed and memory of its graph, and how well it tells anomalies.

    python -m benchmarks.bench_precisions [MACHINES] [--seeds 3] [--only NAME ...] [--machines NAME ...] [--out DIR]

MACHINES is a DCASE tree; default ../shared/audio/machines. Every detector is trained once for a machine and seed, as
bench_machines.py trains it, and each of the bundle's graphs is judged on the test clips. Bundles that lie in DIR are
taken from there. Speed: the least CPU time of many rounds in which the precisions take turns, one thread, all outputs
that a node asks for. Memory: the most of a process that opens that graph alone, Python and all. Prints Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bench_machines import CONFIGURATIONS, MACHINES, bundle_path, train
from benchmarks.machine import machine_line, one_thread
from edgeasd.bundle import Bundle, Golden, read_bundle
from edgeasd.capture.files import discover
from edgeasd.engine import Engine, golden_deviations, open_engine
from edgeasd.engine.measuring import batch_of
from edgeasd.manifest import Precision
from edgeasd_train.judging.clips import ClipOptions, find_clips
from edgeasd_train.judging.roc import auc
from edgeasd_train.listen import hear

DETECTORS = ("bird-ae", "cnn-ae, 1000 steps of 32", "dense-ae-clips, selective Mahalanobis")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
BATCHES = (1, 8, 64)
ROUNDS = 15
_TURN_WINDOWS = 64
_ALONE = """
import sys
from edgeasd.bundle import read_bundle
from edgeasd.engine import open_engine
from edgeasd.engine.measuring import batch_of
bundle = read_bundle(sys.argv[1])
open_engine(bundle, "onnx", precision=sys.argv[2]).score(batch_of(bundle.golden, 64))
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One graph, measured and judged."""

    graph_mb: float
    window_ms: dict[int, float]
    """CPU time by windows in a batch."""
    peak_mb: float
    golden_deviation: float
    auc: float
    pauc: float


def run(bundle_file: Path, machine: Path) -> dict[Precision, Outcome]:
    """Measure and judge every graph of a bundle."""
    bundle = read_bundle(bundle_file)
    engines = {precision: open_engine(bundle, "onnx", precision=precision) for precision in bundle.precisions}
    off = {precision: max(golden_deviations(engine, bundle.golden).values()) for precision, engine in engines.items()}
    window_ms, judged = speeds(engines, bundle.golden), judge(engines, bundle, machine)
    outcomes: dict[Precision, Outcome] = {}
    for precision, engine in engines.items():
        engine.close()
        outcomes[precision] = Outcome(
            len(bundle.graph(precision)) / 1e6, window_ms[precision], peak_mb(bundle_file, precision),
            off[precision], *judged[precision],
        )  # fmt: skip
    return outcomes


def peak_mb(bundle_file: Path, precision: Precision) -> float:
    """Return the most memory of a process that opens one graph and judges 64 windows."""
    command = [sys.executable, "-c", _ALONE, str(bundle_file), precision]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=one_thread()).stdout) / 1e3


def judge(engines: Mapping[Precision, Engine], bundle: Bundle, machine: Path) -> dict[Precision, tuple[float, float]]:
    """Return AUC and pAUC on a machine's test clips, as `edgeasd evaluate` has them; each clip is heard once."""
    labels: list[int] = []
    scores: dict[Precision, list[float]] = {precision: [] for precision in engines}
    for clip in find_clips(discover([machine]))[0].test:
        heard = hear(clip.path, bundle, engines["fp32"], hop_s=ClipOptions().hop_s, wanted=())
        assert heard.log_mel is not None
        labels.append(int(clip.facts.label == "anomaly"))
        for precision, engine in engines.items():
            scores[precision].append(float(engine.score({"log_mel": heard.log_mel}, wanted=()).score.mean()))
    return {precision: (auc(labels, found), auc(labels, found, max_fpr=0.1)) for precision, found in scores.items()}


def speeds(engines: Mapping[Precision, Engine], golden: Golden) -> dict[Precision, dict[int, float]]:
    """Return ms of CPU time per window by precision and batch: the least over rounds in which precisions take turns."""
    least = {precision: dict.fromkeys(BATCHES, float("inf")) for precision in engines}
    for n_windows in BATCHES:
        inputs, n_calls = batch_of(golden, n_windows), max(1, _TURN_WINDOWS // n_windows)
        for _ in range(ROUNDS):
            for precision, engine in engines.items():
                began_s = time.process_time()
                for _ in range(n_calls):
                    engine.score(inputs)
                spent_ms = 1e3 * (time.process_time() - began_s) / (n_calls * n_windows)
                least[precision][n_windows] = min(least[precision][n_windows], spent_ms)
    return least


def report(table: dict[str, dict[Precision, list[Outcome]]], machines: Sequence[str], *, n_seeds: int) -> None:
    """Print the table in Markdown, means over machines and seeds."""
    print(f"{machine_line()}; {', '.join(machines)}, {n_seeds} seed{'s' if n_seeds > 1 else ''}\n")
    speed = " | ".join(f"ms per window, batch {n}" for n in BATCHES)
    print(f"| detector | precision | graph, MB | {speed} | process, MB | golden off by | AUC | pAUC |")
    print("|---" * (7 + len(BATCHES)) + "|")
    for detector, rows in table.items():
        for precision in PRECISIONS:
            if not (outcomes := rows.get(precision)):
                print(f"| {detector} | {precision} |{' |' * (5 + len(BATCHES))}")
                continue
            ms = " | ".join(f"{np.mean([one.window_ms[n] for one in outcomes]):.3f}" for n in BATCHES)
            peak_mb = np.mean([one.peak_mb for one in outcomes])
            off = max(one.golden_deviation for one in outcomes)
            auc, pauc = (np.mean([getattr(one, name) for one in outcomes]) for name in ("auc", "pauc"))
            print(
                f"| {detector} | {precision} | {outcomes[0].graph_mb:.2f} | {ms} | {peak_mb:.0f} | {off:.2g} "
                f"| {auc:.4f} | {pauc:.4f} |"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "audio" / "machines"
    parser.add_argument("tree", metavar="MACHINES", type=Path, nargs="?", default=default)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=sorted(CONFIGURATIONS), default=list(DETECTORS))
    parser.add_argument("--machines", nargs="+", default=list(MACHINES))
    parser.add_argument("--out", type=Path, help="keep bundles and tables here")
    arguments = parser.parse_args()
    work = arguments.out or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    table: dict[str, dict[Precision, list[Outcome]]] = {}
    for detector in arguments.only:
        for machine in (arguments.tree / name for name in arguments.machines):
            for seed in range(arguments.seeds):
                bundle_file = bundle_path(machine, detector, seed=seed, work=work)
                if not bundle_file.is_file():
                    train(machine, detector, seed=seed, work=work)
                for precision, outcome in run(bundle_file, machine).items():
                    print(f"{detector}, {machine.name}, {seed}, {precision}: {outcome}", file=sys.stderr, flush=True)
                    table.setdefault(detector, {}).setdefault(precision, []).append(outcome)
    report(table, arguments.machines, n_seeds=arguments.seeds)
    if arguments.out is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
