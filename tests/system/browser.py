"""A real headless Chromium, driven over its DevTools protocol: pages are opened, clicked and looked at."""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

_STARTS_WITHIN_S = 30.0
_ANSWERS_WITHIN_S = 60.0
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--autoplay-policy=user-gesture-required", "--remote-debugging-port=0",
)  # fmt: skip


def chromium() -> str | None:
    """Return the browser that is installed, if one is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class BrowserError(Exception):
    """The browser, or a script in the page, failed."""


@dataclass(slots=True)
class Page:
    """One page: what it is told, and what it says and asks for."""

    _socket: Connection
    _session: str
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    requests: list[str] = field(default_factory=list)
    """Every address that the page asked for, itself included."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings on the console, exceptions, and what the content policy stopped."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "sessionId": self._session, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        until_s = time.monotonic() + _ANSWERS_WITHIN_S
        while True:
            answer = json.loads(self._socket.recv(max(0.0, until_s - time.monotonic())))
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._heard(answer.get("method", ""), answer.get("params", {}))

    def _heard(self, event: str, said: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"][:200])
        elif event == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(one.get("value", one.get("description"))) for one in said["args"]))
        elif event == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])

    def evaluate(self, script: str) -> Any:
        """Run an expression in the page, wait for what it promises, and return its value."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait_for(self, condition: str, *, within_s: float = 20.0) -> None:
        """Wait until an expression is true."""
        until_s = time.monotonic() + within_s
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > until_s:
                raise BrowserError(f"never came true: {condition}; complaints: {self.complaints}")
            time.sleep(0.02)

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Show the page on a screen of so many CSS pixels."""
        ratio = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=phone
        )

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send one mouse event: mouseMoved, mousePressed, mouseReleased or mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        """Click with the left button."""
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key by its name and its Windows code."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is to be seen, or the whole length of the page, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@dataclass(frozen=True, slots=True)
class Timing:
    """How a page kept up with a gesture."""

    frame_ms: list[float]
    """From each frame to the next."""
    draw_ms: list[float]
    """What the script took to draw, in frames in which it drew."""


GESTURES = ("hover", "drag", "turn", "zoom")
_WATCH = """
(() => {
  const seen = window.seen = { frame_ms: [], draw_ms: [], going: true };
  let last = 0, drawn = %(drawn)s.draws;
  const tick = (now) => {
    if (last) seen.frame_ms.push(now - last);
    last = now;
    if (%(drawn)s.draws !== drawn) seen.draw_ms.push(%(drawn)s.last_ms);
    drawn = %(drawn)s.draws;
    if (seen.going) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
})()
"""


def gesture(page: Page, canvas: str, how: str, *, drawn: str, n_moves: int = 40) -> Timing:
    """Point at, drag, turn or zoom the map on the canvas of that id, as a hand would, and watch every frame.

    `drawn` is an object of the page that counts what it drew: draws, and last_ms that the last one took.
    """
    if how == "turn":
        page.evaluate("document.getElementById('deep').click()")
    box = page.evaluate(f"(({{ left, top, width, height }}) => [left, top, width, height])"
                        f"(document.getElementById('{canvas}').getBoundingClientRect())")  # fmt: skip
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    page.mouse("mouseMoved", x, y)
    page.wait_for("explorer.map.settled")
    page.evaluate(_WATCH % {"drawn": drawn})
    held = {"button": "left", "buttons": 1} if how in ("drag", "turn") else {}
    if held:
        page.mouse("mousePressed", x, y, clickCount=1, **held)
    for k in range(n_moves):
        if how == "zoom":
            page.mouse("mouseWheel", x, y, deltaX=0, deltaY=30.0 if k % 8 < 4 else -30.0)
        else:
            page.mouse("mouseMoved", x + 60 * math.sin(k / 4), y + 40 * math.cos(k / 5), **held)
    if held:
        page.mouse("mouseReleased", x, y, clickCount=1, button="left")
    seen = page.evaluate("(seen.going = false, seen)")
    return Timing(seen["frame_ms"], seen["draw_ms"])


@contextmanager
def open_page(file: Path, folder: Path, *, width: int = 1280, height: int = 900, phone: bool = False) -> Iterator[Page]:
    """Start a browser of its own, with a new profile in `folder`, and open a local file in it."""
    program = chromium()
    assert program is not None
    profile = Path(tempfile.mkdtemp(dir=folder))
    log = profile / "chromium.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            with connect(_address(profile, process, log), max_size=None, compression=None) as socket:
                page = _attach(socket)
                for domain in ("Network", "Runtime", "Log", "Page"):
                    page.call(f"{domain}.enable")
                page.resize(width, height, phone=phone)
                page.call("Page.navigate", url=file.resolve().as_uri())
                yield page
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(profile: Path, process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the browser says where it listens."""
    until_s = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < until_s and process.poll() is None:
        lines = (
            (profile / "DevToolsActivePort").read_text().split() if (profile / "DevToolsActivePort").exists() else []
        )
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.02)
    raise BrowserError(f"chromium does not start: {log.read_text(errors='replace')[-500:]}")


def _attach(socket: Connection) -> Page:
    """Take hold of the one page that a new browser has."""

    def ask(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(socket.recv(_STARTS_WITHIN_S))
            if answer.get("id") == number:
                result: dict[str, Any] = answer["result"]
                return result

    pages = [one for one in ask(-1, "Target.getTargets")["targetInfos"] if one["type"] == "page"]
    session = ask(-2, "Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
    return Page(socket, session)
