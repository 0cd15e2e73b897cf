"""The JSON of a torch program: of the fields that torch.export writes (schema 8), those that say what is computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_VALUES = 4096
"""Inputs, weights and operators, each; the largest model of the workshop has about two hundred."""
_MAX_DIMENSIONS = 8
_MAX_ARGUMENTS = 32
_MAX_RESULTS = 16
_MAX_INTEGER = 1 << 20
"""No size, index or margin in a model is larger."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Integer = Annotated[int, Field(ge=-_MAX_INTEGER, le=_MAX_INTEGER)] | Literal[9_223_372_036_854_775_807]
"""The last is how a slice says that it ends where the tensor does."""
DTypeNumber = Literal[5, 7, 12]
Word = Literal["constant", "reflect", "replicate", "none", "tanh"]
"""How to pad, or how to approximate gelu: all that arguments say in words."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class _Union(BaseModel):
    """One of its fields, and no other."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("is not exactly one thing")
        return self

    @property
    def kind(self) -> str:
        """Return which of the fields it is."""
        (kind,) = self.model_fields_set
        return kind

    @property
    def value(self) -> Any:
        """Return what the field holds."""
        return getattr(self, self.kind)


class Named(_Part):
    """A tensor that was made before."""

    name: Name


class SizeArgument(_Union):
    """A size: the result of an operator, or a number."""

    as_name: Name | None = None
    as_int: Integer | None = None


class Argument(_Union):
    """An argument of an operator, or a result of one."""

    as_none: bool | None = None
    as_tensor: Named | None = None
    as_tensors: Annotated[list[Named], Field(max_length=_MAX_ARGUMENTS)] | None = None
    as_int: Integer | None = None
    as_ints: Annotated[list[Integer], Field(max_length=_MAX_ARGUMENTS)] | None = None
    as_sym_int: SizeArgument | None = None
    as_sym_ints: Annotated[list[SizeArgument], Field(max_length=_MAX_ARGUMENTS)] | None = None
    as_float: float | None = None
    as_bool: bool | None = None
    as_string: Word | None = None
    as_scalar_type: DTypeNumber | None = None


class NodeInput(_Part):
    """An argument in its place: by position if kind is 1, by name if it is 2."""

    name: Name
    arg: Argument
    kind: Literal[1, 2]


class Node(_Part):
    """An operator, applied."""

    target: Name
    inputs: Annotated[list[NodeInput], Field(max_length=_MAX_ARGUMENTS)]
    outputs: Annotated[list[Argument], Field(min_length=1, max_length=_MAX_RESULTS)]


class Graph(_Part):
    """Operators in the order in which they are applied."""

    nodes: Annotated[list[Node], Field(max_length=MAX_VALUES)]


class UserValue(_Part):
    """An input or an output of the program."""

    arg: Argument


class Parameter(_Part):
    """A weight that was learned."""

    arg: Named
    parameter_name: Name


class Buffer(_Part):
    """A weight that was measured."""

    arg: Named
    buffer_name: Name


class TensorConstant(_Part):
    """A weight that was written down."""

    arg: Named
    tensor_constant_name: Name


class InputSpec(_Union):
    """Something that a program is given."""

    user_input: UserValue | None = None
    parameter: Parameter | None = None
    buffer: Buffer | None = None
    tensor_constant: TensorConstant | None = None


class OutputSpec(_Union):
    """Something that a program gives: an answer, never a change to what it was given."""

    user_output: UserValue | None = None


class Signature(_Part):
    """What the program is given, and what it gives."""

    input_specs: Annotated[list[InputSpec], Field(min_length=1, max_length=MAX_VALUES)]
    output_specs: Annotated[list[OutputSpec], Field(min_length=1, max_length=_MAX_RESULTS)]


class GraphModule(_Part):
    """The graph and its signature."""

    graph: Graph
    signature: Signature


class SchemaVersion(_Part):
    """Of the JSON itself; a new major one is another format."""

    major: Literal[8]


class Model(_Part):
    """The whole of models/model.json."""

    schema_version: SchemaVersion
    graph_module: GraphModule


class Extent(_Part):
    """A size, a stride or an offset of a weight: never a symbol."""

    as_int: Annotated[int, Field(ge=0, lt=1 << 32)]


class TensorMeta(_Part):
    """How the bytes of a weight are laid out."""

    dtype: DTypeNumber
    sizes: Annotated[list[Extent], Field(max_length=_MAX_DIMENSIONS)]
    strides: Annotated[list[Extent], Field(max_length=_MAX_DIMENSIONS)]
    storage_offset: Extent


class Payload(_Part):
    """Where the bytes of a weight lie."""

    path_name: Name
    use_pickle: Literal[False]
    tensor_meta: TensorMeta


class Config(_Part):
    """The weights, by their names in the module that was exported."""

    config: Annotated[dict[Name, Payload], Field(max_length=MAX_VALUES)]
