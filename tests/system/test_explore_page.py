"""The page to explore in a real browser: looked at, clicked, listened to, and watched for what it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgeasd_train.explore import ExploreOptions, PageReport, explore
from edgeasd_train.explore.sounds import PIECE_S
from tests.conftest import MakeSoundscape
from tests.rich_bundle import RATE_HZ, write_hall, write_rich_bundle
from tests.small_bundle import WINDOW_FRAMES
from tests.system.browser import GESTURES, Page, chromium, gesture, open_page

WINDOW_S = WINDOW_FRAMES / RATE_HZ
HOP_S = 0.064

pytestmark = pytest.mark.skipif(chromium() is None, reason="no chromium: apt-get install chromium")


def _explore(bundle: Path, *paths: Path, out: Path, **options: Any) -> PageReport:
    return explore(bundle, paths, output=out, options=ExploreOptions(**{"hop_s": HOP_S, **options}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rich_bundle(tmp_path_factory.mktemp("bundle") / "rich.edgeasd")


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory, make_soundscape: MakeSoundscape) -> Path:
    return write_hall(tmp_path_factory.mktemp("hall"), make_soundscape)


@pytest.fixture(scope="module")
def page(bundle: Path, hall: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    _explore(bundle, hall, out=out, n_clusters=4, title="A hall & <what> it holds")
    return out


@pytest.fixture(scope="module")
def opened(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_page(page, tmp_path_factory.mktemp("browser")) as shown:
        shown.wait_for("window.explorer")
        yield shown


def _place(shown: Page, window: int) -> tuple[float, float]:
    shown.wait_for("explorer.map.settled")
    x, y = shown.evaluate(
        "(() => { const box = document.getElementById('marks').getBoundingClientRect();"
        f" const [x, y] = explorer.map.screenOf({window}); return [box.left + x, box.top + y]; }})()"
    )
    return float(x), float(y)


def _ink(shown: Page, canvas: str) -> int:
    """Return how many colours a canvas shows."""
    script = (
        "((from) => { const canvas = new OffscreenCanvas(from.width, from.height);"
        " const context = canvas.getContext('2d', { willReadFrequently: true }); context.drawImage(from, 0, 0);"
        " return new Set(new Uint32Array(context.getImageData(0, 0, from.width, from.height).data.buffer)).size; })"
    )
    return int(shown.evaluate(f"{script}({canvas})"))


def test_a_click_on_a_point_shows_and_plays_its_window(opened: Page) -> None:
    along = opened.evaluate("Array.from(explorer.data.places).filter((_, k) => k % 3 === 0)")
    window = int(np.argmax(np.abs(along)))  # at the edge of the map, where it stands alone
    x, y = _place(opened, window)
    opened.mouse("mouseMoved", x, y)
    name = opened.evaluate(f"['marked.wav', 'plain.flac'][explorer.data.recording[{window}]]")
    tip = opened.evaluate("document.getElementById('tip').textContent")
    assert tip.startswith(name)
    opened.click(x, y)
    opened.wait_for("explorer.sound.playing")
    assert opened.evaluate("explorer.detail.current") == window
    assert opened.evaluate("document.getElementById('where').textContent") == name
    start_s = opened.evaluate(f"explorer.data.start_s[{window}]")
    shown_s = opened.evaluate("document.getElementById('when').textContent").split(" to ")[0]
    minutes, _, seconds = shown_s.partition(":")
    assert 60 * int(minutes) + float(seconds) == pytest.approx(start_s, abs=0.06)
    opened.wait_for("document.querySelectorAll('#pictures canvas').length === 6")
    assert [_ink(opened, f"document.querySelectorAll('#pictures figure > canvas')[{k}]") > 20 for k in range(3)] == [
        True
    ] * 3
    opened.wait_for("!explorer.sound.playing")


def test_sound_decodes_to_its_length(opened: Page) -> None:
    script = "explorer.sound.decode(0, {}).then((buffer) => [buffer.duration, buffer.sampleRate])"
    duration_s, rate_hz = opened.evaluate(script.format(1.0))
    assert rate_hz == RATE_HZ
    assert duration_s == pytest.approx(PIECE_S + WINDOW_S, abs=0.01)
    assert opened.evaluate(script.format(31.0))[0] == pytest.approx(45.0 - PIECE_S, abs=0.01)
    loud = "explorer.sound.decode(0, 5.0).then((b) => Math.max(...b.getChannelData(0).slice(5 * {0}, 6 * {0})))"
    assert opened.evaluate(loud.format(RATE_HZ)) > 0.3


def test_keys_step_through_the_strangest(opened: Page) -> None:
    order = np.argsort(-np.array(opened.evaluate("Array.from(explorer.data.score)")), kind="stable").tolist()
    opened.evaluate("document.getElementById('marks').focus()")
    opened.press("Home", 36)
    assert opened.evaluate("explorer.detail.current") == order[0]
    opened.press("ArrowRight", 39)
    opened.press("ArrowDown", 40)
    assert opened.evaluate("explorer.detail.current") == order[2]
    opened.press("ArrowLeft", 37)
    assert opened.evaluate("explorer.detail.current") == order[1]
    assert opened.evaluate("document.querySelector('#gallery [aria-current=true] small').textContent").startswith("2")
    opened.press(" ", 32, " ")
    opened.wait_for("explorer.sound.playing")
    assert opened.evaluate("document.getElementById('play').textContent").strip().endswith("Stop")
    opened.press(" ", 32, " ")
    opened.wait_for("!explorer.sound.busy")
    assert opened.evaluate("document.getElementById('play').textContent").strip().endswith("Play")


def test_of_two_clicks_in_a_row_the_last_is_played(opened: Page) -> None:
    """Decoding takes a while; the first, not yet decoded, must not break in."""
    opened.evaluate(
        "(() => { const { start_s, recording } = explorer.data;"
        " const far = [...start_s].findIndex((s, i) => s > 33 && recording[i] === 0);"
        " explorer.pick(0, { play: true }); explorer.pick(far, { play: true }); window.far = far; })()"
    )
    opened.wait_for("explorer.sound.playing")
    assert opened.evaluate("explorer.detail.current === far && explorer.sound.busy")
    opened.evaluate("explorer.pick(0)")
    assert not opened.evaluate("explorer.sound.busy")
    assert opened.evaluate("document.getElementById('play').textContent").strip().endswith("Play")


def test_the_whole_page_is_drawn_on_a_desk_and_on_a_phone(opened: Page) -> None:
    for width, height, phone in ((390, 844, True), (1280, 900, False)):
        opened.resize(width, height, phone=phone)
        for theme in ("dark", "light"):
            opened.evaluate("document.getElementById('theme').click()")
            assert opened.evaluate("document.documentElement.dataset.theme") == theme
        opened.wait_for("explorer.map.settled")
        assert opened.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        canvases = ["map", "histogram"]
        assert all(_ink(opened, f"document.getElementById('{name}')") > 4 for name in canvases)
        assert _ink(opened, "document.querySelector('#gallery canvas')") > 10
        assert _ink(opened, "document.querySelector('.timeline canvas')") > 2
    opened.evaluate("document.getElementById('deep').click()")
    opened.wait_for("explorer.map.settled")
    assert opened.evaluate("document.querySelectorAll('#card td')[1].textContent") == "<b>paper</b>"
    assert opened.evaluate("document.title") == "A hall & <what> it holds"


def test_nothing_leaves_the_page(opened: Page, page: Path) -> None:
    assert opened.evaluate("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'stopped')") == "stopped"
    stopped = [text for text in opened.complaints if "127.0.0.1:9" in text or "Failed to fetch" in text]
    assert opened.requests == [page.resolve().as_uri()]
    assert opened.complaints == stopped  # the page itself had nothing to complain of
    assert stopped


def test_no_name_becomes_part_of_the_page(bundle: Path, hall: Path, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>&<!--<script>.flac"
    (tmp_path / name).write_bytes((hall / "plain.flac").read_bytes())
    _explore(bundle, tmp_path / name, out=tmp_path / "r.html", title="</script><script>alert(2)</script>", hop_s=0.5)
    with open_page(tmp_path / "r.html", tmp_path) as shown:
        shown.wait_for("window.explorer")
        assert shown.evaluate("document.getElementById('where').textContent") == name
        assert shown.evaluate("document.getElementById('title').textContent") == "</script><script>alert(2)</script>"
        assert shown.evaluate("document.images.length") == 0
        assert len(shown.requests) == 1
        assert shown.complaints == []


def test_ten_thousand_windows_stay_fluid(bundle: Path, tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    sound = make_soundscape(321.0, rate_hz=RATE_HZ, events=tuple((10.0 * i, 10.0 * i + 1.0) for i in range(30)))
    soundfile.write(tmp_path / "long.wav", sound.samples, RATE_HZ)
    report = _explore(bundle, tmp_path / "long.wav", out=tmp_path / "r.html", sound=False, hop_s=0.032)
    assert report.n_shown == 10_000
    with open_page(tmp_path / "r.html", tmp_path) as shown:
        shown.wait_for("window.explorer")
        assert shown.evaluate("performance.now()") < 5000
        for how in GESTURES:
            timing = gesture(shown, "marks", how, drawn="explorer.map.timing")
            # A frame of a screen lasts 17 ms; the machine that tests may be busy with other things.
            assert np.median(timing.draw_ms or [0.0]) < 17.0, how
            assert np.median(timing.frame_ms) < 50.0, how
            assert (timing.draw_ms == []) == (how == "hover")  # pointing draws no points again
        assert shown.complaints == []
