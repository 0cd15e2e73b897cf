"""Whatever Hypothesis comes up with, thrown at whatever a node finds in its state directory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.errors import SettingsError
from edgeasd.models.store import ModelStore
from edgeasd.publish.identity import next_boot
from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox
from edgeasd.site import site_calibration, site_path
from edgeasd.steering.overrides import OVERRIDES_FILE, read_overrides
from tests.rig.fuzzing import JSON, Target, examples, mutations, one_line
from tests.small_bundle import small_table, write_small_bundle

_IDENTITY = b'{"node_uuid": "7f3c1c1e-0a52-4c39-9c0e-0f5b6a3f9a11", "boot_epoch": 41}\n'
_OVERRIDES = b'{"v": 1, "sources": {"mic0": {"threshold": 9.5, "enabled": false}}}'
_MEMORY = b'{"highest": {"a": 3}, "passed_over": ["00"], "trial": {"sha256": "11", "starts_utc_s": [1.0, 2.0]}}'


def fuzz_identity(n_examples: int, folder: Path) -> None:
    """Any identity.json: the node boots, with a boot number that grows, and knows itself again."""

    @examples(n_examples)
    @given(content=mutations(_IDENTITY) | JSON.map(lambda tree: json.dumps(tree).encode()) | _identities())
    def boot(content: bytes) -> None:
        (folder / "identity.json").write_bytes(content)
        first, second = next_boot(folder), next_boot(folder)
        assert (second.node_uuid, second.boot_epoch) == (first.node_uuid, first.boot_epoch + 1)
        assert 1 <= first.boot_epoch < 1 << 53

    boot()


def _identities() -> st.SearchStrategy[bytes]:
    known = st.just("7f3c1c1e-0a52-4c39-9c0e-0f5b6a3f9a11")
    trees = st.fixed_dictionaries({"node_uuid": known | JSON, "boot_epoch": st.integers(-1, 9) | JSON})
    return trees.map(lambda tree: json.dumps(tree).encode())


def fuzz_outbox(n_examples: int, folder: Path) -> None:
    """A mangled outbox.db or log: it opens, what is read of it can be sent, and it takes a new event."""
    with Outbox(folder / "whole") as outbox:
        outbox.put([_parcel(n, Kind.EVENT) for n in range(20)], durable=False)
        outbox.put([_parcel(n, Kind.SCORE) for n in range(20, 60)], durable=False)
        whole = {name: (folder / "whole" / name).read_bytes() for name in ("outbox.db", "outbox.db-wal")}
    folded = (folder / "whole" / "outbox.db").read_bytes()
    state = folder / "state"

    @examples(n_examples)
    @given(
        database=mutations(folded, most_edits=40) | st.just(whole["outbox.db"]) | st.just(b""),
        journal=st.none() | st.just(whole["outbox.db-wal"]) | mutations(whole["outbox.db-wal"], most_edits=40),
    )
    def run(database: bytes, journal: bytes | None) -> None:
        _empty(state)
        (state / "outbox.db").write_bytes(database)
        if journal is not None:
            (state / "outbox.db-wal").write_bytes(journal)
        with Outbox(state) as outbox:
            for lane in ("event", "score"):
                rows = outbox.rows(lane, after_row=0, limit=100) or []
                assert all(isinstance(json.loads(parcel.body), dict) for parcel in rows)
                outbox.quarantine(rows[0], reason="tried") if rows else None
                outbox.remove(rows[1:])
            assert outbox.put([_parcel(99, Kind.EVENT)], durable=True)
            assert "u:1:99" in {parcel.id for parcel in outbox.rows("event", after_row=0, limit=100) or []}
            outbox.note_dropped(["u:1:98"])
            outbox.gap()

    run()


def _parcel(number: int, kind: Kind) -> Parcel:
    body = json.dumps({"n": number, "late": False, "pad": "x" * 300}).encode()
    return Parcel(f"edgeasd/w/mic0/{kind}", kind, body, id=f"u:1:{number}", number=number)


def _empty(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()


def fuzz_memories(n_examples: int, folder: Path) -> None:
    """Any overrides, any site calibration, any memory of models: what makes sense of them, or one line."""
    bundle = read_bundle(write_small_bundle(folder / "small.edgeasd"))
    store = ModelStore(folder)
    store.directory.mkdir()
    readers: dict[Path, tuple[bytes, Callable[[], object]]] = {
        folder / OVERRIDES_FILE: (_OVERRIDES, lambda: _overridden(folder)),
        site_path(folder, bundle): (small_table().model_dump_json().encode(), lambda: _calibrated(folder, bundle)),
        store.directory / "state.json": (_MEMORY, lambda: store.recall().model_dump_json()),
    }
    files = st.sampled_from(sorted(readers)).flatmap(
        lambda path: st.tuples(
            st.just(path), mutations(readers[path][0]) | JSON.map(lambda tree: json.dumps(tree).encode())
        )
    )

    @examples(n_examples)
    @given(file=files)
    def read(file: tuple[Path, bytes]) -> None:
        path, content = file
        path.write_bytes(content)
        readers[path][1]()
        for aside in folder.glob("*.corrupt-*"):
            aside.unlink()

    read()


def _overridden(folder: Path) -> None:
    for override in read_overrides(folder, sources=["mic0"]).values():
        assert override.threshold is None or math.isfinite(override.threshold)


def _calibrated(folder: Path, bundle: Bundle) -> None:
    try:
        site_calibration(folder, bundle)
    except SettingsError as exc:
        one_line(exc)


STATE_TARGETS: dict[str, Target] = {"identity": fuzz_identity, "outbox": fuzz_outbox, "memories": fuzz_memories}
