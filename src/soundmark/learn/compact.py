"""What makes the file of a quantised graph small and changes nothing that it says: fewer names, scales and bytes.

ONNX Runtime computes what depends on constants alone once, when it loads a file; what runs then is what would have run
without, as quickly.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import helper, numpy_helper

from soundmark.learn.networks.few_levels import LEVELS


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` as a smaller file."""
    return packed(short_biases(short_scales(slim(model))))


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` without what no reader needs, an eighth of a small file.

    Zero points of weights and biases that are 0 (five bytes a channel), names of nodes, attributes of convolutions that
    say what goes without saying, shapes in between, and long names: weights keep those of their layers.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        node.ClearField("name")
        if node.op_type == "Conv":
            said = [one for one in node.attribute if not _usual(one)]
            del node.attribute[:]
            node.attribute.extend(said)
        if node.op_type != "DequantizeLinear" or not {*node.input} <= stored.keys():
            continue
        if len(node.input) == 3 and not numpy_helper.to_array(stored[node.input[2]]).any():
            del node.input[2]
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    stay = {name: name for name in ("", *(one.name for one in (*graph.input, *graph.output)))}
    stay |= {tensor.name: tensor.name.removesuffix("_quantized") for tensor in kept if len(tensor.dims) > 1}
    free = (name for name in map("t{}".format, itertools.count()) if name not in stay.values())
    made = [name for node in graph.node for name in node.output] + [tensor.name for tensor in kept]
    short = {name: stay[name] if name in stay else next(free) for name in dict.fromkeys(made)}
    for tensor in graph.initializer:
        tensor.name = short[tensor.name]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]
    return model


def short_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with scales of weights as float16, whose 11 bits are more than those of the weights.

    That of a bias is what the scales of input and weights multiply to, so it is not stored.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        parts = [makers[name] for name in node.input if name in makers]
        kinds = [part.op_type for part in parts]
        if node.op_type == "Conv" and kinds == ["DequantizeLinear"] * len(node.input):
            of_input, of_weight, *of_bias = (part.input[1] for part in parts)
            product = numpy_helper.to_array(stored[of_input]) * numpy_helper.to_array(stored[of_weight])
            for name in of_bias:
                if name in stored and np.allclose(
                    product, numpy_helper.to_array(stored[name]), rtol=1e-5, atol=0
                ):
                    graph.initializer.remove(stored.pop(name))
                    nodes.append(helper.make_node("Mul", [of_input, of_weight], [name]))
        elif node.op_type == "Mul" and kinds == ["Cast"]:
            of_weight = node.input[1]
        else:
            continue
        scale = numpy_helper.to_array(stored[of_weight])
        half = scale.astype(np.float16)
        if scale.dtype == np.float32 and np.allclose(half, scale, rtol=1e-3, atol=0):
            name = f"{of_weight}h"
            stored[of_weight].CopyFrom(numpy_helper.from_array(half, name))
            nodes.insert(0, helper.make_node("Cast", [name], [of_weight], to=onnx.TensorProto.FLOAT))
    return _begin_with(nodes, model)


def short_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with biases of int8 convolutions as int16, the same numbers, where it holds all of a layer."""
    graph = model.graph
    quantized = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if (
            tensor.name not in quantized
            or values.dtype != np.int32
            or (values != values.astype(np.int16)).any()
        ):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.int16), f"{name}h"))
        nodes.append(helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.INT32))
    return _begin_with(nodes, model)


def packed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with two weights to a byte where all are on `LEVELS`, else as it is.

    A table has the two int8 weights of every byte.
    """
    graph = model.graph
    low, high = (np.minimum(half, len(LEVELS) - 1) for half in (np.arange(256) & 15, np.arange(256) >> 4))
    nodes = []
    for place, tensor in enumerate([*graph.initializer]):
        weight = numpy_helper.to_array(tensor)
        if weight.dtype != np.int8 or weight.ndim < 2 or weight.size % 2 or not np.isin(weight, LEVELS).all():
            continue
        of_level = np.searchsorted(LEVELS, weight.ravel()).astype(np.uint8)
        name, made = tensor.name, [f"p{place}.{step}" for step in range(3)]
        tensor.CopyFrom(numpy_helper.from_array(of_level[::2] | of_level[1::2] << 4, f"p{place}"))
        graph.initializer.append(numpy_helper.from_array(np.array(weight.shape), made[2]))
        nodes += [
            helper.make_node("Cast", [tensor.name], made[:1], to=onnx.TensorProto.INT32),
            helper.make_node("Gather", ["pairs", made[0]], made[1:2]),  # (size / 2, 2)
            helper.make_node("Reshape", made[1:], [name]),
        ]
    if nodes:
        pairs = np.stack([LEVELS[low], LEVELS[high]], axis=1)
        graph.initializer.append(numpy_helper.from_array(pairs, "pairs"))
    return _begin_with(nodes, model)


def _usual(attribute: onnx.AttributeProto) -> bool:
    """Whether a convolution does the same without it."""
    usual = {"group": 1, "dilations": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "auto_pad": b"NOTSET"}
    return bool(helper.get_attribute_value(attribute) == usual.get(attribute.name))


def _begin_with(nodes: list[onnx.NodeProto], model: onnx.ModelProto) -> onnx.ModelProto:
    rest = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    return model
