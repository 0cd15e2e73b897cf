"""The node live: a recording played into a PulseAudio null sink, captured by `edgeasd run`, heard at a real mosquitto.

    python -m benchmarks.bench_live [RECORDING] [--seconds 60] [--bundle FILE]

Prints what one source costs (processor by kind of thread, memory), how the node starts, how late scores are, and how
well the live scores agree with a replay of the same recording. Needs mosquitto, PulseAudio and PortAudio.
"""

from __future__ import annotations

import argparse
import csv
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.machine import machine_line, one_thread
from benchmarks.nodes import EDGEASD, HOP_S, RATE_HZ, Heard, Usage, listening, measure_usage
from deploy.demo.soundscape import make_soundscape
from edgeasd.assembly import JudgeOptions
from edgeasd.replay import ReplayJob, TablePaths, replay
from tests.rig.broker import Broker
from tests.rig.pulse import PulseRig

SETTLE_S = 10.0
"""Start-up is not counted into what the node costs."""


@dataclass(frozen=True)
class StartUp:
    """Seconds from the start of the process."""

    capturing: float
    ready: float
    window_end: float
    """The end of the first window: a second of sound itself lasts a second."""
    first_score: float


def ready_time(notified: socket.socket) -> float:
    """Wait for READY=1 as systemd does; return the UTC second at which it came."""
    while b"READY=1" not in notified.recv(4096):
        pass
    return time.time()


def replay_scores(sound: NDArray[np.float32], work: Path, bundle: Path) -> dict[str, NDArray[np.float64]]:
    """Return the series of each judge in a replay."""
    soundfile.write(work / "replay.wav", sound, RATE_HZ, subtype="PCM_16")
    job = ReplayJob((work / "replay.wav",), JudgeOptions(bundle=bundle, hop_s=HOP_S))
    replay(job, TablePaths(scores=work / "replay.csv"))
    with (work / "replay.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {judge: np.array([float(row[judge]) for row in rows]) for judge in ("model", "prompt")}


def agreement(heard: Heard, sound: NDArray[np.float32], work: Path, bundle: Path) -> dict[str, tuple[float, float]]:
    """Return correlation and median difference of live and replayed series, per judge.

    The node began to listen somewhere in the recording: where, to the frame, is found by fitting the model's scores.
    """
    payloads = heard.payloads
    live = {judge: np.array([one["opinions"][judge]["score"] for one in payloads]) for judge in ("model", "prompt")}
    n = len(live["model"]) - 8

    def misfit(cut_frames: int) -> float:
        replayed = replay_scores(sound[cut_frames : cut_frames + (n + 2) * round(HOP_S * RATE_HZ)], work, bundle)
        return float(np.mean(np.abs(replayed["model"][:n] - live["model"][:n])))

    best = 3 * RATE_HZ
    for step, reach in ((800, 3 * RATE_HZ), (80, 800), (8, 80), (1, 8)):
        best = min(range(max(0, best - reach), best + reach + 1, step), key=misfit)
    replayed = replay_scores(sound[best:], work, bundle)
    found = {}
    for judge, series in live.items():
        again = replayed[judge][:n]
        difference = float(np.median(np.abs(again - series[:n])))
        found[judge] = (float(np.corrcoef(again, series[:n])[0, 1]), difference)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--bundle", type=Path, help="default: one trained here on the recording's beginning")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sound = load_sound(arguments.recording, seconds=arguments.seconds + SETTLE_S + 12.0)
        bundle = arguments.bundle or train_bundle(sound, work)
        heard, usage, start = run_node(sound, work, bundle, seconds=arguments.seconds)
        replay_s = replay_seconds(sound, work, bundle)
        series = agreement(heard, sound, work, bundle)
    report(heard, usage, start, series, replay_s=replay_s)


def load_sound(recording: Path | None, *, seconds: float) -> NDArray[np.float32]:
    """Return sound (n,), from a 16 kHz recording or made."""
    if recording is not None:
        sound, rate_hz = soundfile.read(recording, dtype="float32", always_2d=True)
        if rate_hz != RATE_HZ:
            raise SystemExit(f"{recording}: {rate_hz} Hz; this benchmark wants {RATE_HZ} Hz")
        mono: NDArray[np.float32] = np.ascontiguousarray(sound[: round(seconds * RATE_HZ), 0])
        return mono
    made, _ = make_soundscape(seed=1, normal_s=40.0, eventful_s=max(30.0, seconds - 40.0))
    return np.asarray(made, np.float32)


def train_bundle(sound: NDArray[np.float32], work: Path) -> Path:
    """Train on the first half minute."""
    soundfile.write(work / "train.wav", sound[: 30 * RATE_HZ], RATE_HZ, subtype="PCM_16")
    bundle = work / "bench.edgeasd"
    command = [EDGEASD, "train", str(work / "train.wav"), "-o", str(bundle), "--cache-dir", str(work / "cache")]
    subprocess.run(command, check=True, capture_output=True, env=one_thread())
    return bundle


def run_node(sound: NDArray[np.float32], work: Path, bundle: Path, *, seconds: float) -> tuple[Heard, Usage, StartUp]:
    """Play, listen, watch; return what was heard, what it cost, and how the node started."""
    for name in ("broker", "pulse", "state"):
        (work / name).mkdir()
    with (
        Broker(work / "broker") as broker,
        PulseRig(work / "pulse", "mic_a", rate_hz=RATE_HZ) as rig,
        listening(broker.url) as heard,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        notified.bind(str(work / "notify"))
        notified.settimeout(15.0)
        rig["mic_a"].play(sound, RATE_HZ)
        time.sleep(2.0)  # a null sink hands out nothing until somebody plays into it
        places = {"XDG_STATE_HOME": str(work / "state"), "NOTIFY_SOCKET": str(work / "notify")}
        command = [EDGEASD, "run", "--device", "mic_a", "--bundle", str(bundle), "--mqtt", broker.url]
        duration = ["--duration", str(seconds + SETTLE_S)]
        began_s = time.time()
        with subprocess.Popen(
            [*command, *duration], env=one_thread({**rig.environment, **places}), stderr=subprocess.PIPE
        ) as node:
            ready_s = ready_time(notified) - began_s
            if not heard.first.wait(15.0):
                raise SystemExit("no score came within 15 s")
            time.sleep(max(0.0, SETTLE_S - (time.time() - began_s)))
            usage = measure_usage(node.pid, seconds=seconds - 2.0, n_sources=1)
            node.communicate()
    first = heard.payloads[0]
    first_s = first["ts_ns"] / 1e9 - began_s
    start = StartUp(
        capturing=first_s,
        ready=ready_s,
        window_end=first_s + first["n"] / first["rate"],
        first_score=heard.arrivals[0][0] / 1e9 - began_s,
    )
    return heard, usage, start


def replay_seconds(sound: NDArray[np.float32], work: Path, bundle: Path) -> float:
    """Return how long `edgeasd replay` takes, from its start to its end, for a second of sound: the best of five."""
    soundfile.write(work / "second.wav", sound[:RATE_HZ], RATE_HZ, subtype="PCM_16")
    command = [EDGEASD, "replay", str(work / "second.wav"), "--bundle", str(bundle), "--out", str(work / "second.csv")]
    best_s = float("inf")
    for _ in range(5):
        (work / "second.csv").unlink(missing_ok=True)
        began_s = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env=one_thread())
        best_s = min(best_s, time.monotonic() - began_s)
        assert len((work / "second.csv").read_text().splitlines()) == 2
    return best_s


def report(
    heard: Heard, usage: Usage, start: StartUp, series: dict[str, tuple[float, float]], *, replay_s: float
) -> None:
    """Print the table."""
    late_ms = heard.late_ms()
    quantiles = "{:.1f} / {:.1f} / {:.1f}".format(*np.percentile(late_ms, [50, 99, 100]))
    print(machine_line())
    print("\n| figure | value |\n|---|---|")
    print(f"| processor, one source, hop {HOP_S} s | {usage.cpu_pct:.2f} % of a core |")
    print(f"| of which | {usage.words()} % |")
    print(f"| resident memory, at its peak | {usage.rss_mb:.0f}, {usage.peak_mb:.0f} MB |")
    print(f"| of which its own, not files of libraries | {usage.private_mb:.0f} MB |")
    print(f"| from start to the first sound | {start.capturing:.2f} s |")
    print(f"| from start to READY | {start.ready:.2f} s |")
    print(f"| from start to the first score | {start.first_score:.2f} s |")
    print(f"| first score after the end of its window | {1e3 * (start.first_score - start.window_end):.0f} ms |")
    print(f"| replay of one second, from start to end | {replay_s:.2f} s |")
    print(f"| end of window to subscriber, p50 / p99 / max of {len(late_ms)} | {quantiles} ms |")
    for judge, (correlation, difference) in series.items():
        print(f"| live against replay, {judge} | correlation {correlation:.4f}, median difference {difference:.4f} |")


if __name__ == "__main__":
    main()
