"""The loop of train: schedule, optimiser, averages, clipping, weights of labels, precision, time, each by its law."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import bundle  # noqa: E402
from soundmark.config import AugmentConfig, TrainConfig  # noqa: E402
from soundmark.dataset import Dataset  # noqa: E402
from soundmark.learn import checkpoint, networks  # noqa: E402
from soundmark.learn import train as module  # noqa: E402
from soundmark.learn.run_folder import Run, open_run, read_history  # noqa: E402
from soundmark.learn.schedule import learning_rate, make_optimizer  # noqa: E402
from soundmark.learn.train import train  # noqa: E402
from soundmark.splits import class_weights  # noqa: E402

pytestmark = pytest.mark.train

OFF = AugmentConfig(mix_probability=0, gain_db=0, roll=0, time_masks=0, freq_masks=0)


def one_step(**values: Any) -> Any:
    """Return a preset whose epoch is one step over all of fold 1."""
    return replace(synthetic.tiny_preset(**{"epochs": 1, "batch_size": 20, **values}), augment=OFF)


def moved(run: Run) -> float:
    """Return how far the weights of a run are from where they began."""
    torch.manual_seed(run.preset.train.seed)
    begun = networks.build(run.preset.network, (32, 51), len(run.labels)).state_dict()
    now = checkpoint.load_weights(run.path / "weights.safetensors")
    weights = [name for name in begun if name.endswith(("weight", "bias"))]
    return math.sqrt(sum(float((now[name] - begun[name]).pow(2).sum()) for name in weights))


def test_cosine_is_that_of_torch() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    config = TrainConfig(lr=0.3, schedule="cosine", warmup=0.5)  # which it has not
    for step in range(50):
        assert learning_rate(config, step / 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_an_optimizer_is_what_its_name_says_and_decays_weights_alone(name: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))
    made = make_optimizer(network, TrainConfig(optimizer=name, weight_decay=0.1))
    assert type(made).__name__.lower() == name
    for group in made.param_groups:
        assert {p.ndim > 1 for p in group["params"]} <= {group["weight_decay"] == 0.1}
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(network.parameters()))


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_a_step_is_no_longer_than_the_clipped_gradient_allows(
    dataset: Dataset, tmp_path: Path, clip: float
) -> None:
    preset = one_step(optimizer="sgd", lr=0.1, schedule="constant", weight_decay=0.0, ema=0.0, clip_norm=clip)
    length = moved(train(preset, dataset, test_fold=5, out=tmp_path / "run", train_folds=(1,)))
    if clip:
        assert length == pytest.approx(
            0.1 * 1.9 * clip, rel=1e-2
        )  # Nesterov's first step: gradient + 0.9 of it
    else:
        assert length > 0.01


def test_averaged_weights_are_an_exponential_average(dataset: Dataset, tmp_path: Path) -> None:
    preset = one_step(epochs=20, ema=0.5, lr=1e-3)
    run = train(preset, dataset, test_fold=5, out=tmp_path / "run", train_folds=(1,))
    folders = sorted((run.path / "checkpoints").iterdir())
    later = checkpoint.latest(run.path / "checkpoints")
    (folders[-1] / "state.json").unlink()
    earlier = checkpoint.latest(run.path / "checkpoints")
    assert later is not None
    assert earlier is not None
    assert (earlier[0], later[0]) == (19, 20)
    for name in ("stem.0.weight", "stem.1.running_mean"):  # weights, and statistics of batch norm
        was, now = (state["averaged"][f"module.{name}"] for _, state in (earlier, later))
        wanted = 0.5 * was + 0.5 * later[1]["network"][name]
        torch.testing.assert_close(now, wanted)
        assert not torch.equal(was, now)
    final = checkpoint.load_weights(run.path / "weights.safetensors")
    torch.testing.assert_close(final["stem.0.weight"], later[1]["averaged"]["module.stem.0.weight"])


def rare(dataset: Dataset) -> Dataset:
    """Return the data set with one clip of the first label in fold 1."""
    from dataclasses import replace as swap

    first = dataset.labels[0]
    spare = [clip for clip in dataset.clips if clip.fold == 1 and clip.label == first][1:]
    return swap(dataset, clips=tuple(clip for clip in dataset.clips if clip not in spare))


def test_rare_labels_weigh_more_in_the_loss(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = torch.nn.functional.cross_entropy

    def cross_entropy(*args: Any, weight: Any = None, **options: Any) -> Any:
        seen.append(weight)
        return real(*args, weight=weight, **options)

    monkeypatch.setattr(module.nn.functional, "cross_entropy", cross_entropy)
    some = rare(dataset)
    for balance in ("weights", "none"):
        preset = one_step(balance=balance)
        train(preset, some, test_fold=5, out=tmp_path / balance, train_folds=(1,))
    wanted = class_weights(some.in_folds([1]))
    assert seen[0].tolist() == pytest.approx(wanted)
    assert seen[0][0] == pytest.approx(4 * float(seen[0][1]))
    assert seen[1] is None


def test_the_sampler_draws_labels_equally_often() -> None:
    targets = torch.tensor([0] * 10 + [1] * 90)
    weights = torch.tensor([5.0, 5 / 9])[targets]
    config, count = TrainConfig(balance="sampler"), torch.zeros(2)
    for seed in range(100):
        order = module._order(config, weights, torch.Generator().manual_seed(seed))
        count += torch.bincount(targets[order], minlength=2)
    assert float(count[0] / count.sum()) == pytest.approx(0.5, abs=0.02)
    whole = module._order(TrainConfig(), weights, torch.Generator())
    assert sorted(whole.tolist()) == list(range(100))


class _Stopped(Exception):
    pass


def stop(_: object) -> None:
    raise _Stopped


def test_mixed_precision_learns_in_another_arithmetic_and_resumes_bit_for_bit(
    dataset: Dataset, tmp_path: Path
) -> None:
    preset = one_step(epochs=2, precision="bf16-mixed")
    run = train(preset, dataset, test_fold=5, out=tmp_path / "run", train_folds=(1,))
    assert all(math.isfinite(row["loss"]) for row in read_history(run.path))
    kept = checkpoint.load_weights(run.path / "weights.safetensors")
    assert {value.dtype for value in kept.values()} <= {torch.float32, torch.int64}  # weights stay whole
    plain = train(one_step(epochs=2), dataset, test_fold=5, out=tmp_path / "plain", train_folds=(1,))
    assert not torch.equal(
        kept["stem.0.weight"], checkpoint.load_weights(plain.path / "weights.safetensors")["stem.0.weight"]
    )
    with pytest.raises(_Stopped):
        train(preset, dataset, test_fold=5, out=tmp_path / "part", train_folds=(1,), on_epoch=stop)
    train(preset, dataset, test_fold=5, out=tmp_path / "part", train_folds=(1,), resume=True)
    assert (tmp_path / "part" / "weights.safetensors").read_bytes() == (
        run.path / "weights.safetensors"
    ).read_bytes()


def test_training_time_is_summed_over_resumes_and_changes_nothing_else(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 10.0
        return clock[0]

    monkeypatch.setattr(module.time, "perf_counter", tick)
    preset, out = one_step(epochs=3), tmp_path / "run"
    with pytest.raises(_Stopped):
        train(preset, dataset, test_fold=5, out=out, train_folds=(1,), on_epoch=stop)
    assert "seconds" not in open_run(out).info
    clock[0] = 5000.0  # hours in which nothing was trained
    run = train(preset, dataset, test_fold=5, out=out, train_folds=(1,), resume=True)
    assert [row["seconds"] for row in read_history(out)] == [10.0] * 3
    assert run.info["seconds"] == 30.0
    again = train(preset, dataset, test_fold=5, out=out, train_folds=(1,), resume=True, on_epoch=pytest.fail)
    assert again.info == run.info == open_run(out).info


def test_a_bundle_says_how_long_its_training_took(run: Run, int8_bundle: Path) -> None:
    assert run.info["seconds"] == pytest.approx(
        sum(row["seconds"] for row in read_history(run.path)), abs=0.06
    )
    assert 0 < run.info["seconds"] < 600
    assert bundle.read(int8_bundle).manifest.provenance["training"]["seconds"] == run.info["seconds"]
    assert f"| training took | {run.info['seconds']:.0f} s |" in (int8_bundle / "README.md").read_text()
