"""The structure of an ONNX file, and the rules that a model must keep before any session sees it.

ONNX Runtime has no allow-list of operators and takes external data even from models given as bytes, so this file reads
the protobuf itself: `parse` (with a budget on fields, because two bytes can ask for a hundred), `check`, and
`input_output`. The messages are the subset of ``onnx.proto`` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)
that a classifier needs; fields outside it are kept, so a model can be changed and serialised again. The ``onnx``
package is not needed: `google.protobuf` comes with ONNX Runtime.

Rules (docs: RELIABILITY M14-M18): one file; only the operators in `ALLOWED_OPS` of the standard domain; no subgraphs,
functions, strings or sparse tensors; IR version and opset that every supported ONNX Runtime reads; tensor sizes that
match their data; at most `MAX_NODES` nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from soundmark.errors import BundleError

MIN_IR, MAX_IR = 7, 10
"""Accepted IR versions; 10 is what ONNX Runtime 1.20, the oldest supported, reads."""
MIN_OPSET, MAX_OPSET = 13, 21
"""Accepted opsets of the standard domain: per-channel DequantizeLinear begins at 13, ONNX Runtime 1.20 ends at 21."""
MAX_NODES = 10_000
MAX_FIELDS = 300_000
"""Protobuf fields in one file; counted before a parser turns each of them into an object."""

# Left out on purpose: what allocates by a number in the file (ConstantOfShape, Range, Expand, Tile, Resize, OneHot,
# RandomNormal ...), subgraphs (If, Loop, Scan), state and strings. Dropout belongs to training.
ALLOWED_OPS = frozenset(
    """
    Abs Add ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv DequantizeLinear Div Elu Equal
    Erf Exp Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less Log LogSoftmax MatMul Max MaxPool
    Mean Min Mish Mul Neg PRelu Pad Pow QuantizeLinear Reciprocal ReduceL2 ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceSum ReduceSumSquare Relu Reshape Selu Shape Sigmoid Slice Softmax Softplus Softsign Split Sqrt
    Squeeze Sub Sum Tanh TopK Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)

FLOAT32, INT64, FLOAT64 = 1, 7, 11
_DTYPES = {  # TensorProto.DataType -> (numpy name, bytes per value, field that holds values when raw_data does not)
    1: ("float32", 4, "float_data"),
    2: ("uint8", 1, "int32_data"),
    3: ("int8", 1, "int32_data"),
    4: ("uint16", 2, "int32_data"),
    5: ("int16", 2, "int32_data"),
    6: ("int32", 4, "int32_data"),
    7: ("int64", 8, "int64_data"),
    9: ("bool", 1, "int32_data"),
    10: ("float16", 2, "int32_data"),
    11: ("float64", 8, "double_data"),
}

# message -> "number name type", * for repeated, *! for repeated and packed. A message type that is always refused is
# declared as bytes, which reads and writes the same.
_SCHEMA = {
    "ModelProto": "1 ir_version int64, 8 opset_import *OperatorSetIdProto, 2 producer_name string, "
    "3 producer_version string, 4 domain string, 5 model_version int64, 6 doc_string string, 7 graph GraphProto, "
    "14 metadata_props *StringStringEntryProto, 20 training_info *bytes, 25 functions *FunctionProto",
    "OperatorSetIdProto": "1 domain string, 2 version int64",
    "StringStringEntryProto": "1 key string, 2 value string",
    "FunctionProto": "1 name string, 4 input *string, 5 output *string, 7 node *NodeProto, 10 domain string",
    "GraphProto": "1 node *NodeProto, 2 name string, 5 initializer *TensorProto, "
    "15 sparse_initializer *SparseTensorProto, 10 doc_string string, 11 input *ValueInfoProto, "
    "12 output *ValueInfoProto, 13 value_info *ValueInfoProto, 16 metadata_props *StringStringEntryProto",
    "NodeProto": "1 input *string, 2 output *string, 3 name string, 4 op_type string, 7 domain string, "
    "8 overload string, 5 attribute *AttributeProto, 6 doc_string string, 9 metadata_props *StringStringEntryProto",
    "AttributeProto": "1 name string, 21 ref_attr_name string, 13 doc_string string, 20 type int32, 2 f float, "
    "3 i int64, 4 s bytes, 5 t TensorProto, 6 g GraphProto, 22 sparse_tensor SparseTensorProto, 14 tp TypeProto, "
    "7 floats *float, 8 ints *int64, 9 strings *bytes, 10 tensors *TensorProto, 11 graphs *GraphProto, "
    "23 sparse_tensors *SparseTensorProto, 15 type_protos *TypeProto",
    "TensorProto": "1 dims *int64, 2 data_type int32, 3 segment bytes, 4 float_data *!float, 5 int32_data *!int32, "
    "6 string_data *bytes, 7 int64_data *!int64, 8 name string, 12 doc_string string, 9 raw_data bytes, "
    "13 external_data *StringStringEntryProto, 14 data_location int32, 10 double_data *!double, "
    "11 uint64_data *!uint64",
    "SparseTensorProto": "1 values TensorProto, 2 indices TensorProto, 3 dims *int64",
    "ValueInfoProto": "1 name string, 2 type TypeProto, 3 doc_string string",
    "TypeProto": "1 tensor_type TensorTypeProto, 4 sequence_type bytes, 5 map_type bytes, 6 denotation string, "
    "7 opaque_type bytes, 8 sparse_tensor_type bytes, 9 optional_type bytes",
    "TensorTypeProto": "1 elem_type int32, 2 shape TensorShapeProto",
    "TensorShapeProto": "1 dim *DimensionProto",
    "DimensionProto": "1 dim_value int64, 2 dim_param string, 3 denotation string",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output: name, numpy dtype name, shape (a name or "" where a dimension is not fixed)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def _build() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="soundmark/onnx.proto", package="soundmark.onnx", syntax="proto2"
    )
    for message, text in _SCHEMA.items():
        declared = file.message_type.add(name=message)
        for entry in text.split(", "):
            number, name, kind = entry.split()
            field = declared.field.add(name=name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            field.options.packed = kind.startswith("*!")
            kind = kind.lstrip("*!")
            if kind in _SCHEMA:
                field.type, field.type_name = field.TYPE_MESSAGE, f".soundmark.onnx.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
            if not field.options.packed:
                field.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindMessageTypeByName("soundmark.onnx.ModelProto")


_DESCRIPTOR = _build()
ModelProto: Any = message_factory.GetMessageClass(_DESCRIPTOR)
"""The message class; `ModelProto.SerializeToString()` writes a model back."""


def parse(data: bytes, *, name: str) -> Any:
    """Return ``data`` as a `ModelProto` message; nothing is allowed or refused yet but the file format.

    Args:
        data: the bytes of a ``.onnx`` file.
        name: what to call the file in errors.

    Raises:
        BundleError: empty, cut, not ONNX, or more than `MAX_FIELDS` fields.
    """
    try:
        _spend(memoryview(data), _DESCRIPTOR, [MAX_FIELDS], 0)
        model = ModelProto.FromString(data)
    except (DecodeError, ValueError, IndexError, RecursionError) as error:
        raise BundleError(
            f"{name} is not an ONNX model: {error or type(error).__name__}",
            wanted="a .onnx file (not .ort, .pt, .pkl, .h5 or an engine cache)",
            cause="the file is cut or of another format",
        ) from None
    if not model.HasField("graph") or not model.opset_import:
        raise BundleError(f"{name} is not an ONNX model: no graph or no opset", wanted="a .onnx file")
    return model


def check(model: Any, *, name: str) -> None:
    """Return if the model keeps every rule of this file; see the top.

    Raises:
        BundleError: the first rule it breaks, with the node or tensor; code ``model_not_allowed``.
    """

    def refuse(saw: str, wanted: str = "", cause: str = "") -> NoReturn:
        raise BundleError(f"{name}: {saw}", wanted=wanted, cause=cause, code="model_not_allowed")

    try:
        _check(model, refuse)
    except UnicodeDecodeError:
        refuse("a name that is not UTF-8")


def input_output(model: Any) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Return what the graph takes and gives, without inputs that only name an initialiser."""
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_info(value) for value in model.graph.input if value.name not in given)
    return inputs, tuple(_info(value) for value in model.graph.output)


def add_outputs(model: Any, names: Iterable[str]) -> None:
    """Make tensors inside the graph float32 outputs of ``model``, behind those it has; names that are out stay once."""
    there = {value.name for value in model.graph.output}
    for name in names:
        if name not in there:
            model.graph.output.add(name=name).type.tensor_type.elem_type = FLOAT32


def values(tensor: Any) -> npt.NDArray[Any]:
    """Return a tensor that `check` has allowed as an array (float16 as its bits, uint16)."""
    dtype, _, field = _DTYPES[tensor.data_type]
    if tensor.HasField("raw_data"):
        flat = np.frombuffer(tensor.raw_data, np.dtype(dtype).newbyteorder("<"))
    else:
        flat = np.array(getattr(tensor, field), "uint16" if dtype == "float16" else dtype)
    return flat.reshape(tuple(tensor.dims))


def _info(value: Any) -> TensorInfo:
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type, (f"type {tensor.elem_type}",))[0]
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
    return TensorInfo(value.name, dtype, shape)


def _check(model: Any, refuse: Any) -> None:
    if not MIN_IR <= model.ir_version <= MAX_IR:
        refuse(
            f"ONNX IR version {model.ir_version}",
            f"{MIN_IR} to {MAX_IR}",
            "exported by a newer or older tool",
        )
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(opsets) != 1 or not MIN_OPSET <= opsets[0] <= MAX_OPSET:
        refuse(
            f"ONNX opset {opsets}",
            f"one opset, {MIN_OPSET} to {MAX_OPSET}",
            "export with another opset_version",
        )
    if model.functions:
        refuse(
            f"model-local function {model.functions[0].name!r}", "plain operators", "inline it when exporting"
        )
    if model.training_info:
        refuse("training information in the model", "a model for inference")
    graph = model.graph
    if not 0 < len(graph.node) <= MAX_NODES:
        refuse(f"{len(graph.node)} nodes", f"1 to {MAX_NODES}")
    if graph.sparse_initializer:
        refuse("a sparse tensor", "dense initialisers")
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            refuse(f"{value.name!r} is not a tensor", "tensors in and out")
    for node in graph.node:
        where = f"node {node.name or node.op_type!r}"
        if node.domain not in ("", "ai.onnx") or node.op_type not in ALLOWED_OPS or node.overload:
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            refuse(
                f"operator {op!r} in {where} is not on the allow-list",
                "operators of a plain classifier",
                "see soundmark.onnxgraph.ALLOWED_OPS; subgraphs and allocations by number are left out on purpose",
            )
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                refuse(f"a subgraph in {where}", "one flat graph")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                refuse(f"a sparse tensor in {where}", "dense tensors")
            if attribute.HasField("tp") or attribute.type_protos or attribute.ref_attr_name:
                refuse(f"attribute {attribute.name!r} of {where} is a type or a reference", "plain values")
            if any(abs(value) > 65_536 for value in _sizes(attribute)):
                refuse(f"attribute {attribute.name!r} of {where} is above 65536", "sizes of a real network")
    for tensor in _tensors(graph):
        _check_tensor(tensor, refuse)


def _sizes(attribute: Any) -> Any:
    return (
        attribute.ints
        if attribute.name in ("pads", "kernel_shape", "strides", "dilations", "output_shape")
        else ()
    )


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_tensor(tensor: Any, refuse: Any) -> None:
    where = f"tensor {tensor.name!r}"
    if tensor.external_data or tensor.data_location:
        refuse(
            f"{where} keeps its data in another file",
            "everything in one file",
            "export without external data",
        )
    if tensor.data_type not in _DTYPES or tensor.string_data or tensor.HasField("segment"):
        refuse(f"{where} has data type {tensor.data_type}", "float, integer or bool, whole")
    _, width, field = _DTYPES[tensor.data_type]
    if len(tensor.dims) > 8 or any(dim < 0 for dim in tensor.dims):
        refuse(f"{where} has shape {list(tensor.dims)[:9]}", "at most 8 dimensions, none negative")
    wanted = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        found, rest = divmod(len(tensor.raw_data), width)
    else:
        found, rest = len(getattr(tensor, field)), 0
    if found != wanted or rest:
        refuse(
            f"{where} of shape {list(tensor.dims)} holds {found} values", f"{wanted}", "the file is damaged"
        )


def _spend(data: memoryview, message: Any, budget: list[int], depth: int) -> None:
    """Walk the wire format and count fields; `ValueError` when the budget is gone or the format is not protobuf."""
    if depth > 16:
        raise ValueError("messages nested deeper than 16")
    known = message.fields_by_number
    position, end = 0, len(data)
    while position < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise ValueError(f"more than {MAX_FIELDS} fields")
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            _, position = _varint(data, position)
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        elif wire == 2:
            length, position = _varint(data, position)
            if length > end - position:
                raise ValueError("cut")
            field = known.get(key >> 3)
            if field is not None and field.message_type is not None:
                _spend(data[position : position + length], field.message_type, budget, depth + 1)
            elif field is not None and field.type in (field.TYPE_INT64, field.TYPE_INT32, field.TYPE_UINT64):
                budget[0] -= length  # packed: a byte is a value
                if budget[0] < 0:
                    raise ValueError(f"more than {MAX_FIELDS} fields")
            position += length
        else:
            raise ValueError(f"wire type {wire}")
    if position != end:
        raise ValueError("cut")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]  # IndexError: cut
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number longer than 64 bits")
