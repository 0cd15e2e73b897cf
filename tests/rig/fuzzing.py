"""Whatever Hypothesis comes up with, thrown at whatever reads a recording, a manifest or a setting.

Each target takes the number of examples and an empty folder, and raises what leaks: a reader may return something
sound or raise an error of edgeasd, of one printable line, and nothing else. The examples are the same on every run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeasd.capture.wav import WavReader
from edgeasd.errors import EdgeasdError, SettingsError
from edgeasd.manifest import Manifest, first_fault
from edgeasd.settings import Places, Settings, resolve_settings
from edgeasd.settings.document import shown
from tests.rig.hostile_wav import PAYLOAD, chunk, data, ds64, fmt, riff
from tests.small_bundle import small_manifest

Target = Callable[[int, Path], None]

_NOWHERE = Places(credential_dirs=(), config_files=())
_WAV = riff(
    ds64(200),
    chunk(b"bext", b"\0" * 700),
    fmt(),
    chunk(b"LIST", b"INFO"),
    data(PAYLOAD[:200]),
    chunk(b"guan", b"G|V: 1"),
)

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def mutations(whole: bytes, *, most_edits: int = 8) -> st.SearchStrategy[bytes]:
    """Return a strategy for `whole` with some bytes changed, cut short, or with a piece of it put in elsewhere."""
    position = st.integers(0, len(whole) - 1)

    def mutate(edits: list[tuple[int, int]], length: int, moved: tuple[int, int, int] | None) -> bytes:
        content = bytearray(whole)
        for at, value in edits:
            content[at] = value
        if moved is not None:
            start, n_bytes, to = moved
            content[to:to] = content[start : start + n_bytes]
        return bytes(content[:length])

    return st.builds(
        mutate,
        st.lists(st.tuples(position, st.integers(0, 255)), max_size=most_edits),
        st.just(2 * len(whole)) | position,
        st.none() | st.tuples(position, st.integers(1, 4096), position),
    )


def examples(n_examples: int) -> settings:
    return settings(
        max_examples=n_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def one_line(exc: Exception) -> None:
    assert str(exc).isprintable(), repr(exc)
    assert len(str(exc)) < 1000, len(str(exc))


def fuzz_wav(n_examples: int, folder: Path) -> None:
    """Mangled and random bytes as a WAV file: sound that fits into the file, or a refusal."""

    @examples(n_examples)
    @given(content=mutations(_WAV) | st.binary(max_size=200).map(lambda tail: b"RIFF\xff\0\0\0WAVE" + tail))
    def read(content: bytes) -> None:
        path = folder / "x.wav"
        path.write_bytes(content)
        try:
            with WavReader(path) as reader:
                n_samples = sum(reader.read(64).size for _ in range(reader.info.n_frames // 64 + 1))
                assert n_samples <= len(content)
                assert np.isfinite(reader.info.rate_hz)
        except EdgeasdError as exc:
            one_line(exc)

    read()


def fuzz_manifest(n_examples: int, folder: Path) -> None:  # a target's signature
    """A manifest with other values in it, and mangled bytes of one: a manifest of sane sizes, or one fault."""
    whole = small_manifest().model_dump(mode="json")
    paths = list(_paths(whole))

    def altered(path: tuple[str | int, ...], value: object, extra: str | None) -> bytes:
        changed = json.loads(json.dumps(whole))
        *outer, last = path
        inner = changed
        for key in outer:
            inner = inner[key]
        inner[last] = value
        if extra is not None and isinstance(inner, dict):
            inner[extra] = value
        return json.dumps(changed).encode()

    trees = st.builds(altered, st.sampled_from(paths), JSON, st.none() | st.text(max_size=8))

    @examples(n_examples)
    @given(content=trees | mutations(json.dumps(whole).encode()) | JSON.map(lambda tree: json.dumps(tree).encode()))
    def read(content: bytes) -> None:
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as exc:
            fault = first_fault(exc)
            assert fault.isprintable(), repr(fault)
            assert len(fault) < 1000
            return
        assert all(0 < n < 1 << 24 for shape in manifest.input_shapes().values() for n in shape)

    read()


def _paths(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to each value in a tree of JSON, of long lists only to the first."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree[:1]) if isinstance(tree, list) else ()
    for key, inner in children:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def fuzz_settings(n_examples: int, folder: Path) -> None:
    """Any bytes, any tree as a file and as flags, any environment: settings, or one line."""
    path = folder / "config.yaml"

    def load(content: bytes | None, flags: dict[str, Any], environment: Mapping[str, str]) -> None:
        if content is not None:
            path.write_bytes(content)
            path.chmod(0o600)
        try:
            with _environment(environment):
                resolved = resolve_settings(path if content is not None else None, flags, places=_NOWHERE)
        except SettingsError as exc:
            one_line(exc)
        else:
            shown(resolved)

    names = st.sampled_from([*Settings.model_fields, "x"])
    trees = st.dictionaries(names, JSON, max_size=4)
    variables = st.dictionaries(
        st.builds(
            "EDGEASD_{}{}".format, names.map(str.upper), st.sampled_from(["", "__", "__X", "__HOST", "__0__NAME"])
        ),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20) | JSON.map(json.dumps),
        max_size=3,
    )
    files = st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | trees.map(_yaml)

    @examples(n_examples)
    @given(content=st.none() | files, flags=st.just({}) | trees, environment=st.just({}) | variables)
    def read(content: bytes | None, flags: dict[str, Any], environment: Mapping[str, str]) -> None:
        load(content, flags, environment)

    read()


def _yaml(tree: object) -> bytes:
    return yaml.safe_dump(tree).encode()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {key: value for key, value in os.environ.items() if key.upper().startswith("EDGEASD_")}
    for key in before:
        del os.environ[key]
    os.environ.update(variables)
    try:
        yield
    finally:
        for key in variables:
            del os.environ[key]
        os.environ.update(before)


TARGETS: dict[str, Target] = {"wav": fuzz_wav, "manifest": fuzz_manifest, "settings": fuzz_settings}
