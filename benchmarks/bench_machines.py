"""Clips of machines: train every detector on each, judge it as DCASE does, print the table beside what others reach.

    python -m benchmarks.bench_machines [MACHINES] [--seeds 3] [--only NAME ...] [--out DIR]

MACHINES is a DCASE tree; default ../shared/audio/machines, of which UAVprop, lathe and vmc are judged (the others are
solved by loudness). Every detector has one configuration for all machines. Prints Markdown: AUC / pAUC of all clips to
test a machine by (score: mean over windows), mean and spread over seeds, and the cost of training.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import machine_line, one_thread
from edgeasd.bundle import read_bundle
from edgeasd.capture.files import discover
from edgeasd.engine import open_engine
from edgeasd_train import learned
from edgeasd_train.checkpoints import load_weights
from edgeasd_train.judging.clips import find_clips
from edgeasd_train.judging.roc import auc
from edgeasd_train.listen import hear
from edgeasd_train.recipe import Recipe

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
MACHINES = ("UAVprop", "lathe", "vmc")
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "mahalanobis-clips": ("mahalanobis-clips",),
    "mahalanobis-clips, FFT 1024, 128 bands": ("mahalanobis-clips", "features.n_fft=1024", "features.n_mels=128"),
    "mahalanobis (windows of 1 s)": ("mahalanobis",),
    "dense-ae-clips, selective Mahalanobis": ("dense-ae-clips",),
    "dense-ae-clips, all learned": ("dense-ae-clips", "data.held_out_learned=true"),
    "cnn-ae, 1000 steps of 32": ("cnn-ae", "fit.batch_size=32", "fit.epochs=1", "fit.min_steps=1000"),
    "anomaly-bird, 100 epochs": ("anomaly-bird", "fit.epochs=100"),
    "bird-ae": ("bird-ae",),
}
"""Recipe, and what is set beyond it: the length of training that those who measured the peers had."""
ALSO_BY_MSE = {
    "dense-ae-clips, selective Mahalanobis": "dense-ae-clips, MSE",
    "dense-ae-clips, all learned": "dense-ae-clips, all learned, MSE",
}
"""The same weights give a second score, by torch, without training again."""
SEEDLESS = frozenset({"mahalanobis-clips", "mahalanobis"})
"""Measured, not drawn: every seed gives the same bundle."""
PEERS = {
    "DCASE dense AE, MSE": ((0.710, 0.684), (0.946, 0.815), (0.680, 0.536)),
    "DCASE dense AE, selective Mahalanobis": ((0.930, 0.783), (0.995, 0.974), (0.801, 0.713)),
    "TWFR-GMM r=1": ((0.864, 0.674), (1.000, 1.000), (0.755, 0.689)),
    "anomaly_bird as shipped": ((0.366, 0.477), (0.322, 0.474), (0.563, 0.474)),
    "anomaly_bird, log mel": ((0.453, 0.498), (0.619, 0.554), (0.565, 0.494)),
    "3CNN": ((0.663, 0.546), (0.826, 0.636), (0.607, 0.518)),
    "multi-resolution network, SC-AdaCos, kNN": ((0.707, 0.531), (0.979, 0.897), (0.517, 0.474)),
    "Mahalanobis (Ledoit-Wolf) on mean log mel": ((0.938, 0.836), (0.993, 0.965), (0.799, 0.700)),
}
"""AUC and pAUC on MACHINES as measured by others on these files."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training and its judgement."""

    auc: float
    pauc: float
    train_s: float
    """Wall clock of the whole command, from start to bundle."""
    audio_h: float


def run(machine: Path, configuration: str, *, seed: int, work: Path) -> Outcome:
    """Train on a machine's training clips and judge on its test clips."""
    bundle = bundle_path(machine, configuration, seed=seed, work=work)
    train_s = train(machine, configuration, seed=seed, work=work)
    out = bundle.with_suffix("")
    _run([EDGEASD, "evaluate", str(bundle), str(machine), "--out", str(out)])
    with (out / "test_results.csv").open(newline="") as handle:
        values = {row["metric"]: float(row["value"]) for row in csv.DictReader(handle)}
    heard_s = read_bundle(bundle).manifest.provenance.seconds_heard
    return Outcome(values["auc"], values["pauc"], train_s, heard_s / 3600.0)


def train(machine: Path, configuration: str, *, seed: int, work: Path) -> float:
    """Train on a machine's training clips; return the seconds that took."""
    recipe, *overrides = CONFIGURATIONS[configuration]
    bundle = bundle_path(machine, configuration, seed=seed, work=work)
    sets = [word for override in overrides for word in ("--set", override)]
    command = [EDGEASD, "train", str(machine), "-o", str(bundle), "--recipe", recipe, "--seed", str(seed), *sets]
    began_s = time.monotonic()
    _run([*command, "--cache-dir", str(work / "cache")])
    return time.monotonic() - began_s


def rescore(outcome: Outcome, machine: Path, configuration: str, *, seed: int, work: Path) -> Outcome:
    """Judge the network of a run once more, by mean squared error."""
    bundle = read_bundle(bundle_path(machine, configuration, seed=seed, work=work))
    recipe = Recipe.model_validate(bundle.manifest.provenance.recipe)
    options = {**recipe.detector.options, "score": "mse"}
    detector, _ = learned.build(
        recipe.model_copy(update={"detector": recipe.detector.model_copy(update={"options": options})})
    )
    load_weights(bundle.path.with_suffix(".run") / "checkpoints" / "last.ckpt", detector.network)
    served, engine = detector.serve(), open_engine(bundle, "onnx")
    labels, scores = [], []
    for clip in find_clips(discover([machine]))[0].test:
        heard = hear(clip.path, bundle, engine, hop_s=0.5, wanted=())
        with torch.inference_mode():
            scores.append(float(served(torch.from_numpy(heard.log_mel))[0].mean()))
        labels.append(int(clip.facts.label == "anomaly"))
    return replace(outcome, auc=auc(labels, scores), pauc=auc(labels, scores, max_fpr=0.1))


def bundle_path(machine: Path, configuration: str, *, seed: int, work: Path) -> Path:
    """Return where the bundle of a run is kept."""
    name = configuration.replace(" ", "-").replace(",", "").replace("=", "")
    return work / f"{name}-{machine.name}-{seed}.edgeasd"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread())
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "audio" / "machines"
    parser.add_argument("machines", type=Path, nargs="?", default=default)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--out", type=Path, help="keep bundles and tables here")
    arguments = parser.parse_args()
    work = arguments.out or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    table: dict[str, dict[str, list[Outcome]]] = {}
    for configuration in arguments.only:
        seeds = 1 if CONFIGURATIONS[configuration][0] in SEEDLESS else arguments.seeds
        for machine in MACHINES:
            for seed in range(seeds):
                outcome = run(arguments.machines / machine, configuration, seed=seed, work=work)
                print(f"{configuration}, {machine}, seed {seed}: {outcome}", file=sys.stderr, flush=True)
                table.setdefault(configuration, {}).setdefault(machine, []).append(outcome)
                if (other := ALSO_BY_MSE.get(configuration)) is not None:
                    again = rescore(outcome, arguments.machines / machine, configuration, seed=seed, work=work)
                    table.setdefault(other, {}).setdefault(machine, []).append(again)
    report(table)
    if arguments.out is None:
        shutil.rmtree(work)


def report(table: dict[str, dict[str, list[Outcome]]]) -> None:
    """Print the table in Markdown."""
    print(f"{machine_line()}\n")
    print(f"| detector | seeds | {' | '.join(MACHINES)} | mean | training, s per hour of audio |")
    print("|---|---|" + "---|" * (len(MACHINES) + 2))
    for configuration, machines in table.items():
        cells, means = [], []
        for outcomes in machines.values():
            auc, pauc = (np.array([getattr(one, name) for one in outcomes]) for name in ("auc", "pauc"))
            spread = f" (+-{np.std(auc):.3f} / {np.std(pauc):.3f})" if len(outcomes) > 1 else ""
            cells.append(f"{auc.mean():.3f} / {pauc.mean():.3f}{spread}")
            means.append((auc.mean(), pauc.mean()))
        everything = [one for outcomes in machines.values() for one in outcomes]
        cost = sum(one.train_s for one in everything) / sum(one.audio_h for one in everything)
        mean = "{:.3f} / {:.3f}".format(*np.mean(means, axis=0))
        print(f"| **{configuration}** | {len(outcomes)} | {' | '.join(cells)} | {mean} | {cost:.0f} |")
    for name, row in PEERS.items():
        cells = [f"{auc:.3f} / {pauc:.3f}" for auc, pauc in row]
        print(f"| {name} | | {' | '.join(cells)} | {'{:.3f} / {:.3f}'.format(*np.mean(row, axis=0))} | |")


if __name__ == "__main__":
    main()
