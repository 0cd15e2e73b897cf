"""What an ONNX file asks for, read from its bytes before any runtime sees it.

A strict reader of the few protobuf messages a model consists of. It knows every field it lets pass and refuses the
rest: subgraphs (Loop, If), functions, custom operators, external data, sparse and string tensors. The onnx package is
no option here: it costs memory that a node does not have, and accepts an empty file as a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgeasd.errors import BundleError

_ALLOWED_OPS = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Clip Concat Constant Conv ConvTranspose Cos
    DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Flatten Floor Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
    InstanceNormalization IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mish
    Mul Neg Not Or PRelu Pad Pow QuantizeLinear ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Reciprocal Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Slice Softmax
    Softplus Softsign Split Sqrt Squeeze Sub Sum Tanh TopK Transpose Unsqueeze Where
"""
ALLOWED_OPS = frozenset(_ALLOWED_OPS.split())
"""Arithmetic on tensors at hand: nothing that loops, branches, samples, or makes a tensor out of a number."""

OPSETS = range(17, 23)
IR_VERSIONS = range(8, 11)
MAX_FIELDS = 20_000
"""Bound on protobuf fields read, of all graphs of a bundle together: ours have about a thousand each."""

FLOAT32 = 1
_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}  # by TensorProto.DataType

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Fields = dict[int, list[int | memoryview]]


@dataclass(frozen=True, slots=True)
class Message:
    """A protobuf message: its name, and the wire type of each field number that may occur."""

    name: str
    wire_types: dict[int, int]
    repeated: frozenset[int] = frozenset()


_MODEL = Message(
    "model", {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES, 14: _BYTES},
    repeated=frozenset({8, 14}),
)  # fmt: skip
_OPSET = Message("opset", {1: _BYTES, 2: _VARINT})
_GRAPH = Message(
    "graph", dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 16), _BYTES), repeated=frozenset({1, 5, 11, 12, 13, 16})
)
_NODE = Message("node", dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), _BYTES), repeated=frozenset({1, 2, 5, 9}))
_ATTRIBUTE = Message(
    "attribute", {1: _BYTES, 2: _FIXED32, 3: _VARINT, 4: _BYTES, 5: _BYTES, 7: _FIXED32, 8: _VARINT, 9: _BYTES,
                  13: _BYTES, 20: _VARINT}, repeated=frozenset({7, 8, 9}),
)  # fmt: skip
_TENSOR = Message(
    "tensor", {1: _VARINT, 2: _VARINT, 4: _BYTES, 5: _BYTES, 7: _BYTES, 8: _BYTES, 9: _BYTES, 10: _BYTES, 12: _BYTES,
               14: _VARINT}, repeated=frozenset({1}),
)  # fmt: skip
_VALUE = Message("value", {1: _BYTES, 2: _BYTES, 3: _BYTES, 4: _BYTES}, repeated=frozenset({4}))
_TYPE = Message("type", {1: _BYTES, 6: _BYTES})
_TENSOR_TYPE = Message("tensor type", {1: _VARINT, 2: _BYTES})
_SHAPE = Message("shape", {1: _BYTES}, repeated=frozenset({1}))
_DIMENSION = Message("dimension", {1: _VARINT, 2: _BYTES, 3: _BYTES})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, element type and dimensions of a graph input or output; a string dimension is free, as the batch is."""

    name: str
    element_type: int
    dims: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """What the graph takes, gives and is made of."""

    opset: int
    ops: frozenset[str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def read_graph(model_onnx: bytes) -> GraphInfo:
    """Return what the model's bytes ask for; BundleError names the first thing that is malformed or not allowed."""
    return GraphReader().read(model_onnx)


@dataclass(slots=True)
class GraphReader:
    """Reads several graphs that share one bound on what reading them costs."""

    fields_left: int = field(default=MAX_FIELDS)

    def read(self, model_onnx: bytes) -> GraphInfo:
        """Return what a model's bytes ask for, as `read_graph` does."""
        return self._model(memoryview(model_onnx))

    def _model(self, data: memoryview) -> GraphInfo:
        fields = self._read(data, _MODEL)
        ir_version = _integer(fields, 1)
        if ir_version not in IR_VERSIONS:
            raise BundleError(f"model.onnx: IR version {ir_version} is not within 8 and 10")
        if 7 not in fields:
            raise BundleError("model.onnx: holds no graph")
        opset = self._opset(fields)
        graph = self._read(_blob(fields, 7), _GRAPH)
        ops = frozenset(self._node_op(node) for node in _blobs(graph, 1))
        for tensor in _blobs(graph, 5):
            self._check_tensor(tensor)
        inputs = tuple(self._value(value) for value in _blobs(graph, 11))
        return GraphInfo(opset, ops, inputs, tuple(self._value(value) for value in _blobs(graph, 12)))

    def _opset(self, model: _Fields) -> int:
        imports = [self._read(blob, _OPSET) for blob in _blobs(model, 8)]
        if len(imports) != 1 or _text(imports[0], 1) not in ("", "ai.onnx"):
            raise BundleError("model.onnx: uses other operator sets than ONNX's own")
        opset = _integer(imports[0], 2)
        if opset not in OPSETS:
            raise BundleError(f"model.onnx: opset {opset} is not within {OPSETS.start} and {OPSETS.stop - 1}")
        return opset

    def _node_op(self, data: memoryview) -> str:
        node = self._read(data, _NODE)
        op, domain = _text(node, 4), _text(node, 7)
        if domain not in ("", "ai.onnx") or op not in ALLOWED_OPS:
            raise BundleError(f"model.onnx: operator {f'{domain}.' if domain else ''}{op} is not allowed")
        for blob in _blobs(node, 5):
            attribute = self._read(blob, _ATTRIBUTE)
            for tensor in _blobs(attribute, 5):
                self._check_tensor(tensor)
        return op

    def _check_tensor(self, data: memoryview) -> None:
        tensor = self._read(data, _TENSOR)
        name = _text(tensor, 8)
        if _integer(tensor, 14):
            raise BundleError(f"model.onnx: tensor {name!r} keeps its values outside the file")
        element_type = _integer(tensor, 2)
        if element_type not in _ELEMENT_BYTES:
            raise BundleError(f"model.onnx: tensor {name!r} has element type {element_type}, which is not allowed")
        n_elements = math.prod(_integers(tensor, 1))
        raw_bytes = n_elements * _ELEMENT_BYTES[element_type]
        fits = len(_blob(tensor, 9)) == raw_bytes if 9 in tensor else n_elements <= _n_typed(tensor)
        if not fits:
            raise BundleError(f"model.onnx: tensor {name!r} claims {n_elements} values but holds another number")

    def _value(self, data: memoryview) -> TensorInfo:
        value = self._read(data, _VALUE)
        tensor_type = self._read(_blob(self._read(_blob(value, 2), _TYPE), 1), _TENSOR_TYPE)
        shape = self._read(_blob(tensor_type, 2), _SHAPE)
        dims = (self._read(blob, _DIMENSION) for blob in _blobs(shape, 1))
        return TensorInfo(
            _text(value, 1),
            _integer(tensor_type, 1),
            tuple(_integer(dim, 1) if 1 in dim else _text(dim, 2) for dim in dims),
        )

    def _read(self, data: memoryview, message: Message) -> _Fields:
        fields: _Fields = {}
        for number, wire_type, value in self._walk(data):
            expected = message.wire_types.get(number)
            if expected is None:
                raise BundleError(f"model.onnx: {message.name} field {number} is not allowed")
            if number == 1 and message is _TENSOR and wire_type == _BYTES and isinstance(value, memoryview):
                fields.setdefault(1, []).extend(_varints(value))  # dimensions may be packed
                continue
            if wire_type != expected or (number in fields and number not in message.repeated):
                raise BundleError(f"model.onnx: {message.name} field {number} is malformed")
            fields.setdefault(number, []).append(value)
        return fields

    def _walk(self, data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
        """Yield (field number, wire type, value) of one message."""
        position = 0
        while position < len(data):
            self.fields_left -= 1
            if self.fields_left < 0:
                raise BundleError(f"model.onnx: has more than {MAX_FIELDS} fields")
            key, position = _varint(data, position)
            value: int | memoryview
            if (wire_type := key & 7) == _VARINT:
                value, position = _varint(data, position)
            else:
                start, position = _span(data, position, wire_type)
                value = data[start:position]
            yield key >> 3, wire_type, value


def _span(data: memoryview, position: int, wire_type: int) -> tuple[int, int]:
    """Return start and end of a value that is not a varint."""
    if wire_type == _BYTES:
        n_bytes, position = _varint(data, position)
    else:
        n_bytes = {_FIXED64: 8, _FIXED32: 4}.get(wire_type, len(data) + 1)  # groups and unknown types: too long
    if position + n_bytes > len(data):
        raise BundleError("model.onnx: is malformed or cut short")
    return position, position + n_bytes


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the value that begins at `position`, and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise BundleError("model.onnx: is malformed or cut short")


def _varints(data: memoryview) -> list[int]:
    values: list[int] = []
    position = 0
    while position < len(data) and len(values) < 16:  # no tensor has more dimensions than that
        value, position = _varint(data, position)
        values.append(value)
    return values


def _n_typed(tensor: _Fields) -> int:
    """Return an upper bound on the values in the typed fields of a tensor."""
    least_bytes = {4: 4, 5: 1, 7: 1, 10: 8}  # per value: floats, varints, varints, doubles
    return max(len(_blob(tensor, number)) // size for number, size in least_bytes.items())


def _integers(fields: _Fields, number: int) -> list[int]:
    return [value for value in fields.get(number, []) if isinstance(value, int)]


def _integer(fields: _Fields, number: int) -> int:
    return next(iter(_integers(fields, number)), 0)


def _blobs(fields: _Fields, number: int) -> list[memoryview]:
    return [value for value in fields.get(number, []) if isinstance(value, memoryview)]


def _blob(fields: _Fields, number: int) -> memoryview:
    return next(iter(_blobs(fields, number)), memoryview(b""))


def _text(fields: _Fields, number: int) -> str:
    try:
        return str(_blob(fields, number), "utf-8")
    except UnicodeDecodeError as exc:
        raise BundleError("model.onnx: holds a name that is not UTF-8") from exc
