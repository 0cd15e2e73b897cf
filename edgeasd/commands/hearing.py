"""Asking the sound system something in a process of its own: when it hangs, it is left behind with its noise."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgeasd.capture.source import SourceSpec
from edgeasd.errors import EdgeasdError, NoPermissionError, UnavailableError

if TYPE_CHECKING:
    from edgeasd.capture.devices import DeviceInfo
    from edgeasd.capture.stream import InputStream
    from edgeasd.records import FloatArray

_GRACE_S = 6.0
"""For loading PortAudio and opening the card, beyond the time to listen."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came from a microphone."""

    device: str
    native_rate_hz: int
    n_channels: int
    rms_dbfs: float
    """Of the loudest second."""
    peak_dbfs: float
    fault: str | None
    """What is wrong with the input in the last second, if anything: dead, constant, clipped, dc_offset, not_finite."""


def hear(spec: SourceSpec, *, listen_s: float) -> Heard:
    """Listen for a while and return what came; UnavailableError or NoPermissionError say why nothing did."""
    return Heard(**_ask({"spec": asdict(spec), "listen_s": listen_s}, timeout_s=listen_s + _GRACE_S))


def known_devices() -> list[DeviceInfo]:
    """Return what `list_devices` does; UnavailableError when the sound system hangs or is not installed."""
    from edgeasd.capture.devices import DeviceInfo

    rows = _ask({}, timeout_s=_GRACE_S)["devices"]
    return [DeviceInfo(**row | {"rates_hz": tuple(row["rates_hz"])}) for row in rows]


def _ask(request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgeasd.commands.hearing"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as exc:
        raise UnavailableError("the sound system hangs") from exc
    except (ValueError, IndexError) as exc:
        raise UnavailableError(f"the sound system broke off: {done.stderr.strip().rpartition(chr(10))[2]}") from exc
    if "error" in answer:
        kind = NoPermissionError if answer["exit_code"] == NoPermissionError.exit_code else UnavailableError
        raise kind(answer["error"])
    return answer


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from edgeasd.capture.devices import list_devices

    try:
        if "spec" in request:
            return asdict(_listen(SourceSpec(**request["spec"]), request["listen_s"]))
        return {"devices": [asdict(info) for info in list_devices()]}
    except EdgeasdError as exc:
        return {"error": str(exc), "exit_code": exc.exit_code}
    except OSError as exc:  # sounddevice, when PortAudio itself is missing
        return {"error": f"{exc}: apt-get install libportaudio2", "exit_code": UnavailableError.exit_code}


def _listen(spec: SourceSpec, listen_s: float) -> Heard:
    from edgeasd.capture.alsa import Alsa
    from edgeasd.capture.portaudio import SHARED
    from edgeasd.capture.stream import open_stream
    from edgeasd.health.inputs import measure

    stream = open_stream(spec, audio=SHARED, alsa=Alsa())
    measured = [measure(_next_second(stream)) for _ in range(max(1, round(listen_s)))]
    SHARED.close(stream.raw)
    return Heard(
        device=stream.device_name,
        native_rate_hz=stream.native_rate_hz,
        n_channels=stream.n_channels,
        rms_dbfs=max(level.rms_dbfs for level, _ in measured),
        peak_dbfs=max(level.peak_dbfs for level, _ in measured),
        fault=measured[-1][1],
    )


def _next_second(stream: InputStream) -> FloatArray:
    import numpy as np

    return np.concatenate([stream.read(stream.native_rate_hz // 10)[0] for _ in range(10)])


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))), flush=True)
