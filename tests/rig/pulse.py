"""A rig of real microphones without hardware: PulseAudio null sinks, one server each, seen through the ALSA plugin."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgeasd.capture.portaudio import SHARED

_PROGRAMS = {"pulseaudio": "pulseaudio", "pacat": "pulseaudio-utils", "pactl": "pulseaudio-utils"}


def available() -> str | None:
    """Return why the rig cannot be built on this machine, naming the packages; None when it can."""
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if ctypes.util.find_library("portaudio") is None:
        missing.add("libportaudio2")
    if not any(Path("/usr").glob("lib*/**/alsa-lib/libasound_module_pcm_pulse.so")):
        missing.add("libasound2-plugins")
    return f"needs the packages {' '.join(sorted(missing))}" if missing else None


def wait_until(condition: Callable[[], bool], *, deadline_s: float, what: str) -> None:
    """Wait for a condition; AssertionError, which says what was awaited, when it does not come true in time."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"waited {deadline_s:g} s for {what}"
        pause.wait(0.01)


class PulseMicrophone:
    """A PulseAudio server with one null sink, whose monitor is the ALSA device `name`."""

    def __init__(self, folder: Path, name: str, *, rate_hz: int = 48_000, n_channels: int = 1) -> None:
        self.name = name
        self.socket = folder / f"{name}.sock"
        self._folder = folder
        self._format = f"rate={rate_hz} channels={n_channels} format=s16le"
        self._server: subprocess.Popen[bytes] | None = None
        self._players: list[subprocess.Popen[bytes]] = []

    @property
    def asoundrc(self) -> str:
        """Return what makes the microphone known to ALSA."""
        return (
            f'pcm.{self.name} {{ type pulse server "unix:{self.socket}" device "{self.name}.monitor" '
            f'hint {{ show on description "fake microphone {self.name}" }} }}\n'
        )

    def plug(self) -> None:
        """Start the server and wait until it answers."""
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        log = (self._folder / f"{self.name}.log").open("ab")
        with log:
            self._server = subprocess.Popen(
                [
                    *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"),
                    *("--log-level=warning", "--disable-shm=yes"),
                    *("-L", f"module-native-protocol-unix auth-anonymous=1 socket={self.socket}"),
                    *("-L", f"module-null-sink sink_name={self.name} {self._format}"),
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, deadline_s=10, what=f"PulseAudio of {self.name}")

    def unplug(self) -> None:
        """Kill the server: every stream from it breaks."""
        self.silence()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def freeze(self) -> None:
        """Stop the server where it stands: reads block and nothing reports an error."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def take_away(self) -> None:
        """Take the microphone from a server that goes on: streams move to another one if there is one, else break."""
        for line in self._ask("list", "short", "modules").splitlines():
            number, _, rest = line.partition("\t")
            if f"sink_name={self.name} " in rest:
                self._ask("unload-module", number)

    def put_back(self, name: str | None = None) -> None:
        """Give the server the microphone again, or another one."""
        self._ask("load-module", "module-null-sink", f"sink_name={name or self.name}", *self._format.split())

    def play(self, samples: NDArray[np.float32], rate_hz: int, *, into: str | None = None) -> subprocess.Popen[bytes]:
        """Begin to play float samples, shape (n,) or (n, channels), into the microphone; return the player.

        `into` names another microphone of the same server.
        """
        raw = self._folder / f"{self.name}-{len(self._players)}.raw"
        raw.write_bytes(np.asarray(samples, dtype="<f4").tobytes())
        n_channels = 1 if samples.ndim == 1 else samples.shape[1]
        player = subprocess.Popen(
            [
                *("pacat", "--playback", f"--server=unix:{self.socket}", f"--device={into or self.name}"),
                *(f"--rate={rate_hz}", "--format=float32le", f"--channels={n_channels}", "--latency-msec=50"),
                str(raw),
            ],
            stderr=subprocess.DEVNULL,
        )
        self._players.append(player)
        return player

    def silence(self) -> None:
        """Stop whatever plays: the microphone hears zeros."""
        for player in self._players:
            player.kill()
            player.wait()
        self._players.clear()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)) != 0:
                return False
        return f"{self.name}.monitor" in self._ask("list", "short", "sources")

    def _ask(self, *words: str) -> str:
        command = ["pactl", f"--server=unix:{self.socket}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout


class PulseRig:
    """Microphones by name; while it is entered, this process and its children see them as ALSA devices.

    `environment` is what a child needs besides, if it is started without ours.
    """

    def __init__(self, folder: Path, *names: str, rate_hz: int = 48_000, plugged: bool = True) -> None:
        self._folder = folder
        self._plugged = plugged
        self.microphones = {name: PulseMicrophone(folder, name, rate_hz=rate_hz) for name in names}
        self.environment = {
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            # Also keeps libpulse from starting a server of its own for the device `default`.
            "PULSE_SERVER": f"unix:{next(iter(self.microphones.values())).socket}",
        }
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        """Start the servers and point this process at them."""
        for key in ("HOME", "XDG_RUNTIME_DIR"):
            Path(self.environment[key]).mkdir(mode=0o700)
        rc = "".join(microphone.asoundrc for microphone in self.microphones.values())
        (self._folder / "home/.asoundrc").write_text(rc)
        self._before = {key: os.environ.get(key) for key in self.environment}
        os.environ.update(self.environment)
        SHARED.outdate()  # of this process: its list is that of another world
        if self._plugged:
            for microphone in self.microphones.values():
                microphone.plug()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the servers and give the process its environment back."""
        for microphone in self.microphones.values():
            microphone.unplug()
        for key, value in self._before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value

    def __getitem__(self, name: str) -> PulseMicrophone:
        """Return a microphone by name."""
        return self.microphones[name]


@contextlib.contextmanager
def one_microphone(folder: Path, name: str = "mic_a", *, rate_hz: int = 48_000) -> Iterator[PulseMicrophone]:
    """Provide a rig with a single microphone, plugged in."""
    with PulseRig(folder, name, rate_hz=rate_hz) as rig:
        yield rig[name]
