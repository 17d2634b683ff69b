"""Feature maps of every convolution, and where in a window the evidence for a label lies; ONNX Runtime only, no torch.

The graph of the bundle gets more outputs (`onnxgraph.add_outputs`), so the maps are what the shipped model computes; of
an int8 bundle, the dequantised values. A class activation map is made from the part of the graph behind the last
feature map. Pooling and linear layers are piecewise linear, so a small step along one place of the map gives that
place's share of the logit: the sum over channels of gradient times activation ("HiResCAM", Draelos & Carin 2020,
arXiv:2011.08891; equal to the CAM of Zhou et al., CVPR 2016, for mean pooling), without automatic differentiation.
It is computed in float64: int8 activations have many equal values, and a pooling that picks the largest places must
pick one of them, by a difference that float32 does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import explain_tail, onnxgraph
from soundmark.classifier import Classifier
from soundmark.errors import ConfigError
from soundmark.runtime import INPUT, session

TIE, STEP = 1e-5, 1e-9
"""Relative slope over the places, the first one highest, that separates equal values; and the step along one place."""
PLACES_AT_ONCE = 32
SAME_PLACES = frozenset(
    """
    Add BatchNormalization Cast Clip DequantizeLinear Div Elu Erf Gelu HardSigmoid HardSwish Identity LeakyRelu Mish
    Mul PRelu QuantizeLinear Relu Selu Sigmoid Softplus Softsign Sub Tanh
    """.split()  # noqa: SIM905
)
"""Operators whose output has the places of their input."""
Array = npt.NDArray[np.float32]
Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution."""

    name: str  # as in the network that was trained, for example "stages.1.conv1.0"
    tensor: str  # where its output is in the graph
    channels: int  # maps that it gives
    n_spatial: int = 2  # dimensions of a map: rows and frames, or frames alone


@dataclass(frozen=True, slots=True)
class Activation:
    """Where the evidence for one label lies in one window."""

    label: str
    logit: float
    shares: Array  # (rows, frames) of the last feature map: share of each place in the logit, may be negative


class Explainer:
    """Feature maps and class activation of one classifier's windows.

    >>> explainer = Explainer(Classifier.load())  # doctest: +SKIP
    >>> maps = explainer.feature_maps(classifier.features("dog.wav")[0])  # doctest: +SKIP

    Args:
        classifier: whose model is to be explained.
        threads: threads of one run.

    Raises:
        ConfigError: the model has no convolution; code ``no_such_layer``.
    """

    def __init__(self, classifier: Classifier, *, threads: int = 1) -> None:
        self._classifier = classifier
        name = classifier.name
        model = onnxgraph.parse(classifier.bundle.model, name=name)
        self.layers = _layers(model.graph)
        if not self.layers:
            raise ConfigError(f"{name} has no convolution", wanted="a network of them", code="no_such_layer")
        self._last = _last_map(model.graph, self.layers[-1].tensor)
        self._beside = explain_tail.beside(model.graph, self._last)
        self._threads = threads
        onnxgraph.add_outputs(model, [*(layer.tensor for layer in self.layers), self._last, *self._beside])
        self._session = session(model.SerializeToString(), threads=threads)

    @cached_property
    def _tail(self) -> tuple[Any, str]:
        """The session behind the last map, and its output; made when it is first asked for."""
        name = self._classifier.name
        model = onnxgraph.parse(self._classifier.bundle.model, name=name)
        tail, output = explain_tail.cut(model, self._last, self.layers[-1].n_spatial, name)
        return session(tail, threads=self._threads), output

    def select(self, names: Iterable[str]) -> tuple[Layer, ...]:
        """Return the layers of these names or below them ("stages.1" for all of that stage, "all" for every one).

        Raises:
            ConfigError: a name that is not in the tree; code ``no_such_layer``.
        """
        wanted = [*names]
        for name in wanted:
            if not any(_below(layer.name, name) for layer in self.layers):
                known = ", ".join(layer.name for layer in self.layers)
                raise ConfigError(
                    f"no layer {name[:80]!r}", wanted=f"all, or one of: {known}", code="no_such_layer"
                )
        return tuple(layer for layer in self.layers if any(_below(layer.name, name) for name in wanted))

    def feature_maps(self, features: Array, names: Iterable[str] = ("all",)) -> dict[str, Array]:
        """Return layer name -> its maps ``(channels, rows, frames)`` for one window.

        In int8, a ReLU or ReLU6 behind a convolution is part of it, and its maps are those behind the activation.

        Args:
            features: ``(n_rows, n_frames)``, one window of `Classifier.features`.
            names: as of `select`.

        Raises:
            ConfigError: an unknown layer, or features of another shape.
        """
        chosen = self.select(names)
        found = self._session.run([layer.tensor for layer in chosen], self._feed(features))
        return {layer.name: _map(array) for layer, array in zip(chosen, found, strict=True)}

    def class_activation(self, features: Array, label: str | None = None) -> Activation:
        """Return where the evidence for ``label`` (None: the best one) lies in one window.

        The sum of the shares is the logit without the biases behind the last map, where pooling is linear or picks the
        largest places, and the last layer is linear; of other networks they are what a small change would do. Of int8
        bundles, what is behind the last map is computed without rounding to 8 bits. What is pooled
        of layers on the way stays as it is.

        Raises:
            ConfigError: an unknown label, or features of another shape.
        """
        labels = self._classifier.labels
        if label is not None and label not in labels:
            raise ConfigError(f"no label {label[:80]!r}", wanted="a label of the model", code="no_such_label")
        last, *others = self._session.run([self._last, *self._beside], self._feed(features))
        (logits,) = self._run_tail(last, others)
        column = int(logits.argmax()) if label is None else labels.index(label)
        places = last[0].reshape(len(last[0]), -1).astype(np.float64)  # (channels, places)
        places *= 1 + np.linspace(TIE, 0, places.shape[1])
        base = self._run_tail(places.reshape(last.shape), others)[0, column]
        shares = np.empty(places.shape[1], np.float32)
        for first in range(0, len(shares), PLACES_AT_ONCE):
            at = np.arange(first, min(first + PLACES_AT_ONCE, len(shares)))
            moved = np.repeat(places[None], len(at), axis=0)  # (n, channels, places)
            moved[np.arange(len(at)), :, at] *= 1 + STEP
            answers = self._run_tail(moved.reshape(-1, *last.shape[1:]), others)[:, column]
            shares[at] = (answers - base) / STEP
        return Activation(labels[column], float(logits[column]), shares.reshape(_map(last).shape[1:]))

    def _feed(self, features: Array) -> dict[str, Array]:
        shape = self._classifier.runtime.input_shape
        if features.shape != shape:
            raise ConfigError(f"features of shape {features.shape}", wanted=f"one window, {shape}")
        return {INPUT: np.ascontiguousarray(features[None], np.float32)}

    def _run_tail(self, maps: npt.NDArray[Any], others: list[Array]) -> npt.NDArray[np.float64]:
        tail, output = self._tail
        given = [maps, *(np.repeat(other, len(maps), axis=0) for other in others)]
        feed = zip((self._last, *self._beside), given, strict=True)
        (logits,) = tail.run([output], {name: np.ascontiguousarray(x, np.float64) for name, x in feed})
        return logits  # type: ignore[no-any-return]


def tree(layers: Iterable[Layer]) -> Tree:
    """Return layers as nested dicts by the parts of their names; a leaf is the number of maps."""
    root: Tree = {}
    for layer in layers:
        *path, leaf = layer.name.split(".")
        here = root
        for part in path:
            inner = here.setdefault(part, {})
            if not isinstance(inner, dict):  # a layer that has layers below it
                inner = here[part] = {"": inner}
            here = inner
        if isinstance(here.get(leaf), dict):
            here[leaf][""] = layer.channels
        else:
            here[leaf] = layer.channels
    return root


def _below(name: str, prefix: str) -> bool:
    return prefix == "all" or name == prefix or name.startswith(f"{prefix}.")


def _map(array: Array) -> Array:
    """Return ``(1, channels, ...)`` as ``(channels, rows, frames)``; maps over time alone have one row."""
    maps: Array = array[0].reshape(array.shape[1], -1, array.shape[-1])
    return maps


def _layers(graph: Any) -> tuple[Layer, ...]:
    """Return the convolutions in the order of the graph, named after their weights."""
    stored_as = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {name: tuple(tensor.dims) for name, tensor in stored_as.items()}
    sizes |= {  # two weights to a byte
        node.output[0]: tuple(onnxgraph.values(stored_as[node.input[1]]).tolist())
        for node in graph.node
        if node.op_type == "Reshape" and node.input[1] in stored_as
    }
    made = {name: node for node in graph.node for name in node.output}
    found: list[Layer] = []
    names: dict[str, int] = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        weight = node.input[1]
        producer = made.get(weight)
        stored = (
            producer.input[0] if producer is not None and producer.op_type == "DequantizeLinear" else weight
        )
        name = re.sub(r"(_quantized)?$", "", stored, count=1)
        name = name.removesuffix(".weight") if name.endswith(".weight") else node.name or node.output[0]
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:  # weights used twice
            name = f"{name}#{names[name]}"
        size = sizes.get(stored, (0, 0, 0, 0))  # (channels, channels before, rows, frames)
        found.append(Layer(name, _dequantised(graph, node.output[0]), size[0], len(size) - 2))
    return tuple(found)


def _consumers(graph: Any, tensor: str) -> list[Any]:
    return [node for node in graph.node if tensor in node.input]


def _dequantised(graph: Any, tensor: str) -> str:
    """Return what the rest of the graph sees of ``tensor``: in a graph of int8, its dequantised values."""
    after = _consumers(graph, tensor)
    if len(after) == 1 and after[0].op_type == "QuantizeLinear":
        last = _consumers(graph, after[0].output[0])
        if len(last) == 1 and last[0].op_type == "DequantizeLinear":
            return str(last[0].output[0])
    return tensor


def _last_map(graph: Any, tensor: str) -> str:
    """Return the last tensor behind ``tensor`` that has the same places: after activation, shortcut and gates."""
    while True:
        after = _consumers(graph, tensor)
        if not after or any(node.op_type not in SAME_PLACES for node in after):
            return tensor
        if len(after) > 1:  # x * sigmoid(x) and the like: the node that all the others lead to
            after = [node for node in after if all(o is node or o.output[0] in node.input for o in after)]
            if len(after) != 1:
                return tensor
        tensor = str(after[0].output[0])
