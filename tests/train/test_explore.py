"""The page to explore: what stands in it."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sklearn.decomposition import PCA

from edgeasd.bundle import Golden, Inputs, read_bundle, write_bundle
from edgeasd.cli import main
from edgeasd.engine import open_engine
from edgeasd.errors import BundleError, CannotWriteError, InputError
from edgeasd.scoring.calibration import Calibration
from edgeasd_train.explore import ExploreOptions, PageReport, explore
from edgeasd_train.explore.geometry import lay_out
from edgeasd_train.explore.sounds import PIECE_S
from edgeasd_train.listen import hear
from tests.conftest import MakeSoundscape
from tests.rich_bundle import CENTRE_DB, EVENTS, RATE_HZ, write_hall, write_rich_bundle
from tests.small_bundle import N_FRAMES, N_ROWS, WINDOW_FRAMES, small_manifest

WINDOW_S = WINDOW_FRAMES / RATE_HZ
HOP_S = 0.064


@dataclass(frozen=True)
class Read:
    """A page taken apart again."""

    html: str
    meta: dict[str, Any]

    def column(self, name: str) -> NDArray[Any] | None:
        found = re.search(rf'<script type="text/plain" id="{name}" data-kind="(\w+)">([^<]*)</script>', self.html)
        if found is None:
            return None
        return np.frombuffer(zlib.decompress(base64.b64decode(found[2])), np.dtype(found[1]).newbyteorder("<"))

    def there(self, name: str) -> NDArray[Any]:
        column = self.column(name)
        assert column is not None, name
        return column

    def sounds(self) -> dict[str, bytes]:
        found = re.findall(r'id="(sound-\d+-\d+)" data-kind="file">([^<]*)</script>', self.html)
        return {name: base64.b64decode(text) for name, text in found}


def _read(path: Path) -> Read:
    html = path.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="meta">([^<]*)</script>', html)
    assert found is not None
    return Read(html, json.loads(found[1]))


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
    report = _explore(bundle, hall, out=out, n_clusters=4, title="A hall & <what> it holds")
    assert report.page_bytes == out.stat().st_size
    assert report.notes == ()
    return out


def test_the_page_says_what_the_bundle_says(page: Path, bundle: Path, hall: Path) -> None:
    read, opened = _read(page), read_bundle(bundle)
    engine = open_engine(opened, "onnx")
    heard = [hear(hall / name, opened, engine, hop_s=HOP_S) for name in ("marked.wav", "plain.flac")]
    scores = np.concatenate([one.outputs.score for one in heard])
    np.testing.assert_array_equal(read.there("score"), scores)
    np.testing.assert_array_equal(read.there("timeline"), scores)
    np.testing.assert_array_equal(read.there("start_s"), np.concatenate([one.first_frames for one in heard]) / RATE_HZ)
    calibration = Calibration(opened.manifest.calibration)
    np.testing.assert_allclose(
        10.0 ** read.there("log_p")[:50], [calibration.p_value(s) for s in scores[:50]], rtol=1e-4
    )
    assert [row["name"] for row in read.meta["recordings"]] == ["marked.wav", "plain.flac"]
    assert [row["duration_s"] for row in read.meta["recordings"]] == [45.0, 20.0]
    assert sum(read.meta["histogram"]["plain"]) + sum(read.meta["histogram"]["marked"]) == len(scores)
    residual = np.concatenate([one.outputs.residual for one in heard if one.outputs.residual is not None])
    shown = read.there("residual").reshape(-1, N_ROWS) / 255.0
    np.testing.assert_allclose(shown, residual / residual.max(axis=1, keepdims=True), atol=0.003)


def test_pictures_come_back_within_half_a_step(page: Path, bundle: Path, hall: Path) -> None:
    read, opened = _read(page), read_bundle(bundle)
    heard = hear(hall / "marked.wav", opened, open_engine(opened, "onnx"), hop_s=HOP_S)
    facts = read.meta["picture"]
    block = read.there("pictures-0").reshape(2, facts["block"], N_FRAMES, N_ROWS)
    levels = np.cumsum(block, axis=2, dtype=np.uint8)
    shown_db = facts["low_db"] + facts["step_db"] * levels
    assert heard.log_mel is not None
    expected_db = heard.log_mel[: facts["block"]].transpose(0, 2, 1)
    inside = (levels[0] > 0) & (levels[0] < 255)
    assert inside.mean() > 0.99
    assert np.abs(shown_db[0] - expected_db)[inside].max() < facts["step_db"] * 0.5 + 0.05
    assert np.abs(shown_db[1] - np.maximum(CENTRE_DB, facts["low_db"])).max() < facts["step_db"] * 0.5 + 0.05


def test_sound_is_cut_so_that_every_window_lies_within_one_piece(page: Path, hall: Path) -> None:
    sounds = _read(page).sounds()
    assert sorted(sounds) == ["sound-0-0", "sound-0-1", "sound-1-0"]
    original, _ = soundfile.read(hall / "marked.wav", dtype="float32")
    for name, first_s in (("sound-0-0", 0.0), ("sound-0-1", PIECE_S)):
        samples, rate_hz = soundfile.read(io.BytesIO(sounds[name]), dtype="float32")
        assert rate_hz == RATE_HZ
        cut = original[round(first_s * RATE_HZ) : round((first_s + PIECE_S) * RATE_HZ) + WINDOW_FRAMES]
        assert len(samples) == len(cut)
        assert np.corrcoef(samples, cut)[0, 1] > 0.95


def test_windows_are_coloured_by_event_and_by_what_names_say(
    bundle: Path, hall: Path, tmp_path: Path, make_soundscape: MakeSoundscape
) -> None:
    for name in ("section_00_source_test_normal_0000.wav", "section_01_target_test_anomaly_0001.wav"):
        path = tmp_path / "fan" / "test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_soundscape(2.0, rate_hz=RATE_HZ).samples, RATE_HZ)
    _explore(bundle, hall / "marked.wav", tmp_path / "fan", out=tmp_path / "r.html")
    read = _read(tmp_path / "r.html")
    facets = {facet["name"]: (facet["values"], read.there(f"facet-{i}")) for i, facet in enumerate(read.meta["facets"])}
    assert set(facets) == {"recording", "event", "label", "machine", "section", "domain", "split"}
    values, codes = facets["event"]
    of_marked = facets["recording"][0].index("marked.wav")
    start_s = read.there("start_s")[read.there("recording") == of_marked]
    assert values == ["no event", "rattle"]
    in_event = np.zeros(len(start_s), bool)
    for onset_s, offset_s in EVENTS:
        in_event |= np.minimum(start_s + WINDOW_S, offset_s) - np.maximum(start_s, onset_s) >= WINDOW_S / 2 - 1e-9
    np.testing.assert_array_equal(codes[read.there("recording") == of_marked] == 1, in_event)
    assert in_event.sum() > 20
    assert facets["label"][0] == ["unknown", "anomaly", "normal"]
    assert set(facets["domain"][0]) == {"unknown", "source", "target"}


def test_one_table_may_mark_all_recordings(bundle: Path, hall: Path, tmp_path: Path) -> None:
    table = tmp_path / "short.csv"
    table.write_text("file,onset,offset,label\nmarked.wav,4.995,5.02,click\nother.wav,1,2,none\n")
    _explore(bundle, hall, out=tmp_path / "r.html", events=table)
    read = _read(tmp_path / "r.html")
    assert read.meta["recordings"][0]["events"] == [[4.995, 5.02, "click"]]
    assert sum(read.meta["histogram"]["marked"]) == 1
    with pytest.raises(InputError, match=r"absent\.csv"):
        _explore(bundle, hall, out=tmp_path / "r.html", events=tmp_path / "absent.csv")


def test_what_is_thinned_out_is_said_and_never_the_strangest(bundle: Path, hall: Path, tmp_path: Path) -> None:
    report = _explore(bundle, hall, out=tmp_path / "r.html", max_windows=400)
    assert (report.n_windows, report.n_shown) == (1015, 400)
    (note,) = report.notes
    assert note.startswith("400 of 1,015 windows are drawn: the 200 strangest and an even sample of the others.")
    read = _read(tmp_path / "r.html")
    shown, every = read.there("score"), read.there("timeline")
    assert len(every) == 1015
    np.testing.assert_array_equal(np.sort(shown)[-200:], np.sort(every)[-200:])
    places = np.flatnonzero(np.isin(every, shown))
    assert np.diff(places).max() < 12  # evenly over time as well


def test_sound_that_finds_no_room_is_named(bundle: Path, hall: Path, tmp_path: Path) -> None:
    full = _explore(bundle, hall, out=tmp_path / "full.html")
    sizes = sum(len(ogg) for ogg in _read(tmp_path / "full.html").sounds().values()) / 0.75 / 1e6
    limit_mb = full.page_bytes / 1e6 - sizes * 0.6
    report = _explore(bundle, hall, out=tmp_path / "less.html", max_mb=limit_mb)
    read = _read(tmp_path / "less.html")
    assert report.page_bytes < limit_mb * 1e6 + 200_000  # the scripts and facts come on top
    strangest = int(np.argmax(read.there("score")))
    piece = f"sound-{read.there('recording')[strangest]}-{int(read.there('start_s')[strangest] // PIECE_S)}"
    assert piece in read.sounds()
    assert len(read.sounds()) < 3
    assert any("pieces of sound (30 s each) are left out" in note for note in report.notes)
    silent = _explore(bundle, hall, out=tmp_path / "silent.html", sound=False)
    assert _read(tmp_path / "silent.html").sounds() == {}
    assert silent.notes == ("There is no sound on this page, as was asked for.",)


def test_a_model_of_the_waveform_has_pictures_too(tmp_path: Path, hall: Path) -> None:
    shape: list[str | int | None] = ["batch", WINDOW_FRAMES]
    axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
    nodes = [
        helper.make_node("Mul", ["waveform", "waveform"], ["power"]),
        helper.make_node("ReduceMean", ["power", "axis"], ["score"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "loudness",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        initializer=[axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    sound = np.random.default_rng(0).normal(0, 0.1, (3, WINDOW_FRAMES)).astype(np.float32)
    golden = Golden({"waveform": sound}, {"score": np.square(sound).mean(axis=1)})
    manifest = small_manifest().model_copy(update={"inputs": Inputs(waveform=True), "outputs": ["score"]})
    path = tmp_path / "loud.edgeasd"
    write_bundle(path, manifest=manifest, model_onnx=model.SerializeToString(), golden=golden, card="# loud\n")
    _explore(path, hall, out=tmp_path / "r.html")
    read = _read(tmp_path / "r.html")
    assert (read.meta["embedding"], read.meta["picture"]["n_kinds"]) == (False, 1)
    assert read.column("residual") is None
    assert read.there("pictures-0").std() > 0


def test_bad_recordings_are_passed_over_in_a_folder_and_refused_when_named(
    bundle: Path, hall: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "plain.flac").write_bytes((hall / "plain.flac").read_bytes())
    (root / "bad.wav").write_bytes(b"RIFF nonsense")
    report = _explore(bundle, root, out=tmp_path / "r.html")
    assert report.n_recordings == 1
    assert len(report.notes) == 1
    assert "1 recordings could not be read" in report.notes[0]
    assert "bad.wav" in report.notes[0]
    (root / "plain.flac").unlink()
    for paths in ([root], [root / "bad.wav"], [tmp_path / "absent"]):
        assert main(["explore", str(bundle), *map(str, paths), "-o", str(tmp_path / "none.html")]) == 66
        complaint = capsys.readouterr().err.strip()
        assert complaint.startswith("edgeasd: ")
        assert "\n" not in complaint
    assert not (tmp_path / "none.html").exists()


def test_what_cannot_be_is_refused_in_one_line(bundle: Path, hall: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotWriteError, match="cannot be written"):
        _explore(bundle, hall / "plain.flac", out=tmp_path / "absent" / "r.html")
    with pytest.raises(BundleError):
        _explore(hall / "plain.flac", hall, out=tmp_path / "r.html")
    arguments = ["explore", str(bundle), str(hall), "-o", str(tmp_path / "r.html")]
    assert main([*arguments, "--channel", "left"]) == 2
    assert main([*arguments, "--channel", "7"]) == 66
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_page(
    bundle: Path, hall: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.html"
    options = ["--hop", "0.5", "--clusters", "3", "--no-sound", "--title", "Hall"]
    with pytest.raises(SystemExit) as ended:
        main(["explore", str(bundle), str(hall), "-o", str(out), *options])
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert "windows     130, 130 of them drawn" in said
    assert "note        There is no sound" in said
    meta = _read(out).meta
    assert (meta["title"], meta["hop_s"], len(meta["clusters"])) == ("Hall", 0.5, 3)


def test_the_map_is_that_of_principal_components() -> None:
    random = np.random.default_rng(3)
    vectors = (random.normal(size=(500, 6)) * [9, 5, 3, 1, 1, 1] + 7).astype(np.float32)
    geometry = lay_out(vectors, n_clusters=5)
    expected = PCA(3).fit(vectors)
    np.testing.assert_allclose(np.abs(geometry.places), np.abs(expected.transform(vectors)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(geometry.explained, expected.explained_variance_ratio_, rtol=1e-3)
    sizes = [cluster.n_windows for cluster in geometry.clusters]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes == np.bincount(geometry.cluster).tolist()
    assert [geometry.cluster[cluster.typical] for cluster in geometry.clusters] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_windows_that_are_all_alike_have_a_map_as_well(width: int) -> None:
    geometry = lay_out(np.ones((20, width), np.float32), n_clusters=10)
    assert geometry.places.shape == (20, 3)
    assert not geometry.places.any()
    assert len(geometry.clusters) == 1
