"""The node starts without torch, and its command line without anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.small_bundle import write_small_bundle

BLOCKED = ("torch", "torchaudio", "lightning", "pytorch_lightning", "tensorrt", "ray", "edgeasd_train")
HEAVY = (*BLOCKED, "numpy", "scipy", "onnxruntime", "sounddevice", "soundfile", "soxr", "paho", "pydantic", "yaml",
         "cryptography", "rich", "prometheus_client", "asyncio")  # fmt: skip

BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def _python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def test_the_command_line_imports_nothing_heavy() -> None:
    done = _python("import sys, json, edgeasd.cli; print(json.dumps(sorted(sys.modules)))")
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["version", "--json"],
        ["config", "show"],
        ["config", "schema"],
        ["bundle", "--help"],
        ["check", "--help"],
    ],
    ids=" ".join,
)
def test_the_node_needs_no_torch(args: list[str]) -> None:
    done = _python(f"{BLOCKER}\nfrom edgeasd.cli import main\nsys.exit(main(sys.argv[1:]))", *args)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_torch_the_workshop_is_listed_with_what_it_needs() -> None:
    code = f"{BLOCKER}\nfrom edgeasd.cli import main\nsys.exit(main(sys.argv[1:]))"
    assert "pip install 'edgeasd[train]'" in " ".join(_python(code, "--help").stdout.split())
    done = _python(code, "train", "DIR")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("edgeasd: `edgeasd train` needs ")
    assert done.stderr.count("\n") == 1


def test_no_part_of_the_node_imports_torch(project_root: Path) -> None:
    package = project_root / "edgeasd"
    wrappers = {package / "engine" / "torch.py", package / "engine" / "tensorrt.py"}
    modules = [
        ".".join(path.relative_to(project_root).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(package.rglob("*.py"))
        if path not in wrappers
    ]
    assert "edgeasd.cli" in modules
    done = _python(f"{BLOCKER}\nimport importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *modules)
    assert done.returncode == 0, done.stderr


def test_a_recording_is_replayed_with_a_bundle_and_no_torch(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "small.edgeasd")
    sound = np.random.default_rng(5).normal(scale=0.05, size=8000 * 3).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", sound, 8000, subtype="PCM_16")
    code = (
        f"{BLOCKER}\nfrom edgeasd.cli import main\ncode = main(sys.argv[1:])\n"
        "assert 'onnxruntime' in sys.modules and 'torch' not in sys.modules\nsys.exit(code)"
    )
    out = tmp_path / "scores.csv"

    done = _python(
        code, "replay", str(tmp_path / "sound.wav"), "--bundle", str(bundle), "--hop", "0.032", "--out", str(out)
    )

    assert done.returncode == 0, done.stderr
    header, *rows = out.read_text().splitlines()
    models = [float(row.split(",")[header.split(",").index("model")]) for row in rows]
    assert len(models) == (24_000 - 512) // 256 + 1
    assert min(models) > 0.0
