"""The notebooks run from top to bottom, on sound they make themselves, and are stored without what came out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = ("corpus", "results")


def _path(root: Path, name: str) -> Path:
    return root / "train" / "notebooks" / f"{name}.ipynb"


def _read(path: Path) -> nbformat.NotebookNode:
    notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_no_outputs(project_root: Path, name: str) -> None:
    notebook = _read(_path(project_root, name))
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def _run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """Return what a notebook printed, and how many pictures it drew."""
    monkeypatch.delenv("AUDIO", raising=False)
    for variable in ("TMPDIR", "HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = _read(path)
    client = NotebookClient(notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    client.execute(env=dict(os.environ))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_corpus_notebook_says_what_there_is(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, n_pictures = _run(_path(project_root, "corpus"), tmp_path, monkeypatch)
    assert "3 recordings: 144 s to train on, 36 s held out" in text
    assert n_pictures == 3
    sizes = re.search(r"windows in each cluster: \[(.*)\]", text)
    assert sizes is not None
    assert len(sizes[1].split(",")) == 4


def test_the_results_notebook_trains_hears_and_judges(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, n_pictures = _run(_path(project_root, "results"), tmp_path, monkeypatch)
    area = re.search(r"window AUC ([0-9.]+)", text)
    assert area is not None
    assert float(area[1]) > 0.9
    assert n_pictures == 4
    page = re.search(r"(\S+report\.html): 897 windows", text)
    assert page is not None
    assert Path(page[1]).stat().st_size > 100_000
