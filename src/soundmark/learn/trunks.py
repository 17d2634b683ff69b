"""A bundle's graph in two: the trunk, features to embedding, and the head, its last layer, which alone may differ.

Bundles that were trained on a frozen trunk differ in the head alone, so what the trunk made of a window serves all of
them. The head is a `Gemm` of float constants, or two with a division by the length between them (`learn.cosine`). Where
the graph ends in neither (an int8 bundle), the trunk is the whole of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import audio, onnxgraph
from soundmark.bundle import RESAMPLER, Bundle
from soundmark.errors import TrainingError
from soundmark.frontend import Frontend
from soundmark.learn.cosine import LEAST
from soundmark.runtime import OUTPUT, Runtime

Array = npt.NDArray[np.float32]

_LARGEST = 6e4
"""Largest embedding value that float16 holds, a little rounded down."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last layer: logits are ``embedding @ weight + bias``.

    Attributes:
        weight: ``(width, n_labels)``.
        bias: ``(n_labels,)``.
        projection: what comes before it, whose output gets the length 1; None: nothing.
    """

    weight: Array
    bias: Array
    projection: Head | None = None

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return len((self.projection or self).weight)

    def __call__(self, embedding: npt.NDArray[Any]) -> Array:
        """Return logits ``(..., n_labels)`` of embeddings ``(..., width)``."""
        x = np.asarray(embedding, np.float32)
        if self.projection:
            x = self.projection(x)
            x = x / (np.linalg.norm(x, axis=-1, keepdims=True) + LEAST)
        logits: Array = x @ self.weight + self.bias
        return logits


def split_head(model: bytes, *, name: str) -> tuple[bytes, Head | None]:
    """Return the graph up to its last layer and that layer; the whole graph and None where there is no such end.

    The trunk's output has the name and the place of the logits, so that `Runtime` takes it, and the bytes do not depend
    on the head.
    """
    proto = onnxgraph.parse(model, name=name)
    onnxgraph.check(proto, name=name)
    graph = proto.graph
    nodes, head = _end(graph)
    del graph.value_info[:]
    if head is None:
        return proto.SerializeToString(), None
    embedding = nodes[-1].input[0]
    for node in nodes:
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            for place, one in enumerate(names):
                if one == embedding:
                    names[place] = OUTPUT
    used = {one for node in graph.node for one in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = head.width
    return proto.SerializeToString(), head


def _end(graph: Any) -> tuple[list[Any], Head | None]:
    """Return the nodes of the head, last one first, and the head; none where the graph does not end in one."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    last = makers.get(OUTPUT)
    head = _linear(last, constants)
    if last is None or head is None:
        return [], None
    behind = _to_length_one(last.input[0], makers, constants)
    before = _linear(makers.get(behind[-1].input[0]), constants) if behind else None
    if before is None:
        return [last], head
    return [last, *behind, makers[behind[-1].input[0]]], replace(head, projection=before)


def _to_length_one(name: str, makers: dict[str, Any], constants: dict[str, Any]) -> list[Any]:
    """Return the nodes that make ``name`` of a tensor, x / (sqrt(sum(x * x)) + LEAST), last one first; or none."""
    nodes: list[Any] = []
    for kind, place in (("Div", 1), ("Add", 0), ("Sqrt", 0), ("ReduceSum", 0), ("Mul", 0)):
        node = makers.get(name)
        if node is None or node.op_type != kind:
            return []
        nodes.append(node)
        name = node.input[place]
    divided, added, *_, squared = nodes
    least = constants.get(added.input[1])
    same = {divided.input[0], *squared.input} == {name}
    return nodes if same and least is not None and onnxgraph.values(least).item() < 2 * LEAST else []


def _linear(node: Any, constants: dict[str, Any]) -> Head | None:
    """Return what a node multiplies by and adds, None where it is not a plain float `Gemm`."""
    if node is None or node.op_type != "Gemm" or not {*node.input[1:]} <= {*constants}:
        return None
    numbers = {one.name: (one.i if one.name.startswith("trans") else one.f) for one in node.attribute}
    if numbers.get("alpha", 1.0) != 1.0 or numbers.get("beta", 1.0) != 1.0 or numbers.get("transA", 0):
        return None
    weight, *biases = (onnxgraph.values(constants[one]) for one in node.input[1:])
    weight = weight.T if numbers.get("transB", 0) else weight
    bias = biases[0] if biases else np.zeros(weight.shape[1], np.float32)
    if weight.dtype != np.float32 or bias.dtype != np.float32 or bias.ndim != 1:
        return None
    return Head(np.array(weight), np.array(bias))


class Trunk:
    """What a teacher's trunk makes of windows; a `views.Consumer`.

    Attributes:
        key: SHA-256 over the trunk and its front end; equal ones are one trunk.
        sample_rate: at which it hears, in Hz.
        row: windows of the teacher in one of the student's, and the width of an embedding (or number of labels).
        dtype: float16 of embeddings, float32 of logits.
        head: what makes logits of embeddings, None where they are logits.
    """

    def __init__(self, verified: Bundle, *, window_s: float, threads: int = 1) -> None:
        manifest = verified.manifest
        model, self.head = split_head(verified.model, name=manifest.name)
        self._name, self._model, self._threads = manifest.name, model, threads
        self._frontend = Frontend(manifest.frontend)
        self._window, self._hop = manifest.window_samples, manifest.hop_samples
        self.sample_rate = manifest.frontend.sample_rate
        said = json.dumps([manifest.frontend_fingerprint, self._window, self._hop, RESAMPLER, window_s])
        self.key = hashlib.sha256(said.encode() + model).hexdigest()
        heard = np.zeros(round(window_s * self.sample_rate), dtype=np.float32)
        self._width = len(manifest.labels) if self.head is None else self.head.width
        self.row = (len(self._windows(heard)), self._width)
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if self.head is None else np.float16)
        self._runtime: Runtime | None = None

    def _windows(self, samples: Array) -> Array:
        return audio.windows(samples, window_samples=self._window, hop_samples=self._hop)

    def __call__(self, samples: Array) -> npt.NDArray[Any]:
        """Return ``(n, *row)`` of ``samples`` ``(n, n_samples)``.

        Raises:
            TrainingError: an embedding is too large to be kept.
        """
        if self._runtime is None:  # not before it is needed: most runs find everything in the cache
            shape = self._frontend.shape(self._window)
            self._runtime = Runtime(
                self._model,
                input_shape=shape,
                n_labels=self._width,
                threads=self._threads,
                name=f"trunk of {self._name}",
            )
        parts = np.concatenate([self._windows(one) for one in samples])
        rows = self._runtime.logits(np.stack([self._frontend(part) for part in parts]))
        if self.head is not None and np.abs(rows).max(initial=0.0) > _LARGEST:
            raise TrainingError(
                f"{self._name} has an embedding of {np.abs(rows).max():.3g}",
                wanted=f"values within {_LARGEST:g}, which float16 holds",
                code="bad_teacher",
            )
        return rows.reshape(len(samples), *self.row).astype(self.dtype)
