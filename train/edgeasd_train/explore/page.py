"""The page: one HTML file that needs nothing but itself, and may ask for nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from numpy.typing import NDArray

_SCRIPTS = (
    "data.js",
    "colours.js",
    "sound.js",
    "map.js",
    "pictures.js",
    "charts.js",
    "detail.js",
    "panels.js",
    "main.js",
)
"""In the order in which they build on each other."""

_LEVEL = 6
"""Of deflate: the highest packs half a percent better, and takes far longer."""


def render(meta: Mapping[str, Any], elements: Iterable[str]) -> bytes:
    """Return the page: facts as JSON, and the elements of `packed_arrays` and `packed_files` for its scripts to read.

    The only script that a browser may run is ours, by its digest, and no address may be asked for anything.
    """
    style, script = _asset("style.css"), "\n".join(map(_asset, _SCRIPTS))
    # "<" never stands in the JSON as itself, so that no name of a file can end the element it stands in.
    facts = json.dumps(meta, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "POLICY": (
            f"default-src 'none'; script-src 'sha256-{_digest(script)}'; style-src 'sha256-{_digest(style)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        "TITLE": html.escape(str(meta["title"])),
        "STYLE": style,
        "DATA": "\n".join((f'<script type="application/json" id="meta">{facts}</script>', *elements)),
        "SCRIPT": script,
    }
    pieces = []
    rest = _asset("page.html")
    for name, text in parts.items():
        before, mark, rest = rest.partition(f"{{{{{name}}}}}")
        assert mark, name
        pieces += [before, text]
    return "".join((*pieces, rest)).encode()


def packed_arrays(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return an element for each array: little-endian values, deflated."""

    def packed(name: str) -> str:
        array = arrays[name]
        values = array.astype(array.dtype.newbyteorder("<")).tobytes()
        return _element(name, zlib.compress(values, _LEVEL), kind=array.dtype.name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # deflating runs outside Python's lock
        return list(pool.map(packed, arrays))


def packed_files(files: Mapping[str, bytes]) -> list[str]:
    """Return an element for each file, as it is."""
    return [_element(name, data, kind="file") for name, data in files.items()]


def packed_bytes(n_bytes: int) -> int:
    """Return how many bytes of a file take up so many on the page."""
    return n_bytes * 3 // 4


def _element(name: str, data: bytes, *, kind: str) -> str:
    return f'<script type="text/plain" id="{name}" data-kind="{kind}">{base64.b64encode(data).decode()}</script>'


def _asset(name: str) -> str:
    return (resources.files("edgeasd_train.explore") / "assets" / name).read_text("utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
