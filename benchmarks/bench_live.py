"""The node live: a recording played into a PulseAudio null sink, captured by `edgeasd run`, heard at a real mosquitto.

    python -m benchmarks.bench_live [RECORDING] [--seconds 60] [--bundle FILE]

Prints what one source costs (processor, memory), how soon the first score comes, how late scores are, and how well the
live scores agree with a replay of the same recording. Needs mosquitto, PulseAudio and PortAudio.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.machine import machine_line, one_thread
from deploy.demo.soundscape import make_soundscape
from edgeasd.assembly import JudgeOptions
from edgeasd.replay import ReplayJob, TablePaths, replay
from tests.rig.broker import Broker
from tests.rig.pulse import PulseRig

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
RATE_HZ = 16000
HOP_S = 0.5
SETTLE_S = 10.0
"""Start-up is not counted into what the node costs."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Heard:
    """Scores as they came."""

    arrived_ns: list[int] = field(default_factory=list)
    payloads: list[dict[str, Any]] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)

    def take(self, topic: str, payload: bytes) -> None:
        """Keep a score with its time of arrival."""
        if topic.endswith("/score"):
            self.arrived_ns.append(time.time_ns())
            self.payloads.append(json.loads(payload))
            self.first.set()


@dataclass(frozen=True)
class Cost:
    """What the process cost while it ran, start-up apart."""

    cpu_pct: float
    """Of one core, all threads."""
    pulse_pct: float
    """The part of the PulseAudio client library's own thread, which a sound card does not need."""
    rss_mb: float
    peak_mb: float


def cpu_ticks(pid: int) -> tuple[int, int]:
    """Return processor ticks of all threads, and of PulseAudio's."""
    total = pulse = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        ticks = sum(map(int, rest.split()[11:13]))
        total += ticks
        pulse += ticks if name.startswith("threaded-ml") else 0
    return total, pulse


def memory_mb(pid: int, key: str) -> float:
    """Return VmRSS or VmHWM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure_cost(process: subprocess.Popen[bytes], *, seconds: float) -> Cost:
    """Watch a running node for `seconds`."""
    before, pulse_before = cpu_ticks(process.pid)
    began_s = time.monotonic()
    time.sleep(seconds)
    after, pulse_after = cpu_ticks(process.pid)
    percent = 100.0 / TICKS_PER_S / (time.monotonic() - began_s)
    return Cost(
        cpu_pct=(after - before) * percent,
        pulse_pct=(pulse_after - pulse_before) * percent,
        rss_mb=memory_mb(process.pid, "VmRSS"),
        peak_mb=memory_mb(process.pid, "VmHWM"),
    )


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
    live = {
        judge: np.array([one["opinions"][judge]["score"] for one in heard.payloads]) for judge in ("model", "prompt")
    }
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
        heard, cost, first_s = run_node(sound, work, bundle, seconds=arguments.seconds)
        series = agreement(heard, sound, work, bundle)
    report(heard, cost, first_s, series)


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


def run_node(sound: NDArray[np.float32], work: Path, bundle: Path, *, seconds: float) -> tuple[Heard, Cost, float]:
    """Play, listen, watch; return what was heard, the cost, and the seconds from start to the first score."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    heard = Heard()
    for name in ("broker", "pulse", "state"):
        (work / name).mkdir()
    with Broker(work / "broker") as broker, PulseRig(work / "pulse", "mic_a", rate_hz=RATE_HZ) as rig:
        client = Client(CallbackAPIVersion.VERSION2)
        client.on_connect = lambda c, *_: c.subscribe("edgeasd/+/+/score", qos=1)
        client.on_message = lambda _c, _u, message: heard.take(message.topic, bytes(message.payload))
        client.connect("127.0.0.1", int(broker.url.rpartition(":")[2]))
        client.loop_start()
        rig["mic_a"].play(sound, RATE_HZ)
        time.sleep(2.0)  # a null sink hands out nothing until somebody plays into it
        environment = one_thread({**rig.environment, "XDG_STATE_HOME": str(work / "state")})
        command = [EDGEASD, "run", "--device", "mic_a", "--bundle", str(bundle), "--mqtt", broker.url]
        began_s = time.monotonic()
        duration = ["--duration", str(seconds + SETTLE_S)]
        with subprocess.Popen([*command, *duration], env=environment, stderr=subprocess.PIPE) as node:
            if not heard.first.wait(15.0):
                raise SystemExit("no score came within 15 s")
            first_s = time.monotonic() - began_s
            time.sleep(SETTLE_S - (time.monotonic() - began_s))
            cost = measure_cost(node, seconds=seconds - 2.0)
            node.communicate()
        client.disconnect()
        client.loop_stop()
    return heard, cost, first_s


def report(heard: Heard, cost: Cost, first_s: float, series: dict[str, tuple[float, float]]) -> None:
    """Print the table."""
    ends_ns = [p["ts_ns"] + p["n"] * 1_000_000_000 // p["rate"] for p in heard.payloads]
    late_ms = (np.array(heard.arrived_ns) - np.array(ends_ns)) / 1e6
    quantiles = "{:.1f} / {:.1f} / {:.1f}".format(*np.percentile(late_ms, [50, 99, 100]))
    print(machine_line())
    print("\n| figure | value |\n|---|---|")
    print(f"| processor, one source, hop {HOP_S} s | {cost.cpu_pct:.2f} % of a core |")
    print(f"| of which PulseAudio's client thread | {cost.pulse_pct:.2f} % |")
    print(f"| resident memory, at its peak | {cost.rss_mb:.0f}, {cost.peak_mb:.0f} MB |")
    print(f"| first score after start | {first_s:.2f} s |")
    print(f"| end of window to subscriber, p50 / p99 / max of {len(late_ms)} | {quantiles} ms |")
    for judge, (correlation, difference) in series.items():
        print(f"| live against replay, {judge} | correlation {correlation:.4f}, median difference {difference:.4f} |")


if __name__ == "__main__":
    main()
