"""What a torch program (model.pt2) asks for, read from its bytes before torch sees any of it.

The file is an archive as torch.export.save writes it. torch.export.load is not for a node: it unpickles sample inputs,
constants and old weights, evaluates the expressions of symbolic sizes, imports what tree specifications name, runs
guards as source text, looks operators up by any dotted name, and builds Python source from the names of values (torch
2.11: torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py, torch/export/_unlift.py). Here the archive
is read as what it has to be: JSON that lists operators with plain arguments, and raw numbers. Fields that are not
needed to compute, sizes as expressions among them, are not looked at, and nothing of the JSON is handed on to torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from edgeasd.engine.programjson import (
    Argument,
    Config,
    InputSpec,
    Model,
    Named,
    Node,
    OutputSpec,
    Payload,
    SizeArgument,
    TensorMeta,
)
from edgeasd.errors import BundleError
from edgeasd.manifest import first_fault
from edgeasd.members import MIB, open_zip, read_member

_ALLOWED_OPERATORS = """
    __and__.Tensor __or__.Tensor _native_batch_norm_legit_no_training.default _to_copy.default abs.default add.Tensor
    addmm.default amax.default amin.default avg_pool2d.default bitwise_and.Tensor bitwise_not.default bitwise_or.Tensor
    bmm.default cat.default clamp.default clamp_max.default clamp_min.default clone.default constant_pad_nd.default
    contiguous.default conv1d.default conv2d.default conv_transpose2d.input div.Tensor elu.default eq.Tensor erf.default
    exp.default expand.default flatten.using_ints ge.Scalar ge.Tensor gelu.default group_norm.default gt.Scalar
    gt.Tensor hardsigmoid.default hardswish.default layer_norm.default le.Scalar le.Tensor leaky_relu.default
    linear.default log.default log1p.default log_softmax.int logical_and.default logical_not.default logical_or.default
    lt.Scalar lt.Tensor matmul.default max_pool2d.default maximum.default mean.default mean.dim minimum.default
    mm.default mul.Tensor ne.Tensor neg.default pad.default permute.default pow.Tensor_Scalar prelu.default
    reciprocal.default relu.default reshape.default rsqrt.default select.int sigmoid.default silu.default
    slice.Tensor softmax.int softplus.default sqrt.default square.default squeeze.dim squeeze.dims stack.default
    sub.Tensor sum.dim_IntList sym_size.int tanh.default topk.default transpose.int unflatten.int unsqueeze.default
    upsample_nearest2d.vec var.correction view.default where.self
"""
ATEN_OPERATORS = frozenset(f"torch.ops.aten.{name}" for name in _ALLOWED_OPERATORS.split())
"""Arithmetic on tensors at hand: nothing that loops, branches, samples, writes in place or reaches beyond a tensor."""
SIZE_OPERATORS = frozenset({"_operator.add", "_operator.mul", "_operator.sub", "_operator.floordiv"})
"""Arithmetic on sizes that follow from the batch."""

_MAX_DIRECTORY_BYTES = MIB // 2
_MAX_JSON_BYTES = 4 * MIB
_MAX_WEIGHT_BYTES = 256 * MIB

_ROOT = "archive/"
_FIXED_MEMBERS = {
    f"{_ROOT}archive_format": b"pt2",
    f"{_ROOT}archive_version": b"0",
    f"{_ROOT}byteorder": b"little",
    f"{_ROOT}.data/version": b"6\n",
    f"{_ROOT}data/sample_inputs/model.pt": b"",  # what was there would be a pickle
}
_MODEL = f"{_ROOT}models/model.json"
_WEIGHTS, _CONSTANTS = f"{_ROOT}data/weights/", f"{_ROOT}data/constants/"
_CONFIGS = {
    _WEIGHTS: f"{_WEIGHTS}model_weights_config.json",
    _CONSTANTS: f"{_CONSTANTS}model_constants_config.json",
}
_TENSOR_MEMBER = re.compile(rf"({_WEIGHTS}weight|{_CONSTANTS}tensor)_[0-9]{{1,5}}")
_BY_POSITION = 1

DTypeName = Literal["float32", "int64", "bool"]
_DTYPES: Mapping[int, tuple[DTypeName, int]] = {7: ("float32", 4), 5: ("int64", 8), 12: ("bool", 1)}
"""By torch.export's number: name, and bytes of an element."""


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is the value of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class DType:
    """An argument that is a type of number."""

    name: DTypeName


Value: TypeAlias = bool | int | float | str | Ref | DType | tuple["Value", ...] | None
"""What an operator is applied to."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operator, applied."""

    operator: str
    """Of `ATEN_OPERATORS` or `SIZE_OPERATORS`."""
    args: tuple[Value, ...]
    kwargs: Mapping[str, Value]
    """Without references: what operators take by name only are plain values."""
    results: tuple[str, ...]
    """What its results are called; of more than one they come as a tuple."""

    @property
    def used(self) -> set[str]:
        """Return the names of the values that it is applied to."""
        return set().union(*(references(arg) for arg in self.args))


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that comes with the program."""

    dtype: DTypeName
    shape: tuple[int, ...]
    data: bytes
    """Little-endian, in C order, exactly as long as the shape says."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that was read and holds nothing but arithmetic, in the order in which to compute it."""

    inputs: tuple[str, ...]
    weights: Mapping[str, Weight]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    """In the order of the bundle's outputs."""


def references(value: Value) -> set[str]:
    """Return the names that an argument refers to."""
    if isinstance(value, tuple):
        return set().union(*(references(one) for one in value))
    return {value.name} if isinstance(value, Ref) else set()


def read_program(program: bytes) -> Program:
    """Return what a model.pt2 computes; BundleError names the first thing that is malformed or not allowed."""
    try:
        members = _read_members(program)
        model = _parsed(Model, members, _MODEL)
        reader = _Reader(members, {kind: _parsed(Config, members, name).config for kind, name in _CONFIGS.items()})
        return reader.program(model)
    except BundleError as exc:
        raise BundleError(f"model.pt2: {exc}") from exc


def _read_members(program: bytes) -> dict[str, bytes]:
    """Return the members of the archive; refuses any it does not know: pickles, custom objects, compiled code."""
    archive = open_zip(program, max_directory_bytes=_MAX_DIRECTORY_BYTES)
    names = [info.filename for info in archive.infolist()]
    if len(set(names)) != len(names):
        raise BundleError("holds a member twice")
    json_members = {_MODEL, *_CONFIGS.values()}
    for name in sorted({*_FIXED_MEMBERS, *json_members} - set(names)):
        raise BundleError(f"lacks {name}")
    for name in names:
        if name not in _FIXED_MEMBERS and name not in json_members and not _TENSOR_MEMBER.fullmatch(name):
            raise BundleError(f"holds a member {name!r} that is not known")
    limits = {name: _MAX_JSON_BYTES if name in json_members else _MAX_WEIGHT_BYTES for name in names}
    members = {name: read_member(archive, name, limit) for name, limit in limits.items()}
    for name, content in _FIXED_MEMBERS.items():
        if members[name] != content:
            raise BundleError(f"{name}: is not {content!r}")
    return members


_Parsed = TypeVar("_Parsed", bound=BaseModel)


def _parsed(kind: type[_Parsed], members: Mapping[str, bytes], name: str) -> _Parsed:
    try:
        return kind.model_validate_json(members[name])
    except ValidationError as exc:
        raise BundleError(f"{name}: {first_fault(exc)}") from exc


@dataclass(slots=True)
class _Reader:
    """Follows a program from its inputs to its outputs: whatever is used has been made before, and only once."""

    members: Mapping[str, bytes]
    configs: Mapping[str, Mapping[str, Payload]]
    """By folder of the archive."""
    made: set[str] = field(default_factory=set)

    def program(self, model: Model) -> Program:
        signature, graph = model.graph_module.signature, model.graph_module.graph
        inputs = tuple(self._input(spec) for spec in signature.input_specs if spec.user_input is not None)
        weights = dict(self._weight(spec) for spec in signature.input_specs if spec.user_input is None)
        steps = tuple(self._step(node) for node in graph.nodes)
        return Program(inputs, weights, steps, tuple(self._output(spec) for spec in signature.output_specs))

    def _input(self, spec: InputSpec) -> str:
        assert spec.user_input is not None, "program() has asked"
        if spec.user_input.arg.as_tensor is None:
            raise BundleError("has an input that is not a tensor")
        return self._new(spec.user_input.arg.as_tensor.name)

    def _output(self, spec: OutputSpec) -> str:
        if spec.user_output is None or spec.user_output.arg.as_tensor is None:
            raise BundleError("has an output that is not a tensor")
        return self._known(spec.user_output.arg.as_tensor.name)

    def _weight(self, spec: InputSpec) -> tuple[str, Weight]:
        if (learned := spec.parameter) is not None:
            folder, key = _WEIGHTS, learned.parameter_name
        elif (measured := spec.buffer) is not None:
            folder, key = _WEIGHTS, measured.buffer_name
        else:
            assert spec.tensor_constant is not None, "there is no fourth kind of weight"
            folder, key = _CONSTANTS, spec.tensor_constant.tensor_constant_name
        payload = self.configs[folder].get(key)
        if payload is None or (member := f"{folder}{payload.path_name}") not in self.members:
            raise BundleError(f"lacks the weight {key!r}")
        if not _TENSOR_MEMBER.fullmatch(member):
            raise BundleError(f"the weight {key!r} is kept in {member!r}")
        return self._new(spec.value.arg.name), _weight(payload.tensor_meta, self.members[member], key)

    def _step(self, node: Node) -> Step:
        if node.target not in ATEN_OPERATORS and node.target not in SIZE_OPERATORS:
            raise BundleError(f"uses the operator {node.target!r}, which is not allowed")
        args = tuple(self._value(given.arg) for given in node.inputs if given.kind == _BY_POSITION)
        kwargs = {given.name: self._value(given.arg) for given in node.inputs if given.kind != _BY_POSITION}
        if any(references(value) for value in kwargs.values()):
            raise BundleError(f"gives {node.target!r} a tensor by name, not by position")
        return Step(node.target, args, kwargs, tuple(self._result(output) for output in node.outputs))

    def _result(self, output: Argument) -> str:
        if output.as_tensor is not None:
            return self._new(output.as_tensor.name)
        if output.as_sym_int is not None and output.as_sym_int.as_name is not None:
            return self._new(output.as_sym_int.as_name)
        raise BundleError("has an operator whose result is neither a tensor nor a size")

    def _value(self, argument: Argument) -> Value:
        if argument.as_scalar_type is not None:
            return DType(_DTYPES[argument.as_scalar_type][0])
        return None if argument.kind == "as_none" else self._plain(argument.value)

    def _plain(self, value: object) -> Value:
        if isinstance(value, list):
            return tuple(self._plain(one) for one in value)
        if isinstance(value, Named):
            return Ref(self._known(value.name))
        if isinstance(value, SizeArgument):
            return value.as_int if value.as_name is None else Ref(self._known(value.as_name))
        assert isinstance(value, bool | int | float | str), "the JSON was validated"
        return value

    def _new(self, name: str) -> str:
        if name in self.made:
            raise BundleError(f"makes {name!r} twice")
        self.made.add(name)
        return name

    def _known(self, name: str) -> str:
        if name not in self.made:
            raise BundleError(f"uses {name!r} before it is made")
        return name


def _weight(meta: TensorMeta, data: bytes, key: str) -> Weight:
    """Return a weight whose bytes are all there and lie in C order, so that nothing beyond them can be read."""
    name, element_bytes = _DTYPES[meta.dtype]
    shape = tuple(size.as_int for size in meta.sizes)
    strides = tuple(stride.as_int for stride in meta.strides)
    if strides != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
        raise BundleError(f"the weight {key!r} does not lie in C order")
    if meta.storage_offset.as_int or math.prod(shape) * element_bytes != len(data) or not data:
        raise BundleError(f"the weight {key!r} is not as long as its shape {shape} says")
    return Weight(name, shape, data)
