"""The node as a service of a real systemd, with a microphone and a broker; and the ways to hang it from inside."""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.rig import pulse
from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker
from tests.rig.nspawn import Machine, RefusedError, available
from tests.small_bundle import write_small_bundle

RATE_HZ = 16_000
HUM_S = 600
LOOPS = ("judging", "capture", "publishing")
_HANG = '''\
"""Lets a loop of the node deadlock when a file `hang` in its state directory names it; loaded where RIG_HANG is set."""
import os, pathlib, threading

def deadlock(*args, **kwargs):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def watch():
    wish = pathlib.Path(os.environ["STATE_DIRECTORY"], "hang")
    while not wish.exists():
        threading.Event().wait(0.1)
    loop = wish.read_text()
    wish.unlink()
    from edgeasd.capture.thread import CaptureThread
    from edgeasd.line import Line
    from edgeasd.publish.session import Session
    steps = {"judging": (Line, "step"), "capture": (CaptureThread, "_take_block"), "publishing": (Session, "turn")}
    setattr(*steps[loop], deadlock)

if "RIG_HANG" in os.environ and "NOTIFY_SOCKET" in os.environ:
    threading.Thread(target=watch, daemon=True).start()
'''


class ServiceRig:
    """A booted machine on which edgeasd is installed as a service, hears a microphone and knows a broker."""

    def __init__(self, folder: Path) -> None:
        (folder / "pulse").mkdir(parents=True)
        self.microphone = pulse.PulseMicrophone(folder / "pulse", "mic_a", rate_hz=RATE_HZ)
        self.machine = Machine(folder / "machine", binds={"/opt/pulse": folder / "pulse"})
        self.broker = Broker(folder / "broker", started=False)
        self._folder = folder
        self._lay_out()

    def start(self) -> None:
        """Plug the microphone in, start the broker, boot, and install the service; RefusedError when that cannot be."""
        self.machine.boot()
        self.machine.run("ldconfig")
        self.machine.run("python", "-m", "compileall", "-q", "/opt/edgeasd/lib")
        before = {key: os.environ.get(key) for key in ("HOME", "XDG_RUNTIME_DIR")}
        os.environ.update(dict.fromkeys(before, str(self._folder / "pulse")))
        try:
            self.microphone.plug()
        finally:
            os.environ.update({key: value for key, value in before.items() if value is not None})
            for key in [key for key, value in before.items() if value is None]:
                del os.environ[key]
        self.hum()
        self.broker.start()
        self.configure({})
        self.machine.run("edgeasd", "service", "install")

    def close(self) -> None:
        """End everything."""
        self.machine.close()
        self.microphone.unplug()
        self.broker.__exit__()

    def hum(self) -> None:
        """Let the microphone hear noise for HUM_S."""
        random = np.random.default_rng(5)
        self.microphone.play(random.normal(0.0, 0.05, HUM_S * RATE_HZ).astype(np.float32), RATE_HZ)

    def configure(self, settings: Mapping[str, Any], *, name: str = "edgeasd") -> None:
        """Write the settings of the service, of one of its copies under another name."""
        whole = {
            "node": {"name": name},
            "bundle": "/etc/edgeasd/small.edgeasd",
            "sources": [{"name": "mic0", "device": "mic_a"}],
            "windows": {"hop_s": 0.064},
            "mqtt": {"url": self.broker.url, "scores": "second"},
            **settings,
        }
        self.machine.path(f"/etc/edgeasd/{'config' if name == 'edgeasd' else name}.yaml").write_text(
            yaml.safe_dump(whole)
        )

    def drop_in(self, text: str, *, name: str = "edgeasd") -> None:
        """Write the one drop-in of the service, or of a copy, and let systemd read it."""
        folder = self.machine.path(f"/etc/systemd/system/{name}.service.d")
        folder.mkdir(exist_ok=True)
        (folder / "rig.conf").write_text(f"[Service]\n{text}\n")
        self.machine.run("systemctl", "daemon-reload")

    def copy(self, name: str) -> None:
        """Make a second service of the same unit, with settings and state of its own."""
        units = self.machine.path("/etc/systemd/system")
        text = (units / "edgeasd.service").read_text()
        for key in ("State", "Cache"):
            text = text.replace(f"{key}Directory=edgeasd\n", f"{key}Directory={name}\n")
        text = text.replace("/config.yaml", f"/{name}.yaml").replace("\nUser=edgeasd\n", f"\nUser={name}\n")
        (units / f"{name}.service").write_text(text)
        self.configure({}, name=name)

    def hang(self, loop: str, *, name: str = "edgeasd") -> None:
        """Let a loop of a service with RIG_HANG in its environment deadlock within a moment."""
        self.machine.path(f"/var/lib/private/{name}/hang").write_text(loop)

    def _lay_out(self) -> None:
        seed = self.machine.seed
        (seed / "etc/asound.conf").write_text(
            'pcm.mic_a { type pulse server "unix:/opt/pulse/mic_a.sock" device "mic_a.monitor" '
            'hint { show on description "fake microphone" } }\n'
        )
        (seed / "etc/edgeasd").mkdir()
        write_small_bundle(seed / "etc/edgeasd/small.edgeasd")
        packages = next((seed / "opt/edgeasd/lib").glob("python*/site-packages"))
        (packages / "rig_hang.py").write_text(_HANG)
        (packages / "rig_hang.pth").write_text("import rig_hang\n")


@functools.cache
def needs() -> str | None:
    """Return why the service cannot be tried on this machine, None when it can; boots it to find out."""
    reason = available() or pulse.available() or (NO_MOSQUITTO if MOSQUITTO is None else None)
    if reason is not None:
        return reason
    try:
        shared()
    except RefusedError as exc:
        return str(exc)
    return None


@functools.cache
def shared() -> ServiceRig:
    """Return the rig that everything in this process shares; it ends with the process."""
    folder = tempfile.TemporaryDirectory(prefix="edgeasd-service-")
    rig = ServiceRig(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(rig.close)
    rig.start()
    return rig
