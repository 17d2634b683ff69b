"""yamnet: TensorFlow's padding, the published weights, frozen layers; and the TFLite file itself where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import audio  # noqa: E402
from soundmark.classifier import Classifier  # noqa: E402
from soundmark.config import AugmentConfig, ExportConfig, NetworkConfig, TrainConfig, WaveConfig  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.errors import ConfigError, TrainingError  # noqa: E402
from soundmark.evaluate import evaluate  # noqa: E402
from soundmark.frontend import Frontend  # noqa: E402
from soundmark.learn import checkpoint, cosine, frozen, networks, pretrained, quantize  # noqa: E402
from soundmark.learn.batches import Batches  # noqa: E402
from soundmark.learn.cosine import CosineHead  # noqa: E402
from soundmark.learn.embeddings import Embedder  # noqa: E402
from soundmark.learn.export import export, fold_batch_norm, to_onnx  # noqa: E402
from soundmark.learn.finished import load_network, training_features  # noqa: E402
from soundmark.learn.networks.edge import MomentsPool, StatisticsPool  # noqa: E402
from soundmark.learn.networks.yamnet import Convolution, YAMNet  # noqa: E402
from soundmark.learn.run_folder import Run  # noqa: E402
from soundmark.learn.schedule import make_optimizer  # noqa: E402
from soundmark.learn.side_by_side import side_by_side  # noqa: E402
from soundmark.learn.smoke import smoke  # noqa: E402
from soundmark.learn.tflite_weights import yamnet_layers  # noqa: E402
from soundmark.learn.train import train  # noqa: E402
from soundmark.preset import Preset, load_preset  # noqa: E402

pytestmark = pytest.mark.train

THIN = (4, 6, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 10, 10)
FILE = os.environ.get("SOUNDMARK_YAMNET", "")
"""YAMNet's TFLite file, where there is one; the tests that need none must not see it."""
STILL = AugmentConfig(mix_probability=0.0, gain_db=0.0, roll=0.0, time_masks=0, freq_masks=0)


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOUNDMARK_YAMNET", raising=False)


def network(keep: int = 0, shape: tuple[int, int] = (64, 498), **config: object) -> YAMNet:
    made = networks.build(NetworkConfig(kind="yamnet", keep=keep, **config), shape, 5)  # type: ignore[arg-type]
    assert isinstance(made, YAMNet)
    return made.eval()


def preset(**train: object) -> Preset:
    tiny = synthetic.tiny_preset(epochs=3, **{"frozen_epochs": 3, **train})
    config = NetworkConfig(kind="yamnet", channels=THIN, pretrained="YAMNet (AudioSet)")
    return replace(tiny, network=config, augment=STILL)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a file of weights for the thin network of `preset`."""
    torch.manual_seed(3)
    made = networks.build(preset().network, (32, 51), 5)
    checkpoint.save_weights(tmp_path / "w.safetensors", made.state_dict())
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize(("size", "before", "behind"), [(8, 0, 1), (9, 1, 1), (96, 0, 1), (125, 1, 1)])
def test_padding_is_that_of_tensorflow(size: int, before: int, behind: int) -> None:
    """The formula of tf.nn.convolution for "SAME": the odd zero is behind."""
    torch.manual_seed(0)
    layer = Convolution(1, 2, (size, 8), kernel=3, stride=2)
    x = torch.randn(1, 1, size, 8)
    padded = torch.nn.functional.pad(x, (0, 1, before, behind))
    wanted = torch.nn.functional.conv2d(padded, layer.conv.weight, layer.conv.bias, 2).clamp(0, 6)
    assert wanted.shape[2:] == layer.shape
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize(
    ("keep", "width", "out", "parameters"),
    [(0, 1024, (2, 16), 3_206_976), (17, 512, (4, 32), 802_000), (9, 256, (8, 63), 62_000)],
)
def test_the_first_convolutions_can_be_kept(
    keep: int, width: int, out: tuple[int, int], parameters: int
) -> None:
    made = network(keep)
    assert made.layers[-1].shape == out
    assert made.embed(torch.zeros(1, 64, 498)).shape == (1, 2 * width)
    assert sum(p.numel() for p in made.layers.parameters()) == pytest.approx(parameters, rel=0.05)
    assert len(made.layers) == (keep or 27)


def test_layers_on_the_way_are_heard_beside_the_last() -> None:
    torch.manual_seed(0)
    plain, tapped = network(9, channels=THIN), network(9, channels=THIN, taps=(5, 7))
    tapped.layers.load_state_dict(plain.layers.state_dict())
    x = torch.randn(2, 64, 498)
    found = tapped.embed(x)
    widths = [2 * THIN[place] for place in (2, 3, 4)]
    assert tapped.width == found.shape[1] == sum(widths)
    torch.testing.assert_close(found[:, -widths[-1] :], plain.embed(x))
    on_the_way = plain.layers[:5](x[:, None])
    torch.testing.assert_close(found[:, : THIN[2]], on_the_way.mean(dim=(2, 3)))
    trunks = [Embedder(one).path for one in (plain, tapped)]
    assert trunks[0] != trunks[1]  # equal weights, other numbers


def test_two_thin_convolutions_stand_for_one_where_few_directions_are_heard() -> None:
    torch.manual_seed(0)
    whole = Convolution(12, 16, (4, 6), kernel=1).eval()
    two = Convolution(12, 16, (4, 6), kernel=1, rank=5).eval()
    x = torch.randn(8, 4, 4, 6)  # of 12 channels, but in 4 directions; around a mean that is far away
    x = torch.einsum("bkrf,kc->bcrf", x, torch.randn(4, 12)) + 3 * torch.randn(12)[:, None, None]
    with torch.no_grad():
        two.whole = whole.conv.weight.detach()
        thin, wide = two.split(two.whole)
        two.thin.weight.copy_(thin)
        two.conv.weight.copy_(wide)
        before = (two(x) - whole(x)).abs().max()
        two.settle([x[:4], x[4:]])
        torch.testing.assert_close(two(x), whole(x), atol=1e-3, rtol=0)
        between = two.thin(x).transpose(0, 1).flatten(1)
    assert before > 0.1
    assert between.std(dim=1)[-4:].sub(1).abs().max() < 1e-2  # int8 likes equal ranges
    assert two.whole is None


def test_published_weights_are_split_where_that_is_fewer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    published, made = network(9, channels=THIN), network(9, channels=THIN, rank=3)
    path = tmp_path / "whole.safetensors"
    checkpoint.save_weights(
        path, {name: tensor for name, tensor in published.state_dict().items() if "layers" in name}
    )
    pretrained.load_into(made, path)
    assert [layer.rank for layer in made.layers if isinstance(layer, Convolution)] == [0] * 4 + [3, 0] * 2 + [
        3
    ]
    parts = list(torch.randn(3, 2, 64, 498))
    begun = (made.embed(parts[0]) - published.embed(parts[0])).norm()
    made.settle(parts)
    assert (made.embed(parts[0]) - published.embed(parts[0])).norm() < begun
    checkpoint.save_weights(path, made.state_dict())
    again = network(9, channels=THIN, rank=3)
    pretrained.load_into(again, path)  # our own come back as they are
    again.settle(parts)
    torch.testing.assert_close(again.embed(parts[0]), made.embed(parts[0]))


@pytest.mark.parametrize("damage", ["nan", "kernel"])
def test_weights_that_cannot_be_split_do_not_fit(tmp_path: Path, damage: str) -> None:
    weights = {
        name: tensor for name, tensor in network(9, channels=THIN).state_dict().items() if "layers" in name
    }
    name = "layers.8.conv.weight"
    weights[name] = weights[name] * np.nan if damage == "nan" else weights[name].repeat(1, 1, 3, 3)
    checkpoint.save_weights(tmp_path / "bad.safetensors", weights)
    with pytest.raises(TrainingError, match=r"layers\.8\.thin\.weight missing"):
        pretrained.load_into(network(9, channels=THIN, rank=3), tmp_path / "bad.safetensors")


def test_statistics_are_mean_deviation_and_the_largest() -> None:
    x = torch.randn(2, 3, 4, 50).square()
    over_time = x.mean(dim=2)
    wanted = [over_time.mean(dim=2), over_time.std(dim=2, correction=0), x.amax(dim=(2, 3))]
    torch.testing.assert_close(StatisticsPool()(x), torch.cat(wanted, dim=1))
    torch.testing.assert_close(MomentsPool()(x), torch.cat(wanted[:2], dim=1))


@pytest.mark.parametrize(("pool", "parts"), [("statistics", 3), ("moments", 2), ("salient", 2)])
def test_an_embedding_holds_what_is_pooled_of_taps_and_the_end(pool: str, parts: int) -> None:
    made = network(9, channels=THIN, pool=pool, taps=(7,))
    assert made.embed(torch.randn(1, 64, 498)).shape == (1, made.width) == (1, parts * (THIN[3] + THIN[4]))


def test_the_deviation_of_what_stays_the_same_is_exported_as_it_is_learnt(tmp_path: Path) -> None:
    class Pooled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return StatisticsPool()(x[:, None])

    to_onnx(Pooled(), (4, 50), tmp_path / "pool.onnx")  # the exporter leaves out a sum with almost nothing
    still = torch.full((1, 4, 50), 2.0)
    (found,) = ort.InferenceSession(tmp_path / "pool.onnx").run(None, {"features": still.numpy()})
    wanted = Pooled()(still).numpy()
    assert 0 < wanted[0, 1] < 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("taps", [(4,), (9,), (7, 5), (5, 5)])
def test_taps_that_are_none_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"network\.taps"):
        network(9, taps=taps)


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_head_of_cosines_begins_as_discriminants_and_may_learn_on(
    dataset: Dataset, tmp_path: Path, epochs: int
) -> None:
    made = preset()
    network = replace(made.network, head="cosine", keep=9, taps=(5,), pretrained="")
    made = replace(made, network=network, train=replace(made.train, epochs=epochs, frozen_epochs=epochs))
    run = train(made, dataset, test_fold=5, out=tmp_path / "run")
    assert run.info["finished"]
    assert run.info["epochs"] == epochs
    there = load_network(run)
    fresh = networks.build(made.network, (32, 51), 5)
    fresh.load_state_dict(there.state_dict())
    source = Batches(made, dataset.in_folds([1, 2, 3, 4]))
    frozen.fit_head(fresh, source, 8)
    head, begun = there.head, fresh.head
    assert isinstance(head, CosineHead)
    assert torch.equal(head.labels.weight, begun.labels.weight) == (epochs == 0)  # type: ignore[union-attr]
    made_of, _ = export(run, tmp_path / "bundle", data=dataset)
    report = evaluate(Classifier(made_of), dataset, folds=[5])
    assert report.figures["accuracy"] > 0.4  # random trunk; by chance 0.2


def test_a_head_of_cosines_is_fitted_to_what_int8_layers_give(dataset: Dataset, tmp_path: Path) -> None:
    made = preset()
    network = replace(made.network, head="cosine", keep=9, taps=(5,), pool="statistics", pretrained="")
    made = replace(made, network=network, train=replace(made.train, epochs=0))
    run = train(made, dataset, test_fold=5, out=tmp_path / "run")
    store, targets = training_features(run, dataset, None), np.array(dataset.in_folds([1, 2, 3, 4]).targets)
    features = store.frontend.finish(np.asarray(store.linear))
    off = {}
    for again in (False, True):
        config = ExportConfig(float_last=True, refit_head=again)
        written, _ = export(run, tmp_path / str(again), data=dataset, config=config)
        model = onnx.load_from_string(written.model)
        projection = next(node for node in model.graph.node if "head.projection.weight" in node.input)
        heard = quantize.heard(model, [projection.input[0], "logits"], features)
        x = heard[projection.input[0]]
        found = cosine.fit(x, targets, 5, shrink=cosine.SHRINK)
        wanted = CosineHead(x.shape[1], 5).become(found, cosine.SCALE)(torch.from_numpy(x).float())
        off[again] = np.abs(wanted.detach().numpy() - heard["logits"]).max()
    assert off[True] < off[False] / 3  # not 0: scales are rounded to float16 behind it
    again = Run(run.path, replace(made, export=ExportConfig(refit_head=True)), run.info)
    side_by_side([again, again], tmp_path / "beside", data=dataset)  # has heads of its own
    with pytest.raises(ConfigError, match=r"export\.refit_head"):
        load_preset("tiny-scratch", ["export.refit_head=true"])


def test_a_head_that_is_only_learnt_is_not_fitted(dataset: Dataset, tmp_path: Path) -> None:
    made = preset()
    made = replace(made, network=replace(made.network, keep=9, pretrained=""))
    run = train(made, dataset, test_fold=5, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"export\.refit_head"):
        export(run, tmp_path / "out", data=dataset, config=ExportConfig(refit_head=True))


def test_a_head_of_cosines_is_fitted_again_to_what_was_learnt(dataset: Dataset, tmp_path: Path) -> None:
    made = preset()
    network = replace(made.network, head="cosine", keep=9, pretrained="")
    learnt = {}
    for again in (False, True):
        one = replace(made, network=network, train=replace(made.train, epochs=2, refit_head=again))
        learnt[again] = load_network(train(one, dataset, test_fold=5, out=tmp_path / str(again)))
    fitted, left = learnt[True], learnt[False]
    for name, values in left.state_dict().items():
        assert torch.equal(values, fitted.state_dict()[name]) != name.startswith("head."), name
    frozen.fit_head(left, Batches(made, dataset.in_folds([1, 2, 3, 4])), 8)
    for one, other in zip(left.head.parameters(), fitted.head.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(one, other)
    with pytest.raises(ConfigError, match=r"network\.head"):
        load_preset("tiny-scratch", ["train.refit_head=true"])


@pytest.mark.parametrize(
    "option", [{"head": "cosine"}, {"taps": (3,)}, {"rank": 8}, {"pool": "statistics"}, {"weight_bits": 4}]
)
def test_other_networks_have_neither_taps_nor_cosines(option: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="the kind yamnet"):
        networks.build(NetworkConfig(kind="edge", **option), (64, 98), 5)  # type: ignore[arg-type]


def test_no_epoch_is_for_a_head_that_is_fitted() -> None:
    with pytest.raises(ConfigError, match=r"network\.head"):
        load_preset("yamnet-transfer", ["train.epochs=0"])
    assert load_preset("yamnet-cosine").train.epochs == 0


@pytest.mark.parametrize("live", [False, True])
def test_plain_windows_are_those_of_classifying(dataset: Dataset, live: bool) -> None:
    """Changes of the wave and of features are for learning alone."""
    waves = WaveConfig(roll=1.0, gain_db=6.0, clip_s=1.0) if live else WaveConfig()
    made = replace(synthetic.tiny_preset(), waves=waves)
    part = dataset.in_folds([1])
    found = torch.cat(list(Batches(made, part).plain(7)))
    front = Frontend(made.frontend)
    for row, clip in zip(found, part.clips, strict=True):
        samples = audio.load(clip.path, sample_rate=made.frontend.sample_rate).samples
        window = audio.windows(
            samples,
            window_samples=round(made.window.window_s * made.frontend.sample_rate),
            hop_samples=round(made.window.hop_s * made.frontend.sample_rate),
        )[0]
        np.testing.assert_allclose(row, front(window), atol=1e-3)


@pytest.mark.parametrize(("keep", "shape"), [(8, (64, 96)), (29, (64, 96)), (0, (16, 96))])
def test_what_is_no_yamnet_is_refused(keep: int, shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"network\.keep"):
        network(keep, shape)


def test_a_shorter_one_takes_its_part_of_the_weights_and_nothing_unknown(tmp_path: Path) -> None:
    whole = network(channels=THIN).state_dict()
    checkpoint.save_weights(tmp_path / "w.safetensors", whole)
    short = network(9, channels=THIN)
    pretrained.load_into(short, tmp_path / "w.safetensors")
    assert torch.equal(short.layers[8].conv.weight, whole["layers.8.conv.weight"])
    checkpoint.save_weights(tmp_path / "w.safetensors", {**whole, "layers.27.conv.bias": torch.zeros(3)})
    with pytest.raises(TrainingError, match=r"layers\.27\.conv\.bias unknown"):
        pretrained.load_into(short, tmp_path / "w.safetensors")


def test_a_thinner_one_takes_the_strongest_filters_and_what_listens_to_them(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = network(7, channels=THIN)
    for number, layer in enumerate(
        whole.layers
    ):  # channels that are silent: every second one, then the first two
        silent = slice(0, None, 2) if number == 0 else slice(0, 2) if number == 2 else slice(0, 0)
        with torch.no_grad():
            layer.conv.weight[silent] = 0.0
            layer.conv.bias.copy_(torch.rand_like(layer.conv.bias))
            layer.conv.bias[silent] = 0.0
    for number in (1, 3):  # behind them they stay silent
        torch.nn.init.zeros_(whole.layers[number].conv.bias)
    checkpoint.save_weights(tmp_path / "w.safetensors", whole.state_dict())
    n_loud = [THIN[0] // 2, THIN[1] - 2]
    thin = network(7, channels=(*n_loud, *THIN[2:]))
    pretrained.load_into(thin, tmp_path / "w.safetensors")
    assert torch.equal(thin.layers[0].conv.weight, whole.layers[0].conv.weight[1::2])
    assert torch.equal(thin.layers[2].conv.weight, whole.layers[2].conv.weight[2:, 1::2])
    x = torch.randn(2, 1, 64, 98)
    torch.testing.assert_close(thin.layers(x), whole.layers(x))  # nothing was lost
    checkpoint.save_weights(tmp_path / "w.safetensors", network(7, channels=(1,) * 14).state_dict())
    with pytest.raises(TrainingError, match=r"layers\.0\.conv\.weight \[1, 1, 3, 3\] instead of"):
        pretrained.load_into(thin, tmp_path / "w.safetensors")


def test_another_tflite_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    with pytest.raises(TrainingError, match=r"another TFLite file: 108 bytes.*SHA-256") as caught:
        pretrained.load_into(network(channels=THIN), tmp_path / "m.tflite")
    assert caught.value.code == "bad_weights"


def test_a_frozen_run_wants_weights_and_a_smoke_run_says_that_it_has_none(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"SOUNDMARK_YAMNET") as caught:
        train(preset(), dataset, test_fold=5, out=tmp_path / "run")
    assert caught.value.code == "no_weights"
    assert not (tmp_path / "run").exists()
    notes: list[str] = []
    seen = smoke(preset(), dataset, test_fold=5, out=tmp_path / "smoke", on_note=notes.append)
    assert seen.logits[1] == 5
    assert any("random weights" in note for note in notes)


def test_a_frozen_run_teaches_the_last_layer_alone_from_embeddings_computed_once(
    dataset: Dataset, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    embed = YAMNet.embed

    def counted(self: YAMNet, features: torch.Tensor) -> torch.Tensor:
        seen.append(len(features))
        return embed(self, features)

    monkeypatch.setattr(YAMNet, "embed", counted)
    monkeypatch.setenv("SOUNDMARK_YAMNET", str(weights))
    run = train(preset(), dataset, test_fold=5, out=tmp_path / "run")
    assert sum(seen) == run.info["n_clips"]  # not three times
    before, after = (
        checkpoint.load_weights(weights),
        checkpoint.load_weights(run.path / "weights.safetensors"),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    straight = replace(
        preset(), augment=replace(STILL, gain_db=1e-9)
    )  # as good as still, but not by the rule
    slow = train(straight, dataset, test_fold=5, out=tmp_path / "slow")
    again = checkpoint.load_weights(slow.path / "weights.safetensors")
    torch.testing.assert_close(again["head.weight"], after["head.weight"], atol=1e-4, rtol=1e-3)


def test_after_the_frozen_epochs_everything_learns(dataset: Dataset, weights: Path, tmp_path: Path) -> None:
    run = train(
        preset(frozen_epochs=1, trunk_lr=0.1), dataset, test_fold=5, out=tmp_path / "run", weights=weights
    )
    before, after = (
        checkpoint.load_weights(weights),
        checkpoint.load_weights(run.path / "weights.safetensors"),
    )
    assert not torch.equal(before["layers.0.conv.weight"], after["layers.0.conv.weight"])
    assert not torch.equal(before["layers.26.conv.bias"], after["layers.26.conv.bias"])


def test_frozen_batch_norm_keeps_its_numbers_and_rates_differ() -> None:
    made = networks.build(NetworkConfig(kind="edge", channels=(4, 6)), (32, 51), 5)
    frozen.to_train(made, frozen=True)
    mean = made.stem[1].running_mean.clone()
    made(torch.randn(4, 32, 51)).sum().backward()
    assert torch.equal(made.stem[1].running_mean, mean)
    assert [name for name, p in made.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    frozen.to_train(made, frozen=False)
    assert all(p.requires_grad for p in made.parameters())
    made(torch.randn(4, 32, 51)).sum().backward()
    assert not torch.equal(made.stem[1].running_mean, mean)
    groups = make_optimizer(made, TrainConfig(trunk_lr=0.1)).param_groups
    shares = {id(p): group["share"] for group in groups for p in group["params"]}
    assert {shares[id(p)] for p in frozen.head_of(made)} == {1.0}
    assert shares[id(made.stem[0].weight)] == 0.1
    assert len(shares) == len(list(made.parameters()))
    with pytest.raises(ConfigError, match="frozen_epochs"):
        frozen.check(TrainConfig(epochs=5, frozen_epochs=2, devices=2))


@pytest.mark.data
def test_embeddings_and_classes_are_those_of_the_published_model() -> None:
    """Against LiteRT: its int8 graph and our float one, on signals made in code."""
    if not FILE:
        pytest.skip("SOUNDMARK_YAMNET does not name YAMNet's TFLite file")
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    path = Path(FILE)
    front = Frontend(load_preset("yamnet-transfer").frontend)
    made = network(shape=(64, 96))
    pretrained.load_into(made, path)
    classes = yamnet_layers(path.read_bytes(), name="yamnet")[-1]
    assert classes.weight.shape == (521, 1024)
    theirs = litert.Interpreter(str(path), experimental_preserve_all_tensors=True)
    theirs.allocate_tensors()
    tensors = {tensor["name"]: tensor for tensor in theirs.get_tensor_details()}
    embedding, mel = tensors["tower0/network/layer28/reduce_mean"], tensors["log_mel_spectrogram"]
    scale, zero = embedding["quantization"]
    for label in synthetic.CLASSES.values():
        wave = synthetic.sound(label, 7, 1)[:15_600]
        theirs.set_tensor(theirs.get_input_details()[0]["index"], wave)
        theirs.invoke()
        features = front(wave)
        np.testing.assert_allclose(features, theirs.get_tensor(mel["index"]).T, atol=0.05)
        with torch.no_grad():
            ours = made.layers(torch.from_numpy(features)[None, None]).mean(dim=(2, 3))[0].numpy()
        wanted = (theirs.get_tensor(embedding["index"]).ravel().astype(np.float64) - zero) * scale
        assert np.corrcoef(ours, wanted)[0, 1] > 0.998
        scores = theirs.get_tensor(theirs.get_output_details()[0]["index"]).ravel()
        logits = classes.weight @ ours + classes.bias
        best = int(logits.argmax())
        assert scores[best] >= scores.max() - 0.03, label  # int8 scores have ties


def test_batch_norm_changes_nothing_at_first_and_is_folded_by_export(weights: Path) -> None:
    """Mean and variance are those of features, scale and shift undo them: 1e-4 in eval mode."""
    config = replace(preset().network, batch_norm=True)
    plain, normed = (networks.build(one, (32, 51), 5) for one in (preset().network, config))
    pretrained.load_into(plain, weights)
    pretrained.load_into(normed, weights)
    normed.load_state_dict({**plain.state_dict()}, strict=False)  # the head too
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(48, 32, 51, generator=generator)
    with torch.no_grad():
        wanted = plain.eval()(features)
        torch.testing.assert_close(normed.eval()(features), wanted, atol=1e-4, rtol=1e-4)
        assert isinstance(normed, YAMNet)
        normed.train()
        normed.settle(features.split(20))
        assert normed.training
        torch.testing.assert_close(normed.eval()(features), wanted, atol=1e-4, rtol=1e-4)
        first = normed.layers[0].bn
        given = normed.layers[0].conv(normed.layers[0].pad(features[:, None]))
        torch.testing.assert_close(first.running_mean, given.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            first.running_var, given.var(dim=(0, 2, 3), unbiased=False), atol=1e-4, rtol=1e-3
        )
        normed.dropout.p = 0.0
        by_batch = normed.train()(features)  # statistics of the same features: nearly the same function
        assert (by_batch - wanted).abs().max() < 0.02 * wanted.abs().max() + 1e-3
        folded = fold_batch_norm(normed.eval())
        assert not [module for module in folded.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        torch.testing.assert_close(folded(features), normed(features), atol=1e-4, rtol=1e-4)
    assert [name for name, _ in normed.named_parameters()][-2:] == ["head.weight", "head.bias"]
