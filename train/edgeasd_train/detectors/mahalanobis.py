"""mahalanobis: how far the mean spectrum of a window lies from normal, in units of how normal spectra vary.

The Mahalanobis distance of the time-mean log mel, with the covariance shrunk as Ledoit and Wolf (2004) have it. Nothing
is learned by gradients: it is measured in milliseconds, needs no torch, and is the floor under every learned detector.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.covariance import LedoitWolf

from edgeasd.errors import InputError
from edgeasd.features.mel import MelSpec
from edgeasd.manifest import OutputName
from edgeasd.records import FloatArray
from edgeasd_train.detectors.measured import Batch, MeasuredKind
from edgeasd_train.detectors.options import DetectorOptions, Shapes

if TYPE_CHECKING:
    from torch import nn

_OPSET = 20
_IR_VERSION = 9
_MIN_WINDOWS = 8
_MAX_WINDOWS = 1 << 18
"""Spectra that are kept in memory for the covariance; of more, evenly spread ones."""
_FLOOR_DB2 = 0.01
"""Added to every variance: what varies less than rounding does would turn rounding into alarms."""
_EPS = 1e-6

Doubles = NDArray[np.float64]


class MahalanobisOptions(DetectorOptions):
    """Options of mahalanobis: there are none, the recipe's window and mel bands decide."""


def front_end(spec: MelSpec, options: MahalanobisOptions) -> MelSpec:  # noqa: ARG001  # the kind's signature
    """Return the recipe's own front end."""
    return spec


class Mahalanobis:
    """The detector: mean and whitening of normal spectra."""

    outputs: tuple[OutputName, ...] = ("score", "embedding", "residual", "reconstruction")
    limits: tuple[str, ...] = ("What comes and goes within a window but leaves its mean spectrum alone is not heard.",)

    def __init__(self, shapes: Shapes, options: MahalanobisOptions) -> None:  # noqa: ARG002  # the kind's signature
        self._shapes = shapes
        self._mean = np.zeros(shapes.n_rows, np.float32)
        self._whitening = np.eye(shapes.n_rows, dtype=np.float32)

    def measure(self, batches: Iterable[Batch]) -> None:
        """Take mean and shrunk covariance of the mean spectra of all windows.

        The whitening is the symmetric root of the inverse covariance: of all whitenings the one whose components stay
        closest to the mel bands they came from, so that a band's share in a distance can be told.
        """
        spectra = np.concatenate([mean_spectra(batch) for batch in batches]).astype(np.float64)
        if len(spectra) < _MIN_WINDOWS:
            raise InputError(f"mahalanobis: {len(spectra)} windows are too few to measure, it takes {_MIN_WINDOWS}")
        if len(spectra) > _MAX_WINDOWS:
            spectra = spectra[np.arange(_MAX_WINDOWS) * len(spectra) // _MAX_WINDOWS]
        fitted = LedoitWolf(store_precision=False).fit(spectra)
        covariance: Doubles = fitted.covariance_ + _FLOOR_DB2 * np.eye(spectra.shape[1])
        variances, directions = np.linalg.eigh(covariance)
        self._mean = fitted.location_.astype(np.float32)
        self._whitening = ((directions / np.sqrt(variances)) @ directions.T).astype(np.float32)

    def deviation(self, batch: Batch) -> FloatArray:
        """Return the distance (B,), per root of the number of bands: 1 or less for most normal sound."""
        white = (mean_spectra(batch) - self._mean) @ self._whitening
        distance: FloatArray = np.sqrt(np.mean(np.square(white), axis=1) + np.float32(_EPS))
        return distance

    def model_onnx(self) -> bytes:
        """Return the graph: score, the whitened spectrum as embedding, each band's share, the normal spectrum."""
        n_rows, n_frames = self._shapes.n_rows, self._shapes.n_frames
        node = helper.make_node
        nodes = [
            node("ReduceMean", ["log_mel", "axis_2"], ["spectrum"], keepdims=0),
            node("Sub", ["spectrum", "mean"], ["away"]),
            node("MatMul", ["away", "whitening"], ["embedding"]),
            node("Mul", ["embedding", "embedding"], ["bare_power"]),
            node("Add", ["bare_power", "eps"], ["power"]),
            node("ReduceMean", ["power", "axis_1"], ["mean_power"], keepdims=0),
            node("Sqrt", ["mean_power"], ["score"]),
            node("ReduceSum", ["power", "axis_1"], ["total_power"], keepdims=1),
            node("Div", ["power", "total_power"], ["residual"]),
            node("Sub", ["log_mel", "log_mel"], ["nothing"]),
            node("Add", ["nothing", "mean_rows"], ["reconstruction"]),
        ]
        constants: dict[str, NDArray[Any]] = {
            "mean": self._mean,
            "mean_rows": self._mean.reshape(1, n_rows, 1),
            "whitening": self._whitening,
            "eps": np.array(_EPS, np.float32),
            "axis_1": np.array([1], np.int64),
            "axis_2": np.array([2], np.int64),
        }
        shapes = {"score": [], "embedding": [n_rows], "residual": [n_rows], "reconstruction": [n_rows, n_frames]}
        graph = helper.make_graph(
            nodes,
            "mahalanobis",
            [helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", n_rows, n_frames])],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *shapes[n]]) for n in self.outputs],
            initializer=[numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def serve(self) -> nn.Module:
        """Return the same as a torch module."""
        from edgeasd_train.detectors.mahalanobis_served import MahalanobisServed  # noqa: PLC0415  # needs torch

        return MahalanobisServed(self._mean, self._whitening, eps=_EPS)


def mean_spectra(batch: Batch) -> FloatArray:
    """Return the time-mean log mel (B, n_rows) of windows."""
    spectra: FloatArray = np.asarray(batch["log_mel"], np.float32).mean(axis=2)
    return spectra


KIND = MeasuredKind(MahalanobisOptions, front_end, Mahalanobis)
