"""A model that fails is replaced in the middle of a batch; a candidate is tried aside and heard in the shadow first."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeasd.assembly import Bench, JudgeOptions, plan_judges, seat_judges, seat_model
from edgeasd.bundle import Golden, read_bundle, write_bundle
from edgeasd.engine import open_engine
from edgeasd.engine.choosing import choose_engine
from edgeasd.errors import BundleError, SelfTestError
from edgeasd.health.notify import Notifier
from edgeasd.line import Line
from edgeasd.models.choosing import beginning
from edgeasd.models.shadow import SHADOW_WINDOWS, Shadow
from edgeasd.models.sidetest import side_test
from edgeasd.models.store import ModelStore
from edgeasd.models.swapping import Swapping
from edgeasd.node import Node
from edgeasd.publish import Wire
from edgeasd.publish.jsonl import JsonLinesPublisher
from edgeasd.records import Score, Window
from edgeasd.reporter import Reporter
from edgeasd.scoring.jury import AlarmPolicy, Model
from edgeasd.settings import Settings
from edgeasd.signing import signature_path
from tests.rig.touchy import Signer, digest, touchy_graph
from tests.small_bundle import (
    SPEC,
    WINDOW_FRAMES,
    small_golden,
    small_manifest,
    write_full_bundle,
    write_small_bundle,
)

OPTIONS = JudgeOptions(hop_s=0.032, novelty=False, policy=AlarmPolicy(by="model"))
LOUD_FROM = 40


@pytest.fixture
def windows() -> list[Window]:
    """A hundred windows of quiet noise, loud from one on and for thirty."""
    random = np.random.default_rng(2)
    cut = [random.normal(scale=0.002, size=WINDOW_FRAMES).astype(np.float32) for _ in range(100)]
    loud = range(LOUD_FROM, LOUD_FROM + 30)
    return [
        Window("mic0", 256 * at, samples * (150.0 if at in loud else 1.0), 0, follows=False)
        for at, samples in enumerate(cut)
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bundle = write_small_bundle(tmp_path / "small.edgeasd")
    with seat_judges(plan_judges(replace(OPTIONS, bundle=bundle))) as seated:
        yield seated


@pytest.fixture
def touchy(tmp_path: Path) -> Model:
    bundle = read_bundle(Signer(tmp_path / "signer").make(touchy=True))
    return seat_model(bundle, open_engine(bundle, "onnx"), state_dir=None)[0]


def scores(bench: Bench, windows: list[Window]) -> list[Score]:
    return [said for _, said in bench.pipeline.process(windows) if isinstance(said, Score)]


def test_the_standby_judges_the_windows_over_which_a_model_fails(
    bench: Bench, touchy: Model, windows: list[Window]
) -> None:
    alone = scores(bench, windows)
    bench.pipeline.finish("mic0")
    assert bench.model is not None
    bench.pipeline.set_model(touchy, standby=bench.model)
    told = scores(bench, windows[:LOUD_FROM])
    assert bench.pipeline.failure is None
    told += scores(bench, windows[LOUD_FROM:])
    assert told == alone  # not one is missing, and the touchy model agrees while it is quiet
    assert isinstance(bench.pipeline.failure, SelfTestError)


def test_without_a_standby_the_failure_of_a_model_is_that_of_the_node(
    bench: Bench, touchy: Model, windows: list[Window]
) -> None:
    bench.pipeline.set_model(touchy)
    with pytest.raises(SelfTestError, match="not finite"):
        scores(bench, windows)


def test_a_model_of_another_framing_is_not_taken(bench: Bench) -> None:
    manifest = small_manifest()
    assert bench.pipeline.takes(manifest)
    for spec in (replace(SPEC, hop_frames=32), replace(SPEC, n_fft=128)):
        inputs = manifest.inputs.model_copy(update={"log_mel": spec})
        assert not bench.pipeline.takes(manifest.model_copy(update={"inputs": inputs}))
    assert not bench.pipeline.takes(manifest.model_copy(update={"window_frames": 1024}))
    assert not bench.pipeline.takes(manifest.model_copy(update={"sample_rate_hz": 16000}))


def test_a_shadow_hears_what_is_judged_and_changes_nothing(bench: Bench, windows: list[Window]) -> None:
    alone = scores(bench, windows)
    bench.pipeline.finish("mic0")
    assert bench.model is not None
    shadow = Shadow(bench.grid, bench.model)
    bench.pipeline.overheard_by = shadow.hear
    told = []
    for start in range(0, len(windows), 20):
        assert shadow.done == (start >= SHADOW_WINDOWS)
        told += scores(bench, windows[start : start + 20])
    assert told == alone
    heard = [score.model.p_value for score in alone[:SHADOW_WINDOWS] if score.model]
    summary = shadow.summary()
    assert summary["windows"] == SHADOW_WINDOWS
    assert summary["p_median"] == pytest.approx(np.median(heard), rel=0.01)
    assert summary["share_below_0_1"] == pytest.approx(np.mean(np.array(heard) < 0.1), rel=0.01)
    assert 0 < summary["ms_a_window"] < 1000


def test_a_model_that_fails_in_the_shadow_harms_nobody(bench: Bench, touchy: Model, windows: list[Window]) -> None:
    shadow = Shadow(bench.grid, touchy)
    bench.pipeline.overheard_by = shadow.hear
    assert len(scores(bench, windows)) == len(windows)
    assert shadow.done
    assert "not finite" in str(shadow.failure)


def test_a_bundle_is_tried_in_a_process_of_its_own(tmp_path: Path) -> None:
    golden = small_golden()
    path = write_small_bundle(tmp_path / "small.edgeasd")
    side_test(read_bundle(path), engine="auto")
    off = Golden(golden.inputs, {**golden.outputs, "score": golden.outputs["score"] + 1.0})
    model_onnx = touchy_graph().SerializeToString()
    write_bundle(path, manifest=small_manifest(), model_onnx=model_onnx, golden=off, card="")
    with pytest.raises(BundleError, match=r"small.edgeasd: golden test .*: score is off by") as caught:
        side_test(read_bundle(path), engine="auto")
    assert "\n" not in str(caught.value)


def test_what_the_trial_builds_and_measures_is_kept_for_the_node(tmp_path: Path) -> None:
    bundle = read_bundle(write_full_bundle(tmp_path / "small.edgeasd"))
    side_test(bundle, engine="onnx", precision="auto", cache_dir=tmp_path / "engines")
    chosen = choose_engine(bundle, "onnx", precision="auto", cache_dir=tmp_path / "engines")
    assert chosen.why.endswith("at an earlier start")


class Scene:
    """A node in all its parts but the microphone, with a store, driven by hand."""

    def __init__(self, folder: Path) -> None:
        self.signer = Signer(folder / "signer")
        self.settings = Settings(
            bundle=self.signer.make(), trusted_keys_dir=self.signer.trusted, state_dir=folder / "state"
        )
        self.store = ModelStore(folder / "state")
        self.said = io.StringIO()
        self.now_s = 0.0

    @contextmanager
    def running(self) -> Iterator[tuple[Node, Swapping]]:
        with beginning(self.settings, self.store) as start, ExitStack() as stack:
            assert start.choice is not None
            bench = stack.enter_context(seat_judges(plan_judges(replace(OPTIONS, bundle=start.choice.bundle))))
            publisher = JsonLinesPublisher(self.said, scores="window")
            reporter = Reporter(bench, publisher, Wire("n1"), sources=["mic0"])
            line = Line([], bench.pipeline, doorbell=threading.Condition())
            swapping = Swapping(self.store, start)
            yield Node(self.settings, bench, line, reporter, Notifier(None)), swapping

    def reload(self, node: Node, swapping: Swapping, path: Path) -> None:
        """Ask for a bundle and wait until it is prepared, or refused."""
        swapping.reload(node, self.settings.model_copy(update={"bundle": path}))
        swapping.attend(node, self.now_s)
        for thread in threading.enumerate():
            if thread.name == "model":
                thread.join()
        swapping.attend(node, self.now_s)

    def info(self, node: Node) -> dict[str, Any]:
        node.reporter.info(node.settings)
        lines = [json.loads(line) for line in self.said.getvalue().splitlines()]
        found: dict[str, Any] = [line["payload"] for line in lines if line["topic"].endswith("/info")][-1]
        return found


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr("edgeasd.models.swapping.side_test", lambda *args, **kwargs: None)  # tried above
    return Scene(tmp_path)


def test_a_swap_is_told_and_after_an_hour_believed(scene: Scene, windows: list[Window]) -> None:
    with scene.running() as (node, swapping):
        before = node.bench
        scene.reload(node, swapping, second := scene.signer.make())
        assert node.bench is before
        node.bench.pipeline.process(windows)
        swapping.attend(node, 1.0)
        info = scene.info(node)
        assert (info["bundle_sha256"], info["model"]["version"], info["warnings"]) == (digest(second), 2, [])
        assert info["model"]["on_trial"]
        assert info["model"]["shadow"]["windows"] >= SHADOW_WINDOWS
        assert node.bench.model is not None
        assert node.bench.chosen is not None
        assert node.bench.chosen.engine is node.bench.model.engine
        assert info["engine"]["name"] == "onnx"
        assert scene.store.recall().highest == {"small": 1}
        swapping.attend(node, 3602.0)
        assert not scene.info(node)["model"]["on_trial"]
        assert scene.store.recall().highest == {"small": 2}
        assert len(node.bench.pipeline.process(windows)) == len(windows)
        assert before.model is not None
        with pytest.raises(SelfTestError):  # its engine is closed
            before.model.engine.score(small_golden().inputs)


def test_a_model_that_fails_in_its_first_hour_is_taken_back_for_good(scene: Scene, windows: list[Window]) -> None:
    first = digest(scene.signer.folder / "v1.edgeasd")
    with scene.running() as (node, swapping):
        touchy = scene.signer.make(touchy=True)
        scene.reload(node, swapping, touchy)
        node.bench.pipeline.process([*windows[:LOUD_FROM], *windows[70:]])
        swapping.attend(node, 1.0)
        assert scene.info(node)["bundle_sha256"] == digest(touchy)
        node.bench.pipeline.process(windows[LOUD_FROM:70])
        swapping.attend(node, 2.0)
        info = scene.info(node)
        assert (info["bundle_sha256"], info["model"]["version"]) == (first, 1)
        assert any("not finite; the one before judges again" in line for line in info["warnings"])
        scene.reload(node, swapping, touchy)
        assert scene.info(node)["bundle_sha256"] == first


def test_what_cannot_be_swapped_in_is_told_and_changes_nothing(scene: Scene, windows: list[Window]) -> None:
    with scene.running() as (node, swapping):
        before = node.bench
        signature_path(unsigned := scene.signer.make()).unlink()
        scene.reload(node, swapping, unsigned)
        assert any("is not signed" in line for line in scene.info(node)["warnings"])
        noisy = scene.signer.make(touchy=True)
        scene.reload(node, swapping, noisy)
        node.bench.pipeline.process(windows)  # it is loud, and nobody waits for the sixtieth window
        swapping.attend(node, 1.0)
        assert any("in the shadow: " in line for line in scene.info(node)["warnings"])
        scene.reload(node, swapping, scene.signer.make(hop_frames=128))
        assert any("from the next start" in line for line in scene.info(node)["warnings"])
        assert node.bench is before
