"""Fit on one rank and on two, under torchrun, one thread each: windows a second, and what the second rank brings.

    python -m benchmarks.bench_ranks [--recipe cnn-ae bird-ae] [--ranks 1 2] [--steps 60] [--rounds 3]

Seeded noise with a moving hum, 16 kHz; the batch is the recipe's under any number of ranks, so both learn the same.
Timed is the fit alone, with its held-out pass and checkpoints; `whole s` is the process, start-up and decoding too. The
median of the rounds is told; ranks take turns, so that a noisy machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.machine import machine_line, one_thread

RATE_HZ = 16000
MINUTES = 10


def make_sound(folder: Path) -> None:
    """Write ten minutes, a minute a file."""
    random = np.random.default_rng(0)
    time_s = np.arange(60 * RATE_HZ) / RATE_HZ
    for minute in range(MINUTES):
        hum = np.sin(2 * np.pi * (110 * time_s + 3 * np.sin(0.7 * time_s + minute)))
        noise = random.standard_normal(len(time_s))
        samples = (0.05 * hum + 0.02 * noise).astype(np.float32)
        soundfile.write(folder / f"{minute:02}.wav", samples, RATE_HZ, subtype="PCM_16")


def fit_as_rank(recipe_name: str, folder: Path, *, n_steps: int) -> None:
    """Fit as the rank that the environment says; the first one writes how long it took."""
    import torch
    from rich.console import Console

    from edgeasd_train.corpus import WindowIndex, open_corpus
    from edgeasd_train.corpus.logmel import LogMelStore, LogMelWindows
    from edgeasd_train.detectors import build_detector
    from edgeasd_train.fit import FitData, fit
    from edgeasd_train.ranks import current_ranks, joined
    from edgeasd_train.recipe import load_recipe
    from edgeasd_train.runlog import Run

    sets = [f"data.paths=[{folder / 'sound'}]", f"fit.max_steps={n_steps}", f"fit.min_steps={n_steps}",
            "fit.accelerator=cpu", "prune.every_epochs=null", "fit.patience_epochs=null"]  # fmt: skip
    recipe, ranks = load_recipe(recipe_name, overrides=sets), current_ranks()
    with joined(ranks):
        torch.manual_seed(recipe.seed)
        detector, spec = build_detector(recipe)
        assert not hasattr(detector, "measure"), f"{recipe_name} is measured, not fitted"
        cache_dir, data = folder / "cache", recipe.data
        corpus = open_corpus(data, cache_dir=cache_dir, grid_frames=spec.hop_frames, ranks=ranks, workers=1)
        store = LogMelStore(corpus, spec, cache_dir=cache_dir, ranks=ranks, workers=1)
        train, held_out = (
            LogMelWindows(
                corpus,
                WindowIndex(stretches, window_frames=data.window_frames, hop_frames=round(hop_s * data.sample_rate_hz)),
                store,
            )
            for stretches, hop_s in ((corpus.train, data.hop_s), (corpus.held_out, data.held_out_hop_s))
        )
        run = Run(folder / "run", ranks=ranks, resumes=False)
        ranks.barrier()
        began_s = time.perf_counter()
        result = fit(
            detector, FitData(train, held_out), recipe=recipe, run=run, ranks=ranks, console=Console(quiet=True),
            resume=False,
        )  # fmt: skip
        took_s = time.perf_counter() - began_s
    if ranks.is_first:
        told = {"fit_s": took_s, "windows": result.n_steps * recipe.fit.batch_size, "loss": result.held_out_loss}
        (folder / "told.json").write_text(json.dumps(told))


def measure(recipe: str, n_ranks: int, *, n_steps: int) -> dict[str, float]:
    """Return what one fit took, in processes of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sound").mkdir()
        make_sound(folder / "sound")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
        command = [sys.executable, *launcher, "-m", "benchmarks.bench_ranks", "--as-rank", str(folder)]
        began_s = time.perf_counter()
        subprocess.run(
            [*command, "--recipe", recipe, "--steps", str(n_steps)], check=True, capture_output=True, env=one_thread()
        )
        told: dict[str, float] = json.loads((folder / "told.json").read_text())
        return {**told, "whole_s": time.perf_counter() - began_s}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["cnn-ae", "bird-ae"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as-rank", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank is not None:
        fit_as_rank(arguments.recipe[0], arguments.as_rank, n_steps=arguments.steps)
        return
    print(machine_line())
    print("\n| recipe | ranks | fit s | whole s | windows / s | ratio | held-out loss |\n|---|---|---|---|---|---|---|")
    for recipe in arguments.recipe:
        found: dict[int, list[dict[str, float]]] = {n_ranks: [] for n_ranks in arguments.ranks}
        for _ in range(arguments.rounds):
            for n_ranks, rounds in found.items():
                rounds.append(measure(recipe, n_ranks, n_steps=arguments.steps))
        base = 0.0
        for n_ranks, rounds in found.items():
            fit_s, whole_s = (statistics.median(told[key] for told in rounds) for key in ("fit_s", "whole_s"))
            rate = rounds[0]["windows"] / fit_s
            base = base or rate
            loss = rounds[0]["loss"]
            print(
                f"| {recipe} | {n_ranks} | {fit_s:.1f} | {whole_s:.1f} | {rate:.0f} | {rate / base:.2f} | {loss:.4g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
