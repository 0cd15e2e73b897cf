"""P12 and P17: the service in a real systemd."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.rig import probe
from tests.rig.broker import Subscriber
from tests.rig.promise import Measured, Promise
from tests.rig.service import HUM_S, LOOPS, ServiceRig, needs, shared

_THRESHOLD = 1.5
_HEALTHY = {"edgeasd": "with sound", "edgeasd-absent": "without a microphone"}


def stuck_is_restarted(scratch: Path, *, watchdog_s: float, idle_s: float) -> Measured:
    """Hang copies of the service in every way there is, all at once; leave healthy ones alone meanwhile."""
    rig = shared()
    hung = {"SIGSTOP": "edgeasd-stopped", **{f"deadlock of {loop}": f"edgeasd-{loop}" for loop in LOOPS}}
    novelty_alone = {"bundle": None, "windows": {"hop_s": 0.5}}
    for name in (*hung.values(), "edgeasd-absent"):
        rig.copy(name)
        device = "nowhere" if name == "edgeasd-absent" else "mic_a"
        rig.configure({**novelty_alone, "sources": [{"name": "mic0", "device": device}]}, name=name)
        rig.drop_in(f"WatchdogSec={watchdog_s}\nEnvironment=RIG_HANG=1", name=name)
    units = (*hung.values(), *_HEALTHY)
    try:
        rig.machine.run("systemctl", "start", *units, timeout_s=240.0)
        began_s = time.monotonic()
        for name in hung.values():
            rig.machine.wait(name, lambda said: "mic0: " in said["StatusText"], what=f"{name} to turn")
        restarts = _hang_all(rig, hung, limit_s=watchdog_s + 60.0)
        while (rest_s := began_s + idle_s - time.monotonic()) > 0.0:
            rig.hum()
            threading.Event().wait(min(rest_s, HUM_S))
        idled_s = time.monotonic() - began_s
        n_false = sum(int(rig.machine.show(name)["NRestarts"]) for name in _HEALTHY)
    finally:
        rig.machine.run("systemctl", "stop", *units, check=False, timeout_s=240.0)
    worst_s = max(restarts.values())
    text = ", ".join(f"{way} {restart_s:.1f} s" for way, restart_s in restarts.items())
    return Measured(
        f"restarted after {text} (WatchdogSec {watchdog_s:g}); {n_false} false restarts in {idled_s:.0f} s of "
        f"{len(_HEALTHY)} healthy nodes, one of them without a microphone",
        kept=worst_s <= watchdog_s + 10.0 and n_false == 0,
    )


def _hang_all(rig: ServiceRig, hung: dict[str, str], *, limit_s: float) -> dict[str, float]:
    """Hang each service in its way; return the seconds until each was started again."""
    hung_us: dict[str, int] = {}
    n_before: dict[str, int] = {}  # a start on a busy machine may have been a second one
    for way, name in hung.items():
        n_before[name] = int(rig.machine.show(name)["NRestarts"])
        hung_us[way] = time.monotonic_ns() // 1000
        if way == "SIGSTOP":
            rig.machine.run("systemctl", "kill", "--signal=STOP", name)
        else:
            rig.hang(way.rpartition(" ")[2], name=name)
    restarts: dict[str, float] = {}
    for way, name in hung.items():
        n_so_far = n_before[name]
        said = rig.machine.wait(
            name, partial(_restarted_since, n_so_far), what=f"a restart of {name}", timeout_s=limit_s
        )
        restarts[way] = (int(said["ExecMainStartTimestampMonotonic"]) - hung_us[way]) / 1e6
        journal = rig.machine.journal(name)
        assert "Failed with result 'watchdog'" in journal, journal
        assert "(most recent call first)" in journal, "the log does not show where the threads stood"
    return restarts


def _restarted_since(n_so_far: int, said: Mapping[str, str]) -> bool:
    return int(said["NRestarts"]) > n_so_far


def least_privilege(scratch: Path) -> Measured:
    """Look at the unit as systemd does, then from inside its sandbox."""
    rig = shared()
    verified = rig.machine.run("systemd-analyze", "verify", "edgeasd.service", check=False)
    exposures = {"CPU": _exposure(rig), **{gpu: _exposure(rig, gpu) for gpu in ("nvidia", "jetson")}}
    found = _probed(rig)
    allowed = [name for name, how in found["denied"].items() if how == "ALLOWED"]
    missing = [f"{name} ({how})" for name, how in found["granted"].items() if how != "yes"]
    hears = _hears(rig)
    clean = verified.returncode == 0 and not verified.stdout + verified.stderr
    text = "; ".join(
        [
            f"verify {'clean' if clean else f'rc {verified.returncode}'}",
            f"exposure {exposures['CPU']} (drop-in nvidia {exposures['nvidia']}, jetson {exposures['jetson']})",
            f"{len(probe.DENIED) - len(allowed)} of {len(probe.DENIED)} denials hold {allowed or ''}".rstrip(),
            f"{len(probe.GRANTED) - len(missing)} of {len(probe.GRANTED)} needs met {missing or ''}".rstrip(),
            f"the node {'hears and its ONNX model judges' if hears else '**hears nothing**'} inside",
        ]
    )
    return Measured(text, kept=clean and exposures["CPU"] <= _THRESHOLD and not allowed and not missing and hears)


def _exposure(rig: ServiceRig, gpu: str | None = None) -> float:
    """Return what systemd-analyze makes of the installed unit, with a drop-in that comes with edgeasd."""
    folder = f"/tmp/exposure-{gpu}"  # of the machine
    drop_ins = f"{folder}/edgeasd.service.d"
    rig.machine.run("mkdir", "-p", drop_ins)
    rig.machine.run("cp", "/etc/systemd/system/edgeasd.service", folder)
    if gpu is not None:
        units = next(rig.machine.path("/opt/edgeasd/lib").glob("python*/site-packages/edgeasd/units"))
        rig.machine.path(f"{drop_ins}/{gpu}.conf").write_text((units / f"drop-ins/{gpu}.conf").read_text())
    threshold = str(round(10 * _THRESHOLD))
    asked = ("systemd-analyze", "security", "--offline=yes", f"--threshold={threshold}", f"{folder}/edgeasd.service")
    done = rig.machine.run(*asked, check=False)
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert (done.returncode == 0) == (float(level[1]) <= _THRESHOLD)
    return float(level[1])


def _probed(rig: ServiceRig) -> dict[str, dict[str, str]]:
    """Return what the probe found inside the sandbox of the unit."""
    machine = rig.machine
    machine.run("mkdir", "-p", "/opt/rig", "/etc/credstore")
    machine.path("/opt/rig/probe.py").write_text(Path(probe.__file__).read_text())
    machine.path("/opt/rig/of-audio").write_text("heard\n")
    machine.run("chown", "root:audio", "/opt/rig/of-audio")
    machine.run("chmod", "640", "/opt/rig/of-audio")
    secret = machine.path("/etc/credstore/edgeasd.mqtt-password")
    secret.write_text("canary\n")
    secret.chmod(0o600)
    machine.path("/tmp/of-others").write_text("")
    rig.copy("edgeasd-probe")
    command = "/opt/edgeasd/bin/python /opt/rig/probe.py"
    rig.drop_in(
        f"Type=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart={command}\n"
        f"Environment=PROBE_PORT={rig.broker.port}",
        name="edgeasd-probe",
    )
    machine.run("systemctl", "start", "edgeasd-probe")
    secret.unlink()
    found: dict[str, dict[str, str]] = json.loads(machine.path("/var/lib/private/edgeasd-probe/probe.json").read_text())
    return found


def _hears(rig: ServiceRig) -> bool:
    """Return whether the service says scores that its model gave to real sound."""
    with Subscriber(rig.broker.port, "edgeasd/edgeasd/mic0/score", name="p17") as subscriber:
        rig.machine.run("systemctl", "start", "edgeasd")
        try:
            said = subscriber.wait(
                lambda scores: any(one.json["valid"] and one.json["opinions"]["model"] for one in scores),
                timeout_s=60.0,
            )
        finally:
            rig.machine.run("systemctl", "stop", "edgeasd")
    return bool(said)


PROMISES = (
    Promise(
        number="P12",
        title="The watchdog restarts a stuck node, never a healthy one",
        target="restart <= WatchdogSec + 10 s; 0 false restarts",
        run=stuck_is_restarted,
        short={"watchdog_s": 6, "idle_s": 0},
        long={"watchdog_s": 30, "idle_s": 3600},
        needs=needs,
    ),
    Promise(
        number="P17",
        title="Least privilege",
        target="verify rc 0; exposure <= 1.5; all denials hold",
        run=least_privilege,
        short={},
        long={},
        needs=needs,
    ),
)
