"""Feature maps and class activation out of the ONNX graph equal those of the torch network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import synthetic
from soundmark.classifier import Classifier
from soundmark.explain import Explainer

pytest.importorskip("torch", reason="needs the extra 'train'")

if TYPE_CHECKING:
    from soundmark.learn.train import Run


@pytest.mark.train
def test_maps_and_activation_equal_torch(run: Run, fp32_bundle: Path) -> None:
    import torch

    from soundmark.learn import checkpoint, networks

    loaded = Classifier.load(fp32_bundle)
    explainer = Explainer(loaded)
    net = networks.build(run.preset.network, loaded.runtime.input_shape, len(run.labels)).eval()
    net.load_state_dict(checkpoint.load_weights(run.path / "weights.safetensors"))
    features = loaded.features((synthetic.sound("chirp", 5, 1), synthetic.RATE))[0]
    seen: dict[str, Any] = {}
    modules = dict(net.named_modules())
    for layer in explainer.layers:
        norm = layer.name.rpartition(".")[0] + ".1"  # behind each convolution; folded into it by export
        modules[norm].register_forward_hook(
            lambda _m, _i, out, name=layer.name: seen.__setitem__(name, out[0])
        )
    last: list[Any] = []
    net.stages.register_forward_hook(lambda _m, _i, out: last.append(out))
    logits = net(torch.from_numpy(features[None]))[0]
    maps = explainer.feature_maps(features)
    assert len(maps) == len(seen) == 1 + 3 * (len(synthetic.tiny_preset().network.channels) - 1)
    for name, found in maps.items():
        np.testing.assert_allclose(found, seen[name].detach().numpy(), atol=1e-3, err_msg=name)
    for column, label in enumerate(loaded.labels):
        (gradient,) = torch.autograd.grad(logits[column], last[0], retain_graph=True)
        wanted = (gradient * last[0]).sum(dim=1)[0].detach().numpy()
        found_shares = explainer.class_activation(features, label)
        np.testing.assert_allclose(found_shares.shares, wanted, atol=1e-3)
        assert found_shares.logit == pytest.approx(float(logits[column].detach()), abs=1e-3)


@pytest.mark.train
def test_int8_maps_are_close_to_fp32_ones(int8_bundle: Path, fp32_bundle: Path) -> None:
    fp32, int8 = map(Classifier.load, (fp32_bundle, int8_bundle))
    features = fp32.features((synthetic.sound("hum", 5, 1), synthetic.RATE))[0]
    wanted, found = (Explainer(one).feature_maps(features) for one in (fp32, int8))
    assert wanted.keys() == found.keys()
    for name, maps in found.items():
        assert maps.dtype == np.float32
        # in int8, a ReLU is part of its convolution
        expected = np.maximum(wanted[name], 0) if maps.min() >= 0 else wanted[name]
        assert float(np.abs(maps - expected).mean()) < 0.05 * float(np.ptp(expected)), name
    label = fp32.labels[0]
    shares = [Explainer(one).class_activation(features, label) for one in (fp32, int8)]
    assert abs(shares[0].logit - shares[1].logit) < 1.0
