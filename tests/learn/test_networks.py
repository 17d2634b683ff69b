"""networks: shapes, sizes, and that no clip sees another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from soundmark import onnxgraph  # noqa: E402
from soundmark.config import ExportConfig, NetworkConfig  # noqa: E402
from soundmark.errors import ConfigError  # noqa: E402
from soundmark.frontend import Frontend  # noqa: E402
from soundmark.learn import export, networks  # noqa: E402
from soundmark.learn.networks.resnet import Resize  # noqa: E402
from soundmark.preset import load_preset, preset_names  # noqa: E402
from soundmark.runtime import Runtime  # noqa: E402

pytestmark = pytest.mark.train


def build(shape: tuple[int, int] = (32, 51), n_labels: int = 5, **config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return networks.build(NetworkConfig(**{"channels": (4, 6, 8), **config}), shape, n_labels).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 8), (8, 500), (64, 251), (33, 47), (9, 15), (128, 8)])
@pytest.mark.parametrize("n_labels", [1, 2, 50])
def test_logits_have_one_row_per_clip_and_one_column_per_label(shape: tuple[int, int], n_labels: int) -> None:
    network = build(shape, n_labels)
    for batch in (1, 3):
        logits = network(torch.randn(batch, *shape))
        assert logits.shape == (batch, n_labels)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((7, 51), (4, 6, 8)), ((32, 7), (4, 6, 8)), ((1, 1), (4, 6)), ((32, 51), (4,)), ((31, 200), ())],
)
def test_features_too_small_for_the_stages_are_refused(
    shape: tuple[int, int], channels: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="stages"):
        build(shape, channels=channels)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'transformer'.*edge"):
        build(kind="transformer")


def test_the_edge_preset_has_less_than_a_million_parameters() -> None:
    preset = load_preset("edge")
    shape = Frontend(preset.frontend).shape(round(preset.window.window_s * preset.frontend.sample_rate))
    network = networks.build(preset.network, shape, 50)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 100_000 < count < 1_000_000
    assert network.eval()(torch.zeros(1, *shape)).shape == (1, 50)


def test_no_clip_sees_another_one_in_eval() -> None:
    network = build()
    batch = torch.randn(5, 32, 51, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = network(batch)
        for i in range(5):
            torch.testing.assert_close(network(batch[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-5)
        order = torch.tensor([3, 1, 4, 0, 2])
        torch.testing.assert_close(network(batch[order]), together[order], atol=1e-5, rtol=1e-5)
        assert torch.equal(network(batch), together)  # dropout is off


def test_the_same_seed_gives_the_same_network() -> None:
    one, two = build().state_dict(), build().state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_parameter_is_trained() -> None:
    network = build().train()
    network(torch.randn(4, 32, 51)).logsumexp(dim=1).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


MICRO = (7, 20, 10, 14, 22, 31, 35, 41, 51, 67, 69, 48)
KINDS = {
    "acdnet": ((1, 3000), {"channels": MICRO}),
    "aisfx": ((32, 51), {"channels": (4, 6, 8, 10)}),
    "edge": ((32, 51), {"channels": (4, 6, 8)}),
    "efficientnet-lite0": ((32, 51), {"channels": (4, 4, 6, 6, 8, 8, 8, 8, 10)}),
    "mfcc-cnn": ((13, 51), {"channels": (4, 6, 16)}),
    "resnet": ((32, 51), {"channels": (4, 6, 8, 10)}),
    "resnet 34, resized": ((32, 51), {"channels": (4, 6, 8, 10), "depth": 34, "resize": (48, 40)}),
    "resnet 50": ((32, 51), {"channels": (4, 6, 8, 10), "depth": 50}),
    "small-cnn": ((32, 51), {"channels": (4, 6, 8)}),
    "yamnet": ((32, 57), {"channels": (4, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 10, 10)}),
}
"""Small ones of every architecture: name -> shape and config."""


def small(name: str) -> tuple[torch.nn.Module, tuple[int, int]]:
    shape, config = KINDS[name]
    return build(shape, kind=name.split()[0], **config), shape  # type: ignore[arg-type]


def test_every_architecture_is_tested_here() -> None:
    assert {name.split()[0] for name in KINDS} == {*networks.NETWORKS}
    assert {load_preset(name).network.kind for name in preset_names()} <= {*networks.NETWORKS}


@pytest.mark.parametrize("name", KINDS)
def test_every_architecture_trains_whole_and_keeps_clips_apart(name: str) -> None:
    network, shape = small(name)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = network(x)
        assert together.shape == (4, 5)
        for i in range(4):
            torch.testing.assert_close(network(x[i : i + 1])[0], together[i], atol=1e-4, rtol=1e-4)
    network.train()(x).logsumexp(dim=1).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", KINDS)
def test_every_architecture_becomes_an_allowed_graph_without_batch_norm_and_an_int8_one(
    name: str, tmp_path: Path
) -> None:
    network, shape = small(name)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # numbers that are not neutral
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network(x).numpy()
    folded = export.fold_batch_norm(network)
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        np.testing.assert_allclose(folded(x).numpy(), wanted, atol=1e-3 * np.abs(wanted).max(), rtol=0)
    if name in (
        "edge",
        "resnet",
        "resnet 50",
    ):  # exporting takes seconds, and these have no operator of their own
        return
    export.to_onnx(folded, shape, tmp_path / "m.onnx")
    model = onnxgraph.parse((tmp_path / "m.onnx").read_bytes(), name="m")
    onnxgraph.check(model, name="m")
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "Resize", "Dropout"}
    got = Runtime((tmp_path / "m.onnx").read_bytes(), input_shape=shape, n_labels=5).logits(x.numpy())
    np.testing.assert_allclose(got, wanted, atol=1e-3 * np.abs(wanted).max(), rtol=0)
    int8 = export.quantize(tmp_path / "m.onnx", x.numpy(), ExportConfig())
    onnxgraph.check(onnxgraph.parse(int8, name="m8"), name="m8")
    near = Runtime(int8, input_shape=shape, n_labels=5).logits(x.numpy())
    assert np.abs(near - wanted).max() < 0.3 * np.abs(wanted - wanted.mean()).max()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("acdnet", 4_700_000, 4_780_000),
        ("micro-acdnet", 130_000, 132_000),
        ("mfcc-cnn", 600_000, 700_000),
        ("resnet-mel", 2_700_000, 2_900_000),
        ("resnet18-imagenet", 11_100_000, 11_300_000),
        ("tenclass-scratch", 300_000, 440_000),
        ("aisfx-transfer", 4_700_000, 4_760_000),
        ("aisfx-finetuned", 4_700_000, 4_760_000),
        ("efficientnet-lite0", 3_450_000, 3_550_000),
        ("tenclass-transfer", 3_350_000, 3_450_000),
        ("yamnet-transfer", 3_280_000, 3_320_000),
        ("yamnet-finetuned", 3_280_000, 3_320_000),
    ],
)
def test_presets_have_the_size_that_they_say(name: str, low: int, high: int) -> None:
    preset = load_preset(name)
    shape = Frontend(preset.frontend).shape(round(preset.window.window_s * preset.frontend.sample_rate))
    with torch.device("meta"):
        network = networks.build(preset.network, shape, len(preset.labels) or 50)
    assert low < sum(p.numel() for p in network.parameters()) < high
    assert (
        len((Path(networks.__file__).parents[2] / "presets" / f"{name}.toml").read_text().splitlines()) <= 35
    )
    assert preset.provenance.reimplements
    assert preset.provenance.different


def test_acdnet_halves_five_times_and_ends_in_two_by_four() -> None:
    network = build((1, 30_225), kind="acdnet", channels=(*MICRO[:1], 64, *MICRO[2:]))
    with torch.no_grad():
        bands = network.filter_bank(torch.zeros(1, 1, 1, 30_225))
        assert bands.shape == (1, 64, 1, 151)
        assert network.body(bands.transpose(1, 2)).shape == (1, 69, 2, 4)


@pytest.mark.parametrize(
    ("kind", "shape", "config"),
    [
        ("acdnet", (2, 30_225), {"channels": MICRO}),
        ("acdnet", (1, 100), {"channels": MICRO}),
        ("acdnet", (1, 30_225), {"channels": (4, 6, 8)}),
        ("aisfx", (7, 100), {"channels": ()}),
        ("aisfx", (96, 216), {"channels": (4, 6)}),
        ("efficientnet-lite0", (31, 320), {"channels": ()}),
        ("efficientnet-lite0", (128, 320), {"channels": (4, 6)}),
        ("mfcc-cnn", (3, 100), {"channels": ()}),
        ("mfcc-cnn", (13, 100), {"channels": (4, 6)}),
        ("resnet", (32, 32), {"channels": (4, 6)}),
        ("resnet", (32, 32), {"channels": (), "resize": (224,)}),
        ("small-cnn", (7, 51), {"channels": (4, 6, 8)}),
    ],
)
def test_what_cannot_be_built_is_refused(
    kind: str, shape: tuple[int, int], config: dict[str, object]
) -> None:
    with pytest.raises(ConfigError):
        build(shape, kind=kind, **config)


@pytest.mark.parametrize(
    ("before", "after"), [((5, 9), (12, 7)), ((1, 4), (3, 4)), ((6, 6), (6, 6)), ((8, 2), (3, 9))]
)
def test_resizing_is_bilinear(before: tuple[int, int], after: tuple[int, int]) -> None:
    x = torch.randn(2, *before, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(x[:, None], size=after, mode="bilinear", align_corners=False)[
        :, 0
    ]
    torch.testing.assert_close(Resize(before, after)(x), wanted, atol=1e-5, rtol=1e-5)
    assert Resize(before, after).state_dict() == {}
