"""Pictures without a window: what every drawing of the workshop begins and ends with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edgeasd.errors import CannotWriteError

NORMAL, STRANGE, GREY = "#2a6f97", "#c8553d", "#777777"
_DPI = 110


@contextmanager
def picture(path: Path, *, size_in: tuple[float, float]) -> Iterator[Figure]:
    """Give a figure to draw on, and write it as PNG; CannotWriteError when that fails."""
    drawn = Figure(figsize=size_in, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(drawn)  # no window, no global state
    yield drawn
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a file name in a script the font lacks
            drawn.savefig(path)
    except OSError as exc:
        raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc
