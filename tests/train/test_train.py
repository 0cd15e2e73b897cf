"""From recordings to a bundle that a node opens: real training on generated sound."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from scipy.stats import rankdata
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.cli import main
from edgeasd.engine import Engine, open_engine
from edgeasd.errors import CannotWriteError, InputError, SelfTestError
from edgeasd.features.mel import MelFrontEnd
from edgeasd.records import FloatArray
from edgeasd.scoring.calibration import Calibration
from edgeasd_train import measuring
from edgeasd_train.detectors.measured import Batch, MeasuredDetector
from edgeasd_train.recipe import load_recipe
from edgeasd_train.train import TrainingReport, train
from tests.conftest import MakeSoundscape, Soundscape

RATE_HZ = 16000
NORMAL_S = 60.0
EVENTS = ((64.0, 65.5), (71.0, 71.8), (80.0, 83.0), (90.0, 90.6))
QUICK = ["fit.epochs=1", "fit.min_steps=12", "fit.batch_size=16", "export.precisions=[]"]


@dataclass(frozen=True)
class Trained:
    report: TrainingReport
    bundle: Bundle
    recording: Path
    cache_dir: Path
    scape: Soundscape


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, make_soundscape: MakeSoundscape) -> Path:
    """A hundred seconds of machine hall, normal for the first sixty."""
    path = tmp_path_factory.mktemp("sound") / "hall.wav"
    soundfile.write(path, make_soundscape(100.0, seed=11, events=EVENTS).samples, RATE_HZ)
    return path


@pytest.fixture(scope="module")
def trained(recording: Path, tmp_path_factory: pytest.TempPathFactory, make_soundscape: MakeSoundscape) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    recipe = load_recipe(overrides=[f"data.end_s={NORMAL_S}", "fit.epochs=8", "fit.min_steps=120"])
    report = train([recording], output=folder / "hall.edgeasd", recipe=recipe, cache_dir=folder / "cache")
    scape = make_soundscape(100.0, seed=11, events=EVENTS)
    return Trained(report, read_bundle(report.output), recording, folder / "cache", scape)


@pytest.fixture(scope="module")
def engine(trained: Trained) -> Engine:
    return open_engine(trained.bundle, "onnx")


def listen(bundle: Bundle, samples: FloatArray) -> FloatArray:
    """Return the graph input of every window of one second, half a second apart."""
    assert bundle.manifest.inputs.log_mel is not None
    front_end = MelFrontEnd(bundle.manifest.inputs.log_mel)
    firsts = range(0, len(samples) - RATE_HZ + 1, RATE_HZ // 2)
    return np.stack([front_end.window_log_mel(samples[first : first + RATE_HZ]) for first in firsts])


def test_planted_events_stand_out_and_normal_sound_keeps_its_probabilities(trained: Trained, engine: Engine) -> None:
    scores = engine.score({"log_mel": listen(trained.bundle, trained.scape.samples)}).score
    starts_s = np.arange(len(scores)) * 0.5
    overlap_s = [sum(max(0.0, min(e, t + 1) - max(s, t)) for s, e in EVENTS) for t in starts_s]
    unseen = starts_s >= NORMAL_S
    odd, plain = unseen & (np.array(overlap_s) >= 0.3), unseen & (np.array(overlap_s) == 0.0)
    ranks = rankdata(scores[odd | plain])
    n_odd, n_plain = np.count_nonzero(odd), np.count_nonzero(plain)
    auc = (ranks[odd[odd | plain]].sum() - n_odd * (n_odd + 1) / 2) / (n_odd * n_plain)
    assert auc > 0.98
    calibration = Calibration(trained.bundle.manifest.calibration)
    p_values = np.array([calibration.p_value(float(score)) for score in scores])
    assert np.mean(p_values[plain] < 0.01) < 0.1
    assert np.median(p_values[odd]) < 1e-3


def test_the_explanation_points_at_the_rows_that_changed(trained: Trained, engine: Engine) -> None:
    quiet = trained.scape.samples[: 2 * RATE_HZ].copy()
    time_s = np.arange(RATE_HZ) / RATE_HZ
    quiet[RATE_HZ // 2 : RATE_HZ * 3 // 2] += (0.1 * np.sin(2 * np.pi * 5000.0 * time_s)).astype(np.float32)
    residual = engine.score({"log_mel": listen(trained.bundle, quiet)}).residual
    assert residual is not None
    assert residual.sum(axis=1) == pytest.approx(1.0, abs=1e-4)
    spec = trained.bundle.manifest.inputs.log_mel
    assert spec is not None
    low_hz, high_hz = spec.band_edges_hz()[int(residual[1].argmax())]
    assert low_hz - 300 <= 5000.0 <= high_hz + 300


def test_the_bundle_says_how_to_make_it_again(trained: Trained) -> None:
    manifest, report = trained.bundle.manifest, trained.report
    made = manifest.provenance
    assert manifest == report.manifest
    assert made.seconds_heard == pytest.approx(NORMAL_S, abs=0.1)
    assert made.recipe["fit"]["min_steps"] == 120  # type: ignore[index,call-overload]
    assert made.metrics["steps"] == report.fitted.n_steps >= 120
    assert report.n_train_windows == len(range(0, round(0.8 * 60 * RATE_HZ) - RATE_HZ + 1, RATE_HZ // 10))
    assert report.n_held_out_windows == manifest.calibration.n_scores == 23
    assert manifest.calibration.hop_s == 0.5
    assert manifest.version > 20260101000000
    for fact in ("# hall", "hall.wav", "held out", "Limits", "Only what is louder"):
        assert fact in trained.bundle.card
    assert load_recipe(str(report.run_dir / "recipe.yaml")).model_dump(mode="json") == made.recipe


def test_the_run_leaves_checkpoints_that_load_without_pickle_and_the_course_of_the_losses(trained: Trained) -> None:
    run_dir = trained.report.run_dir
    state = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == trained.report.fitted.n_steps
    metrics = (run_dir / "metrics.csv").read_text().splitlines()
    assert {"held_out_loss", "train_loss"} <= set(metrics[0].split(","))
    assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["name"] == "bird-ae"


def test_the_same_seed_gives_the_same_model_and_another_seed_another(trained: Trained, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        recipe = load_recipe(overrides=["data.end_s=40", f"seed={seed}", *QUICK])
        output = tmp_path / f"{name}.edgeasd"
        train([trained.recording], output=output, recipe=recipe, cache_dir=trained.cache_dir)
        manifest = read_bundle(output).manifest
        digests.append((manifest.sha256["model.onnx"], manifest.calibration))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]


def test_the_held_out_share_is_learned_from_where_the_recipe_says_so(trained: Trained, tmp_path: Path) -> None:
    n_windows = []
    for learned in ("false", "true"):
        recipe = load_recipe(overrides=["data.end_s=40", f"data.held_out_learned={learned}", *QUICK])
        output = tmp_path / f"{learned}.edgeasd"
        report = train([trained.recording], output=output, recipe=recipe, cache_dir=trained.cache_dir)
        n_windows.append((report.n_train_windows, report.n_held_out_windows))
        assert ("learned from as well" in read_bundle(output).card) is (learned == "true")
    (apart, held_out), (together, still_held_out) = n_windows
    held_out_frames = round(0.2 * 40 * RATE_HZ)
    assert together == apart + len(range(0, held_out_frames - RATE_HZ + 1, RATE_HZ // 10))
    assert still_held_out == held_out


def test_several_short_recordings_train_and_a_bad_one_is_listed(
    tmp_path: Path, make_soundscape: MakeSoundscape
) -> None:
    samples = make_soundscape(48.0, seed=5).samples
    for i in range(12):
        soundfile.write(tmp_path / f"{i:02}.flac", samples[i * 4 * RATE_HZ : (i + 1) * 4 * RATE_HZ], RATE_HZ)
    (tmp_path / "bad.wav").write_bytes(b"RIFFnothing")
    recipe = load_recipe(overrides=["detector.options.variant=nearest", "detector.options.side=both", *QUICK])
    report = train([tmp_path], output=tmp_path / "m.edgeasd", recipe=recipe, cache_dir=tmp_path / "cache")
    assert len(report.corpus.held_out) == 2
    assert len(report.corpus.train) == 10
    assert "bad.wav" in (report.run_dir / "bad-files.csv").read_text()
    assert "Only what is louder" not in read_bundle(report.output).card


def test_patience_stops_early_and_keeps_the_best(trained: Trained, tmp_path: Path) -> None:
    overrides = ["data.end_s=40", "fit.epochs=40", "fit.min_steps=1", "fit.patience_epochs=1", "fit.learning_rate=0.3",
                 "fit.batch_size=128"]  # fmt: skip
    recipe = load_recipe(overrides=overrides)
    report = train([trained.recording], output=tmp_path / "m.edgeasd", recipe=recipe, cache_dir=trained.cache_dir)
    assert report.fitted.n_epochs < 40
    best = next((report.run_dir / "checkpoints").glob("best-*.ckpt"))
    weights = torch.load(best, weights_only=True)["state_dict"]["network.to_bottleneck.bias"].numpy()
    assert weights.tobytes() in read_bundle(report.output).model_onnx


def test_a_training_that_runs_away_is_an_error_and_writes_no_bundle(trained: Trained, tmp_path: Path) -> None:
    recipe = load_recipe(overrides=["data.end_s=40", "fit.learning_rate=1e30", *QUICK])
    with pytest.raises(SelfTestError, match="not finite"):
        train([trained.recording], output=tmp_path / "m.edgeasd", recipe=recipe, cache_dir=trained.cache_dir)
    assert not (tmp_path / "m.edgeasd").exists()


def test_sound_for_less_than_a_batch_makes_smaller_batches(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    soundfile.write(tmp_path / "short.wav", make_soundscape(12.0).samples, RATE_HZ)
    recipe = load_recipe(overrides=["fit.epochs=1", "fit.min_steps=1", "fit.batch_size=256", "data.held_out=0.5"])
    report = train([tmp_path], output=tmp_path / "m.edgeasd", recipe=recipe, cache_dir=tmp_path / "cache")
    assert report.n_train_windows < 256
    assert report.fitted.n_steps == 1


def test_too_little_sound_and_unwritable_places_are_told_before_training(trained: Trained, tmp_path: Path) -> None:
    recipe = load_recipe(overrides=["data.end_s=4"])
    with pytest.raises(InputError, match="windows to train on and"):
        train([trained.recording], output=tmp_path / "m.edgeasd", recipe=recipe, cache_dir=trained.cache_dir)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError):
        train([trained.recording], output=tmp_path / "file" / "m.edgeasd", recipe=recipe, cache_dir=trained.cache_dir)


def test_curves_and_pictures_of_held_out_sound_are_there_to_watch(trained: Trained) -> None:
    events = EventAccumulator(str(trained.report.run_dir / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"train_loss", "held_out_loss", "learning_rate"} <= set(tags["scalars"])
    assert {"strangest/1", "strangest/2", "typical/1", "typical/2"} == set(tags["images"])
    steps = [event.step for event in events.Scalars("held_out_loss")]
    assert steps == sorted(set(steps))
    assert len(steps) == trained.report.fitted.n_epochs


MEASURE = """
import sys
from pathlib import Path
from edgeasd_train.recipe import load_recipe
from edgeasd_train.train import train
recording, output, cache = map(Path, sys.argv[1:])
recipe = load_recipe("mahalanobis", overrides=["data.end_s=60"])
report = train([recording], output=output, recipe=recipe, cache_dir=cache)
assert report.fitted.n_steps == 0
print(*sorted({"torch", "lightning", "torchaudio", "tensorboard"} & set(sys.modules)))
"""


def test_a_measured_detector_trains_without_torch_and_opens_as_any_other(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "m.edgeasd"
    command = [sys.executable, "-c", MEASURE, str(trained.recording), str(output), str(trained.cache_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    bundle = read_bundle(output)
    scores = open_engine(bundle, "onnx").score({"log_mel": listen(bundle, trained.scape.samples)}).score
    assert np.median(scores[128:131]) > 3 * np.median(scores[:100])  # within the first event
    assert "measured in one pass" in bundle.card
    assert (output.with_suffix(".run") / "metrics.csv").exists()


class _Overstated:
    """A measured detector whose own opinion is not what its graph says."""

    def __init__(self, detector: MeasuredDetector) -> None:
        self.outputs, self.limits, self.model_onnx = detector.outputs, detector.limits, detector.model_onnx
        self.measure, self.serve, self._deviation = detector.measure, detector.serve, detector.deviation

    def deviation(self, batch: Batch) -> FloatArray:
        return 1.01 * self._deviation(batch)


def test_a_graph_that_does_not_say_what_was_measured_is_not_shipped() -> None:
    detector, spec = measuring.build(load_recipe("mahalanobis"))
    batch = {
        "log_mel": np.random.default_rng(0).normal(size=(16, spec.n_rows, spec.n_frames(RATE_HZ))).astype(np.float32)
    }
    detector.measure([batch])
    model_onnx, golden = measuring.export(detector, batch)
    assert set(golden.outputs) == set(detector.outputs)
    assert model_onnx == detector.model_onnx()
    with pytest.raises(SelfTestError, match="off by"):
        measuring.export(_Overstated(detector), batch)


def test_debug_runs_everything_in_seconds_and_says_so(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    from mlflow.tracking import MlflowClient

    samples = make_soundscape(100.0, seed=5, events=[(i + 0.2, i + 0.5) for i in range(0, 100, 9)]).samples
    for i in range(25):
        soundfile.write(tmp_path / f"{i:02}.wav", samples[i * 4 * RATE_HZ : (i + 1) * 4 * RATE_HZ], RATE_HZ)
    recipe = load_recipe(overrides=["prune.by=fraction", "prune.fraction=0.05", "fit.epochs=500"])
    uri = f"file:{tmp_path / 'store'}"
    report = train(
        [tmp_path], output=tmp_path / "m.edgeasd", recipe=recipe, cache_dir=tmp_path / "c", debug=True, mlflow_uri=uri
    )
    assert len(report.corpus.sounds) == 20
    assert report.fitted.n_epochs == 2
    table = (report.run_dir / "pruned.csv").read_text().splitlines()
    assert len(table) - 1 == report.fitted.n_pruned == int(0.05 * report.n_train_windows)
    bundle = read_bundle(report.output)
    assert bundle.manifest.name == "debug-m"
    assert "judges nothing" in bundle.card
    assert f"without {report.fitted.n_pruned} of {report.n_train_windows} windows" in bundle.card
    client = MlflowClient(tracking_uri=uri)
    run_id = json.loads((report.run_dir / "mlflow.json").read_text())["run_id"]
    logged = client.get_run(run_id)
    assert logged.data.params["fit.epochs"] == "2"
    assert logged.data.metrics["held_out_loss"] == pytest.approx(report.fitted.held_out_loss)
    assert logged.info.status == "FINISHED"
    kept = {artifact.path for artifact in client.list_artifacts(run_id)}
    assert kept == {"recipe.yaml", "environment.json", "card.md", "m.edgeasd"}


def test_resume_goes_on_with_its_own_run_only(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.edgeasd"

    def run(*arguments: str, recording: Path = trained.recording) -> tuple[int, str]:
        sets = [part for override in ["data.end_s=40", *QUICK] for part in ("--set", override)]
        base = ["train", str(recording), "-o", str(output), "--cache-dir", str(trained.cache_dir), *sets]
        return run_command([*base, "--resume", *arguments]), capfd.readouterr().err

    code, said = run()
    assert code == 0
    assert "nothing to resume" in said
    assert "epoch 1 of" in said
    digest = read_bundle(output).manifest.sha256["model.onnx"]
    output.unlink()
    code, said = run()
    assert code == 0
    assert "going on with" in said
    assert "epoch 1 of" not in said
    assert read_bundle(output).manifest.sha256["model.onnx"] == digest
    code, said = run("--set", "fit.learning_rate=0.01")
    assert code == 78
    assert "fit.learning_rate is 0.001, not 0.01" in said
    other = tmp_path / "other.wav"
    soundfile.write(other, 0.5 * trained.scape.samples, RATE_HZ)
    code, said = run(recording=other)
    assert code == 78
    assert "corpus" in said
    assert load_recipe(str(output.with_suffix(".run") / "recipe.yaml")).fit.learning_rate == 0.001


@pytest.mark.timeout(300)  # four processes that import torch
def test_ranks_make_one_bundle_and_leave_with_one_exit_code(trained: Trained, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "-m", "edgeasd.cli", "train"]
    command += [str(trained.recording), "--cache-dir", str(trained.cache_dir), "--recipe", "mahalanobis"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )

    done = run("-o", "m.edgeasd")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("bundle           m.edgeasd") == 1
    assert ", 2 ranks" in done.stderr
    assert json.loads((tmp_path / "m.run" / "environment.json").read_text())["ranks"] == 2
    read_bundle(tmp_path / "m.edgeasd")
    (tmp_path / "file").write_text("")
    done = run("-o", "file/m.edgeasd")
    assert done.returncode != 0
    assert done.stderr.count("edgeasd: file/m.run: cannot be written") == 1
    codes = re.findall(r"exitcode  : (-?\d+)", done.stderr)
    assert "73" in codes
    assert set(codes) <= {"73", "-15"}  # the launcher may end the second rank before it leaves by itself


def run_command(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as exc:
        return int(exc.code or 0)


def test_the_command_trains_and_keeps_the_terminal_clean(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = [
        part for override in ["data.end_s=40", *QUICK, "export.precisions=[fp16, int8]"] for part in ("--set", override)
    ]
    output = tmp_path / "my model.edgeasd"
    arguments = ["train", str(trained.recording), "-o", str(output), "--seed", "5", *sets]
    assert run_command([*arguments, "--cache-dir", str(trained.cache_dir)]) == 0
    said = capfd.readouterr()
    assert said.out == ""
    for fact in (
        "bundle",
        "heard",
        "windows",
        "held-out scores",
        "fp32, fp16, int8",
        "32.0 s, and 8.0 s held out",
        "epoch 1 of 1",
        str(output),
    ):
        assert fact in said.err
    for noise in ("Warning", "warning", "GPU available", "torch.onnx", "litlogger", "💡"):
        assert noise not in said.err
    manifest = read_bundle(output).manifest
    assert manifest.name == "my-model"
    assert manifest.provenance.seed == 5


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["/nowhere/at/all", "-o", "m.edgeasd"], 66, "no such file or directory"),
        (["-o", "m.edgeasd"], 66, "no recordings"),
        ([".", "-o", "m.onnx"], 2, "ends in .edgeasd"),
        ([".", "-o", "m.edgeasd", "--set", "fit.bogus=1"], 78, "fit.bogus"),
        ([".", "-o", "m.edgeasd", "--recipe", "nonesuch"], 78, "nonesuch"),
    ],
)
def test_a_command_that_cannot_work_says_why_in_one_line(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_command(["train", *arguments]) == code
    said = capfd.readouterr()
    assert says in said.err
    assert len(said.err.strip().splitlines()) == 1
