"""The torch engine: the bundle's torch program on a CUDA device, or on one CPU core where there is none."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from edgeasd.bundle import Bundle
from edgeasd.engine import LIVE_OUTPUTS, Outputs
from edgeasd.engine.program import ATEN_OPERATORS, DType, Program, Ref, Value, Weight, read_program, references
from edgeasd.errors import BundleError, SelfTestError, UnavailableError
from edgeasd.manifest import Precision
from edgeasd.records import FloatArray


class Runner(Protocol):
    """Computes where it was made to compute."""

    def run(self, inputs: Mapping[str, FloatArray], wanted: Sequence[int]) -> list[FloatArray]:
        """Return those of the program's outputs whose numbers are `wanted`; the arrays belong to the caller."""
        ...


class TorchEngine:
    """Runs a torch program as it stands, operator by operator.

    On a CPU, compiled with torch.compile or AOTInductor it is faster but starts later, and is still slower than the
    onnx engine, which every node has; so nothing is compiled (docs/engines.md has the figures).
    """

    name: Literal["torch"] = "torch"
    precision: Precision = "fp32"

    def __init__(self, bundle: Bundle) -> None:
        """Load the program; BundleError when there is none, or it is not one that a node runs."""
        if bundle.program is None:
            raise BundleError(f"{bundle.path}: has no torch program (model.pt2), which the torch engine runs")
        program = read_program(bundle.program)
        shapes, outputs = bundle.manifest.input_shapes(), bundle.manifest.outputs
        if sorted(program.inputs) != sorted(shapes) or len(program.outputs) != len(outputs):
            raise BundleError(f"{bundle.path}: model.pt2 does not take and give what the manifest says")
        self._outputs = list(outputs)
        self._runner: Runner | None
        try:
            self.device, self._runner = _runner(program, shapes)
        except RuntimeError as exc:  # out of memory, say, or a driver too old
            raise UnavailableError(f"engine torch: {first_line(exc)}") from exc

    def score(self, inputs: Mapping[str, FloatArray], *, wanted: Collection[str] = LIVE_OUTPUTS) -> Outputs:
        """Judge windows: each graph input by name, first dimension the batch."""
        assert self._runner is not None, "the engine is open"
        numbers = [i for i, name in enumerate(self._outputs) if name == "score" or name in wanted]
        try:
            answers = self._runner.run(inputs, numbers)
        except Exception as exc:  # an operator may raise anything, and says the same of most faults: RuntimeError
            raise SelfTestError(f"the torch engine failed: {first_line(exc)}") from exc
        outputs = Outputs(**dict(zip([self._outputs[i] for i in numbers], answers, strict=True)))
        if not np.isfinite(outputs.score).all():
            raise SelfTestError("the torch engine gave a score that is not finite")
        return outputs

    def close(self) -> None:
        """Free the weights, and on a GPU its graphs and buffers."""
        self._runner = None
        if self.device != "cpu":
            import torch

            torch.cuda.empty_cache()  # torch keeps what is freed, and other engines could not have it


class Computation:
    """A program whose weights are tensors on a device, and whose operators are torch's."""

    def __init__(self, program: Program, *, device: str = "cpu") -> None:
        """Take over the weights; BundleError when this torch lacks an operator."""
        used = set(program.outputs).union(*(step.used for step in program.steps))
        self._weights = {name: _tensor(weight, device) for name, weight in program.weights.items() if name in used}
        self._steps = _steps(program)
        self._outputs = program.outputs

    def __call__(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Return the outputs for tensors on the device, by name."""
        values = {**self._weights, **inputs}
        for step in self._steps:
            args = step.args.copy()
            for place, ref in step.refs:
                args[place] = _resolved(ref, values)
            answer = step.function(*args, **step.kwargs)
            if len(step.results) == 1:
                values[step.results[0]] = answer
            else:
                values.update(zip(step.results, answer, strict=True))
            for name in step.done:
                del values[name]
        return [values[name] for name in self._outputs]


@dataclass(frozen=True, slots=True)
class _Step:
    function: Callable[..., Any]
    args: list[Any]
    refs: tuple[tuple[int, Any], ...]
    """Places in `args` that are filled in at every run, and with what: most arguments never change."""
    kwargs: Mapping[str, Any]
    results: tuple[str, ...]
    done: tuple[str, ...]
    """Values that no later step uses: a large batch is not to hold the memory of all its steps at once."""


class _CpuRunner:
    """Runs a computation on this thread."""

    def __init__(self, program: Program) -> None:
        import torch

        torch.set_num_threads(1)
        with suppress(RuntimeError):  # too late, once something has run in parallel
            torch.set_num_interop_threads(1)
        self._torch = torch
        self._compute = Computation(program)

    def run(self, inputs: Mapping[str, FloatArray], wanted: Sequence[int]) -> list[FloatArray]:
        with self._torch.inference_mode():
            answers = self._compute({name: self._torch.tensor(array) for name, array in inputs.items()})
            return [answers[i].contiguous().numpy() for i in wanted]


def _runner(program: Program, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, Runner]:
    """Return what runs the program here, and the name of the device."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", _CpuRunner(program)
    from edgeasd.engine.torch_cuda import CudaRunner  # noqa: PLC0415  # a node without a GPU does not load it

    return torch.cuda.get_device_name(), CudaRunner(Computation(program, device="cuda"), shapes)


def _steps(program: Program) -> list[_Step]:
    """Return the steps with torch's operators, each with the names of the values that it is the last to use."""
    kept = {*program.outputs, *program.weights}
    steps: list[_Step] = []
    for step in reversed(program.steps):
        named = step.used | set(step.results)
        done = tuple(sorted(named - kept))
        kept.update(named)
        refs = tuple((place, value) for place, value in enumerate(step.args) if references(value))
        args = [_constant(value) for value in step.args]
        kwargs = {name: _constant(value) for name, value in step.kwargs.items()}
        steps.append(_Step(_function(step.operator), args, refs, kwargs, step.results, done))
    return steps[::-1]


def _function(name: str) -> Callable[..., Any]:
    """Return the operator of that name, which is one of those allowed."""
    import torch

    *_, packet, overload = name.split(".")
    if name not in ATEN_OPERATORS:
        return getattr(operator, overload)  # type: ignore[no-any-return]  # arithmetic on sizes
    try:
        return getattr(getattr(torch.ops.aten, packet), overload)  # type: ignore[no-any-return]
    except AttributeError as exc:
        raise BundleError(f"model.pt2: needs {name}, which torch {torch.__version__} does not have") from exc


def _constant(value: Value) -> Any:
    """Return an argument with what is torch's in it; references stay."""
    import torch

    if isinstance(value, tuple):
        return [_constant(one) for one in value]
    return getattr(torch, value.name) if isinstance(value, DType) else value


def _resolved(value: Value, values: Mapping[str, Any]) -> Any:
    """Return an argument, or the numbers and names of a list, with values in the place of names."""
    if isinstance(value, Ref):
        return values[value.name]
    return [_resolved(one, values) for one in value] if isinstance(value, tuple) else value


def _tensor(weight: Weight, device: str) -> Any:
    import torch

    return torch.tensor(np.frombuffer(weight.data, weight.dtype).reshape(weight.shape), device=device)


def first_line(exc: Exception) -> str:
    """Return what an exception says, without the stack traces that torch adds."""
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
