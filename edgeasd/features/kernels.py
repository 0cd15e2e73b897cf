"""Two compiled loops of scipy, taken without the packages around them.

`import scipy.fft` takes 0.2 s and 28 MB, for parts that a node never calls; the two modules alone take 1 ms. They are
not public: where a release of scipy has moved one, the public way is taken, which gives the same bits.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeasd.records import FloatArray


def _compiled(name: str) -> Any | None:
    """Return a compiled module by its full name without importing what lies above it; None when it is not there."""
    top, *folders, _ = name.split(".")
    package = importlib.util.find_spec(top)
    places = [] if package is None else package.submodule_search_locations or []
    spec = PathFinder.find_spec(name, [str(Path(place, *folders)) for place in places])
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_FFT = _compiled("scipy.fft._pocketfft.pypocketfft")
_SPARSE = _compiled("scipy.sparse._sparsetools")


def spectra(rows: FloatArray, out: NDArray[np.complex64]) -> None:
    """Put into `out` (n // 2 + 1, k), contiguous, the spectra of real rows (k, n): a bin of all lies together."""
    if _FFT is None:
        public_spectra(rows, out)
    else:
        _FFT.r2c(rows.T, axes=(0,), out=out, nthreads=1)


def public_spectra(rows: FloatArray, out: NDArray[np.complex64]) -> None:
    """Do what `spectra` does, by what scipy promises to keep."""
    from scipy.fft import rfft  # noqa: PLC0415  # see above

    out[:] = rfft(rows.T, axis=0, workers=1)


class SparseMatrix:
    """A matrix mostly of zeros, compressed by rows."""

    def __init__(self, dense: FloatArray) -> None:
        self.shape: tuple[int, int] = dense.shape
        rows, columns = np.nonzero(dense)
        self._ends = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=len(dense))))).astype(np.int32)
        self._columns = columns.astype(np.int32)
        self._values = dense[rows, columns]

    def times(self, dense: FloatArray) -> FloatArray:
        """Return the product (n_rows, k) with a matrix (n_columns, k): each sum in one order, whatever k is."""
        if _SPARSE is None:
            return self.public_times(dense)
        assert dense.shape[0] == self.shape[1]  # nothing below looks after it
        product = np.zeros((self.shape[0], dense.shape[1]), np.float32)
        flat = np.ascontiguousarray(dense, np.float32).ravel()
        table = (self._ends, self._columns, self._values)
        _SPARSE.csr_matvecs(*self.shape, dense.shape[1], *table, flat, product.ravel())
        return product

    def public_times(self, dense: FloatArray) -> FloatArray:
        """Return what `times` does, by what scipy promises to keep."""
        from scipy.sparse import csr_array  # noqa: PLC0415  # see above

        matrix = csr_array((self._values, self._columns, self._ends), shape=self.shape)
        return np.asarray(matrix @ dense, np.float32)
