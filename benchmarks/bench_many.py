"""Many sources in one process: pipes that a writer fills in real time, `edgeasd run`, a real mosquitto.

    python -m benchmarks.bench_many [--bundle FILE] [--sources 100] [--seconds 30] [--aligned]

Prints how late scores reach a subscriber, what was lost, and what it all costs. Windows of the sources end one after
another, as those of microphones that were plugged in one by one do; with --aligned all of them at the same moment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_line, one_thread
from benchmarks.nodes import EDGEASD, HOP_S, RATE_HZ, Heard, Usage, listening, measure_usage
from benchmarks.workload import make_recording, train_bundle
from tests.rig.broker import Broker

SETTLE_S = 8.0
TICK_S = 0.02
"""The writer's stride: like the period of a sound card."""


def write_pipes(paths: list[Path], *, aligned: bool) -> None:
    """Write noise into all pipes in real time, until the reader is gone; runs in a process of its own."""
    rng = np.random.default_rng(1)
    tick_frames = round(TICK_S * RATE_HZ)
    noise = [rng.normal(0.0, 1000.0, tick_frames).astype("<i2").tobytes() for _ in range(64)]
    pipes = [os.open(path, os.O_WRONLY) for path in paths]
    began_s = time.monotonic()
    starts = [0 if aligned else round(HOP_S / TICK_S * index / len(pipes)) for index in range(len(pipes))]
    tick = 0
    with suppress(BrokenPipeError):
        while True:
            tick += 1
            time.sleep(max(0.0, began_s + tick * TICK_S - time.monotonic()))
            for index, pipe in enumerate(pipes):
                if tick > starts[index]:
                    os.write(pipe, noise[(tick + 7 * index) % len(noise)])


def run_node(work: Path, bundle: Path, *, n_sources: int, seconds: float, aligned: bool) -> tuple[Heard, Usage]:
    """Return what was heard while the node ran, start-up apart, and what that cost."""
    paths = [work / f"pipe{index}" for index in range(n_sources)]
    for path in paths:
        os.mkfifo(path)
    (work / "broker").mkdir()
    with Broker(work / "broker") as broker, listening(broker.url) as heard:
        settings = {
            "sources": [{"name": f"s{index}", "device": f"fifo:{path}"} for index, path in enumerate(paths)],
            "bundle": str(bundle),
            "windows": {"hop_s": HOP_S},
            "mqtt": {"url": broker.url},
            "health_interval_s": 2,
            "state_dir": str(work / "state"),
        }
        (work / "config.yaml").write_text(json.dumps(settings))  # YAML holds JSON
        with (work / "node.log").open("wb") as log:
            node = subprocess.Popen([EDGEASD, "run", "-c", str(work / "config.yaml")], env=one_thread(), stderr=log)
        flags = ["--aligned"] if aligned else []
        writer = subprocess.Popen([sys.executable, "-m", __spec__.name, "--write", str(n_sources), str(work), *flags])
        try:
            assert heard.first.wait(SETTLE_S), f"no score came: {(work / 'node.log').read_text()[-500:]}"
            time.sleep(SETTLE_S)
            heard.clear()
            usage = measure_usage(node.pid, seconds=seconds, n_sources=n_sources)
            heard.stop()
        finally:
            node.terminate()
            node.wait(30)
            writer.kill()
            writer.wait(10)
    return heard, usage


def report(heard: Heard, usage: Usage, *, n_sources: int) -> None:
    """Print the table."""
    late_ms = heard.late_ms()
    expected = n_sources * usage.seconds / HOP_S
    health: dict[str, Any] = heard.health
    print(machine_line())
    print(f"\n{n_sources} sources at {RATE_HZ} Hz, hop {HOP_S} s\n\n| figure | value |\n|---|---|")
    print(f"| scores that came, of those due | {len(late_ms)} of {expected:.0f} |")
    quantiles = " / ".join(f"{value:.1f}" for value in np.percentile(late_ms, [50, 99, 100]))
    print(f"| end of window to subscriber, p50 / p99 / max | {quantiles} ms |")
    print(f"| processor: {usage.words()} | {usage.cpu_pct:.1f} % of a core |")
    print(f"| resident memory, at its peak | {usage.rss_mb:.0f}, {usage.peak_mb:.0f} MB |")
    dropped = {reason for account in health["sources"].values() for reason, s in account["dropped_s"].items() if s > 0}
    dropped_s = sum(sum(account["dropped_s"].values()) for account in health["sources"].values())
    print(f"| sound dropped since the start | {dropped_s:.2f} s {sorted(dropped) or ''} |")
    print(f"| seconds of sound judged in one of computing | {health['rtf']:.0f} |")
    print(
        f"| messages in the outbox, dropped, discarded | {health['spool_depth']}, {health['mqtt']['dropped']}, ", end=""
    )
    print(f"{health['mqtt']['discarded']} |")


def trained_on_noise(work: Path) -> Path:
    """Return a bundle of bird-ae that knows a minute of noise."""
    recording = work / "noise.wav"
    make_recording(recording, source=None, minutes=1.0)
    return train_bundle(recording, work)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: one trained here on a minute of noise")
    parser.add_argument("--sources", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--aligned", action="store_true")
    parser.add_argument("--write", nargs=2, metavar=("N", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write is not None:
        n_pipes, folder = int(arguments.write[0]), Path(arguments.write[1])
        write_pipes([folder / f"pipe{index}" for index in range(n_pipes)], aligned=arguments.aligned)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        heard, usage = run_node(
            work,
            arguments.bundle.absolute() if arguments.bundle else trained_on_noise(work),
            n_sources=arguments.sources,
            seconds=arguments.seconds,
            aligned=arguments.aligned,
        )
    report(heard, usage, n_sources=arguments.sources)


if __name__ == "__main__":
    main()
