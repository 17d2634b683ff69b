"""Weights of YAMNet's TFLite file as float arrays: int8 numbers times their scales, in the order of the network.

Only the one published file is read (its SHA-256 is pinned), so nothing here has to fear what a file may hold. Slots
are the field numbers of TensorFlow's ``schema.fbs``; of the library only the reader of tables is needed.
Source: Jacob et al., CVPR 2018 (real = scale * (quantised - zero point)).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark.errors import MissingExtraError, TrainingError

YAMNET_SHA256 = "10c95ea3eb9a7bb4cb8bddf6feb023250381008177ac162ce169694d05c317de"
"""Of ``lite-model_yamnet_classification_tflite_1.tflite``, 4 126 810 bytes, Google, Apache-2.0."""

_CONVOLUTION, _DEPTHWISE, _FULL = 3, 4, 9  # BuiltinOperator
_INT8 = 9  # TensorType; biases are int32

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layer:
    """Weight and bias of one layer, as torch wants them, with rows (mel bands) before frames.

    Attributes:
        weight: ``(out, in, 3 or 1, 3 or 1)`` of a convolution, ``(out, 1, 3, 3)`` of a depthwise one, ``(out, in)`` of
            the last, full layer.
        bias: ``(out,)``, batch norm folded in.
    """

    weight: Array
    bias: Array


def is_tflite(data: bytes) -> bool:
    """Return whether ``data`` begins like a TFLite file."""
    return data[4:8] == b"TFL3"


def yamnet_layers(data: bytes, *, name: str) -> list[Layer]:
    """Return the 27 convolutions of YAMNet and its layer of 521 AudioSet classes, in order.

    Args:
        data: the bytes of the file.
        name: what to call the file in errors.

    Raises:
        TrainingError: another file; code ``bad_weights``.
        MissingExtraError: the library that reads such files is not installed.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != YAMNET_SHA256:
        raise TrainingError(
            f"{name} is another TFLite file: {len(data)} bytes, SHA-256 {digest[:12]}...",
            wanted=f"yamnet/classification/tflite/1 as Google publishes it, SHA-256 {YAMNET_SHA256[:12]}...",
            cause="a cut download, or YAMNet in another packing",
            code="bad_weights",
        )
    try:
        from flatbuffers.table import Table
    except ImportError:
        raise MissingExtraError.of("train", "flatbuffers") from None

    model = _Row(Table(data, int.from_bytes(data[:4], "little")))
    graph = model.rows(2)[0]
    codes = [max(code.number(0, "Int8"), code.number(3, "Int32")) for code in model.rows(1)]
    tensors, buffers = graph.rows(0), model.rows(4)
    layers: list[Layer] = []
    for operator in graph.rows(3):
        kind = codes[operator.number(0, "Uint32")]
        if kind not in (_CONVOLUTION, _DEPTHWISE, _FULL):
            continue
        _, weight, bias = (tensors[index] for index in operator.array(1, "Int32"))
        if (
            weight.number(1, "Int8") != _INT8
        ):  # the mel bands, which are a full layer there: ours are in frontend.py
            continue
        values = _values(weight, buffers)
        if kind == _CONVOLUTION:  # out, frames, rows, in
            values = values.transpose(0, 3, 2, 1)
        elif kind == _DEPTHWISE:  # 1, frames, rows, out
            values = values.transpose(3, 0, 2, 1)
        layers.append(Layer(np.ascontiguousarray(values), _values(bias, buffers)))
    return layers


def _values(tensor: _Row, buffers: list[_Row]) -> Array:
    """Return a quantised tensor as float numbers."""
    stored = buffers[tensor.number(2, "Uint32")].array(0, "Uint8").tobytes()
    dtype = np.int8 if tensor.number(1, "Int8") == _INT8 else np.int32
    values = np.frombuffer(stored, dtype=dtype).reshape(tensor.array(0, "Int32")).astype(np.float64)
    (quantisation,) = tensor.row(4)
    along = [1] * values.ndim
    along[quantisation.number(6, "Int32")] = -1  # one scale for each channel, or one for all
    scale, zero = (quantisation.array(*slot).reshape(along) for slot in ((2, "Float32"), (3, "Int64")))
    real: Array = ((values - zero) * scale).astype(np.float32)
    return real


class _Row:
    """One table of the file, read by field number."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def _at(self, field: int) -> int:
        return int(self._table.Offset(4 + 2 * field))

    def number(self, field: int, kind: str) -> int:
        """Return a whole number, 0 where it is not written."""
        from flatbuffers import number_types

        flags = getattr(number_types, f"{kind}Flags")
        at = self._at(field)
        return int(self._table.Get(flags, self._table.Pos + at)) if at else 0

    def array(self, field: int, kind: str) -> npt.NDArray[Any]:
        """Return a vector of numbers, empty where it is not written."""
        from flatbuffers import number_types

        at = self._at(field)
        if not at:
            return np.empty(0)
        found: npt.NDArray[Any] = self._table.GetVectorAsNumpy(getattr(number_types, f"{kind}Flags"), at)
        return found

    def row(self, field: int) -> tuple[_Row, ...]:
        """Return the table in a field, nothing where it is not written."""
        at = self._at(field)
        return (self._inner(self._table.Pos + at),) if at else ()

    def rows(self, field: int) -> list[_Row]:
        """Return the tables of a vector."""
        at = self._at(field)
        if not at:
            return []
        start, count = self._table.Vector(at), self._table.VectorLen(at)
        return [self._inner(start + 4 * index) for index in range(count)]

    def _inner(self, at: int) -> _Row:
        return _Row(type(self._table)(self._table.Bytes, self._table.Indirect(at)))
