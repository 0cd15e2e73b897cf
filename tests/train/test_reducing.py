"""A graph in fewer bits ships when held-out normal sound says the same of it, and with a calibration of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgeasd.engine import golden_deviations
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.records import FloatArray
from edgeasd.scoring.calibration import Calibration, fit_calibration
from edgeasd_train.calibrate import score_windows
from edgeasd_train.card import graph_table
from edgeasd_train.checkpoints import identity
from edgeasd_train.detectors.contract import Detector
from edgeasd_train.export import export_onnx
from edgeasd_train.fit import FitData
from edgeasd_train.judging.clips import ClipOptions, find_clips, hear_machine
from edgeasd_train.precisions import Reduced
from edgeasd_train.recipe import load_recipe
from edgeasd_train.reducing import LEAST_TOLERANCE, MARGINS, Judged, Original, Reduction, Refusal, reduce
from tests.small_bundle import SPEC, write_full_bundle
from tests.train.fit_rig import make_detector, make_sound, open_data, small_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FitData:
    folder = tmp_path_factory.mktemp("reducing")
    return open_data(make_sound(folder / "sound"), small_recipe(), cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def original(data: FitData) -> Original:
    """A detector that measured its bands and learned nothing: as hard to keep as any."""
    detector: Detector = make_detector(small_recipe("detector.options.variant=nearest"), tiny=False)
    import torch

    batch = {name: torch.from_numpy(values) for name, values in data.train.batch(np.arange(32)).items()}
    detector.prepare([batch])
    detector.network.eval()
    detector.settle([batch])
    model_onnx, golden = export_onnx(detector, {"log_mel": data.held_out.batch(np.arange(4))["log_mel"]})
    ranges = data.train.of_length(data.held_out.index.window_frames)
    return Original(model_onnx, golden, judge(data, model_onnx), ranges)


def judge(data: FitData, graph: bytes) -> Judged:
    engine = OnnxEngine(graph)
    try:
        return judged(score_windows(engine, data.held_out))
    finally:
        engine.close()


def judged(scores: FloatArray) -> Judged:
    return Judged(scores, fit_calibration(scores, window_s=1.0, hop_s=0.5))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_ships_has_its_own_calibration_and_a_tolerance_that_it_keeps(
    data: FitData, original: Original, precision: Reduced
) -> None:
    found = reduce(precision, original, partial(judge, data))
    assert isinstance(found, Reduction)
    own = judge(data, found.graph)
    assert found.terms.calibration == own.table != original.judged.table
    engine = OnnxEngine(found.graph)
    off = max(golden_deviations(engine, original.golden).values())
    engine.close()
    assert off <= found.deviation
    assert found.terms.golden_tolerance == max(LEAST_TOLERANCE, MARGINS[precision] * found.deviation) < 0.25
    assert found.rank_agreement > 0.98
    assert 1.0 < found.p_factor < 1.5
    table = graph_table(original.model_onnx, [found, Refusal("int8", "it is a test")])
    assert f"| {precision} | {len(found.graph) / 1e6:.2f} |" in table
    assert "\n- No int8: it is a test." in table


def test_what_judges_held_out_sound_otherwise_does_not_ship(original: Original) -> None:
    scores = original.judged.scores
    shuffled = np.random.default_rng(0).permutation(scores)
    crushed = np.where(scores > np.median(scores), 1.0 + 1e-6 * scores, scores).astype(np.float32)
    for changed, reason in ((shuffled, "ranks held-out sound otherwise"), (-scores, "ranks"), (0 * scores, "ranks")):
        found = reduce("fp16", original, lambda _, changed=changed: judged(changed))  # type: ignore[misc]
        assert isinstance(found, Refusal)
        assert reason in found.reason
    odd = Judged(scores, judged(crushed).table)
    found = reduce("fp16", original, lambda _: odd)
    assert isinstance(found, Refusal)
    assert "off by a factor" in found.reason


def test_what_is_far_off_its_golden_outputs_does_not_ship(original: Original) -> None:
    golden = original.golden
    moved = replace(golden, outputs={**golden.outputs, "score": golden.outputs["score"] + 9.0})
    found = reduce("int8", replace(original, golden=moved), lambda _: original.judged)
    assert isinstance(found, Refusal)
    assert found.reason.startswith("its golden outputs are off by")


def test_float16_that_loud_sound_would_overflow_does_not_ship(original: Original) -> None:
    loud = replace(original.golden, inputs={"log_mel": 1e5 * original.golden.inputs["log_mel"]})
    found = reduce("fp16", replace(original, golden=loud), lambda _: original.judged)
    assert isinstance(found, Refusal)
    assert "float16 ends at 65504" in found.reason


def test_a_run_may_be_gone_on_with_for_other_precisions() -> None:
    recipes = [load_recipe(overrides=[f"export.precisions={value}"]) for value in ("[]", "[int8]")]
    assert identity(recipes[0], "x") == identity(recipes[1], "x")


def test_clips_are_judged_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("normal_1", "anomaly_1"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * random.standard_normal(8000), SPEC.sample_rate_hz)
    path = write_full_bundle(tmp_path / "full.edgeasd")
    (clips,) = find_clips(sorted(tmp_path.glob("*.wav")))
    heard = {one: hear_machine(clips, path, ClipOptions(precision=one)) for one in ("fp32", "fp16", "int8")}
    scores = [heard[one].sections[0].score for one in heard]
    assert not np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])
    table = heard["int8"].bundle.calibration("int8")
    assert heard["int8"].threshold.value == Calibration(table).score_at(0.1)
