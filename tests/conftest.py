"""Shared fixtures: a tiny, deterministic bundle built with `onnx.helper` (no torch), and signals made in code."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper

from soundmark import bundle, classifier, frontend
from soundmark.bundle import Bundle, Manifest
from soundmark.classifier import Classifier
from soundmark.config import DecisionConfig, FrontendConfig, WindowConfig

TINY_LABELS = ("dog", "rain", "siren", "vacuum cleaner")
TINY_FRONTEND = FrontendConfig(sample_rate=16_000, n_fft=512, hop_length=256, n_mels=32, mean=-40.0, std=20.0)
TINY_WINDOW = WindowConfig(window_s=1.0, hop_s=1.0)
TINY_SHAPE = frontend.Frontend(TINY_FRONTEND).shape(16_000)  # (32, 63)


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


@pytest.fixture(scope="session")
def tiny_model_bytes() -> bytes:
    """Return the ONNX file of the tiny model."""
    return tiny_graph().SerializeToString()


@pytest.fixture(scope="session")
def tiny_manifest(tiny_model_bytes: bytes) -> Manifest:
    """Return a manifest without hashes for the tiny model."""
    return Manifest(
        name="tiny",
        created_by="soundmark tests",
        labels=TINY_LABELS,
        frontend=TINY_FRONTEND,
        frontend_fingerprint=frontend.fingerprint(TINY_FRONTEND),
        window=TINY_WINDOW,
        decision=DecisionConfig(),
        golden=classifier.golden(TINY_FRONTEND, TINY_WINDOW, tiny_model_bytes, n_labels=len(TINY_LABELS)),
        licence="CC0-1.0",
        provenance={"training": {"preset": "none", "seed": 0}, "export": {}},
    )


@pytest.fixture
def make_bundle(tmp_path: Path, tiny_manifest: Manifest, tiny_model_bytes: bytes) -> Callable[..., Bundle]:
    """Return a function that writes a tiny bundle with changed manifest fields, or another ``model``."""

    def make(directory: Path | None = None, *, model: bytes | None = None, **changes: Any) -> Bundle:
        from msgspec.structs import replace

        return bundle.write(
            directory or tmp_path / f"tiny{len(list(tmp_path.iterdir()))}",
            manifest=replace(tiny_manifest, **changes),
            model=tiny_model_bytes if model is None else model,
            readme="# tiny\n",
        )

    return make


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_manifest: Manifest, tiny_model_bytes: bytes
) -> Path:
    """Return the directory of a good tiny bundle; shared, so do not change it."""
    directory = tmp_path_factory.mktemp("bundle") / "tiny"
    bundle.write(directory, manifest=tiny_manifest, model=tiny_model_bytes, readme="# tiny\n")
    return directory


@pytest.fixture(scope="session")
def tiny_classifier(tiny_bundle: Path) -> Classifier:
    """Return the classifier of the tiny bundle."""
    return Classifier.load(tiny_bundle)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a fixed seed."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def make_wav() -> Callable[..., bytes]:
    """Return a function: samples (n,) or (n, channels), rate -> bytes of a WAV file."""

    def make(
        samples: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT", container: str = "WAV"
    ) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format=container, subtype=subtype)
        return file.getvalue()

    return make
