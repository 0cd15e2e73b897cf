"""How an archive is divided: shares, processes, and what every process needs."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import soundfile

from edgeasd.archive import ArchiveOptions, replay_archive
from edgeasd.archive.takes import Shard, Take, share_of, worthwhile_processes
from edgeasd.assembly import JudgeOptions
from edgeasd.replay import ReplayJob, TablePaths
from edgeasd.workers import usable_cores
from tests.conftest import MakeSoundscape
from tests.small_bundle import write_small_bundle

pytestmark = pytest.mark.usefixtures("bare_environment")


def test_shards_hold_each_recording_once_and_are_of_a_length() -> None:
    takes = [Take(Path(f"{i}.wav"), f"{i}.wav", float(7 * i % 31 * 60), str(i)) for i in range(100)]
    for n_shards in (1, 2, 3, 7, 100, 150):
        shares = [share_of(Shard(index, n_shards), takes) for index in range(1, n_shards + 1)]
        assert sorted(take.key for share in shares for take in share) == sorted(take.key for take in takes)
        loads_s = [sum(take.duration_s for take in share) for share in shares]
        assert max(loads_s) - min(loads_s) <= max(take.duration_s for take in takes)
        assert all(share == [take for take in takes if take in share] for share in shares)


def test_processes_are_started_where_they_are_worth_it() -> None:
    def takes(*lengths_s: float) -> list[Take]:
        return [Take(Path(str(i)), str(i), length_s, str(i)) for i, length_s in enumerate(lengths_s)]

    assert worthwhile_processes(takes(60.0, 60.0), cores=8) == 1
    assert worthwhile_processes(takes(*[3600.0] * 3), cores=8) == 3
    assert worthwhile_processes(takes(*[3600.0] * 30), cores=8) == 8
    assert worthwhile_processes(takes(86_400.0), cores=8) == 1
    assert worthwhile_processes([], cores=8) == 1


def test_cores_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    monkeypatch.setattr("edgeasd.workers._own_cgroup", lambda: tmp_path)
    assert usable_cores() == len(allowed)
    for limit, cores in (("max 100000", len(allowed)), ("50000 100000", 1), ("150000 100000", min(2, len(allowed)))):
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
        assert usable_cores() == cores
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_bundle_is_the_same_in_every_process(tmp_path: Path, make_soundscape: MakeSoundscape) -> None:
    bundle = write_small_bundle(tmp_path / "small.edgeasd")
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", make_soundscape(8.0, rate_hz=8000).samples, 8000)
    job = ReplayJob((tmp_path,), JudgeOptions(bundle=bundle, hop_s=0.032))
    found = []
    for jobs in (1, 2):
        table = tmp_path / f"{jobs}.csv"
        replay_archive(job, TablePaths(scores=table), ArchiveOptions(jobs=jobs))
        found.append(table.read_text())
    assert found[0] == found[1]
    rows = list(csv.DictReader(found[0].splitlines()))
    assert len(rows) == 3 * ((8 * 8000 - 512) // 256 + 1)
    assert all(row["model"] for row in rows)
