"""The one PortAudio of the process, shared by all microphones.

PortAudio looks for devices only while it initialises, and terminating it closes every stream of the process. So it is
initialised anew before an opening when something has come and no stream is open; not before each attempt, for every
time costs some 13 kB that PortAudio 19.6 never gives back, and a microphone may be away for months. Otherwise a device
that is missing from the list is looked for by a child process with a PortAudio of its own; only when the child sees it
are the open streams recalled: each closes at its next block, PortAudio is initialised anew, and all open again. That
costs the healthy ones a gap of a second or two, once, and is in their ledger.

No two threads may be inside PortAudio at the same time, not even with a stream each: its ALSA part keeps the result of
every call it makes in one variable of the process and reads it once more on its way out. A read that goes well in one
thread so turns an opening that fails in another one into a success without a device, and the process is aborted, or
jumps into freed memory. Reading by the block waits for its sound outside (see InputStream).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from edgeasd.errors import UnavailableError

_RECALL_S = 1.5
_PROBE_S = 2.5
"""Short enough that a source which looks around is not taken for a hung one."""
_RENEW_S = 1800.0
"""Nothing is known that comes without a word; should there be, it waits no longer than this."""
_PROBE = (
    "import json, sounddevice; "
    "print(json.dumps([d['name'] for d in sounddevice.query_devices() if d['max_input_channels'] > 0]))"
)


@dataclass(frozen=True, slots=True)
class Session:
    """Exclusive use of PortAudio."""

    sounddevice: Any
    fresh: bool
    """True when its list of devices is of this moment."""


@dataclass(frozen=True, slots=True)
class PortDevice:
    """A device that PortAudio can capture from."""

    index: int
    """Good until PortAudio is initialised anew."""
    name: str
    host_api: str
    max_channels: int
    default_rate_hz: int
    is_default: bool


def load_sounddevice() -> Any:
    """Return the sounddevice module; UnavailableError when PortAudio is not installed."""
    try:
        import sounddevice  # loads and initialises PortAudio
    except OSError as error:
        raise UnavailableError(f"no microphone can be opened ({error}): apt-get install libportaudio2") from error
    return sounddevice


def probe_names() -> list[str]:
    """Return the names a fresh PortAudio, in a process of its own, finds; empty when that fails."""
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter, constant text
            [sys.executable, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_S,
            check=True,
        )
        return [str(name) for name in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


class PortAudio:
    """Guards PortAudio: one call at a time, be it opening, reading, closing or initialising.

    State: how many streams are open, whether they are recalled, and whether the list of devices is out of date.
    """

    def __init__(
        self,
        load: Callable[[], Any] = load_sounddevice,
        probe: Callable[[], list[str]] = probe_names,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self.probe = probe
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._n_open = 0
        self._recalled = False
        self._monotonic_s = monotonic_s
        self._outdated = True
        self._listed_s = 0.0

    def outdate(self) -> None:
        """Take note that a device may have come or gone: the next opening looks, if no stream is open."""
        self._outdated = True

    @property
    def recalled(self) -> bool:
        """Return whether open streams are asked to close for a moment."""
        return self._recalled

    def recall(self) -> None:
        """Ask all open streams to close, so that the next opening sees new devices."""
        with self._lock:
            self._recalled = self._n_open > 0
            self._outdated = True

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Give exclusive use of sounddevice, with a fresh list of devices if that is due and no stream is open.

        Waits while a recall is on: for the last open stream to close, a second or two at most. PortAudio's errors leave
        as UnavailableError.
        """
        with self._lock:
            self._changed.wait_for(lambda: not self._recalled, timeout=_RECALL_S)
            self._recalled = False
            sounddevice = self._load()
            due = self._outdated or self._monotonic_s() > self._listed_s + _RENEW_S
            fresh = due and self._n_open == 0
            try:
                if fresh:
                    # Private names, but the known recipe: there is no public way to look for devices again.
                    with suppress(sounddevice.PortAudioError):  # when the last attempt to initialise has failed
                        sounddevice._terminate()
                    sounddevice._initialize()
                    self._outdated, self._listed_s = False, self._monotonic_s()
                yield Session(sounddevice, fresh)
            except sounddevice.PortAudioError as error:
                raise UnavailableError(f"PortAudio does not answer ({error_text(error)})") from error

    @contextmanager
    def call(self) -> Iterator[None]:
        """Give PortAudio, or ALSA's configuration which it holds, to one thread for a call that does not wait."""
        with self._lock:
            yield

    def opened(self) -> None:
        """Count a stream that was opened inside a session."""
        assert self._lock.locked()
        self._n_open += 1

    def close(self, stream: Any) -> None:
        """Stop and close a stream; may block, and with it the others, for as long as the sound system hangs."""
        with self._lock:
            try:
                stream.abort(ignore_errors=True)
                stream.close(ignore_errors=True)
            finally:
                self._n_open -= 1
                if self._n_open == 0:
                    self._recalled = False
                    self._changed.notify_all()


def error_text(error: Exception) -> str:
    """Return what PortAudio says, on one line."""
    return " ".join(str(error).split())


def input_devices(sounddevice: Any) -> list[PortDevice]:
    """Return the devices in PortAudio's list that can capture."""
    hosts = sounddevice.query_hostapis()
    default_index = hosts[0]["default_input_device"] if hosts else -1
    return [
        PortDevice(
            index=index,
            name=str(info["name"]),
            host_api=str(hosts[info["hostapi"]]["name"]),
            max_channels=int(info["max_input_channels"]),
            default_rate_hz=round(info["default_samplerate"]),
            is_default=index == default_index,
        )
        for index, info in enumerate(sounddevice.query_devices())
        if info["max_input_channels"] > 0
    ]


SHARED = PortAudio()
"""The owner all microphones of this process share."""
