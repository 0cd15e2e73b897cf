"""A node for hours, with everything that happens to nodes: does it grow, and does it lose anything?

    python -m tests.rig.soak --hours 1 [--bundle FILE] [--keep DIR]      (make soak HOURS=1)
    python -m tests.rig.soak --hours 1 --hop 0.1 --calm                  (five times the windows, and no faults)

The installed `edgeasd run` with a bundle listens to two PulseAudio microphones with generated sound and publishes to a
mosquitto with a durable subscriber. In the first half of the time all faults come in turn, also those that end the
process, which is then started again as systemd would; in the second half those that one process must outlive. Prints
tables for benchmarks/soak.md; exits with 1 when the promise of the reliability table is broken.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import soundfile

from benchmarks.machine import machine_line, one_thread
from deploy.demo.soundscape import RATE_HZ, make_soundscape
from tests.rig.broker import Broker, BrokerSetup
from tests.rig.faults import ALL, GENTLE, Fault, Keeper, Life, Scene
from tests.rig.node import EDGEASD, RunningNode
from tests.rig.pulse import PulseRig
from tests.rig.samples import Sample, Sampler, events_ever, outbox_rows, quarantined_rows
from tests.rig.soakreport import print_report, verdict
from tests.rig.sound import EndlessSound
from tests.rig.witness import Books, Witness

_DRAIN_S = 60.0
_PATIENCE_S = 75.0
"""A connection that was lost is tried again after a minute at the latest."""
_MIN_PERIOD_S, _MAX_PERIOD_S = 150.0, 450.0
_SLOTS = 24


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens, and when."""

    duration_s: float
    faults: Sequence[tuple[float, Fault]]
    """When each begins, seconds from the start."""
    bundle: Path
    n_microphones: int = 2
    scale: float = 1.0
    restart_pause_s: float = 5.0
    health_interval_s: float = 5.0
    hop_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was seen."""

    began_s: float
    ended_s: float
    inflicted: Sequence[tuple[Fault, float, float]]
    """Fault, begin and end by the monotonic clock."""
    lives: Sequence[Life]
    samples: Sequence[Sample]
    books: Books
    broker_kills_ns: Sequence[int]
    events_committed: int
    rows_left: int
    quarantined: int
    utc_offset_ns: int
    """UTC less the monotonic clock."""


def hourly(duration_s: float) -> list[tuple[float, Fault]]:
    """Return the faults of a soak: each kind about once an hour, more often in a short one."""
    period_s = min(_MAX_PERIOD_S, max(_MIN_PERIOD_S, duration_s / _SLOTS))
    rough, gentle = cycle(ALL), cycle(GENTLE)
    times_s = [period_s * slot for slot in range(1, int(duration_s / period_s))]
    return [(at_s, next(rough if at_s < duration_s / 2 else gentle)) for at_s in times_s]


def soak(scratch: Path, plan: Plan) -> Outcome:
    """Run all parts in `scratch` for as long as planned."""
    for name in ("broker", "pulse", "node"):
        (scratch / name).mkdir()
    names = [f"mic_{letter}" for letter in "abcdefgh"[: plan.n_microphones]]
    setup = BrokerSetup(persistence=True, lines=("max_queued_messages 0",))
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(scratch / "broker", setup))
        rig = stack.enter_context(PulseRig(scratch / "pulse", *names, rate_hz=RATE_HZ))
        sounds = [EndlessSound(rig[name], seed=number) for number, name in enumerate(names, start=1)]
        for sound in sounds:
            sound.start()
            stack.callback(sound.stop)
        witness = stack.enter_context(Witness(broker.port))
        node = stack.enter_context(_node(scratch / "node", plan, broker, names))
        keeper = stack.enter_context(Keeper(node, pause_s=plan.restart_pause_s))
        scene = Scene(broker, list(rig.microphones.values()), sounds, keeper, plan.scale)
        return _watched(scene, plan, witness)


def _node(folder: Path, plan: Plan, broker: Broker, names: Sequence[str]) -> RunningNode:
    settings = {
        "bundle": str(plan.bundle),
        "sources": [{"name": f"mic{number}", "device": name} for number, name in enumerate(names)],
        "mqtt": {"url": broker.url},
        "windows": {"hop_s": plan.hop_s},
        "health_interval_s": plan.health_interval_s,
    }
    return RunningNode(folder, settings, environment=one_thread(), started=False)


def _watched(scene: Scene, plan: Plan, witness: Witness) -> Outcome:
    keeper = scene.keeper
    with Sampler(keeper, every_s=min(5.0, plan.duration_s / 20)) as sampler:
        began_s = keeper.life.began_s
        _wait_heard(witness, began_s)
        inflicted = list(_inflicted(scene, plan, witness))
        time.sleep(max(0.0, began_s + plan.duration_s - time.monotonic()))
        _wait_drained(keeper)
    keeper.close()
    code, _ = keeper.node.stop()
    keeper.life.ended_s, keeper.life.exit_code = time.monotonic(), code
    time.sleep(1.0)  # what the broker has not handed on yet
    state_dir = keeper.node.state_dir
    with witness.lock:
        return Outcome(
            began_s=began_s,
            ended_s=keeper.life.ended_s,
            inflicted=inflicted,
            lives=keeper.lives,
            samples=sampler.samples,
            books=witness.books,
            broker_kills_ns=scene.broker_kills_ns,
            events_committed=events_ever(state_dir),
            rows_left=outbox_rows(state_dir),
            quarantined=quarantined_rows(state_dir),
            utc_offset_ns=time.time_ns() - time.monotonic_ns(),
        )


def _inflicted(scene: Scene, plan: Plan, witness: Witness) -> Iterator[tuple[Fault, float, float]]:
    """Inflict one fault after the other, each on a node that is heard again after the one before."""
    began_s = time.monotonic()
    for at_s, fault in plan.faults:
        time.sleep(max(0.0, began_s + at_s - time.monotonic()))
        from_s = time.monotonic()
        fault.inflict(scene)
        to_s = time.monotonic()
        print(f"{from_s - began_s:7.0f} s: {fault.name}", file=sys.stderr, flush=True)
        _wait_heard(witness, to_s)
        yield fault, from_s, to_s


def _wait_heard(witness: Witness, since_s: float) -> None:
    """Wait, not for ever, until a score comes that is not late."""
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        with witness.lock:
            fresh = witness.books.fresh
            if fresh and fresh[-1][0] > since_s:
                return
        time.sleep(0.05)


def _wait_drained(keeper: Keeper) -> None:
    until_s = time.monotonic() + _DRAIN_S
    while time.monotonic() < until_s and not (keeper.node.running and outbox_rows(keeper.node.state_dir) == 0):
        time.sleep(0.2)


def train_bundle(folder: Path) -> Path:
    """Train on five minutes of the same machine hall, without events."""
    sound, _ = make_soundscape(seed=5, normal_s=300.0, eventful_s=0.0)
    soundfile.write(folder / "normal.wav", sound, RATE_HZ, subtype="PCM_16")
    bundle = folder / "soak.edgeasd"
    command = [EDGEASD, "train", str(folder / "normal.wav"), "-o", str(bundle), "--cache-dir", str(folder / "cache")]
    subprocess.run(command, check=True, capture_output=True, env=one_thread())
    return bundle


def main() -> int:
    """Soak and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--bundle", type=Path, help="default: one trained here on generated sound")
    parser.add_argument("--hop", type=float, default=0.5, help="seconds; a shorter one brings growth sooner")
    parser.add_argument("--calm", action="store_true", help="no faults")
    parser.add_argument("--keep", type=Path, help="leave logs and state here")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        scratch = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeasd-soak-")))
        scratch.mkdir(parents=True, exist_ok=True)
        bundle = (arguments.bundle or train_bundle(scratch)).resolve()
        duration_s = 3600.0 * arguments.hours
        print(machine_line(), flush=True)
        faults = [] if arguments.calm else hourly(duration_s)
        outcome = soak(scratch, Plan(duration_s, faults, bundle, hop_s=arguments.hop))
    print_report(outcome)
    return 0 if verdict(outcome).kept else 1


if __name__ == "__main__":
    sys.exit(main())
