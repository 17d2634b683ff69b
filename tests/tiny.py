"""A tiny, deterministic model for tests, built with `onnx.helper` (no torch)."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from soundmark.config import FrontendConfig, WindowConfig

TINY_LABELS = ("dog", "rain", "siren", "vacuum cleaner")
TINY_FRONTEND = FrontendConfig(sample_rate=16_000, n_fft=512, hop_length=256, n_mels=32, mean=-40.0, std=20.0)
TINY_WINDOW = WindowConfig(window_s=1.0, hop_s=1.0)
TINY_SHAPE = (32, 63)  # what that front end gives for one second


def tiny_graph(
    n_labels: int = 4, *, rows: int = TINY_SHAPE[0], frames: int = TINY_SHAPE[1], seed: int = 0
) -> onnx.ModelProto:
    """Return features (batch, rows, frames) -> Unsqueeze, Conv, Relu, pool, Flatten, Gemm -> logits."""
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int, scale: float = 1.0) -> TensorProto:
        return numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Unsqueeze", ["features", "axes"], ["image"]),
        helper.make_node(
            "Conv", ["image", "w1", "b1"], ["c1"], kernel_shape=[rows, 3], strides=[1, 2], name="conv"
        ),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["p1"]),
        helper.make_node("Flatten", ["p1"], ["f1"]),
        helper.make_node("Gemm", ["f1", "w2", "b2"], ["logits"], transB=1),
    ]
    weights = [
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
        tensor("w1", 8, 1, rows, 3, scale=0.3),
        tensor("b1", 8),
        tensor("w2", n_labels, 8, scale=0.8),
        tensor("b2", n_labels, scale=0.1),
    ]
    return tiny_model(nodes, weights, n_labels=n_labels, rows=rows, frames=frames)


def tiny_model(
    nodes: list[onnx.NodeProto],
    weights: list[TensorProto],
    *,
    n_labels: int = 4,
    rows: int = 32,
    frames: int = 63,
) -> onnx.ModelProto:
    """Return a model of these nodes with the input and output that `Runtime` wants."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", rows, frames])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_labels])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
