"""Pruning: spoil training sound with anomalies, prune while training, and see what of the loss comes back.

    python -m benchmarks.bench_prune [STREAMS] [--recipe mahalanobis] [--set KEY=VALUE ...] [--prune KEY=VALUE ...]
                                     [--seeds 3] [--only NAME ...]

STREAMS holds recordings with a CSV of events beside each; default ../shared/audio/streams. Trained on is what lies
before the first event less 5 s, less its last fifth, which calibrates; mixed in is sound around events of the
recording's first half, one second each, so that 5 or 10 % of all training windows hold an anomaly. Judged are windows
of the second half, whose events no training has heard: AUC, positive with at least 0.3 s of an event. A seed draws the
anomalies and the weights. Prints Markdown: clean, spoilt, spoilt and pruned, and the share of the loss that pruning
brings back.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.machine import machine_line
from edgeasd.bundle import read_bundle
from edgeasd.engine import open_engine
from edgeasd.records import FloatArray
from edgeasd_train.corpus.annotations import Annotation, read_annotations
from edgeasd_train.judging.alarms import Rules, WindowScores, window_auc
from edgeasd_train.listen import hear, read_samples
from edgeasd_train.recipe import load_recipe
from edgeasd_train.train import train

RATE_HZ = 16000
SHARES = (0.05, 0.10)
HELD_OUT = 0.2
LEARNED_MARGIN_S = 5.0
HALF_MARGIN_S = 2.0
MIN_OVERLAP_S = 0.3
LEAST_COST = 0.01
"""Of AUC; where spoiling costs less nothing can be brought back."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A recording with its events, parted into what may be learned, what spoils it, and what is judged."""

    name: str
    samples: FloatArray
    events: tuple[Annotation, ...]

    @property
    def learned_s(self) -> float:
        """Return where the sound without events ends."""
        return self.events[0].onset_s - LEARNED_MARGIN_S

    @property
    def half_s(self) -> float:
        """Return where the judged half begins: before the event in the middle of the list."""
        return self.events[len(self.events) // 2].onset_s - HALF_MARGIN_S

    def anomaly(self, random: np.random.Generator) -> FloatArray:
        """Return one second of sound with at least 0.3 s of an event of the first half."""
        early = [event for event in self.events if event.offset_s < self.half_s]
        event = early[int(random.integers(len(early)))]
        enough_s = min(MIN_OVERLAP_S, event.offset_s - event.onset_s)
        start_s = random.uniform(event.onset_s - 1.0 + enough_s, event.offset_s - enough_s)
        first = round(min(max(start_s, self.learned_s), self.half_s - 1.0) * RATE_HZ)
        return self.samples[first : first + RATE_HZ]


@dataclass(frozen=True, slots=True)
class Trial:
    """What one training came to."""

    auc: float
    n_pruned: int
    n_anomalies_pruned: int
    n_anomalies: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a detector is trained, but for the sound."""

    recipe: str
    overrides: tuple[str, ...]
    pruning: tuple[str, ...]


def write_corpus(scene: Scene, folder: Path, *, share: float, seed: int, hop_s: float) -> int:
    """Write normal.wav, held.wav and the anomalies, each a file; return how many anomalies there are."""
    folder.mkdir(parents=True)
    cut = round((1.0 - HELD_OUT) * scene.learned_s * RATE_HZ)
    parts = {"normal": scene.samples[:cut], "held": scene.samples[cut : round(scene.learned_s * RATE_HZ)]}
    n_normal = int((cut / RATE_HZ - 1.0) / hop_s) + 1
    n_anomalies = round(share * n_normal / (1.0 - share))
    random = np.random.default_rng([seed, round(1000 * share)])
    parts |= {f"odd-{i:03d}": scene.anomaly(random) for i in range(n_anomalies)}
    for name, samples in parts.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ, subtype="PCM_16")
    (folder / "held.txt").write_text("held.wav\n")
    return n_anomalies


def run(scene: Scene, plan: Plan, *, share: float, seed: int, prune: bool, work: Path) -> Trial:
    """Train on a corpus made for the occasion and judge the second half of the scene."""
    folder = work / f"{scene.name}-{share}-{seed}-{prune}"
    hop_s = load_recipe(plan.recipe, overrides=plan.overrides).data.hop_s
    n_anomalies = write_corpus(scene, folder, share=share, seed=seed, hop_s=hop_s)
    held = f"data.held_out_list={folder / 'held.txt'}"
    overrides = [*plan.overrides, held, f"seed={seed}", *(plan.pruning if prune else ())]
    output = folder / "trial.edgeasd"
    report = train(
        [folder], output=output, recipe=load_recipe(plan.recipe, overrides=overrides), cache_dir=work / "cache"
    )
    pruned = report.run_dir / "pruned.csv"
    lines = pruned.read_text().splitlines()[1:] if pruned.exists() else []
    odd = sum("odd-" in line for line in lines)
    auc = judge(scene, output, work=work)
    shutil.rmtree(folder)
    return Trial(auc, len(lines), odd, n_anomalies)


def judge(scene: Scene, bundle_path: Path, *, work: Path) -> float:
    """Return the AUC of the windows of the second half."""
    recording = work / f"{scene.name}.wav"
    if not recording.exists():
        soundfile.write(recording, scene.samples, RATE_HZ, subtype="PCM_16")
    bundle = read_bundle(bundle_path)
    heard = hear(recording, bundle, open_engine(bundle, "onnx"), hop_s=0.5)
    start_s = heard.first_frames / heard.rate_hz
    windows = WindowScores(start_s, start_s + 1.0, heard.outputs.score.astype(np.float64)).after(scene.half_s)
    return window_auc(windows, scene.events, Rules())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "audio" / "streams"
    parser.add_argument("streams", type=Path, nargs="?", default=default)
    parser.add_argument("--recipe", default="mahalanobis")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--prune", action="append", metavar="KEY=VALUE", help="default: prune.rounds=5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of recordings")
    arguments = parser.parse_args()
    plan = Plan(arguments.recipe, tuple(arguments.overrides), tuple(arguments.prune or ["prune.rounds=5"]))
    paths = [path for path in sorted(arguments.streams.iterdir()) if path.suffix in {".flac", ".ogg", ".wav"}]
    paths = [path for path in paths if not arguments.only or path.stem in arguments.only]
    print(f"{machine_line()}; {plan}; {arguments.seeds} seeds\n")
    print("| recording | anomalies mixed in | clean | spoilt | pruned | brought back | pruned windows, anomalies |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows: dict[float, list[tuple[float, float, float]]] = {}
    for path in paths:
        scene = Scene(path.stem, read_samples(path, rate_hz=RATE_HZ), tuple(read_annotations(path.with_suffix(".csv"))))
        for share, row in judge_scene(scene, plan, n_seeds=arguments.seeds).items():
            rows.setdefault(share, []).append(row)
    for share, found in rows.items():
        costly = [row for row in found if row[0] - row[1] > LEAST_COST]
        print_row("**mean of all**", share, np.mean(found, axis=0).tolist())
        if costly:
            print_row(f"**mean of the {len(costly)} that it cost**", share, np.mean(costly, axis=0).tolist())


def judge_scene(scene: Scene, plan: Plan, *, n_seeds: int) -> dict[float, tuple[float, float, float]]:
    """Print the rows of a recording and return its mean figures by share."""
    work = Path(tempfile.mkdtemp())
    clean = mean_auc([run(scene, plan, share=0.0, seed=seed, prune=False, work=work) for seed in range(n_seeds)])
    rows = {}
    for share in SHARES:
        spoilt, pruned = (
            [run(scene, plan, share=share, seed=seed, prune=prune, work=work) for seed in range(n_seeds)]
            for prune in (False, True)
        )
        rows[share] = (clean, mean_auc(spoilt), mean_auc(pruned))
        counts = (float(np.mean([getattr(one, name) for one in pruned])) for name in ("n_pruned", "n_anomalies_pruned"))
        told = "{:.0f}, {:.0f} of {:.0f}".format(*counts, pruned[0].n_anomalies)
        print_row(scene.name, share, rows[share], told)
    shutil.rmtree(work)
    return rows


def mean_auc(trials: Sequence[Trial]) -> float:
    """Return the mean AUC over seeds."""
    return float(np.mean([trial.auc for trial in trials]))


def print_row(name: str, share: float, aucs: Sequence[float], told: str = "") -> None:
    """Print one row; where spoiling cost nothing nothing can come back."""
    clean, spoilt, pruned = aucs
    back = f"{(pruned - spoilt) / (clean - spoilt):.0%}" if clean - spoilt > LEAST_COST else "-"
    print(f"| {name} | {share:.0%} | {clean:.3f} | {spoilt:.3f} | {pruned:.3f} | {back} | {told} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
