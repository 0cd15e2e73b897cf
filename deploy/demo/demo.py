"""`make demo`: train on the normal part of a soundscape, replay the rest through the node into a broker, watch it live.

Nothing outside this process tree is needed: the broker is amqtt on a free loopback port, the sound is made here (or
taken from --audio), and training and replay are the very commands a user types.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deploy.demo.soundscape import RATE_HZ, PlantedEvent, make_soundscape

if TYPE_CHECKING:
    from collections.abc import Iterator

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
LEAD_IN_S = 30.0
"""Uneventful sound before the replayed part: the second opinion needs a past before it speaks."""
ENVIRONMENT = {
    **os.environ,
    "EDGEASD_MQTT__PROTOCOL": "3.1.1",  # the embedded broker speaks no other
    "EDGEASD_ALARM__FALSE_ALARMS": "60/hour",  # a short scene: let the node be quick to speak
}
SPARKS = " .:-=+*#%@"

console = Console()


@dataclass(frozen=True, slots=True)
class Scene:
    """A recording cut in two: what is learned and what is listened to."""

    normal: Path
    rest: Path
    rest_s: float
    planted: list[PlantedEvent]
    """Times in the rest; empty when nobody marked them."""


def made_scene(out: Path, seed: int) -> Scene:
    """Write a made-up machine hall: 75 s to learn, then 150 s with events."""
    learn_s = 75.0
    sound, planted = make_soundscape(seed=seed, normal_s=learn_s + LEAD_IN_S, eventful_s=150.0)
    return _cut(out, sound.astype(np.float32), RATE_HZ, learn_s, planted)


def real_scene(out: Path, audio: Path) -> Scene:
    """Cut a recording (or the first one of a folder) before its first annotated event, else after its first third."""
    if audio.is_dir():
        audio = next(path for path in sorted(audio.rglob("*")) if path.suffix.lower() in {".wav", ".flac", ".ogg"})
    sound, rate_hz = soundfile.read(audio, dtype="float32", always_2d=True)
    sound = sound.mean(axis=1)[: 600 * rate_hz]
    notes = audio.with_suffix(".csv")
    planted = []
    if notes.exists():
        with notes.open(newline="") as handle:
            planted = [
                PlantedEvent(float(row["onset"]), float(row["offset"]), row.get("label", ""))
                for row in csv.DictReader(handle)
                if float(row["onset"]) < len(sound) / rate_hz
            ]
    learn_s = planted[0].onset_s - 5.0 if planted else len(sound) / rate_hz / 3
    console.print(f"recording: {audio.name}, learning on its first {learn_s:.0f} s")
    return _cut(out, sound, rate_hz, max(5.0, learn_s - LEAD_IN_S), planted)


def _cut(out: Path, sound: Any, rate_hz: int, learn_s: float, planted: list[PlantedEvent]) -> Scene:
    cut = round(learn_s * rate_hz)
    soundfile.write(out / "normal.wav", sound[:cut], rate_hz, subtype="PCM_16")
    soundfile.write(out / "rest.wav", sound[cut:], rate_hz, subtype="PCM_16")
    shifted = [PlantedEvent(p.onset_s - learn_s, p.offset_s - learn_s, p.label) for p in planted]
    return Scene(out / "normal.wav", out / "rest.wav", (len(sound) - cut) / rate_hz, shifted)


@contextmanager
def embedded_broker() -> Iterator[int]:
    """Run amqtt in a thread of this process on a free loopback port; yields the port."""
    import logging

    from amqtt.broker import Broker

    logging.getLogger("amqtt").setLevel(logging.ERROR)
    logging.getLogger("transitions").setLevel(logging.ERROR)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        started.set()
        await stop.wait()
        await broker.shutdown()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="broker", daemon=True)
    thread.start()
    if not started.wait(15):
        raise SystemExit("the embedded broker did not start within 15 s")
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)


@dataclass
class Watcher:
    """What a subscriber has heard so far."""

    scores: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    threshold: float = 0.0
    seen: set[str] = field(default_factory=set)
    """Delivery is at least once: a consumer drops what it has seen."""
    alarm: str = "OFF"
    events: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, topic: str, payload: bytes) -> None:
        """Take one message of the node."""
        leaf = topic.rsplit("/", 1)[-1]
        if leaf == "score":
            message = json.loads(payload)
            if message["id"] in self.seen:
                return
            self.seen.add(message["id"])
            self.scores.append(message["score"])
            self.threshold = message["threshold"]
        elif leaf == "event":
            message = json.loads(payload)
            self.events[message["event_id"]] = message
        elif leaf == "state":
            self.alarm = payload.decode()

    def view(self) -> Group:
        """Draw the state of things for the terminal."""
        top = max([self.threshold * 1.6, *self.scores, 1e-9])
        line = Text("".join(SPARKS[min(9, int(10 * s / top))] for s in self.scores), no_wrap=True)
        for index, score in enumerate(self.scores):
            if score >= self.threshold:
                line.stylize("bold red", index, index + 1)
        table = Table("start", "s", "peak", "verdict", "why", expand=True, box=None)
        for event in list(self.events.values())[-8:]:
            verdict = {True: "[bold red]event", False: "[dim]taken back", None: "[yellow]listening"}[event["confirmed"]]
            why = ", ".join(f"{b['hz'][0]:.0f}-{b['hz'][1]:.0f} Hz {b['share']:.0%}" for b in event["bands"][:2])
            table.add_row(
                event["start"][11:21], f"{event['duration_s']:.1f}", f"{event['peak_score']:.1f}", verdict, why
            )
        colour = "red" if self.alarm == "ON" else "green"
        head = Panel(
            line, title=f"score of each window, last {len(self.scores)}", subtitle=f"{len(self.seen)} messages"
        )
        return Group(head, Panel(table, title=f"events    alarm [bold {colour}]{self.alarm}[/]"))


@contextmanager
def subscribed(port: int, watcher: Watcher) -> Iterator[None]:
    """Subscribe to all topics of all nodes, as any consumer would."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2, client_id="demo-watcher")
    client.on_connect = lambda c, *_: c.subscribe("edgeasd/#", qos=1)
    client.on_message = lambda _c, _u, message: watcher.take(message.topic, bytes(message.payload))
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield
    finally:
        client.disconnect()
        client.loop_stop()


def run(command: list[str]) -> None:
    """Show a command and run it to its end; a failure ends the demo with its exit code."""
    console.print(f"[bold cyan]$ {shlex.join(command).replace(EDGEASD, 'edgeasd')}")
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)


def replay_live(scene: Scene, bundle: Path, out: Path, *, wall_s: float) -> Watcher:
    """Replay the rest through the node into the broker while a subscriber watches."""
    speed = max(1.0, scene.rest_s / wall_s)
    watcher = Watcher()
    with embedded_broker() as port, subscribed(port, watcher):
        command = [EDGEASD, "replay", str(scene.rest), "--bundle", str(bundle), "--speed", f"{speed:.1f}"]
        command += ["--mqtt", f"mqtt://127.0.0.1:{port}", "--source", "hall"]
        command += ["--out", str(out / "scores.csv"), "--events", str(out / "events.csv")]
        console.print(f"[bold cyan]$ {shlex.join(command).replace(EDGEASD, 'edgeasd')}")
        console.print("[dim](with alarm.false_alarms: 60/hour and mqtt.protocol: 3.1.1 from the environment)")
        with (
            subprocess.Popen(command, env=ENVIRONMENT) as node,
            Live(watcher.view(), console=console, refresh_per_second=8) as live,
        ):
            while node.poll() is None:
                live.update(watcher.view())
                time.sleep(0.1)
            live.update(watcher.view())
        if node.returncode:
            raise SystemExit(node.returncode)
    if not watcher.seen:
        raise SystemExit("the subscriber heard nothing from the node")
    return watcher


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header."""
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def show_result(scene: Scene, out: Path) -> None:
    """Print found beside planted and say where the picture is."""
    found = [(float(r["start_s"]), float(r["end_s"]), float(r["peak_score"])) for r in read_rows(out / "events.csv")]
    table = Table("planted at", "until", "what", "found", "peak score", title="planted and found")
    hits = set()
    for p in scene.planted:
        match = [i for i, (start, end, _) in enumerate(found) if start < p.offset_s + 1 and end > p.onset_s - 1]
        hits.update(match)
        peak = f"{max(found[i][2] for i in match):.1f}" if match else ""
        table.add_row(f"{p.onset_s:.1f} s", f"{p.offset_s:.1f} s", p.label, "[green]yes" if match else "[red]no", peak)
    for i, (start, end, peak_score) in enumerate(found):
        if i not in hits:
            table.add_row("", "", "(nobody planted this)", f"{start:.1f}-{end:.1f} s", f"{peak_score:.1f}")
    console.print(table)
    draw(scene, out, found)
    console.print(f"picture: {out / 'score.png'}    tables: {out / 'scores.csv'}, {out / 'events.csv'}")


def draw(scene: Scene, out: Path, found: list[tuple[float, float, float]]) -> None:
    """Draw spectrogram and score over time, planted and found events marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in read_rows(out / "scores.csv") if row["valid"] == "true"]
    sound, rate_hz = soundfile.read(scene.rest, dtype="float32")
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(13, 6), sharex=True, constrained_layout=True)
    top.specgram(sound, NFFT=1024, Fs=rate_hz, noverlap=512, cmap="magma", vmin=-130, vmax=-40)
    top.set_ylabel("Hz")
    top.set_title("what the node heard")
    bottom.plot([float(r["end_s"]) for r in rows], [float(r["score"]) for r in rows], lw=0.9, color="black")
    for start_s, end_s, _ in found:
        bottom.axvspan(start_s, end_s, color="tab:red", alpha=0.3, lw=0)
    for event in scene.planted:
        top.axvline(event.onset_s, color="white", lw=0.8, ls=":")
        bottom.plot([event.onset_s, event.offset_s], [-0.4, -0.4], color="tab:green", lw=4, solid_capstyle="butt")
        bottom.annotate(event.label, (event.onset_s, -0.35), fontsize=7, rotation=25)
    bottom.set_ylabel("score: -log10 p")
    bottom.set_xlabel("s    (red: found, green: planted)")
    figure.savefig(out / "score.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", type=Path, help="a recording, or a folder of which the first one is taken")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--seconds", type=float, default=35.0, help="how long the live part takes on the clock")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    scene = real_scene(out, arguments.audio) if arguments.audio else made_scene(out, arguments.seed)
    bundle = out / "demo.edgeasd"
    run([EDGEASD, "train", str(scene.normal), "-o", str(bundle), "--seed", "0"])
    replay_live(scene, bundle, out, wall_s=arguments.seconds)
    show_result(scene, out)
    console.print(f"the whole demo took {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
