"""side_by_side: the parts of the layer are the jointly fitted layer, and it is the minimum that it claims to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from msgspec.structs import replace as with_fields

import synthetic
from soundmark.config import EnsembleConfig, ExportConfig, NetworkConfig
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import ConfigError, TrainingError
from soundmark.evaluate import evaluate
from soundmark.learn import cosine
from soundmark.learn.finished import load_network, training_features
from soundmark.learn.run_folder import Run
from soundmark.learn.side_by_side import embeddings, fit, side_by_side
from soundmark.learn.train import train
from soundmark.learn.trunks import split_head
from soundmark.postprocess import softmax
from soundmark.preset import Preset
from soundmark.runtime import Runtime

FP32 = ExportConfig(quantize=False, golden_windows=16)
WIDTHS = {"thin": (8,) * 14, "wide": (12,) * 14}


def frozen_preset(name: str) -> Preset:
    """Return a frozen network with random weights; the wide one hears at another rate."""
    preset = synthetic.tiny_preset(epochs=1, frozen_epochs=1)
    off = {"mix_probability": 0.0, "gain_db": 0.0, "roll": 0.0, "time_masks": 0, "freq_masks": 0}
    rate = {"thin": 16_000, "wide": 12_000}[name]
    frontend = with_fields(preset.frontend, sample_rate=rate, hop_length=rate // 50)
    network = NetworkConfig(kind="yamnet", channels=WIDTHS[name], keep=5)
    return with_fields(
        preset, name=name, frontend=frontend, network=network, augment=with_fields(preset.augment, **off)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Return two finished runs on folds 1 to 4; shared, so do not change them."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDMARK_CACHE", str(synthetic.shared_folder() / "cache"))
        from soundmark.dataset import load_esc50

        data = load_esc50(synthetic.shared_data())
        return [train(frozen_preset(name), data, test_fold=5, out=home / name) for name in WIDTHS]


def embedded(run: Run, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    train_set = dataset.in_folds(run.info["train_folds"])
    names = [clip.name for clip in train_set.clips]
    found = embeddings(load_network(run), training_features(run, dataset, None), names)  # type: ignore[arg-type]
    return torch.stack([found[name] for name in names]).double().numpy(), np.array(train_set.targets)


def test_the_layer_is_the_minimum_of_its_loss_and_its_parts_add_up(rng: np.random.Generator) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    n, l2 = 120, 0.05
    targets = rng.integers(0, 4, n)
    centres = rng.standard_normal((4, 9))
    x = centres[targets] + 1.5 * rng.standard_normal((n, 9))
    x[:, 7] = 3.0  # a number that is always the same says nothing
    x *= np.geomspace(0.01, 100, 9)
    parts = [x[:, :4], x[:, 4:]]
    layers = fit(parts, targets, 4, l2=l2)
    together = sum(part @ layer.weight.T + layer.bias for part, layer in zip(parts, layers, strict=True))
    scaled = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    reference = linear_model.LogisticRegression(C=1 / (l2 * n), tol=1e-10, max_iter=10_000).fit(
        scaled, targets
    )
    np.testing.assert_allclose(softmax(together), reference.predict_proba(scaled), atol=1e-4)


def test_members_together_are_the_joint_layer_on_embeddings_side_by_side(
    runs: list[Run], dataset: Dataset, tmp_path: Path
) -> None:
    config = EnsembleConfig(l2=0.02)
    made = side_by_side(runs, tmp_path / "e", data=dataset, exports=[FP32, FP32], config=config)
    pairs = [embedded(run, dataset) for run in runs]
    targets = pairs[0][1]
    x = np.concatenate([part for part, _ in pairs], axis=1)
    (joint,) = fit([x], targets, len(dataset.labels), l2=0.02)
    clips = dataset.in_folds([1]).clips
    rows = [dataset.in_folds(runs[0].info["train_folds"]).clips.index(clip) for clip in clips]
    wanted = x[rows] @ joint.weight.T + joint.bias
    heard = [made.classify(clip.path) for clip in clips]
    np.testing.assert_allclose([one.logits[0] for one in heard], wanted, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose([one.scores for one in heard], softmax(wanted), atol=1e-4)
    assert made.manifest.combine == "logits"
    assert [member.name for member in made.manifest.members] == ["thin", "wide"]
    head = {"side_by_side": ["thin", "wide"], "l2": 0.02, "clips": len(x)}
    assert all(training["head"] == head for training in made.trainings)

    report = evaluate(made, dataset, folds=[5])
    assert report.stamps == ()
    assert report.figures["accuracy"] > 0.4  # random trunks; by chance 0.2
    assert evaluate(made, dataset, folds=[1]).stamps


def test_members_give_cosines_that_are_added_up(runs: list[Run], dataset: Dataset, tmp_path: Path) -> None:
    config = EnsembleConfig(layer="cosine", shrink=0.2, scale=5.0)
    made = side_by_side(runs, tmp_path / "e", data=dataset, exports=[FP32, FP32], config=config)
    pairs = [embedded(run, dataset) for run in runs]
    clips = dataset.in_folds([1]).clips
    rows = [dataset.in_folds(runs[0].info["train_folds"]).clips.index(clip) for clip in clips]
    wanted = np.zeros((len(clips), len(dataset.labels)))
    for x, targets in pairs:
        found = cosine.fit(x, targets, len(dataset.labels), shrink=0.2)
        there = x[rows] @ found.weight.T + found.bias
        wanted += 5 * (there / np.linalg.norm(there, axis=1, keepdims=True)) @ found.means.T
    heard = [made.classify(clip.path) for clip in clips]
    np.testing.assert_allclose([one.logits[0] for one in heard], wanted, atol=2e-3)
    head = {"side_by_side": ["thin", "wide"], "shrink": 0.2, "scale": 5.0, "clips": len(pairs[0][0])}
    assert all(training["head"] == head for training in made.trainings)

    for (
        model
    ) in made.models:  # its graph is cut before the projection, and what is left does not know the head
        trunk, head_of = split_head(model.bundle.model, name="cosine")  # type: ignore[attr-defined]
        assert head_of is not None
        assert head_of.projection is not None
        features = np.random.default_rng(0).standard_normal((3, 32, 51)).astype(np.float32)
        before = Runtime(trunk, input_shape=(32, 51), n_labels=head_of.width).logits(features)
        whole = Runtime(model.bundle.model, input_shape=(32, 51), n_labels=5).logits(features)  # type: ignore[attr-defined]
        np.testing.assert_allclose(head_of(before), whole, atol=1e-4)


def test_windows_of_a_clip_count_as_their_mean(runs: list[Run], dataset: Dataset) -> None:
    store = training_features(runs[0], dataset, None)
    network = load_network(runs[0])
    names = [clip.name for clip in dataset.in_folds(runs[0].info["train_folds"]).clips]
    halves = replace(store, clip_of=store.clip_of // 2)  # as if two clips were two windows of one
    single, double = (embeddings(network, one, names) for one in (store, halves))  # type: ignore[arg-type]
    torch.testing.assert_close(double[names[3]], (single[names[6]] + single[names[7]]) / 2)
    assert len(double) == len(single) / 2


def test_the_command_writes_int8_members(
    call: Callable[..., tuple[object, str, str]], runs: list[Run], dataset: Dataset, tmp_path: Path
) -> None:
    args = ("side-by-side", runs[0].path, "--data", dataset.root, "--out", tmp_path / "e")
    status, out, _ = call(*args, "--max-int8-disagreement", 1.0, "--name", "alone")
    assert (status, "logits" in out) == (0, True)
    made = load_model(tmp_path / "e")
    assert isinstance(made, Ensemble)
    kinds = [model.manifest.provenance["export"]["arithmetic"] for model in made.models]  # type: ignore[attr-defined]
    assert (made.name, kinds) == ("alone", ["int8"])
    (whole,) = made.models
    kept = onnx.load_from_string(whole.bundle.model).graph  # type: ignore[attr-defined]
    (gemm,) = [node for node in kept.node if node.op_type == "Gemm"]
    assert "QuantizeLinear" in {node.op_type for node in kept.node}
    assert gemm.input[1] in {
        tensor.name for tensor in kept.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    assert call(*args)[0] == 4  # it is there
    assert call(*args, "--overwrite", "--l2", 0)[0] == 2


def test_runs_that_learnt_or_saw_other_clips_are_refused(runs: list[Run], run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learnt on its training clips"):
        side_by_side([runs[0], run], tmp_path / "e")
    other = Run(runs[1].path, runs[1].preset, {**runs[1].info, "test_fold": 4, "train_folds": [1, 2, 3, 5]})
    with pytest.raises(TrainingError, match="train_folds"):
        side_by_side([runs[0], other], tmp_path / "e")
    unfinished = Run(runs[1].path, runs[1].preset, {**runs[1].info, "finished": False})
    with pytest.raises(TrainingError, match="not finished"):
        side_by_side([runs[0], unfinished], tmp_path / "e")
    assert not (tmp_path / "e").exists()
