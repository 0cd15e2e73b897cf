"""The SLURM scripts with local tasks: one training of two ranks, cut off by SIGUSR1, queued again, and finished."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from edgeasd.bundle import read_bundle
from edgeasd.errors import TemporaryError
from edgeasd_train.preemption import queued_again, requeue
from edgeasd_train.ranks import Ranks
from tests.conftest import ROOT, MakeSoundscape
from tests.small_bundle import write_small_bundle

SCRIPTS = ROOT / "deploy" / "slurm"
RATE_HZ = 16000
QUICK = "--set data.window_s=0.5 --set features.n_mels=16 --set fit.min_steps=1 --set fit.accelerator=cpu"
SRUN = """#!/bin/bash
# As many local tasks as the job has, with the environment that SLURM gives each.
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    pids+=($!)
done
echo "${pids[@]}" > "$STUB_DIR/pids"
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
"""
SCONTROL = '#!/bin/bash\necho "$@" >> "$STUB_DIR/asked"\n'


class Cluster:
    """A folder that stands for a cluster: recordings, a cache, and srun and scontrol of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = port
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def sbatch(self, script: str, **environment: str) -> subprocess.Popen[str]:
        """Start a script as a batch job runs."""
        n_tasks = environment.pop("n_tasks", "1")
        slurm = {
            "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "edgeasd-train", "SLURM_NNODES": "1", "SLURM_NTASKS": n_tasks,
            "SLURM_NTASKS_PER_NODE": n_tasks, "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port), "STUB_DIR": str(self.folder),
            "PATH": f"{self.folder}:{os.environ['PATH']}", "EDGEASD": str(Path(sys.executable).with_name("edgeasd")),
            "RECORDINGS": str(self.folder / "sound"), "CACHE_DIR": str(self.folder / "cache"),
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script)], cwd=self.folder, env={**os.environ, **slurm, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def digest(self, bundle: str) -> str:
        """Return the digest of a bundle's model."""
        return read_bundle(self.folder / bundle).manifest.sha256["model.onnx"]


@pytest.fixture
def cluster(tmp_path: Path, free_port: int, make_soundscape: MakeSoundscape) -> Cluster:
    (tmp_path / "sound").mkdir()
    soundfile.write(tmp_path / "sound" / "hall.wav", make_soundscape(20.0, seed=2).samples, RATE_HZ)
    return Cluster(tmp_path, free_port)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_sbatch_sees_every_directive_and_bash_every_line(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)
    lines = (SCRIPTS / script).read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:]), "sbatch stops reading there"
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert directives & {"--signal=USR1@120", "--signal=B:USR1@120"}
    assert "--requeue" in directives


@pytest.mark.timeout(300)
def test_two_tasks_make_one_training_that_survives_preemption(cluster: Cluster) -> None:
    epochs = f"{QUICK} --set fit.epochs=40"
    whole = cluster.sbatch("train.sbatch", n_tasks="2", BUNDLE="whole.edgeasd", EXTRA_ARGS=epochs)
    said, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, said
    assert said.count("bundle           whole.edgeasd") == 1
    assert re.search(r"time .* 2 ranks", said)
    assert "nothing to resume" in said

    cut = cluster.sbatch("train.sbatch", n_tasks="2", BUNDLE="cut.edgeasd", EXTRA_ARGS=epochs)
    assert cut.stdout is not None
    before = next(line for line in cut.stdout if line.startswith("epoch 2 of"))
    for pid in (cluster.folder / "pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    said, _ = cut.communicate(timeout=200)
    assert cut.returncode == 75, before + said
    assert (cluster.folder / "asked").read_text() == "requeue 4711\n"
    assert "SIGUSR1" in said
    assert not (cluster.folder / "cut.edgeasd").exists()

    again = cluster.sbatch("train.sbatch", n_tasks="2", BUNDLE="cut.edgeasd", EXTRA_ARGS=epochs)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert "epoch 1 of" not in said
    assert cluster.digest("cut.edgeasd") == cluster.digest("whole.edgeasd")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_warning_before_the_first_step_queues_the_job_again(
    rank: int, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{cluster.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB_DIR", str(cluster.folder))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(TemporaryError, match="SIGUSR1"), queued_again(Ranks(rank, 2, rank, launcher="slurm")):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert (cluster.folder / "asked").exists() == (rank == 0)
    monkeypatch.setenv("PATH", str(cluster.folder / "sound"))
    with pytest.raises(TemporaryError, match="submit the job again"):
        requeue()


def test_an_array_task_takes_its_number_as_seed(cluster: Cluster) -> None:
    arguments = "--set data.held_out_hop_s=0.25"
    job = cluster.sbatch("train-array.sbatch", SLURM_ARRAY_TASK_ID="2", RECIPE="mahalanobis", EXTRA_ARGS=arguments)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert read_bundle(cluster.folder / "seeds" / "seed-2.edgeasd").manifest.provenance.seed == 2


def test_the_tasks_of_an_array_replay_an_archive_together(cluster: Cluster) -> None:
    sound = (cluster.folder / "sound" / "hall.wav").read_bytes()
    for index in range(39):
        (cluster.folder / "sound" / f"{index}.wav").write_bytes(sound)
    bundle = write_small_bundle(cluster.folder / "small.edgeasd")

    def task(index: int) -> subprocess.Popen[str]:
        array = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_TASK_COUNT": "2", "TABLES": "tables"}
        return cluster.sbatch("replay-array.sbatch", BUNDLE=str(bundle), EXTRA_ARGS="--hop 0.064 --jobs 1", **array)

    cut = task(1)
    parts = cluster.folder / "tables" / "scores.csv.parts"
    while not list(parts.glob("*.json")):
        assert cut.poll() is None
        time.sleep(0.002)
    cut.send_signal(signal.SIGUSR1)
    said, _ = cut.communicate(timeout=60)
    assert "recordings are done and kept: go on with --resume" in said
    assert (cluster.folder / "asked").read_text() == "requeue 4711\n"
    n_done = len(list(parts.glob("*.json")))
    assert 0 < n_done < 20
    for index, end in ((1, "the tables wait for 20 recordings of other shards"), (2, "0 events")):
        assert not (cluster.folder / "tables" / "scores.csv").exists()
        said, _ = task(index).communicate(timeout=60)
        assert said.rstrip().endswith(end), said
        assert (f"({n_done} of them before)" in said) == (index == 1)
    tables = sorted(path.name for path in (cluster.folder / "tables").iterdir())
    assert tables == ["events.csv", "scores.csv"]
