"""aisfx and efficientnet-lite0: published names and layouts give the published numbers; what is frozen stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import synthetic  # noqa: E402
from soundmark import weights as registry  # noqa: E402
from soundmark.config import NetworkConfig  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.errors import ConfigError, TrainingError  # noqa: E402
from soundmark.frontend import Frontend  # noqa: E402
from soundmark.learn import checkpoint, frozen, networks, pretrained  # noqa: E402
from soundmark.learn.networks.efficientnet_lite import STAGES  # noqa: E402
from soundmark.learn.smoke import smoke  # noqa: E402
from soundmark.learn.train import train  # noqa: E402
from soundmark.preset import Preset, load_preset  # noqa: E402

pytestmark = pytest.mark.train

THIN = {"aisfx": (4, 6, 8, 10), "efficientnet-lite0": (4, 4, 6, 6, 8, 8, 8, 8, 10)}
SHAPES = {"aisfx": (96, 216), "efficientnet-lite0": (128, 320)}
FILES = {"aisfx": "SOUNDMARK_AISFX", "efficientnet-lite0": "SOUNDMARK_EFFICIENTNET_LITE0"}
GIVEN = {  # looked for now: a fixture gives every test an empty cache
    kind: Path(os.environ[name]) if os.environ.get(name) else registry.cached(registry.find(kind))
    for kind, name in FILES.items()
}
"""Published files, where there are some; the tests that need none must not see them."""


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES.values():
        monkeypatch.delenv(name, raising=False)


def network(
    kind: str, shape: tuple[int, int] = (40, 57), n_labels: int = 5, **config: object
) -> torch.nn.Module:
    made = NetworkConfig(kind=kind, **{"channels": THIN[kind], **config})  # type: ignore[arg-type]
    return networks.build(made, shape, n_labels).eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) * 1000 + shape[0]))


def norm(state: dict[str, Tensor], name: str, width: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = noise(width).abs() + 0.5, noise(width) * 0.3
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = noise(width) * 0.2, noise(width).abs() + 0.5
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def published_aisfx(widths: tuple[int, ...] = THIN["aisfx"]) -> dict[str, Tensor]:
    """Return a state dict as it is published, kernels (frames, rows), with classes of its own."""
    state: dict[str, Tensor] = {"fc.0.0.weight": noise(5, widths[-1]), "fc.0.0.bias": noise(5)}
    before = 1
    for block, width in enumerate(widths, start=1):
        name = f"embedding_net.conv_block{block}"
        state[f"{name}.conv1.weight"] = noise(width, before, 3, 3) / (3 * before**0.5)
        state[f"{name}.conv2.weight"] = noise(width, width, 3, 3) / (3 * width**0.5)
        norm(state, f"{name}.bn1", width)
        norm(state, f"{name}.bn2", width)
        before = width
    return state


def batch_norm(x: Tensor, state: dict[str, Tensor], name: str, eps: float) -> Tensor:
    values = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *values, eps=eps)


def aisfx_formula(features: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the published embedding of features (batch, rows, frames): its input is (batch, frames, rows)."""
    x = features.transpose(1, 2)[:, None]
    for block in range(1, 5):
        for layer in (1, 2):
            name = f"embedding_net.conv_block{block}"
            x = F.conv2d(x, state[f"{name}.conv{layer}.weight"], padding=1)
            x = batch_norm(x, state, f"{name}.bn{layer}", 1e-5).relu()
        x = F.max_pool2d(x, (2, 2) if block < 4 else (1, 1))
    return x.mean(dim=3).max(dim=2).values


def published_lite(widths: tuple[int, ...] = THIN["efficientnet-lite0"]) -> dict[str, Tensor]:
    """Return a state dict as it is published: three colours, a thousand classes."""
    state = {"_conv_stem.weight": noise(widths[0], 3, 3, 3) / 3}
    norm(state, "_bn0", widths[0])
    before, index = widths[0], 0
    for after, (count, kernel, _, expansion) in zip(widths[1:8], STAGES, strict=True):
        for _ in range(count):
            wide, name = before * expansion, f"_blocks.{index}"
            if expansion > 1:
                state[f"{name}._expand_conv.weight"] = noise(wide, before, 1, 1) / before**0.5
                norm(state, f"{name}._bn0", wide)
            state[f"{name}._depthwise_conv.weight"] = noise(wide, 1, kernel, kernel) / kernel
            norm(state, f"{name}._bn1", wide)
            state[f"{name}._project_conv.weight"] = noise(after, wide, 1, 1) / wide**0.5
            norm(state, f"{name}._bn2", after)
            before, index = after, index + 1
    state["_conv_head.weight"] = noise(widths[8], before, 1, 1) / before**0.5
    norm(state, "_bn1", widths[8])
    return state | {"_fc.weight": noise(1000, widths[8]), "_fc.bias": noise(1000)}


def lite_formula(features: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the last feature map of a grey picture, as TensorFlow pads: the odd zero behind."""

    def layer(x: Tensor, conv: str, bn: str, stride: int = 1, *, active: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        groups = x.shape[1] if "depthwise" in conv else 1
        sides: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            zeros = max(0, (-(-size // stride) - 1) * stride + weight.shape[2] - size)
            sides += [zeros // 2, zeros - zeros // 2]
        x = batch_norm(F.conv2d(F.pad(x, sides), weight, None, stride, groups=groups), state, bn, 1e-3)
        return x.clamp(0, 6) if active else x

    x = layer(features[:, None].expand(-1, 3, -1, -1), "_conv_stem", "_bn0", 2)
    index = 0
    for count, _, first, expansion in STAGES:
        for place in range(count):
            name, stride, y = f"_blocks.{index}", 1 if place else first, x
            if expansion > 1:
                y = layer(y, f"{name}._expand_conv", f"{name}._bn0")
            y = layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride)
            y = layer(y, f"{name}._project_conv", f"{name}._bn2", active=False)
            x, index = x + y if y.shape == x.shape and stride == 1 else y, index + 1
    return layer(x, "_conv_head", "_bn1")


PUBLISHED: dict[str, Callable[[], dict[str, Tensor]]] = {
    "aisfx": published_aisfx,
    "efficientnet-lite0": published_lite,
}


def test_aisfx_computes_the_published_embedding(tmp_path: Path) -> None:
    torch.save((published_aisfx(), {"one": (0, np.int64(5))}), tmp_path / "w.pth")  # as it is published
    made = network("aisfx")
    pretrained.load_into(made, tmp_path / "w.pth")
    x = noise(3, 40, 57).abs()
    with torch.no_grad():
        embedding = made.embed(x)
        wanted = aisfx_formula(x, published_aisfx())
    assert embedding.shape == (3, 2 * 10)
    torch.testing.assert_close(embedding[:, :10], wanted, atol=1e-5, rtol=1e-4)
    assert (embedding[:, 10:] <= embedding[:, :10] + 1e-6).all()  # a mean is not above its largest


@pytest.mark.parametrize("shape", [(40, 57), (32, 64)])
def test_efficientnet_computes_the_published_map(tmp_path: Path, shape: tuple[int, int]) -> None:
    torch.save(published_lite(), tmp_path / "w.pth")
    made = network("efficientnet-lite0", shape)
    pretrained.load_into(made, tmp_path / "w.pth")
    x = noise(2, *shape)
    with torch.no_grad():
        wanted = lite_formula(x, published_lite())
        got = made.last(made.blocks(made.stem(x[:, None])))
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.embed(x)[:, :10], wanted.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", THIN)
def test_a_file_of_ours_is_taken_as_it_is(kind: str, tmp_path: Path) -> None:
    state = network(kind).state_dict()
    checkpoint.save_weights(tmp_path / "w.safetensors", state)
    other = network(kind)
    pretrained.load_into(other, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("kind", THIN)
@pytest.mark.parametrize("what", ["other network", "missing", "unknown", "width"])
def test_a_wrong_file_is_refused(kind: str, what: str, tmp_path: Path) -> None:
    state = PUBLISHED["aisfx" if (kind == "aisfx") != (what == "other network") else "efficientnet-lite0"]()
    name = next(name for name in state if name.endswith(("conv2.weight", "_project_conv.weight")))
    if what == "missing":
        del state[name]
    elif what == "unknown":
        state["stranger.weight"] = noise(3, 3)
    elif what == "width":
        state[name] = noise(99, *state[name].shape[1:])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(TrainingError, match="does not fit") as caught:
        pretrained.load_into(network(kind), tmp_path / "w.pth")
    assert caught.value.code == "bad_weights"


class _Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (self.path,)


def test_numbers_of_numpy_are_passed_over_and_code_is_not_run(tmp_path: Path) -> None:
    torch.save((published_aisfx(), {"one": _Canary(str(tmp_path / "canary"))}), tmp_path / "w.pth")
    with pytest.raises(TrainingError, match="cannot be read"):
        pretrained.load_into(network("aisfx"), tmp_path / "w.pth")
    assert not (tmp_path / "canary").exists()


def test_the_first_layers_are_counted_in_convolutions() -> None:
    made = network("aisfx")
    still = frozen.first_layers(made, 6)
    assert still == [
        layer
        for block in (made.conv_block1, made.conv_block2, made.conv_block3)
        for layer in (block.conv1, block.bn1, block.conv2, block.bn2)
    ]
    assert frozen.first_layers(made, 0) == []
    assert len(frozen.first_layers(made, 8)) == 16
    with pytest.raises(ConfigError, match=r"`train\.frozen_layers` 9 of 8 convolutions"):
        frozen.first_layers(made, 9)
    resnet = networks.build(NetworkConfig(kind="resnet", channels=(4, 6, 8, 10)), (32, 51), 5)
    assert frozen.first_layers(resnet, 5) == [
        m
        for m in (*resnet.children(),)[:3] + tuple(resnet.layer1.modules())
        if isinstance(m, (torch.nn.Conv2d, torch.nn.BatchNorm2d))
    ]
    lite = network("efficientnet-lite0")
    assert frozen.first_layers(lite, 3)[-1] is lite.blocks[0].project.bn


def preset(kind: str, **train_fields: object) -> Preset:
    tiny = synthetic.tiny_preset(**{"epochs": 3, **train_fields})
    return replace(tiny, network=NetworkConfig(kind=kind, channels=THIN[kind], pretrained="somebody's"))


def test_the_last_block_learns_and_the_blocks_before_it_stay(dataset: Dataset, tmp_path: Path) -> None:
    torch.save(published_aisfx(), tmp_path / "w.pth")
    made = preset("aisfx", frozen_epochs=1, frozen_layers=6, trunk_lr=0.5)
    with pytest.raises(TrainingError, match="SOUNDMARK_AISFX"):
        train(made, dataset, test_fold=5, out=tmp_path / "none")
    run = train(made, dataset, test_fold=5, out=tmp_path / "run", weights=tmp_path / "w.pth")
    start = network("aisfx", (32, 51))
    pretrained.load_into(start, tmp_path / "w.pth")
    after = checkpoint.load_weights(run.path / "weights.safetensors")
    changed = {name for name, tensor in start.state_dict().items() if not torch.equal(tensor, after[name])}
    counters = {f"conv_block4.bn{n}.num_batches_tracked" for n in (1, 2)}
    assert changed - counters == {
        name
        for name in after
        if name.startswith(("conv_block4.", "head.")) and not name.endswith("num_batches_tracked")
    }


def test_what_was_fetched_is_found_and_only_by_presets_that_want_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path))
    config = NetworkConfig(kind="efficientnet-lite0", pretrained="ImageNet")
    assert pretrained.at_hand(config) is None
    assert "soundmark weights get efficientnet-lite0" in pretrained.advice(config)
    entry = registry.find("efficientnet-lite0")
    path = tmp_path / "weights" / entry.file_name
    path.parent.mkdir()
    path.write_bytes(b"not these")
    assert pretrained.at_hand(config) is None  # another hash
    monkeypatch.setattr(registry, "cached", lambda found: path if found is entry else None)
    assert pretrained.at_hand(config) == path
    assert pretrained.at_hand(replace(config, pretrained="")) is None
    assert pretrained.at_hand(replace(config, channels=THIN["efficientnet-lite0"])) is None
    assert registry.find("yamnet").thins
    assert pretrained.at_hand(replace(config, kind="resnet")) is None
    monkeypatch.setenv("SOUNDMARK_EFFICIENTNET_LITE0", "~/mine.pth")
    assert pretrained.at_hand(config) == Path.home() / "mine.pth"
    assert pretrained.at_hand(replace(config, pretrained="")) is None


def test_a_smoke_run_without_weights_says_so(dataset: Dataset, tmp_path: Path) -> None:
    notes: list[str] = []
    made = preset("efficientnet-lite0", frozen_epochs=1)
    seen = smoke(made, dataset, test_fold=5, out=tmp_path, on_note=notes.append)
    assert seen.logits[1] == 5
    assert any("random weights" in note for note in notes)


@pytest.mark.data
@pytest.mark.parametrize("kind", THIN)
def test_the_published_file_gives_the_published_numbers(kind: str) -> None:
    path = GIVEN[kind]
    if path is None:
        pytest.skip(f"{FILES[kind]} names no file, and `soundmark weights get {kind}` has not been called")
    made = network(kind, SHAPES[kind], channels=())
    assert pretrained.load_into(made, path) == registry.find(kind).sha256
    with torch.serialization.safe_globals([(pretrained._Nothing, name) for name in pretrained._NUMPY]):
        state = torch.load(path, map_location="cpu", weights_only=True)
    front = Frontend(load_preset("aisfx-transfer" if kind == "aisfx" else kind).frontend)
    wave = np.tile(synthetic.sound("clicks", 7, 1), 20)[: 5 * front.config.sample_rate]
    features = torch.from_numpy(front(np.resize(wave, 5 * front.config.sample_rate)))[None]
    assert features.shape[1:] == SHAPES[kind]
    with torch.no_grad():
        got = made.embed(features)
        if kind == "aisfx":
            assert features.min() >= 0
            assert features.max() <= 1.1
            wanted = aisfx_formula(features, state[0])
        else:
            wanted = lite_formula(features, state).mean(dim=(2, 3))
    torch.testing.assert_close(got[:, : wanted.shape[1]], wanted, atol=1e-3, rtol=1e-3)
