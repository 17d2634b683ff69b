"""board: what TensorBoard reads back from a run, and that it is about training clips and the inner split alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

import synthetic  # noqa: E402
from soundmark.config import FrontendConfig, TrainConfig, WaveConfig  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.learn import board  # noqa: E402
from soundmark.learn.board import coloured, confusion_picture, hyperparameters  # noqa: E402
from soundmark.learn.run_folder import read_history  # noqa: E402
from soundmark.learn.train import train  # noqa: E402
from soundmark.plots import PALETTE  # noqa: E402

pytestmark = pytest.mark.train


def events(run: Path) -> EventAccumulator:
    """Return everything in the event files of a run."""
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    read.Reload()
    return read


def steps(rows: Any) -> list[int]:
    return [row.step for row in rows]


def test_a_run_with_an_inner_split_shows_curves_recall_confusion_and_examples(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "EVERY", 2)
    preset = synthetic.tiny_preset(epochs=5, patience=5, inner=0.25)
    out = tmp_path / "run"
    train(preset, dataset, test_fold=5, out=out)
    read, rows = events(out), read_history(out)
    for name, key in (
        ("train/loss", "loss"),
        ("train/accuracy", "accuracy"),
        ("train/lr", "lr"),
        ("inner/loss", "inner_loss"),
        ("inner/accuracy", "inner_accuracy"),
    ):
        found = read.Scalars(name)
        assert steps(found) == [1, 2, 3, 4, 5]
        assert [event.value for event in found] == pytest.approx([row[key] for row in rows], rel=1e-6)
    recalls = [read.Scalars(f"inner recall/{label}") for label in dataset.labels]
    assert all(steps(one) == [1, 2, 4, 5] for one in recalls)
    assert np.mean([one[-1].value for one in recalls]) == pytest.approx(
        rows[-1]["inner_accuracy"]
    )  # 4 clips each
    pictures = read.Images("inner/confusion")
    assert steps(pictures) == [1, 2, 4, 5]
    assert (pictures[0].height, pictures[0].width) == (5 * 6, 5 * 6)
    for label in dataset.labels:
        shown = read.Images(f"shown/{label}")
        assert steps(shown) == [1, 2, 4, 5]
        assert (shown[0].height, shown[0].width) == (32, 51)
        assert shown[0].encoded_image_string != shown[1].encoded_image_string  # augmented anew


def test_hyperparameters_are_those_of_the_preset(dataset: Dataset, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    out = tmp_path / "run"
    train(synthetic.tiny_preset(epochs=1), dataset, test_fold=5, out=out, train_folds=(1,))
    read = events(out)
    started = plugin_data_pb2.HParamsPluginData.FromString(
        read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert started["train.lr"].number_value == pytest.approx(1e-2)
    assert started["train.optimizer"].string_value == "adamw"
    assert started["network.channels"].string_value == "(8, 12, 16)"
    assert "epochs = 1" in read.Tensors("preset/text_summary")[0].tensor_proto.string_val[0].decode()
    tags = read.Tags()
    assert not [
        name for name in (*tags["scalars"], *tags["images"]) if name.startswith("inner")
    ]  # it has none
    assert read.Images(f"shown/{dataset.labels[0]}")


def test_a_resumed_run_has_every_epoch_once(dataset: Dataset, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(report: Any) -> None:
        if report.epoch == 2:
            raise Stopped

    preset, out = synthetic.tiny_preset(epochs=3), tmp_path / "run"
    with pytest.raises(Stopped):
        train(preset, dataset, test_fold=5, out=out, train_folds=(1,), on_epoch=stop)
    train(preset, dataset, test_fold=5, out=out, train_folds=(1,), resume=True)
    assert steps(events(out).Scalars("train/loss")) == [1, 2, 3]


def test_pictures_are_no_chance_for_the_training(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = replace(synthetic.tiny_preset(epochs=3), waves=WaveConfig(roll=1.0, noise=0.5))
    made = []
    for every in (1, 100):
        monkeypatch.setattr(board, "EVERY", every)
        out = tmp_path / str(every)
        train(preset, dataset, test_fold=5, out=out, train_folds=(1,))
        made.append((out / "weights.safetensors").read_bytes())
    assert made[0] == made[1]


def test_a_wave_is_shown_as_a_spectrum() -> None:
    wave = FrontendConfig(kind="wave", sample_rate=16_000)
    picture = coloured(synthetic.sound("chirp", 1, 1)[None], wave)
    assert picture.shape == (64, 37, 3)
    assert picture.dtype == np.uint8
    still = coloured(np.zeros((1, 300), np.float32), wave)
    assert still.shape[0] == 64


def test_a_confusion_is_bright_where_a_label_is_heard() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
    picture = confusion_picture(counts)[::6, ::6]
    shares = [[0.75, 0.25, 0], [0, 0, 0], [0, 0.5, 0.5]]
    np.testing.assert_array_equal(picture, PALETTE[(255 * np.array(shares, np.float32)).astype(np.uint8)])


def test_hyperparameters_are_plain() -> None:
    values = hyperparameters(replace(synthetic.tiny_preset(), train=TrainConfig(drops=(0.5,))))
    assert values["train.drops"] == "(0.5,)"
    assert all(isinstance(value, bool | int | float | str) for value in values.values())
    assert {name.partition(".")[0] for name in values} == {"network", "waves", "augment", "train"}
