"""The page to explore: what it takes to make one, how large it is, and whether it stays fluid in a browser.

    python -m benchmarks.bench_explore BUNDLE [RECORDINGS...] [--max-windows 10000] [--out report.html]

Recordings default to ../shared/audio/streams. Frames are watched in a headless Chromium that draws without a graphics
card while the map is pointed at, dragged, turned and zoomed: the median, and what 95 of 100 keep below.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import machine_line
from edgeasd_train.explore import ExploreOptions, explore
from tests.system.browser import GESTURES, chromium, gesture, open_page


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "audio" / "streams"
    parser.add_argument("bundle", type=Path)
    parser.add_argument("recordings", type=Path, nargs="*", default=[default])
    parser.add_argument("--max-windows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="keep the page here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = arguments.out or Path(folder) / "report.html"
        print(f"{machine_line()}\n")
        for sound in (True, False):
            options = ExploreOptions(max_windows=arguments.max_windows, sound=sound)
            began_s = time.monotonic()
            report = explore(arguments.bundle, arguments.recordings, output=page, options=options)
            took_s = time.monotonic() - began_s
            kind = "with sound" if sound else "without sound"
            print(
                f"{report.n_recordings} recordings, {report.n_windows} windows, {report.n_shown} drawn, {kind}: "
                f"{report.page_bytes / 1e6:.1f} MB in {took_s:.1f} s"
            )
            if chromium() is not None:
                watch(page, Path(folder))


def watch(page: Path, folder: Path) -> None:
    """Open the page in a browser, move the map by hand, and print how it kept up."""
    with open_page(page, folder) as shown:
        shown.wait_for("window.explorer", within_s=60.0)
        print(f"opened after {shown.evaluate('performance.now()') / 1e3:.2f} s")
        for how in GESTURES:
            timing = gesture(shown, "marks", how, drawn="explorer.map.timing", n_moves=150)
            drawn = f"drawing {_spread(timing.draw_ms)}" if timing.draw_ms else "nothing drawn again"
            print(f"{how}: frame to frame {_spread(timing.frame_ms)}, {drawn}")


def _spread(values_ms: list[float]) -> str:
    median, high = np.quantile(values_ms, (0.5, 0.95))
    return f"{median:.1f} ms (95 %: {high:.1f})"


if __name__ == "__main__":
    main()
