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
    from soundmark.dataset import Dataset
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


@pytest.mark.train
def test_activation_of_a_network_that_hears_layers_on_the_way(dataset: Dataset, tmp_path: Path) -> None:
    """Their part stays as it is: the shares are those of the last map alone, in float and in int8."""
    import torch
    from msgspec.structs import replace

    from soundmark.config import NetworkConfig
    from soundmark.learn.export import export
    from soundmark.learn.finished import load_network
    from soundmark.learn.train import train

    config = NetworkConfig(
        kind="yamnet",
        keep=5,
        taps=(3,),
        pool="statistics",
        channels=(4, 6, 8, *[8] * 11),
        rank=2,
    )
    made = replace(synthetic.tiny_preset(epochs=1), network=config)
    learnt = train(made, dataset, test_fold=5, out=tmp_path / "run")
    exact = replace(made.export, quantize=False)
    found = {
        name: Explainer(Classifier.load(export(learnt, tmp_path / name, data=dataset, config=how)[0].path))
        for name, how in (("fp32", exact), ("int8", made.export))
    }
    net = load_network(learnt)
    features = Classifier.load(tmp_path / "fp32").features((synthetic.sound("chirp", 5, 1), synthetic.RATE))[
        0
    ]
    last: list[Any] = []
    net.layers[-1].register_forward_hook(lambda _m, _i, out: last.append(out))
    logits = net(torch.from_numpy(features[None]))[0]
    (gradient,) = torch.autograd.grad(logits[0], last[0])
    wanted = (gradient * last[0]).sum(dim=1)[0].detach().numpy()
    label = learnt.labels[0]
    exactly, nearly = (found[name].class_activation(features, label) for name in ("fp32", "int8"))
    assert exactly.logit == pytest.approx(float(logits[0].detach()), abs=1e-3)
    np.testing.assert_allclose(exactly.shares, wanted, atol=1e-2 * np.abs(wanted).max())
    assert nearly.logit == pytest.approx(exactly.logit, abs=1.0)
