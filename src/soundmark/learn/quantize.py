"""Static int8 of an exported graph: weights per channel, ranges from training windows, nothing that no reader needs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import quantization as ortq

from soundmark import onnxgraph
from soundmark.config import ExportConfig
from soundmark.errors import TrainingError
from soundmark.learn.compact import compact
from soundmark.learn.networks.few_levels import LARGEST, LEVELS
from soundmark.learn.rounding import with_feedback
from soundmark.runtime import INPUT, session

Array = npt.NDArray[np.float32]


def quantize(
    fp32: Path,
    calibration: Array,
    config: ExportConfig,
    refit: Callable[[onnx.ModelProto], None] | None = None,
) -> bytes:
    """Return the int8 model: QDQ, symmetric per-channel weights, ranges from ``calibration`` (n, rows, frames).

    ``refit`` may change linear layers, which are in float when it is called, and all other layers in int8.
    """
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
            reduce_range=True,  # two products of 255 and 64 fit into the 16 bits in which AVX2 adds them up
            activation_type=ortq.QuantType.QUInt8,
            weight_type=ortq.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool"],
            nodes_to_exclude=first + sums,
            calibrate_method=methods[config.calibration],
        )
    model = onnx.load(target)
    if refit:
        refit(model)
    if not config.float_last:
        model = int8_linear(model, calibration if config.linear_bits == 4 else None)
    made: bytes = compact(model).SerializeToString()
    return made


def int8_linear(model: onnx.ModelProto, four_bits: Array | None = None) -> onnx.ModelProto:
    """Return ``model`` whose linear layers have int8 weights, with a scale per input, and compute in float.

    With ``four_bits``, windows (n, rows, frames) that go through the model, weights are on `LEVELS` and rounded by
    `rounding`.

    Pooled features have ranges of their own: rounded to levels that all of them share, those that spread little are
    lost, and logits of 256 levels tie for the first place. A layer behind the pooling costs nothing in float. ONNX
    Runtime computes Cast and Mul once, when it loads the file; a DequantizeLinear would stay in every run.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    layers = [(place, node) for place, node in enumerate(graph.node) if node.op_type == "Gemm"]
    given = {} if four_bits is None else heard(model, [node.input[0] for _, node in layers], four_bits)
    for place, node in reversed(layers):
        name = node.input[1]
        weight = onnx.numpy_helper.to_array(stored[name])
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        of_input = weight if turned else weight.T  # (after, before)
        if given:
            levels, scale, shift = with_feedback(
                of_input.astype(np.float64), given[node.input[0]], largest=LARGEST
            )
            rounded, scale = LEVELS[levels + LARGEST], scale * LARGEST / LEVELS.max()
            for bias in node.input[2:]:
                moved = (onnx.numpy_helper.to_array(stored[bias]) + shift).astype(np.float32)
                stored[bias].CopyFrom(onnx.numpy_helper.from_array(moved, bias))
        else:
            scale = np.maximum(np.abs(of_input).max(axis=0) / 127, np.finfo(np.float32).tiny)
            rounded = np.round(of_input / scale).astype(np.int8)
        made = [f"{name}_cast", f"{name}_float"]
        parts = {f"{name}_quantized": rounded, f"{name}_scale": scale[None].astype(np.float32)}
        for part, values in parts.items():
            ready = np.ascontiguousarray(values if turned else values.T)
            graph.initializer.append(onnx.numpy_helper.from_array(ready, part))
        nodes = [
            onnx.helper.make_node("Cast", [f"{name}_quantized"], made[:1], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [made[0], f"{name}_scale"], made[1:]),
        ]
        node.input[1] = made[1]
        for new in reversed(nodes):
            graph.node.insert(place, new)
    return model


def heard(
    model: onnx.ModelProto, names: list[str], windows: Iterable[Array]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return what the tensors ``names`` of the model are for windows (rows, frames), ``(n, width)`` each."""
    open_ended = onnx.ModelProto()
    open_ended.CopyFrom(model)
    onnxgraph.add_outputs(open_ended, names)
    run = session(open_ended.SerializeToString(), threads=1).run
    rows = zip(*(run(names, {INPUT: window[None]}) for window in windows), strict=True)
    return {name: np.concatenate(row).astype(np.float64) for name, row in zip(names, rows, strict=True)}


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
