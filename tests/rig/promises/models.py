"""P15: only signed models run; a swap is whole or has not happened, costs no window, and is taken back if it fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.demo.soundscape import RATE_HZ
from edgeasd.errors import BundleError
from edgeasd.models.choosing import choose
from edgeasd.models.installing import install_bundle
from edgeasd.models.store import MAX_STARTS
from edgeasd.settings import load_settings
from edgeasd.signing import signature_path
from tests.rig.hostile_bundles import HOSTILE_BUNDLES
from tests.rig.node import EDGEASD
from tests.rig.promise import Measured, Promise
from tests.rig.stage import PATIENCE_S, Stage, needs, staged
from tests.rig.touchy import Signer, digest

_HOP_S = 0.016
_INSTALL_S = 2.5
_SWAP_S = 4.5
"""About as long as each takes: kills come at a random moment within."""
_ROLLBACK_S = 60.0
_SIGNED_BYTES = 64 << 20
_QUIET, _LOUD = 0.002, 0.4


@dataclass(slots=True)
class _Tally:
    """What was found."""

    hostile: int = 0
    loaded: int = 0
    halves: int = 0
    kills: int = 0
    swaps: int = 0
    lost_windows: int = 0
    rollback_s: float = np.inf
    left_crash_loop: bool = True


def _models(scratch: Path, *, installs: int, swaps: int, crashes: int, corpus: int) -> Measured:
    signer, tally, random = Signer(scratch / "signer"), _Tally(), np.random.default_rng(15)
    signer.make()  # the older one
    settings = {
        "bundle": str(signer.make()),
        "trusted_keys_dir": str(signer.trusted),
        "windows": {"hop_s": _HOP_S},
        "novelty": {"enabled": False},
    }
    with staged(scratch, settings=settings) as stage:
        stage.microphone.play(_noise(_QUIET, 60.0 + 30.0 * (swaps + installs)), RATE_HZ)
        _try_unsigned(stage, signer, tally)
        if corpus:
            _try_corpus(stage, signer, tally)
        for _ in range(installs):
            _kill_install(stage, signer, tally, within_s=random.uniform(0.2, _INSTALL_S))
        for _ in range(swaps):
            _kill_swap(stage, signer, tally, within_s=random.uniform(0.2, _SWAP_S))
        _swap_and_fail(stage, signer, tally)
        if crashes:
            _crash_loop(stage, signer, tally)
    kept = (tally.loaded, tally.halves, tally.lost_windows) == (0, 0, 0) and tally.rollback_s <= _ROLLBACK_S
    loop = f"; left a crash loop after {MAX_STARTS} starts" if crashes and tally.left_crash_loop else ""
    text = (
        f"{tally.loaded} of {tally.hostile} unverified or hostile bundles loaded; {tally.kills} kills -9 within "
        f"install or swap, afterwards {tally.halves} times neither old nor new; {tally.swaps} swaps seen through; "
        f"{tally.lost_windows} windows lost over swap and rollback; rollback after {tally.rollback_s:.1f} s{loop}"
    )
    return Measured(text, kept=kept and tally.left_crash_loop)


def _try_corpus(stage: Stage, signer: Signer, tally: _Tally) -> None:
    """Offer every hostile bundle under a good signature: a key that was stolen, or a mistake of who holds it."""
    for name, (make, _) in HOSTILE_BUNDLES.items():
        path = signer.folder / f"{name}.edgeasd"
        make(path)
        if path.stat().st_size < _SIGNED_BYTES:
            signer.sign(path)
        tally.hostile += 1
        tally.loaded += _taken(stage, path)
        path.unlink()


def _try_unsigned(stage: Stage, signer: Signer, tally: _Tally) -> None:
    """Offer what is not signed, not by the right key, or not what was signed; 65 is the only right answer."""
    before = _running(stage)
    for spoil in _SPOILERS:
        path = signer.make()
        spoil(signer, path)
        tally.hostile += 1
        tally.loaded += _taken(stage, path)
    tally.hostile += 1  # rightly signed, but older than what has run: what a replay attack offers
    try:
        install_bundle(load_settings(stage.node.config, {}), signer.folder / "v1.edgeasd", allow_older=False)
        tally.loaded += 1
    except BundleError:
        pass
    tally.loaded += _chosen(stage) != before


def _taken(stage: Stage, path: Path) -> bool:
    """Offer a bundle to the very functions that `bundle install` and `run` call; return whether either takes it."""
    settings = load_settings(stage.node.config, {})
    for offer in (
        lambda: install_bundle(settings, path, allow_older=False),
        lambda: choose(settings.model_copy(update={"bundle": path, "state_dir": stage.node.folder / "fresh"})),
    ):
        try:
            offer()
        except BundleError:
            continue
        return True
    return False


def _unsigned(_signer: Signer, path: Path) -> None:
    signature_path(path).unlink()


def _altered(_signer: Signer, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IR") if b"IR" in data else 50] ^= 1
    path.write_bytes(data)


def _by_another_key(signer: Signer, path: Path) -> None:
    other = Signer(signer.folder / f"other-{path.stem}")
    signer.sign(path, key=other.key)


def _of_another_bundle(signer: Signer, path: Path) -> None:
    shutil.copy(signature_path(signer.folder / "v1.edgeasd"), signature_path(path))


def _cut_signature(_signer: Signer, path: Path) -> None:
    signature_path(path).write_bytes(signature_path(path).read_bytes()[:-5])


_SPOILERS: Sequence[Callable[[Signer, Path], None]] = (
    _unsigned, _altered, _by_another_key, _of_another_bundle, _cut_signature
)  # fmt: skip


def _kill_install(stage: Stage, signer: Signer, tally: _Tally, *, within_s: float) -> None:
    """Kill the command that installs; the node that runs may or may not have been told."""
    before, path = _chosen(stage), signer.make()
    command = _install(stage, path)
    time.sleep(within_s)
    os.killpg(command.pid, signal.SIGKILL)
    command.wait(PATIENCE_S)
    tally.kills += 1
    tally.halves += _chosen(stage) not in (before, digest(path))


def _kill_swap(stage: Stage, signer: Signer, tally: _Tally, *, within_s: float) -> None:
    """Kill the node somewhere on its way from one model to the next, and see which one it starts with."""
    before, path = _running(stage), signer.make()
    if _install(stage, path).wait(PATIENCE_S) != 0:
        raise AssertionError(f"{path.name} was not installed")
    time.sleep(within_s)
    stage.node.kill()
    tally.kills += 1
    began_ns = time.monotonic_ns()
    stage.node.start()
    stage.wait("/score", since_ns=began_ns + 10**9)
    tally.halves += _running(stage, since_ns=began_ns) not in (before, digest(path))


def _swap_and_fail(stage: Stage, signer: Signer, tally: _Tally) -> None:
    """See a model through its swap, make it fail, and time the way back; no window may be missing on the way."""
    before, began_ns = _running(stage), time.monotonic_ns()
    _install_and_wait(stage, signer.make(touchy=True), tally)
    loud_ns = time.monotonic_ns()
    player = stage.microphone.play(_noise(_LOUD, 1.0), RATE_HZ)
    info = stage.wait("n1/info", lambda one: one.json["bundle_sha256"] == before, since_ns=loud_ns)
    tally.rollback_s = (info.at_ns - loud_ns) / 1e9
    assert any("not finite" in line for line in info.json["warnings"]), info.json
    assert _chosen(stage) == before
    player.wait(PATIENCE_S)
    starts = [each.json["sample0"] for each in stage.heard("/score", since_ns=began_ns)]
    hop_frames = int(np.diff(starts).min())
    tally.lost_windows = int((np.diff(starts) // hop_frames - 1).sum())


def _crash_loop(stage: Stage, signer: Signer, tally: _Tally) -> None:
    """Kill the node soon after each start with a new model: after three of them it must begin with the one before."""
    before = _running(stage)
    new = _install_and_wait(stage, signer.make(), tally)
    for start in range(MAX_STARTS):
        stage.node.kill()
        began_ns = time.monotonic_ns()
        stage.node.start()
        last = _running(stage, since_ns=began_ns)
        tally.left_crash_loop &= last == (before if start == MAX_STARTS - 1 else new)


def _install_and_wait(stage: Stage, path: Path, tally: _Tally) -> str:
    """Install a bundle and wait until the running node judges by it; return its digest."""
    wanted, began_ns = digest(path), time.monotonic_ns()
    assert _install(stage, path).wait(PATIENCE_S) == 0
    stage.wait("n1/info", lambda one: one.json["bundle_sha256"] == wanted, since_ns=began_ns)
    tally.swaps += 1
    return wanted


def _install(stage: Stage, path: Path) -> subprocess.Popen[bytes]:
    command = [EDGEASD, "bundle", "install", str(path), "-c", str(stage.node.config)]
    with (stage.node.folder / "install.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _running(stage: Stage, *, since_ns: int = 0) -> str:
    """Return the digest that the node last gave for its bundle."""
    stage.wait("n1/info", lambda one: one.json["model"] is not None, since_ns=since_ns)
    infos: Mapping[str, Any] = stage.heard("n1/info", since_ns=since_ns)[-1].json
    return str(infos["bundle_sha256"])


def _chosen(stage: Stage) -> str:
    """Return the digest of the bundle with which the node would start."""
    choice = choose(load_settings(stage.node.config, {}))
    assert choice is not None
    assert choice.bundle.signed_by is not None
    return choice.bundle.sha256


def _noise(amplitude: float, duration_s: float) -> Any:
    random = np.random.default_rng(8)
    return (amplitude * random.standard_normal(round(duration_s * RATE_HZ), dtype=np.float32)).clip(-1.0, 1.0)


PROMISES = (
    Promise(
        number="P15",
        title="Only signed models run; a swap is atomic and rolls back",
        target="0 unverified loads, always old or new, rollback <= 60 s",
        run=_models,
        short={"installs": 1, "swaps": 1, "crashes": 0, "corpus": 0},
        long={"installs": 50, "swaps": 50, "crashes": 1, "corpus": 1},
        needs=needs,
    ),
)
