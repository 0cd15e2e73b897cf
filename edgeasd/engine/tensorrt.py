"""The tensorrt engine: a plan that TensorRT builds on this node from the bundle's ONNX graph, on the first GPU."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from edgeasd.bundle import Bundle
from edgeasd.engine import LIVE_OUTPUTS, Outputs, check_golden, golden_tolerance
from edgeasd.engine.cuda import Gpu, find_gpu
from edgeasd.engine.plans import PlanCache, PlanKey, open_proven
from edgeasd.engine.tensorrt_api import (
    MAX_BATCH,
    TYPICAL_BATCH,
    WORKSPACE_BYTES,
    Session,
    build_plan,
    import_tensorrt,
    one_line,
)
from edgeasd.errors import EdgeasdError, SelfTestError, UnavailableError
from edgeasd.manifest import Precision
from edgeasd.records import FloatArray

log = logging.getLogger(__name__)

OLDEST, NEWEST_MAJOR = (10, 3), 11


class TensorRtEngine:
    """Runs a graph as a TensorRT plan; in the precision that the graph states, never in another.

    A plan is built at the first start, proves itself by the golden test, and is kept; a batch larger than the plan's
    goes in pieces. Memory on both sides is allocated once.
    """

    name: Literal["tensorrt"] = "tensorrt"

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", cache_dir: Path | None = None) -> None:
        """Load the plan, or build it; it passes the golden test.

        UnavailableError when TensorRT or a GPU is missing, BundleError when TensorRT refuses the graph or the plan
        misses the golden test.
        """
        self.precision: Precision = precision
        version = supported_version(import_tensorrt().__version__)
        gpu = find_gpu()
        self.device = gpu.name
        graph = bundle.graph(precision)
        cache = None if cache_dir is None else PlanCache(cache_dir)
        self.from_cache = open_proven(
            cache,
            plan_key(graph, precision, version=version, gpu=gpu),
            build=lambda: _build(graph, cache, timing_key(version=version, gpu=gpu)),
            prove=lambda plan: self._load(plan, bundle),
        )

    def score(self, inputs: Mapping[str, FloatArray], *, wanted: Collection[str] = LIVE_OUTPUTS) -> Outputs:
        """Judge windows: each graph input by name, first dimension the batch."""
        n_windows = check_inputs(inputs, self._session.inputs)
        names = [name for name in self._session.outputs if name == "score" or name in wanted]
        parts = []
        for piece in pieces(n_windows):
            try:
                parts.append(self._session.run({name: array[piece] for name, array in inputs.items()}, names))
            except RuntimeError as exc:
                raise SelfTestError(f"the tensorrt engine failed: {one_line(str(exc))}") from exc
        outputs = Outputs(**joined(parts))
        if not np.isfinite(outputs.score).all():
            raise SelfTestError("the tensorrt engine gave a score that is not finite")
        return outputs

    def close(self) -> None:
        """Free the GPU's memory."""
        self._session.close()

    def _load(self, plan: bytes, bundle: Bundle) -> None:
        """Load a plan and let it pass the golden test, or raise and hold nothing."""
        try:
            self._session = Session(plan)
        except EdgeasdError:
            raise
        except Exception as exc:  # what TensorRT's bindings raise shares no base but Exception
            raise SelfTestError(f"TensorRT does not load the plan: {one_line(str(exc))}") from exc
        try:
            check_golden(self, bundle.golden, tolerance=golden_tolerance(bundle, self.precision))
        except BaseException:
            self._session.close()
            raise


def supported_version(text: str) -> str:
    """Return the version of a TensorRT that this module is written for; UnavailableError for any other."""
    numbers = re.match(r"(\d+)\.(\d+)", text)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if found < OLDEST or found[0] > NEWEST_MAJOR:
        raise UnavailableError(
            f"engine tensorrt: TensorRT {text} is installed, edgeasd[tensorrt] takes {OLDEST[0]}.{OLDEST[1]}"
            f" to {NEWEST_MAJOR}.x"
        )
    return text


def plan_key(graph: bytes, precision: Precision, *, version: str, gpu: Gpu) -> PlanKey:
    """Return all that a plan depends on."""
    return PlanKey(
        kind="tensorrt-plan",
        source_sha256=hashlib.sha256(graph).hexdigest(),
        precision=precision,
        library=f"tensorrt {version}",
        device=gpu.name,
        capability=gpu.capability,
        extra=f"CUDA {gpu.driver}, batches of 1, {TYPICAL_BATCH}, {MAX_BATCH}, {WORKSPACE_BYTES} bytes",
    )


def timing_key(*, version: str, gpu: Gpu) -> PlanKey:
    """Return what the time of kernels depends on: not the graph, in which the same layers come again."""
    return PlanKey(
        kind="tensorrt-timing",
        source_sha256="",
        precision="",
        library=f"tensorrt {version}",
        device=gpu.name,
        capability=gpu.capability,
        extra=f"CUDA {gpu.driver}",
    )


def pieces(n_windows: int, *, max_batch: int = MAX_BATCH) -> Iterator[slice]:
    """Cut a batch into pieces that a plan takes, as few and as even as can be: one of 65 becomes 33 and 32."""
    n_pieces = -(-n_windows // max_batch)
    for i in range(n_pieces):
        yield slice(i * n_windows // n_pieces, (i + 1) * n_windows // n_pieces)


def joined(parts: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Return the outputs of the pieces of a batch as those of the batch."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_inputs(inputs: Mapping[str, FloatArray], windows: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many windows there are; SelfTestError unless they are what the graph takes, at least one."""
    if set(inputs) != set(windows):
        raise SelfTestError(f"the tensorrt engine takes {sorted(windows)}, not {sorted(inputs)}")
    n_windows = len(next(iter(inputs.values())))
    for name, array in inputs.items():
        if array.dtype != np.float32 or array.shape != (n_windows, *windows[name]) or n_windows < 1:
            raise SelfTestError(
                f"the tensorrt engine takes {name} as float32 (windows, {str(windows[name])[1:-1]}),"
                f" not {array.dtype} {array.shape}"
            )
    return n_windows


def _build(graph: bytes, cache: PlanCache | None, timing: PlanKey) -> bytes:
    """Build a plan with what earlier builds have learnt, and keep what this one has."""
    known = None if cache is None else cache.get(timing)
    log.info("engine: TensorRT builds a plan; this takes from seconds to minutes, once")
    began_s = time.monotonic()
    try:
        plan, learnt = build_plan(graph, timing=known or b"")
    except EdgeasdError:
        raise
    except Exception as exc:  # what TensorRT's bindings raise shares no base but Exception
        raise UnavailableError(f"engine tensorrt: no plan could be built: {one_line(str(exc))}") from exc
    log.info("engine: the plan took %.1f s", time.monotonic() - began_s)
    if cache is not None and learnt != known:
        cache.put(timing, learnt)
    return plan
