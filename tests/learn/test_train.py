"""train: learns, resumes bit for bit, refuses what it must, and never touches the test fold."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from msgspec.structs import replace  # noqa: E402

import synthetic  # noqa: E402
from soundmark import audio  # noqa: E402
from soundmark.config import TrainConfig, to_toml  # noqa: E402
from soundmark.dataset import Dataset, load_esc50  # noqa: E402
from soundmark.errors import DatasetError, StorageError, TrainingError  # noqa: E402
from soundmark.learn import batches, checkpoint, networks  # noqa: E402
from soundmark.learn import train as module  # noqa: E402
from soundmark.learn.features import extract  # noqa: E402
from soundmark.learn.run_folder import Run, open_run  # noqa: E402
from soundmark.learn.schedule import learning_rate  # noqa: E402
from soundmark.learn.train import train  # noqa: E402
from soundmark.preset import load_preset  # noqa: E402

pytestmark = pytest.mark.train

EPOCHS = 4


def short(**changes: Any) -> Any:
    return synthetic.tiny_preset(**{"epochs": EPOCHS, **changes})


def weights(run: Path) -> bytes:
    return (run / "weights.safetensors").read_bytes()


def without_time(run: Path) -> dict[str, Any]:
    return {key: value for key, value in open_run(run).info.items() if key != "seconds"}


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run of EPOCHS epochs."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    before = os.environ.get("SOUNDMARK_CACHE")
    os.environ["SOUNDMARK_CACHE"] = str(synthetic.shared_folder() / "cache")
    try:
        train(short(), load_esc50(synthetic.shared_data()), test_fold=5, out=out)
    finally:
        os.environ.pop("SOUNDMARK_CACHE") if before is None else os.environ.update(SOUNDMARK_CACHE=before)
    return out


def scores_on(run: Run, dataset: Dataset) -> float:
    store = extract(dataset, run.preset.frontend, run.preset.window)
    network = networks.build(run.preset.network, store.linear.shape[1:], len(run.labels)).eval()  # type: ignore[arg-type]
    network.load_state_dict(checkpoint.load_weights(run.path / "weights.safetensors"))
    with torch.no_grad():
        heard = network(torch.from_numpy(store.frontend.finish(store.linear[:].copy()))).argmax(1)
    return float((heard == torch.tensor(dataset.targets)).float().mean())


def test_it_learns_and_hears_sources_that_it_never_saw(run: Run, dataset: Dataset) -> None:
    assert scores_on(run, dataset.in_folds([synthetic.TEST_FOLD])) > 0.8
    losses = [row["loss"] for row in history(run.path)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_folder_says_everything(run: Run, dataset: Dataset) -> None:
    assert {
        "preset.toml",
        "run.json",
        "history.jsonl",
        "checkpoints",
        "tensorboard",
        "weights.safetensors",
    } <= set(os.listdir(run.path))
    again = open_run(run.path)
    assert again == run
    assert load_preset(run.path / "preset.toml") == run.preset == synthetic.tiny_preset()
    info = run.info
    assert info["finished"] is True
    assert (info["train_folds"], info["test_fold"], info["n_clips"]) == ([1, 2, 3, 4], 5, 80)
    assert info["data_digest"] == dataset.in_folds([1, 2, 3, 4]).digest()
    assert run.labels == dataset.labels
    rows = history(run.path)
    assert [row["epoch"] for row in rows] == list(range(1, 25))
    assert all(math.isfinite(row["loss"]) and row["bad_batches"] == 0 for row in rows)
    assert rows[-1]["lr"] < 0.02 * max(row["lr"] for row in rows)
    assert any(name.startswith("events") for name in os.listdir(run.path / "tensorboard"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    whole: Path, dataset: Dataset, tmp_path: Path
) -> None:
    seen: list[Any] = []
    state = torch.random.get_rng_state()
    torch.rand(7)
    train(short(), dataset, test_fold=5, out=tmp_path / "same", on_epoch=seen.append)
    train(short(seed=1), dataset, test_fold=5, out=tmp_path / "other")
    torch.random.set_rng_state(state)
    assert weights(tmp_path / "same") == weights(whole)
    assert weights(tmp_path / "other") != weights(whole)
    assert [report.epoch for report in seen] == [1, 2, 3, 4]


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from soundmark.preset import load_preset  # noqa: E402
from soundmark.dataset import load_esc50
from soundmark.learn import batches, train as module
data, preset, out, steps = sys.argv[1:]
left, real = [int(steps)], batches.mask
def mask(*args):
    left[0] -= 1
    if left[0] == 0:
        print("dying", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
batches.mask = mask
module.train(load_preset(preset), load_esc50(data), test_fold=5, out=Path(out))
"""


def killed_run(tmp_path: Path, data_root: Path, steps: int) -> Path:
    """Return the folder of a run that was killed in mid-epoch, in step ``steps`` (5 steps are an epoch)."""
    (tmp_path / "preset.toml").write_text(to_toml(short()))
    args = [str(data_root), str(tmp_path / "preset.toml"), str(tmp_path / "run"), str(steps)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *args],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    return tmp_path / "run"


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    whole: Path, dataset: Dataset, data_root: Path, tmp_path: Path
) -> None:
    out = killed_run(tmp_path, data_root, 13)
    assert open_run(out).info["finished"] is False
    assert not (out / "weights.safetensors").exists()
    found = checkpoint.latest(out / "checkpoints")
    assert found is not None
    assert found[0] == 2
    seen: list[Any] = []
    run = train(short(), dataset, test_fold=5, out=out, resume=True, on_epoch=seen.append)
    assert [report.epoch for report in seen] == [3, 4]
    assert weights(out) == weights(whole)
    assert run.info["finished"] is True

    def kept(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in history(folder)]

    assert kept(out) == kept(whole)


class _Stopped(Exception):
    pass


def stop_after(epoch: int) -> Any:
    def on_epoch(report: Any) -> None:
        if report.epoch == epoch:
            raise _Stopped

    return on_epoch


@pytest.mark.parametrize("damage", ["none", "newest", "torn history"])
def test_stopped_at_any_point_and_resumed_twice_is_the_same_run(
    whole: Path, dataset: Dataset, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "run"
    for resume, epoch in ((False, 2), (True, 3)):
        with pytest.raises(_Stopped):
            train(short(), dataset, test_fold=5, out=out, resume=resume, on_epoch=stop_after(epoch))
    if damage == "newest":
        (out / "checkpoints" / "epoch-00003" / "tensors.safetensors").write_bytes(b"")
    if damage == "torn history":
        with (out / "history.jsonl").open("ab") as file:
            file.write(b'{"epoch": 4, "lo')
    train(short(), dataset, test_fold=5, out=out, resume=True)
    assert weights(out) == weights(whole)
    assert [row["epoch"] for row in history(out)] == [1, 2, 3, 4]
    train(
        short(), dataset, test_fold=5, out=out, resume=True, on_epoch=pytest.fail
    )  # finished: nothing to do
    assert weights(out) == weights(whole)


def test_nothing_readable_is_not_a_fresh_start(dataset: Dataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        file.unlink()
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(short(), dataset, test_fold=5, out=tmp_path / "run", resume=True)


def test_a_folder_with_a_run_is_refused_without_resume(whole: Path, dataset: Dataset) -> None:
    before = weights(whole)
    with pytest.raises(TrainingError, match="--resume") as caught:
        train(short(), dataset, test_fold=5, out=whole)
    assert caught.value.code == "run_exists"
    assert weights(whole) == before


@pytest.mark.parametrize("what", ["preset", "fold", "folds", "data", "labels", "seed", "version"])
def test_another_run_is_refused_with_the_difference(
    whole: Path, dataset: Dataset, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, options, expected = short(), {"test_fold": 5}, ""
    if what == "preset":
        preset = replace(preset, augment=replace(preset.augment, gain_db=3.0))
        expected = r"preset\.augment\.gain_db was 6\.0, now 3\.0"
    elif what == "fold":
        options, expected = {"test_fold": 4}, "test_fold was 5, now 4"
    elif what == "folds":
        options["train_folds"] = (1, 2)
        expected = r"train_folds was \[1, 2, 3, 4\], now \[1, 2\]"
    elif what == "data":
        shutil.copytree(dataset.root, tmp_path / "data")
        dataset = load_esc50(tmp_path / "data")
        shutil.copy(dataset.clips[1].path, dataset.clips[0].path)
        expected = "data_digest was"
    elif what == "labels":
        dataset = dataset.with_labels(dataset.labels[:4])
        expected = r"data was 'ESC-50', now 'ESC-50 \(4 classes\)'"
    elif what == "seed":
        preset, expected = short(seed=3), r"preset\.train\.seed was 0, now 3"
    elif what == "version":
        monkeypatch.setattr(module.soundmark, "__version__", "9.9")
        expected = r"soundmark was '[0-9.]+', now '9\.9'"
    with pytest.raises(TrainingError, match=expected) as caught:
        train(preset, dataset, out=whole, resume=True, **options)  # type: ignore[arg-type]
    assert caught.value.code == "other_run"


def test_the_same_data_may_have_moved(whole: Path, dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.root, tmp_path / "data")
    shutil.copytree(whole, tmp_path / "run")
    train(short(), load_esc50(tmp_path / "data"), test_fold=5, out=tmp_path / "run", resume=True)


def test_a_second_process_is_refused_and_told_which_is_first(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = (
        "import sys, time; from pathlib import Path; from soundmark.learn.run_folder import lock\n"
        "with lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(300)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=f"in use by process {holder.pid}") as caught:
            train(short(), dataset, test_fold=5, out=out)
        assert caught.value.code == "run_in_use"
        assert os.listdir(out) == ["lock"]
    finally:
        holder.kill()
        holder.communicate()
    with (out / "lock").open() as file:  # the kernel drops the lock of a killed process
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_folder_that_cannot_be_made_is_a_storage_error(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError):
            train(short(), dataset, test_fold=5, out=out)


def test_training_and_testing_on_one_fold_is_a_leak(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        train(short(), dataset, test_fold=5, out=tmp_path / "run", train_folds=(4, 5))
    assert caught.value.code == "leak"
    with pytest.raises(DatasetError):
        train(short(), dataset, test_fold=5, out=tmp_path / "run", train_folds=(4, 7))
    assert not (tmp_path / "run").exists()


def test_the_test_fold_is_never_read(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    shutil.copytree(data_root, tmp_path / "data")
    data = load_esc50(tmp_path / "data")
    for clip in data.in_folds([5]).clips:
        clip.path.unlink()
    monkeypatch.setenv("SOUNDMARK_CACHE", str(tmp_path / "cache"))
    real, decoded = audio.load, []

    def load(source: Path, **options: Any) -> audio.Audio:
        decoded.append(source.name)
        return real(source, **options)

    monkeypatch.setattr(audio, "load", load)
    train(short(), data, test_fold=5, out=tmp_path / "run")
    assert len(decoded) == 80
    assert not [name for name in decoded if name.startswith("5-")]
    assert weights(tmp_path / "run") == weights(whole)


def test_a_loss_that_explodes_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    wild = short(lr=10.0, weight_decay=1e6, optimizer="sgd", schedule="constant", clip_norm=0.0)
    with pytest.raises(TrainingError, match=r"train\.lr is too high") as caught:
        train(wild, dataset, test_fold=5, out=tmp_path / "wild")
    assert caught.value.code == "loss_not_finite"
    assert caught.value.exit_status != 0
    assert open_run(tmp_path / "wild").info["finished"] is False
    assert not (tmp_path / "wild" / "weights.safetensors").exists()


def test_not_a_number_late_in_a_run_keeps_what_was_good(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, real = [0], batches.mask

    def poison(features: torch.Tensor, *rest: Any) -> torch.Tensor:
        steps[0] += 1
        return real(features, *rest) * (math.nan if steps[0] > 12 else 1)

    monkeypatch.setattr(batches, "mask", poison)
    with pytest.raises(TrainingError) as caught:
        train(short(max_bad_batches=2), dataset, test_fold=5, out=tmp_path / "run")
    assert caught.value.code == "loss_not_finite"
    assert steps[0] == 15
    found = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found[0] == 2
    assert all(torch.isfinite(t.float()).all() for t in found[1]["network"].values())


def test_a_few_bad_batches_are_skipped_counted_and_leave_no_trace(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, real = [0], batches.mask

    def poison(features: torch.Tensor, *rest: Any) -> torch.Tensor:
        steps[0] += 1
        return real(features, *rest) * (math.nan if steps[0] in (7, 9) else 1)

    monkeypatch.setattr(batches, "mask", poison)
    run = train(short(max_bad_batches=2), dataset, test_fold=5, out=tmp_path / "run")
    assert [row["bad_batches"] for row in history(run.path)] == [0, 2, 2, 2]
    final = checkpoint.load_weights(run.path / "weights.safetensors")
    assert [
        name for name, t in final.items() if not torch.isfinite(t.float()).all()
    ] == []  # batch norm as well


def test_batches_larger_than_the_set_and_odd_last_batches_work(dataset: Dataset, tmp_path: Path) -> None:
    for name, size in (("large", 500), ("odd", 27)):
        run = train(short(epochs=1, batch_size=size), dataset, test_fold=5, out=tmp_path / name)
        assert math.isfinite(history(run.path)[0]["loss"])


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_every_optimizer_resumes_bit_for_bit(dataset: Dataset, tmp_path: Path, optimizer: str) -> None:
    preset = short(epochs=2, optimizer=optimizer, ema=0.0 if optimizer == "adam" else 0.9)
    train(preset, dataset, test_fold=5, out=tmp_path / "whole", train_folds=(1,))
    with pytest.raises(_Stopped):
        train(preset, dataset, test_fold=5, out=tmp_path / "part", train_folds=(1,), on_epoch=stop_after(1))
    train(preset, dataset, test_fold=5, out=tmp_path / "part", train_folds=(1,), resume=True)
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")


def test_steps_fall_to_a_tenth_at_each_drop() -> None:
    config = TrainConfig(lr=1.0, schedule="step", warmup=0.01, drops=(0.3, 0.6))
    rates = [learning_rate(config, share) for share in (0.0, 0.005, 0.02, 0.299, 0.3, 0.599, 0.6, 0.999)]
    assert rates == pytest.approx([0.04, 0.52, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("schedule", ["one-cycle", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.15, 1.0])
def test_the_learning_rate_rises_then_falls(schedule: Any, warmup: float) -> None:
    config = TrainConfig(lr=0.5, schedule=schedule, warmup=warmup)
    rates = [learning_rate(config, i / 1000) for i in range(1000)]
    assert all(0 < rate <= 0.5 for rate in rates)
    if schedule == "constant":
        assert set(rates) == {0.5}
        return
    top = max(range(1000), key=rates.__getitem__)
    assert top == pytest.approx(1000 * warmup, abs=1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if warmup < 1:
        assert rates[top] == pytest.approx(0.5, rel=1e-3)
        assert rates[-1] < 0.01 * 0.5


@pytest.mark.parametrize("content", [None, "", "[", "\xff"])
def test_what_is_not_a_run_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, "latin-1")
    with pytest.raises(TrainingError, match="not a training run"):
        open_run(tmp_path)


def test_shuffled_labels_are_not_learned(dataset: Dataset, tmp_path: Path) -> None:
    """The whole road, with labels that mean nothing: near chance on the fold kept aside (D28)."""
    from dataclasses import replace as swap

    import numpy as np

    order = np.random.default_rng(0).permutation(len(dataset.clips))
    labels = [dataset.clips[i].label for i in order]
    shuffled = swap(
        dataset, clips=tuple(swap(c, label=label) for c, label in zip(dataset.clips, labels, strict=True))
    )
    run = train(short(epochs=6), shuffled, test_fold=5, out=tmp_path / "run")
    assert scores_on(run, shuffled.in_folds([5])) < 0.55  # of 5 labels, 20 clips


@pytest.mark.data
def test_shuffled_labels_of_esc50_are_chance_on_the_test_fold(tmp_path: Path) -> None:
    """The same with the real recordings, through export and evaluation: 2 % +- 1.5 (C8)."""
    from dataclasses import replace as swap

    import numpy as np

    from soundmark.classifier import Classifier
    from soundmark.evaluate import evaluate
    from soundmark.learn.export import export

    if not os.environ.get("SOUNDMARK_ESC50"):
        pytest.skip("SOUNDMARK_ESC50 does not name the real ESC-50")
    data = load_esc50()
    order = np.random.default_rng(1).permutation(len(data.clips))
    labels = [data.clips[i].label for i in order]
    shuffled = swap(data, clips=tuple(swap(c, label=x) for c, x in zip(data.clips, labels, strict=True)))
    preset = short(epochs=6, batch_size=32)
    preset = replace(
        preset,
        window=replace(preset.window, window_s=5.0, hop_s=5.0),
        export=replace(preset.export, max_int8_disagreement=1.0),
    )
    run = train(preset, shuffled, test_fold=5, out=tmp_path / "run")
    export(run, tmp_path / "bundle", data=shuffled)
    report = evaluate(Classifier.load(tmp_path / "bundle"), shuffled, folds=[5])
    assert report.stamps == ()
    assert abs(report.figures["accuracy"] - 0.02) <= 0.015


def stopping(**changes: Any) -> Any:
    return short(**{"patience": 1, "inner": 0.25, "lr": 0.05, "epochs": 8, "ema": 0.0, **changes})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, whole: Path) -> Path:
    """Return a run that was stopped by its inner split."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    os.environ["SOUNDMARK_CACHE"] = str(synthetic.shared_folder() / "cache")
    try:
        train(stopping(), load_esc50(synthetic.shared_data()), test_fold=5, out=out)
    finally:
        os.environ.pop("SOUNDMARK_CACHE")
    return out


def test_a_run_stops_on_its_inner_split_and_keeps_the_best_weights(stopped: Path, dataset: Dataset) -> None:
    rows = history(stopped)
    losses = [row["inner_loss"] for row in rows]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(rows) < 8, "it never stopped: the test shows nothing"
    assert len(rows) == best + 2
    info = open_run(stopped).info
    assert info["epochs"] == best + 1
    assert info["inner"]["loss"] == losses[best]
    assert info["inner"]["stopped"] == len(rows)
    assert info["inner"]["clips"] == 20
    assert info["train_folds"] == [1, 2, 3, 4]
    run = open_run(stopped)
    _, held = module.inner_split(dataset.in_folds([1, 2, 3, 4]), 0.25, 0)
    assert info["inner"]["digest"] == held.digest()
    network = networks.build(run.preset.network, (32, 51), 5).eval()
    network.load_state_dict(checkpoint.load_weights(stopped / "weights.safetensors"))
    judge = batches.Judge(run.preset, held)
    assert judge(network, torch.device("cpu")).loss == pytest.approx(losses[best], rel=1e-5)


def test_the_inner_clips_are_not_learnt_from(dataset: Dataset, tmp_path: Path, stopped: Path) -> None:
    seen: list[Any] = []
    real = batches.Batches

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, preset: Any, some: Dataset, **options: Any) -> None:
            seen.extend(some.clips)
            super().__init__(preset, some, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Batches", Watched)
        train(stopping(epochs=1), dataset, test_fold=5, out=tmp_path / "run")
    _, held = module.inner_split(dataset.in_folds([1, 2, 3, 4]), 0.25, 0)
    assert len(seen) == 60
    assert not {clip.source for clip in seen} & {clip.source for clip in held.clips}


@pytest.mark.parametrize("damage", ["none", "newest"])
def test_a_run_that_may_stop_resumes_bit_for_bit_too(
    stopped: Path, dataset: Dataset, tmp_path: Path, damage: str
) -> None:
    out, last = tmp_path / "run", open_run(stopped).info["epochs"] + (damage == "newest")
    with pytest.raises(_Stopped):
        train(stopping(), dataset, test_fold=5, out=out, on_epoch=stop_after(last))
    if damage == "newest":
        (out / "checkpoints" / f"epoch-{last:05d}" / "state.json").unlink()
    train(stopping(), dataset, test_fold=5, out=out, resume=True)
    assert weights(out) == weights(stopped)
    assert without_time(out) == without_time(stopped)
    train(stopping(), dataset, test_fold=5, out=out, resume=True, on_epoch=pytest.fail)
    assert weights(out) == weights(stopped)


def test_a_preset_may_choose_its_labels(dataset: Dataset, tmp_path: Path) -> None:
    run = train(replace(short(epochs=1), labels=("hum", "tone")), dataset, test_fold=5, out=tmp_path / "run")
    assert run.labels == ("hum", "tone")
    assert run.info["data"] == "ESC-50 (2 classes)"
    assert run.info["n_clips"] == 32
    with pytest.raises(DatasetError, match="no label siren"):
        train(replace(short(), labels=("hum", "siren")), dataset, test_fold=5, out=tmp_path / "other")


def test_a_run_from_pretrained_weights_says_so_and_one_without_them_too(
    whole: Path, dataset: Dataset, tmp_path: Path
) -> None:
    preset = short(epochs=1, lr=1e-9)
    preset = replace(preset, network=replace(preset.network, pretrained="ImageNet"))
    notes: list[str] = []
    bare = train(preset, dataset, test_fold=5, out=tmp_path / "bare", train_folds=(1,), on_note=notes.append)
    assert ["--weights FILE" in note for note in notes] == [True]
    assert bare.info["start"] == "random weights, not ImageNet"
    run = train(
        preset,
        dataset,
        test_fold=5,
        out=tmp_path / "run",
        train_folds=(1,),
        weights=whole / "weights.safetensors",
        on_note=pytest.fail,
    )
    assert run.info["start"].startswith("weights ")
    before = checkpoint.load_weights(whole / "weights.safetensors")
    after = checkpoint.load_weights(run.path / "weights.safetensors")
    torch.testing.assert_close(after["stem.0.weight"], before["stem.0.weight"], atol=1e-5, rtol=1e-4)
    with pytest.raises(TrainingError) as caught:
        train(preset, dataset, test_fold=5, out=tmp_path / "new", weights=tmp_path / "none.pth")
    assert caught.value.code == "bad_weights"
    assert not (tmp_path / "new").exists()  # said before work begins
    with pytest.raises(TrainingError, match="start was"):
        train(preset, dataset, test_fold=5, out=run.path, train_folds=(1,), resume=True)
