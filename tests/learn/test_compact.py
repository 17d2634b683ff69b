"""compact: a smaller file that says the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402

from soundmark.config import ExportConfig, NetworkConfig  # noqa: E402
from soundmark.learn import networks, quantize  # noqa: E402
from soundmark.learn.export import fold_batch_norm, to_onnx  # noqa: E402

SHAPE = (32, 51)


def made(path: Path, quiet_layer: float) -> bytes:
    """A quantised network, one of whose layers has weights of this size."""
    torch.manual_seed(0)
    network = fold_batch_norm(networks.build(NetworkConfig(kind="yamnet", keep=7), SHAPE, 5).eval())
    with torch.no_grad():
        for layer in network.layers:
            layer.conv.bias.normal_(std=0.003)
        network.layers[4].conv.weight.mul_(quiet_layer / network.layers[4].conv.weight.abs().max())
    to_onnx(network, SHAPE, path)
    features = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)
    return quantize.quantize(path, features, ExportConfig())


@pytest.mark.parametrize("quiet_layer", [0.5, 1e-6])
def test_scales_are_float16_where_that_is_enough(
    quiet_layer: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = made(tmp_path / "small.onnx", quiet_layer)
    monkeypatch.setattr(quantize, "compact", lambda model: model)
    large = made(tmp_path / "large.onnx", quiet_layer)

    convolutions = 5  # 7, of which the first two are in float
    vectors = [t for t in onnx.load_from_string(small).graph.initializer if len(t.dims) == 1]
    stored = Counter(t.data_type for t in vectors)
    assert stored[onnx.TensorProto.FLOAT16] == convolutions - (quiet_layer < 1e-3)
    long = [
        t for t in vectors if t.data_type == onnx.TensorProto.INT32
    ]  # biases, without scales of their own
    assert stored[onnx.TensorProto.INT16] + len(long) == convolutions
    assert 0 < len(long) < convolutions
    assert all(np.abs(onnx.numpy_helper.to_array(t)).max() > 32767 for t in long)
    said = [
        attribute.name
        for n in onnx.load_from_string(small).graph.node
        if n.op_type == "Conv"
        for attribute in n.attribute
    ]
    assert "dilations" not in said
    assert said.count("group") == 3

    features = np.random.default_rng(1).standard_normal((20, *SHAPE)).astype(np.float32)
    found, wanted = (ort.InferenceSession(one).run(None, {"features": features})[0] for one in (small, large))
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())
    channels = 64 + 64 + 128 + 128 + 128
    assert len(large) - len(small) > 6 * channels
