"""What is noted down of a training can be read back: CSV, TensorBoard, MLflow, recipe and environment."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from edgeasd.errors import CannotWriteError, UnavailableError, UsageError
from edgeasd_train.mlflow_log import MlflowLog, check_uri
from edgeasd_train.ranks import ALONE, Ranks
from edgeasd_train.recipe import load_recipe
from edgeasd_train.runlog import Run, flat, prepare_directory
from edgeasd_train.tensorboard_log import TensorBoardLog

QUIET = Console(quiet=True)


def make_run(directory: Path, *, resumes: bool = False, ranks: Ranks = ALONE) -> Run:
    directory.mkdir(exist_ok=True)
    run = Run(directory, ranks=ranks, resumes=resumes)
    run.tensorboard = TensorBoardLog(directory / "tensorboard")
    return run


def rows(run: Run) -> list[dict[str, str]]:
    with (run.directory / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(run: Run) -> EventAccumulator:
    return EventAccumulator(str(run.directory / "tensorboard")).Reload()


def test_figures_come_back_from_the_table_and_from_tensorboard(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a.run")
    run.log({"train_loss_step": 2.0}, step=10)
    run.log({"train_loss_step": 1.5, "learning_rate": 1e-3}, step=20)
    run.close(ok=True)
    assert [row["train_loss_step"] for row in rows(run)] == ["2", "1.5"]
    assert [row["learning_rate"] for row in rows(run)] == ["", "0.001"]
    assert [(event.step, event.value) for event in events(run).Scalars("train_loss_step")] == [(10, 2.0), (20, 1.5)]


def test_a_resumed_run_replaces_what_was_logged_beyond_its_checkpoint(tmp_path: Path) -> None:
    cut_off = make_run(tmp_path / "a.run")
    for step in (10, 20, 30):
        cut_off.log({"loss": float(step)}, step=step)
    cut_off.close(ok=False)
    resumed = make_run(tmp_path / "a.run", resumes=True)
    for step in (20, 30, 40):
        resumed.log({"loss": 100.0 + step}, step=step)
    resumed.close(ok=True)
    expected = [(10, 10.0), (20, 120.0), (30, 130.0), (40, 140.0)]
    assert [(int(row["step"]), float(row["loss"])) for row in rows(resumed)] == expected
    assert [(event.step, event.value) for event in events(resumed).Scalars("loss")] == expected


def test_a_picture_comes_back_as_it_was(tmp_path: Path) -> None:
    from PIL import Image

    run = make_run(tmp_path / "a.run")
    picture = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    run.log_image("typical/1", picture, step=3)
    run.close(ok=True)
    event = events(run).Images("typical/1")[0]
    assert event.step == 3
    assert np.array_equal(np.array(Image.open(io.BytesIO(event.encoded_image_string))), picture)


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a.run", ranks=Ranks(rank=1, size=2, local_rank=1))
    run.begin(load_recipe(), ["edgeasd"])
    run.log({"loss": 1.0}, step=0)
    run.log_image("typical/1", np.zeros((2, 2, 3), np.uint8), step=0)
    run.close(ok=True)
    assert list(run.directory.iterdir()) == []


def test_the_environment_says_on_and_with_what_and_keeps_credentials_to_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a.run")
    run.begin(load_recipe(), ["edgeasd", "train", "--mlflow", "https://me:secret@host/x"])
    text = (run.directory / "environment.json").read_text()
    facts = json.loads(text)
    assert "secret" not in text
    assert facts["command"][-1] == "https://host/x"
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["ranks"] == 1
    assert {"edgeasd", "python", "cpu", "cores", "gpu", "system"} <= set(facts)
    make_run(tmp_path / "a.run", resumes=True).begin(load_recipe(), ["edgeasd", "again"])
    facts = json.loads((run.directory / "environment.json").read_text())
    assert facts["command"][1] == "train"
    assert [later["command"] for later in facts["resumed"]] == [["edgeasd", "again"]]


def test_a_recipe_is_flat_for_people_and_for_trackers() -> None:
    values = flat(load_recipe(overrides=["data.spans={'a*.wav': {start_s: 1, end_s: 2}}", "data.max_files=3"]))
    assert values["data.max_files"] == "3"
    assert values["detector.name"] == "bird-ae"
    assert json.loads(values["data.spans"]) == {"a*.wav": {"start_s": 1.0, "end_s": 2.0}}
    assert all(":" not in key and "*" not in key for key in values)


def test_a_directory_is_emptied_only_if_a_run_of_ours_lies_in_it(tmp_path: Path) -> None:
    directory = tmp_path / "a.run"
    directory.mkdir()
    (directory / "thesis.txt").write_text("mine")
    assert not prepare_directory(directory, resume=False, console=QUIET)
    assert (directory / "thesis.txt").exists()
    make_run(directory).begin(load_recipe(), [])
    assert not prepare_directory(directory, resume=True, console=QUIET)  # no checkpoint in it
    assert not (directory / "thesis.txt").exists()
    make_run(directory).begin(load_recipe(), [])
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert prepare_directory(directory, resume=True, console=QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="cannot be written"):
        prepare_directory(tmp_path / "file" / "b.run", resume=False, console=QUIET)


def test_mlflow_keeps_figures_parameters_and_files_and_goes_on_with_a_resumed_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, note = f"file:{tmp_path / 'store'}", tmp_path / "mlflow.json"
    first = MlflowLog(uri, note=note, name="hall", resumes=False, console=QUIET)
    first.params(flat(load_recipe()))
    first.scalars({"loss": 2.0}, step=1)
    first.close(ok=False)
    again = MlflowLog(uri, note=note, name="hall", resumes=True, console=QUIET)
    again.scalars({"loss": 1.0}, step=2)
    again.artifacts([note])
    again.text("card.md", "# hall")
    again.close(ok=True)
    client = MlflowClient(tracking_uri=uri)
    run_id = json.loads(note.read_text())["run_id"]
    run = client.get_run(run_id)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "hall"
    assert run.data.params["fit.epochs"] == str(load_recipe().fit.epochs)
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {"mlflow.json", "card.md"}


def test_a_store_that_fails_later_costs_its_figures_not_the_training(tmp_path: Path) -> None:
    import shutil

    said = io.StringIO()
    note = tmp_path / "mlflow.json"
    console = Console(file=said, width=300)
    log = MlflowLog(f"file:{tmp_path / 'store'}", note=note, name="hall", resumes=False, console=console)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("")
    for step in range(3):
        log.scalars({"loss": 1.0}, step=step)
    log.close(ok=True)
    assert said.getvalue().count("MLflow is left out") == 1


def test_mlflow_that_cannot_be_had_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="--mlflow bogus:x: ") as caught:
        MlflowLog("bogus:x", note=tmp_path / "n", name="hall", resumes=False, console=QUIET)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_PASSWORD"):
        check_uri("https://me:secret@host/")
    check_uri("https://host:5000/")
    code = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from edgeasd.cli import main\n"
        "sys.exit(main(['train', sys.argv[1], '-o', sys.argv[1] + '/m.edgeasd', '--mlflow', 'file:x']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 69
    assert done.stderr == "edgeasd: --mlflow needs mlflow, which is not installed: pip install 'edgeasd[mlflow]'\n"
