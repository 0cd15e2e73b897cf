"""What a node builds is built once, by one process, and kept only if it holds."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeasd.engine import plans
from edgeasd.engine.plans import PlanCache, PlanKey, cpu_facts, open_proven
from edgeasd.errors import BundleError

KEY = PlanKey("tensorrt-plan", "ab" * 32, "fp16", "tensorrt 10.3.0", "Orin", "8.7")


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "engine")


class _Prover:
    """Turns some plans down, as a golden test does."""

    def __init__(self, *refused: bytes) -> None:
        self.refused = refused
        self.seen: list[bytes] = []

    def __call__(self, plan: bytes) -> None:
        self.seen.append(plan)
        if plan in self.refused:
            raise BundleError("golden test: score is off by 0.1")


_BUILDER = """
import sys, time
from pathlib import Path
from edgeasd.engine.plans import PlanCache, PlanKey, open_proven

KEY = PlanKey("tensorrt-plan", "ab" * 32, "fp16", "tensorrt 10.3.0", "Orin", "8.7")

def build():
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(0.3)
    return b"plan"

def prove(plan):
    assert plan == b"plan"

open_proven(PlanCache(Path(sys.argv[1])), KEY, build=build, prove=prove)
"""


def test_of_two_processes_one_builds_and_the_other_waits_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _BUILDER, str(tmp_path / "engine"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_builder_that_hangs_is_not_waited_for_forever(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "LOCK_WAIT_S", 0.2)
    with _held(cache.folder / "lock"):
        assert open_proven(cache, KEY, build=lambda: b"plan", prove=_Prover()) is False


def test_workers_that_a_build_has_forked_do_not_keep_the_lock(cache: PlanCache) -> None:
    lock = cache.folder / "lock"
    with cache.building():
        [held] = [int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and fd.readlink() == lock]
        inherited = os.dup(held)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(inherited)


def test_the_lock_is_free_again_after_a_build_that_fails(cache: PlanCache) -> None:
    def fail() -> bytes:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        open_proven(cache, KEY, build=fail, prove=_Prover())
    with (cache.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_new_plan_that_misses_the_golden_test_is_refused_and_not_kept(cache: PlanCache) -> None:
    prover = _Prover(b"bad")
    for _ in range(2):
        with pytest.raises(BundleError, match="off by"):
            open_proven(cache, KEY, build=lambda: b"bad", prove=prover)
    assert prover.seen == [b"bad", b"bad"]  # built twice, each tried once
    assert cache.entries() == []


def test_a_kept_plan_that_misses_the_golden_test_is_built_anew_once(
    cache: PlanCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, b"bad")
    prover = _Prover(b"bad")
    assert open_proven(cache, KEY, build=lambda: b"good", prove=prover) is False
    assert prover.seen == [b"bad", b"good"]
    assert "does not hold: golden test: score is off by 0.1" in caplog.text
    assert open_proven(cache, KEY, build=lambda: b"never", prove=prover) is True
    cache.put(KEY, b"bad")
    with pytest.raises(BundleError, match="off by"):
        open_proven(cache, KEY, build=lambda: b"bad", prove=prover)
    assert cache.entries() == []


def test_without_a_folder_all_is_built_each_time() -> None:
    prover = _Prover()
    assert not any(open_proven(None, KEY, build=lambda: b"plan", prove=prover) for _ in range(2))
    assert prover.seen == [b"plan", b"plan"]


def test_a_cpu_is_known_by_name_and_instructions(tmp_path: Path) -> None:
    intel, arm = tmp_path / "intel", tmp_path / "arm"
    intel.write_text(
        "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: avx2 fma\n\nmodel name\t: Xeon\nflags\t: fma avx2\n"
    )
    arm.write_text("CPU implementer\t: 0x41\nFeatures\t: asimd\nCPU part\t: 0xd42\n")
    assert cpu_facts(intel)[0] == "Xeon"
    assert cpu_facts(arm)[0] == "cpu implementer 0x41 cpu part 0xd42"
    assert cpu_facts(intel)[1] != cpu_facts(arm)[1]
    again = intel.read_text().replace("fma avx2", "avx2 fma")
    intel.write_text(again)
    before = cpu_facts(intel)
    intel.write_text(again.replace("avx2", "avx512f"))
    assert cpu_facts(intel)[1] != before[1]
    assert cpu_facts(tmp_path / "none")[0] == os.uname().machine
