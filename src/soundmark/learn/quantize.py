"""Static int8 of an exported graph: weights per channel, ranges from training windows, nothing that no reader needs."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import quantization as ortq

from soundmark.config import ExportConfig
from soundmark.errors import TrainingError
from soundmark.learn.networks.few_levels import LARGEST
from soundmark.runtime import INPUT

Array = npt.NDArray[np.float32]


def quantize(fp32: Path, calibration: Array, config: ExportConfig) -> bytes:
    """Return the int8 model: QDQ, symmetric per-channel weights, ranges from ``calibration`` (n, rows, frames)."""
    if len(calibration) == 0 or not 1e-6 <= float(calibration.std()) < np.inf:  # nor NaN
        raise TrainingError(
            "no varied calibration windows", wanted="training clips with sound", code="bad_calibration"
        )
    graph = onnx.load(fp32).graph
    first = _first_convolutions(graph) if config.float_first else []
    stored = {tensor.name for tensor in graph.initializer}
    sums = [
        node.name for node in graph.node if node.op_type == "Add" and stored & {*node.input}
    ]  # of a constant
    methods = {
        "minmax": ortq.CalibrationMethod.MinMax,
        "percentile": ortq.CalibrationMethod.Percentile,
        "entropy": ortq.CalibrationMethod.Entropy,
    }
    target = fp32.with_name("int8.onnx")
    with quiet():
        ortq.quantize_static(
            fp32,
            target,
            _Reader(calibration),
            quant_format=ortq.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ortq.QuantType.QUInt8,
            weight_type=ortq.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool"],
            nodes_to_exclude=first + sums,
            calibrate_method=methods[config.calibration],
        )
    model = onnx.load(target)
    made: bytes = packed(slim(model if config.float_last else int8_linear(model))).SerializeToString()
    return made


def int8_linear(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` whose linear layers have int8 weights, with a scale per input, and compute in float.

    Pooled features have ranges of their own: rounded to levels that all of them share, those that spread little are
    lost, and logits of 256 levels tie for the first place. A layer behind the pooling costs nothing in float. ONNX
    Runtime computes Cast and Mul once, when it loads the file; a DequantizeLinear would stay in every run.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for place, node in reversed([*enumerate(graph.node)]):
        if node.op_type != "Gemm":
            continue
        name = node.input[1]
        weight = onnx.numpy_helper.to_array(stored[name])
        inputs = int(any(attribute.name == "transB" and attribute.i for attribute in node.attribute))  # axis
        scale = np.maximum(np.abs(weight).max(axis=1 - inputs) / 127, np.finfo(np.float32).tiny)
        rounded = np.round(weight / np.expand_dims(scale, 1 - inputs)).astype(np.int8)
        parts = {f"{name}_quantized": rounded, f"{name}_scale": np.expand_dims(scale, 1 - inputs)}
        graph.initializer.extend(onnx.numpy_helper.from_array(values, part) for part, values in parts.items())
        made = [f"{name}_cast", f"{name}_float"]
        nodes = [
            onnx.helper.make_node("Cast", [f"{name}_quantized"], made[:1], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [made[0], f"{name}_scale"], made[1:]),
        ]
        node.input[1] = made[1]
        for new in reversed(nodes):
            graph.node.insert(place, new)
    return model


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` without what no reader needs, an eighth of a small file: it computes the same, as quickly.

    Zero points of weights and biases that are 0 (five bytes a channel), names of nodes, shapes in between, and long
    names of all that is not a weight.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        node.ClearField("name")
        if node.op_type != "DequantizeLinear" or not {*node.input} <= stored.keys():
            continue
        if len(node.input) == 3 and not onnx.numpy_helper.to_array(stored[node.input[2]]).any():
            del node.input[2]
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    stay = ["", *(one.name for one in (*graph.input, *graph.output))]
    stay += [tensor.name for tensor in kept if len(tensor.dims) > 1]
    free = (name for name in map("t{}".format, itertools.count()) if name not in stay)
    made = [name for node in graph.node for name in node.output] + [tensor.name for tensor in kept]
    short = {name: name if name in stay else next(free) for name in dict.fromkeys(made)}
    for tensor in graph.initializer:
        tensor.name = short[tensor.name]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]
    return model


def packed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with two weights to a byte where they have few levels (`networks.few_levels`), else as it is.

    A table has the two int8 weights of every byte. ONNX Runtime looks them up once, when it loads the file; what runs
    then is what would have run without, as quickly.
    """
    graph = model.graph
    levels = np.round(np.arange(-LARGEST, LARGEST + 1) * 127 / LARGEST).astype(np.int8)
    low, high = (np.minimum(half, len(levels) - 1) for half in (np.arange(256) & 15, np.arange(256) >> 4))
    nodes = []
    for place, tensor in enumerate([*graph.initializer]):
        weight = onnx.numpy_helper.to_array(tensor)
        if weight.dtype != np.int8 or weight.shape[2:] != (1, 1) or weight.shape[1] % 2:
            continue
        if not np.isin(weight, levels).all():
            continue
        of_level = np.searchsorted(levels, weight[:, :, 0, 0]).astype(np.uint8)  # (after, before)
        name, made = tensor.name, [f"p{place}.{step}" for step in range(3)]
        tensor.CopyFrom(onnx.numpy_helper.from_array(of_level[:, ::2] | of_level[:, 1::2] << 4, f"p{place}"))
        shape = onnx.numpy_helper.from_array(np.array(weight.shape), made[2])
        graph.initializer.append(shape)
        nodes += [
            onnx.helper.make_node("Cast", [tensor.name], made[:1], to=onnx.TensorProto.INT32),
            onnx.helper.make_node("Gather", ["pairs", made[0]], made[1:2]),  # (after, before / 2, 2)
            onnx.helper.make_node("Reshape", made[1:], [name]),
        ]
    if nodes:
        pairs = np.stack([levels[low], levels[high]], axis=1)
        graph.initializer.append(onnx.numpy_helper.from_array(pairs, "pairs"))
    for node in reversed(nodes):
        graph.node.insert(0, node)
    return model


def _first_convolutions(graph: onnx.GraphProto) -> list[str]:
    """Return the name of the first convolution, and of the second if it is depthwise.

    In int8 that one is no faster (few channels, many places), and half of the error of the whole comes from it.
    """
    first_two = [node for node in graph.node if node.op_type == "Conv"][:2]
    attributes = [attribute for node in first_two[1:] for attribute in node.attribute]
    depthwise = any(attribute.name == "group" and attribute.i > 1 for attribute in attributes)
    return [node.name for node in first_two[: 1 + depthwise]]


class _Reader(ortq.CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration windows one by one."""

    def __init__(self, windows: Array) -> None:
        self._windows: Iterator[Array] = iter(windows)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next input, or None at the end."""
        window = next(self._windows, None)
        return None if window is None else {INPUT: window[None]}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' chatter (progress prints, warnings about missing torchvision) off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
