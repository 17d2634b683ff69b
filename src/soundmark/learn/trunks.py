"""A bundle's graph in two: the trunk, features to embedding, and the head, its last layer, which alone may differ.

Bundles that were trained on a frozen trunk differ in the head alone, so what the trunk made of a window serves all of
them. Where the graph does not end in a `Gemm` of float constants (an int8 bundle), the trunk is the whole of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import audio, onnxgraph
from soundmark.bundle import RESAMPLER, Bundle
from soundmark.errors import TrainingError
from soundmark.frontend import Frontend
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
    """

    weight: Array
    bias: Array

    def __call__(self, embedding: npt.NDArray[Any]) -> Array:
        """Return logits ``(..., n_labels)`` of embeddings ``(..., width)``."""
        logits: Array = np.asarray(embedding, np.float32) @ self.weight + self.bias
        return logits


def split_head(model: bytes, *, name: str) -> tuple[bytes, Head | None]:
    """Return the graph up to its last layer and that layer; the whole graph and None where there is no such end.

    The trunk's output has the name and the place of the logits, so that `Runtime` takes it, and the bytes do not depend
    on the head.
    """
    proto = onnxgraph.parse(model, name=name)
    onnxgraph.check(proto, name=name)
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    last = next((node for node in graph.node if OUTPUT in node.output), None)
    head = None if last is None else _head(last, constants)
    del graph.value_info[:]
    if last is None or head is None:
        return proto.SerializeToString(), None
    embedding = last.input[0]
    graph.node.remove(last)
    for node in graph.node:
        for names in (node.input, node.output):
            for place, one in enumerate(names):
                if one == embedding:
                    names[place] = OUTPUT
    used = {one for node in graph.node for one in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(head.weight)
    return proto.SerializeToString(), head


def _head(node: Any, constants: dict[str, Any]) -> Head | None:
    """Return what a node that gives the logits multiplies by and adds, None where it is not a plain float `Gemm`."""
    if node.op_type != "Gemm" or len(node.input) != 3 or not set(node.input[1:]) <= set(constants):
        return None
    numbers = {one.name: (one.i if one.name.startswith("trans") else one.f) for one in node.attribute}
    if numbers.get("alpha", 1.0) != 1.0 or numbers.get("beta", 1.0) != 1.0 or numbers.get("transA", 0):
        return None
    weight, bias = (onnxgraph.values(constants[one]) for one in node.input[1:])
    if weight.dtype != np.float32 or bias.dtype != np.float32 or bias.ndim != 1:
        return None
    return Head(np.array(weight.T if numbers.get("transB", 0) else weight), np.array(bias))


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
        self._width = len(manifest.labels) if self.head is None else len(self.head.weight)
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
