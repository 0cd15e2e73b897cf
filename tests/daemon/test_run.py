"""The daemon as a user starts it: a real sound system, a real broker, the installed command."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from deploy.demo.soundscape import RATE_HZ, make_soundscape
from edgeasd.assembly import JudgeOptions
from edgeasd.replay import ReplayJob, TablePaths, replay
from tests.rig.broker import Broker, Received, Subscriber
from tests.rig.pulse import PulseRig, available

EDGEASD = str(Path(sys.executable).with_name("edgeasd"))
_why_not = available() or (None if which("mosquitto") else "needs the package mosquitto")
pytestmark = pytest.mark.skipif(_why_not is not None, reason=_why_not or "")

HALL, _ = make_soundscape(seed=3, normal_s=30.0, eventful_s=30.0)


@contextmanager
def running(rig: PulseRig, tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start `edgeasd run` on a rig; kill it if it is still there at the end."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("EDGEASD_")},
        **rig.environment,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "EDGEASD_NODE__NAME": "n1",
    }
    command = [EDGEASD, "run", *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    with Broker(tmp_path / "broker") as started:
        yield started


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PulseRig]:
    (tmp_path / "pulse").mkdir()
    with PulseRig(tmp_path / "pulse", "mic_a", rate_hz=RATE_HZ) as built:
        yield built


def at_least(n: int) -> Callable[[list[Received]], bool]:
    """Return the condition that so many messages have come."""
    return lambda messages: len(messages) >= n


def replayed(sound: NDArray[np.float32], tmp_path: Path) -> list[dict[str, str]]:
    """Return scores.csv of a replay of `sound`."""
    soundfile.write(tmp_path / "replay.wav", sound, RATE_HZ, subtype="PCM_16")
    out = tmp_path / "replay.csv"
    replay(ReplayJob((tmp_path / "replay.wav",), JudgeOptions()), TablePaths(scores=out))
    with out.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_live_scores_agree_with_a_replay_of_the_same_sound(broker: Broker, rig: PulseRig, tmp_path: Path) -> None:
    sound = HALL[: 22 * RATE_HZ].astype(np.float32)
    with Subscriber(broker.port, "edgeasd/n1/mic0/score") as subscriber:
        with running(rig, tmp_path, "--device", "mic_a", "--mqtt", broker.url) as node:
            silent = subscriber.wait(at_least(1), timeout_s=20.0)[0].json
            assert (silent["valid"], silent["fault"], silent["score"]) == (False, "dead", 0.0)
            rig["mic_a"].play(sound, RATE_HZ).wait(60)
            node.send_signal(signal.SIGTERM)
            assert node.wait(10) == 0
        live = [message.json for message in subscriber.messages()]

    heard = np.array([one["opinions"]["prompt"]["score"] for one in live if one["valid"]])
    seqs = [one["seq"] for one in live]
    assert seqs == list(range(1, len(seqs) + 1))
    # The player begins anywhere between two windows: the replay that begins like that is the one to compare with.
    misfits = []
    for lead_frames in range(0, RATE_HZ // 2, 400):
        silence = np.zeros(RATE_HZ + lead_frames, np.float32)
        rows = replayed(np.concatenate([silence, sound]), tmp_path)
        again = np.array([float(row["prompt"]) for row in rows if row["valid"] == "true"])
        n = min(len(again), len(heard), 38)
        misfits.append(float(np.max(np.abs(again[:n] - heard[:n]))))
    assert n > 30
    assert heard[32:].max() > 0.5  # past the warm-up there is something to agree on
    assert min(misfits) < 0.1


def test_a_stopped_node_says_so_and_its_ledger_adds_up(broker: Broker, rig: PulseRig, tmp_path: Path) -> None:
    with Subscriber(broker.port, "edgeasd/n1/#") as subscriber:
        rig["mic_a"].play(HALL[: 20 * RATE_HZ].astype(np.float32), RATE_HZ)
        with running(rig, tmp_path, "--device", "mic_a", "--mqtt", broker.url, "--duration", "5") as node:
            assert node.wait(20) == 0
        subscriber.wait(at_least(2), suffix="n1/status", timeout_s=5.0)
        said: dict[str, list[Any]] = {}
        for message in subscriber.messages():
            said.setdefault(message.topic.removeprefix("edgeasd/n1/"), []).append(message)

    assert [message.text for message in said["status"]] == ["online", "stopped"]
    assert [message.text for message in said["mic0/status"]] == ["online", "offline"]
    assert said["mic0/state"][0].text == "OFF"
    assert said["info"][0].json["sources"] == ["mic0"]
    account = said["health"][-1].json["sources"]["mic0"]
    scores = [message.json for message in said["mic0/score"]]
    reach_s = max(one["sample0"] + one["n"] for one in scores) / RATE_HZ
    booked_s = account["scored_s"] + sum(account["dropped_s"].values()) + sum(account["absent_s"].values())
    assert account["unexplained_s"] == 0.0
    assert booked_s == pytest.approx(reach_s, abs=0.51)
    assert 2.5 <= reach_s <= 5.5


def test_without_a_broker_messages_are_lines(rig: PulseRig, tmp_path: Path) -> None:
    rig["mic_a"].play(HALL[: 15 * RATE_HZ].astype(np.float32), RATE_HZ)
    with running(rig, tmp_path, "--device", "mic_a", "--once") as node:
        out, _ = node.communicate(timeout=20)
    assert node.returncode == 0
    topics = [line.split('"')[3] for line in out.splitlines()]
    assert topics[0] == "edgeasd/n1/status"
    assert "edgeasd/n1/mic0/score" in topics


def test_no_source_is_a_settings_error(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run([EDGEASD, "run"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 78
    assert done.stderr.startswith("edgeasd: sources: none; give --device NAME")
    assert done.stderr.count("\n") == 1
