"""The part of a graph behind its last feature map, in float64, so that it can be asked for very small differences."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import onnxgraph
from soundmark.errors import ConfigError
from soundmark.runtime import INPUT, OUTPUT, session

IN_FLOAT64 = frozenset(
    """
    Add BatchNormalization Clip Concat Constant Div Exp Flatten Gather Gemm GlobalAveragePool Identity Log MatMul Max
    MaxPool Min Mul Pow ReduceLogSumExp ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice Softmax Sqrt
    Squeeze Sub Sum Tanh TopK Transpose Unsqueeze
    """.split()  # noqa: SIM905
)
"""Operators behind the last map that ONNX Runtime has for float64 (`GlobalAveragePool`: as a mean)."""


def beside(graph: Any, start: str) -> tuple[str, ...]:
    """Return what the part behind the tensor ``start`` hears besides it: what is pooled of layers on the way."""

    def reached(first: str) -> set[str]:
        found = {first}
        for node in graph.node:
            if found & {*node.input}:
                found |= {*node.output}
        return found

    behind, heard = reached(start), reached(INPUT)
    nodes = [node for node in graph.node if start not in node.output and behind & {*node.output}]
    inputs = (name for node in nodes for name in node.input)
    return tuple(dict.fromkeys(name for name in inputs if name in heard - behind))


def cut(model: Any, start: str, n_spatial: int, name: str) -> tuple[bytes, str]:
    """Return the part of the graph from ``start``, and what is `beside` it, to the logits, and the name of its output.

    Raises:
        ConfigError: an operator that ONNX Runtime does not have for float64.
    """
    tail = onnxgraph.ModelProto()
    tail.CopyFrom(model)
    graph, starts = tail.graph, (start, *beside(model.graph, start))
    made = {output: node for node in model.graph.node for output in node.output}
    fixed = constants(model.graph)
    alias: dict[str, str] = {}
    for node in model.graph.node:  # a pair of Quantize and Dequantize is the identity, but for rounding
        before = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is not None and before.op_type == "QuantizeLinear":
            alias[node.output[0]] = before.input[0]

    def source(tensor: str) -> str:
        while tensor in alias and tensor not in starts:
            tensor = alias[tensor]
        return tensor

    needed, pending, output = set(), [source(OUTPUT)], source(OUTPUT)
    while pending:
        tensor = pending.pop()
        if tensor not in starts and tensor not in needed:
            needed.add(tensor)
            if tensor in made and tensor not in fixed:
                pending += map(source, made[tensor].input)
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:], graph.initializer[:]
    for node in model.graph.node:
        if not needed & {*node.output} - fixed:
            continue
        if node.op_type not in IN_FLOAT64:
            raise ConfigError(
                f"{name}: {node.op_type} behind the last feature map",
                wanted=f"one of: {', '.join(sorted(IN_FLOAT64))}",
                code="no_such_layer",
            )
        kept = graph.node.add()
        kept.CopyFrom(node)
        kept.input[:] = map(source, node.input)
        if node.op_type == "GlobalAveragePool":
            _as_mean(graph, kept, n_spatial, model.opset_import[0].version)
    for tensor, array in values(model, needed & fixed).items():
        _add(graph, tensor, array)
    for tensor in starts:
        graph.input.add(name=tensor).type.tensor_type.elem_type = onnxgraph.FLOAT64
    graph.output.add(name=output).type.tensor_type.elem_type = onnxgraph.FLOAT64
    return tail.SerializeToString(), output


def constants(graph: Any) -> set[str]:
    """Return the tensors that are stored, or depend on what is stored alone."""
    found = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if found >= {*node.input} - {""}:
            found |= {*node.output}
    return found


def values(model: Any, names: Collection[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the `constants` of these ``names``, as ONNX Runtime computes them when it loads the model."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {name: onnxgraph.values(stored[name]) for name in names if name in stored}
    computed = [name for name in names if name not in stored]
    if not computed:
        return found
    part = onnxgraph.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:], part.graph.value_info[:]
    nodes = constants(model.graph)
    part.graph.node.extend(node for node in model.graph.node if node.output[0] in nodes)
    for name in computed:
        part.graph.output.add(name=name)
    made = session(part.SerializeToString(), threads=1).run(computed, {})
    return found | dict(zip(computed, made, strict=True))


def _add(graph: Any, name: str, array: npt.NDArray[Any]) -> None:
    whole = np.issubdtype(array.dtype, np.integer)
    data = array.astype("<i8" if whole else "<f8").tobytes()
    graph.initializer.add(
        name=name, dims=array.shape, data_type=onnxgraph.INT64 if whole else onnxgraph.FLOAT64, raw_data=data
    )


def _as_mean(graph: Any, node: Any, n_spatial: int, opset: int) -> None:
    """Make a GlobalAveragePool, which ONNX Runtime has for float32 alone, a mean over rows and frames."""
    node.op_type = "ReduceMean"
    axes = np.arange(2, 2 + n_spatial)
    if opset < 18:
        node.attribute.add(name="axes", type=7, ints=axes.tolist())  # AttributeProto.INTS
        return
    name = f"{node.output[0]}_axes"
    _add(graph, name, axes)
    node.input.append(name)
