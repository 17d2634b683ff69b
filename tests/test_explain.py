"""explain: feature maps and class activation equal the torch network's; any graph is read without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from soundmark import bundle
from soundmark.bundle import Bundle
from soundmark.classifier import Classifier
from soundmark.errors import ConfigError
from soundmark.explain import Explainer, Layer, tree
from soundmark.golden import golden as golden_of
from tiny import TINY_FRONTEND, TINY_WINDOW, tiny_model


@pytest.fixture
def features(tiny_classifier: Classifier, rng: np.random.Generator) -> np.ndarray:
    samples = (0.1 * rng.standard_normal(16_000)).astype(np.float32)
    return tiny_classifier.features((samples, 16_000))[0]


def test_maps_are_what_the_convolution_gives(tiny_classifier: Classifier, features: np.ndarray) -> None:
    """The tiny network has one convolution as high as the features: computed here by hand."""
    (name, maps), *rest = Explainer(tiny_classifier).feature_maps(features).items()
    assert (name, rest, maps.shape) == ("conv", [], (8, 1, 31))
    import onnx

    model = onnx.load_from_string(tiny_classifier.bundle.model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for frame in (0, 7, 30):
        window = features[:, 2 * frame : 2 * frame + 3]
        wanted = (weights["w1"][:, 0] * window).sum(axis=(1, 2)) + weights["b1"]
        np.testing.assert_allclose(maps[:, 0, frame], wanted, rtol=1e-4, atol=1e-4)


def test_shares_of_the_tiny_network_sum_to_the_logit(
    tiny_classifier: Classifier, features: np.ndarray
) -> None:
    import onnx

    model = onnx.load_from_string(tiny_classifier.bundle.model)
    bias = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "b2")
    logits = tiny_classifier.runtime.logits(features[None])[0]
    explainer = Explainer(tiny_classifier)
    for column, label in enumerate(tiny_classifier.labels):
        found = explainer.class_activation(features, label)
        assert found.label == label
        assert found.logit == pytest.approx(logits[column], abs=1e-4)
        assert found.shares.shape == (1, 31)
        assert float(found.shares.sum()) == pytest.approx(logits[column] - bias[column], abs=5e-3)
    assert explainer.class_activation(features).label == tiny_classifier.labels[int(logits.argmax())]


def test_wrong_questions(tiny_classifier: Classifier, features: np.ndarray) -> None:
    explainer = Explainer(tiny_classifier)
    for call, code in (
        (lambda: explainer.feature_maps(features, ["nope"]), "no_such_layer"),
        (lambda: explainer.class_activation(features, "nope"), "no_such_label"),
        (lambda: explainer.feature_maps(features[:, 1:]), "bad_config"),
    ):
        with pytest.raises(ConfigError) as refused:
            call()
        assert refused.value.code == code


def test_layers_make_a_tree() -> None:
    layers = [
        Layer(name, "", n) for name, n in (("stem", 3), ("a.b", 4), ("a.c.0", 5), ("a.c", 6), ("stem.x", 7))
    ]
    assert tree(layers) == {"stem": {"": 3, "x": 7}, "a": {"b": 4, "c": {"0": 5, "": 6}}}


def test_gates_and_activations_behind_the_last_convolution(
    make_bundle: Callable[..., Bundle], features: np.ndarray, rng: np.random.Generator
) -> None:
    """x * sigmoid(x) with two consumers, and a squeeze-and-excite gate: the map is the one behind them."""

    def tensor(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((0.2 * rng.standard_normal(shape)).astype(np.float32), name)

    def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(op, inputs.split(), [output], **attributes)

    nodes = [
        node("Unsqueeze", "features axes", "image"),
        node("Conv", "image net.stem.weight", "c1", kernel_shape=[4, 4], strides=[4, 4]),
        node("Sigmoid", "c1", "s1"),
        node("Mul", "c1 s1", "m1"),
        node("GlobalAveragePool", "m1", "g1"),
        node("Conv", "g1 net.gate.weight", "c2", kernel_shape=[1, 1]),
        node("Sigmoid", "c2", "s2"),
        node("Mul", "m1 s2", "m2"),
        node("GlobalAveragePool", "m2", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w", "logits", transB=1),
    ]
    weights = [
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
        tensor("net.stem.weight", 6, 1, 4, 4), tensor("net.gate.weight", 6, 6, 1, 1), tensor("w", 4, 6),
    ]  # fmt: skip
    model = tiny_model(nodes, weights).SerializeToString()
    golden = golden_of(TINY_FRONTEND, TINY_WINDOW, model, n_labels=4)
    loaded = Classifier(bundle.read(make_bundle(model=model, golden=golden).path))
    explainer = Explainer(loaded)
    assert tree(explainer.layers) == {"net": {"stem": 6, "gate": 6}}
    found = explainer.class_activation(features)
    assert found.shares.shape == (8, 15)
    assert float(found.shares.sum()) == pytest.approx(found.logit, abs=5e-3)


@pytest.mark.parametrize("name", [None])
def test_the_shipped_model_can_be_explained(name: str | None, rng: np.random.Generator) -> None:
    if not bundle.available():
        pytest.skip("no bundle ships with the package")
    loaded = Classifier.load(name)
    explainer = Explainer(loaded)
    samples = (0.1 * rng.standard_normal(loaded.window_samples)).astype(np.float32)
    features = loaded.features((samples, loaded.sample_rate))[0]
    assert {*explainer.feature_maps(features, ["layers.16.conv"])} <= {
        layer.name for layer in explainer.layers
    }
    found = explainer.class_activation(features)
    assert np.isfinite(found.shares).all()
    assert Path(loaded.bundle.path).is_dir()
