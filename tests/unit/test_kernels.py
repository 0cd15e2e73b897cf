"""Two loops of scipy without scipy: they must be the ones that the public functions run, and come alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgeasd.features import kernels
from edgeasd.features.kernels import SparseMatrix, public_spectra, spectra
from edgeasd.features.mel import MelFrontEnd, MelSpec

SOUND = (0.1 * np.random.default_rng(5).standard_normal(20_000)).astype(np.float32)


@pytest.mark.parametrize(("n_rows", "n_fft"), [(4, 1024), (80, 1024), (8, 706), (12, 2048)])
def test_spectra_are_those_of_the_public_transform(n_rows: int, n_fft: int) -> None:
    rows = np.lib.stride_tricks.sliding_window_view(SOUND, n_fft)[:: n_fft // 7][:n_rows].copy()
    ours, public = (np.empty((n_fft // 2 + 1, n_rows), np.complex64) for _ in range(2))
    spectra(rows, ours)
    public_spectra(rows, public)
    np.testing.assert_array_equal(ours, public)
    np.testing.assert_allclose(ours.T, np.fft.rfft(rows.astype(np.float64), axis=1), atol=1e-4)


@pytest.mark.parametrize("n_columns", [1, 3, 80])
def test_a_sparse_product_is_that_of_the_public_one(n_columns: int) -> None:
    triangles = MelSpec(n_mels=40).filter_bank()
    dense = np.resize(SOUND, (triangles.shape[1], n_columns))
    matrix = SparseMatrix(triangles)
    np.testing.assert_array_equal(matrix.times(dense), matrix.public_times(dense))
    np.testing.assert_allclose(matrix.times(dense), triangles @ dense, atol=1e-5)


def test_where_scipy_has_moved_a_loop_the_public_way_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MelFrontEnd(MelSpec()).window_log_mel(SOUND)
    monkeypatch.setattr(kernels, "_FFT", None)
    monkeypatch.setattr(kernels, "_SPARSE", None)
    np.testing.assert_array_equal(MelFrontEnd(MelSpec()).window_log_mel(SOUND), expected)


def test_hearing_loads_no_more_of_scipy_than_it_uses() -> None:
    code = (
        "import sys, numpy as np; from edgeasd.features.mel import MelFrontEnd, MelSpec;"
        "MelFrontEnd(MelSpec()).window_log_mel(np.zeros(16000, np.float32));"
        "print(*sorted(name for name in sys.modules if name.startswith('scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() in ([], ["scipy.sparse._sparsetools"])
    assert kernels._FFT is not None, "this release of scipy has moved it: hearing has become slow to load"
    assert kernels._SPARSE is not None
