"""few_levels: fifteen levels a channel, gradients straight through, two weights to a byte and the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from torch import nn  # noqa: E402

from soundmark import explain, explain_tail, onnxgraph  # noqa: E402
from soundmark.config import ExportConfig, NetworkConfig  # noqa: E402
from soundmark.learn import networks  # noqa: E402
from soundmark.learn.export import fold_batch_norm, to_onnx  # noqa: E402
from soundmark.learn.networks.few_levels import LARGEST, FewLevels, rounded  # noqa: E402
from soundmark.learn.quantize import quantize  # noqa: E402

SHAPE = (32, 51)


def network(bits: int, n_labels: int = 5, **options: object) -> nn.Module:
    torch.manual_seed(0)
    made = networks.build(
        NetworkConfig(kind="yamnet", keep=9, batch_norm=True, weight_bits=bits, **options),  # type: ignore[arg-type]
        SHAPE,
        n_labels,
    )
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(-2, 2)
            layer.bias.data.normal_()
            layer.running_var.uniform_(0.1, 3)
    return made.eval()


def windows(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, *SHAPE)).astype(np.float32)


def test_weights_are_on_fifteen_levels_and_stay_there() -> None:
    weight = torch.randn(40, 30, 1, 1)
    weight[3] = 0
    found = rounded(weight)
    levels = found / weight.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-9) * LARGEST
    assert torch.allclose(levels, levels.round(), atol=1e-5)
    assert levels.abs().amax() == pytest.approx(LARGEST)
    half = weight.abs().amax((1, 2, 3), keepdim=True) / LARGEST / 2
    assert bool(((found - weight).abs() <= half * 1.0001).all())
    assert torch.allclose(rounded(found), found, atol=1e-6)
    assert torch.allclose(rounded(-3 * weight), -3 * found, atol=1e-5)  # as batch norm folds


def test_gradients_go_straight_through() -> None:
    layer = FewLevels(6, 4, 1)
    x = torch.randn(2, 6, 3, 3)
    layer(x).square().sum().backward()
    plain = nn.Conv2d(6, 4, 1)
    plain.load_state_dict(layer.plain().state_dict())
    plain(x).square().sum().backward()
    assert torch.allclose(layer.weight.grad, plain.weight.grad, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [0, 8])
def test_a_folded_network_says_the_same_with_plain_convolutions(rank: int) -> None:
    made, x = network(4, rank=rank), torch.from_numpy(windows(4))
    assert any(isinstance(layer, FewLevels) for layer in made.modules())
    with torch.no_grad():
        wanted = made(x)
        found = fold_batch_norm(made)(x)
    assert not any(isinstance(layer, FewLevels) for layer in made.modules())
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_linear_layers_of_four_bits_say_about_the_same(head: str, tmp_path: Path) -> None:
    made = fold_batch_norm(network(8, 21, head=head, pool="statistics"))
    to_onnx(made, SHAPE, tmp_path / "fp32.onnx")
    x, sizes, answers = windows(40), {}, {}
    for bits in (8, 4):
        model = quantize(tmp_path / "fp32.onnx", x[:30], ExportConfig(linear_bits=bits))  # type: ignore[arg-type]
        onnxgraph.check(onnxgraph.parse(model, name="it"), name="it")
        sizes[bits], answers[bits] = len(model), ort.InferenceSession(model).run(None, {"features": x})[0]
        proto = onnxgraph.parse(model, name="it")
        last = explain._last_map(proto.graph, explain._layers(proto.graph)[-1].tensor)
        tail, output = explain_tail.cut(proto, last, 2, "it")  # finds the weights where two share a byte
        onnxgraph.add_outputs(proto, [last])
        (maps,) = ort.InferenceSession(proto.SerializeToString()).run([last], {"features": x})
        (again,) = ort.InferenceSession(tail).run([output], {last: maps.astype(np.float64)})
        np.testing.assert_allclose(again, answers[bits], atol=1e-4)
    assert sizes[8] - sizes[4] == pytest.approx(256 * 3 * 20 / 2, abs=1500)
    error = answers[4] - answers[8]
    assert np.square(error).mean() < 0.03 * np.square(answers[8]).mean()


def test_two_weights_share_a_byte_and_onnx_runtime_unpacks_them_once(tmp_path: Path) -> None:
    sizes, answers = {}, {}
    for bits in (8, 4):
        path = tmp_path / f"{bits}.onnx"
        made = fold_batch_norm(network(4))
        if bits == 8:  # nearly the same weights, but none is packed, since one is between the levels
            for layer in made.modules():
                if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                    layer.weight.data[0, 0] = 0.9 * layer.weight.data[0].abs().max()
        to_onnx(made, SHAPE, path)
        model = quantize(path, windows(8), ExportConfig())
        onnxgraph.check(onnxgraph.parse(model, name="it"), name="it")
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        session = ort.InferenceSession(model, options)
        layers = explain._layers(onnxgraph.parse(model, name="it").graph)
        assert [(layer.name, layer.channels) for layer in layers] == [
            (f"layers.{place}.conv", made.layers[place].conv.out_channels) for place in range(9)
        ]
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
        assert "Gather" not in kinds
        assert kinds.count("QLinearConv") == 7
        sizes[bits], answers[bits] = len(model), session.run(None, {"features": windows(6)})[0]
        with torch.no_grad():
            wanted = made(torch.from_numpy(windows(6))).numpy()
        assert np.abs(answers[bits] - wanted).max() < 0.15 * np.abs(wanted).max()
    saved = sum(a * b for a, b in ((32, 64), (64, 128), (128, 128), (128, 256))) / 2
    assert sizes[8] - sizes[4] == pytest.approx(saved, abs=2000)
