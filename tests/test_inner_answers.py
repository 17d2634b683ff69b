"""inner_answers: what is fitted comes from held folds alone, and a model that may know them is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import numpy_helper

from soundmark import ensemble, fitting
from soundmark.bundle import Bundle
from soundmark.dataset import Dataset
from soundmark.ensemble import load_model
from soundmark.errors import BundleError, ConfigError, DatasetError
from soundmark.frontend import Frontend
from soundmark.golden import golden
from soundmark.held_answers import hear, outer_folds
from soundmark.inner_answers import calibrate, weigh
from soundmark.postprocess import softmax
from soundmark.runtime import Runtime
from test_evaluate import make_data
from tiny import TINY_FRONTEND, TINY_LABELS, TINY_WINDOW, tiny_graph

Made = Callable[..., Path]
PER_FOLD = 16


def sharper(factor: float, seed: int = 0) -> bytes:
    """Return the tiny model with logits times ``factor``."""
    model = tiny_graph(seed=seed)
    for tensor in model.graph.initializer:
        if tensor.name in ("w2", "b2"):
            value = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return bytes(onnx.ModelProto.SerializeToString(model))


@pytest.fixture
def made(make_bundle: Callable[..., Bundle]) -> Made:
    """Return a function that writes a bundle of a given training and sharpness."""

    def make(
        test_fold: int, train_folds: list[int] | None, factor: float = 1.0, seed: int = 0, **changes: Any
    ) -> Path:
        model = sharper(factor, seed)
        training = {
            "data": "ESC-50",
            "train_folds": train_folds,
            "test_fold": test_fold,
            "preset": "p",
            **changes,
        }
        return make_bundle(
            model=model,
            golden=golden(TINY_FRONTEND, TINY_WINDOW, model, n_labels=len(TINY_LABELS)),
            provenance={"training": training, "export": {}},
        ).path

    return make


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return five folds of sounds of many colours, labelled by chance as the tiny model would have it."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(3)
    index = make_data(folder, [(1 + i // PER_FOLD, f"s{i}", "dog") for i in range(5 * PER_FOLD)])
    front = Frontend(TINY_FRONTEND)
    runtime = Runtime(sharper(1.0), input_shape=front.shape(16_000), n_labels=len(TINY_LABELS))
    clips = []
    for clip in index.clips:
        wave = np.sin(np.arange(16_000) * rng.uniform(0.02, 1.5)) + rng.standard_normal(16_000) * rng.uniform(
            0, 1
        )
        wave = (wave * rng.uniform(0.001, 0.05)).astype(np.float32)
        soundfile.write(clip.path, wave, 16_000, subtype="FLOAT")
        shares = softmax(runtime.logits(front(wave)[None])[0])
        clips.append(replace(clip, label=TINY_LABELS[rng.choice(4, p=shares)]))
    return replace(index, clips=tuple(clips), labels=TINY_LABELS)


@pytest.fixture
def data(shared_data: Dataset, tmp_path: Path) -> Dataset:
    """Return a copy of it, to be changed at will."""
    home = Path(shutil.copytree(shared_data.root, tmp_path / "clips"))
    clips = tuple(replace(clip, path=home / clip.path.name) for clip in shared_data.clips)
    return replace(shared_data, root=home, clips=clips)


def test_the_temperature_follows_the_sharpness_and_is_written_down(made: Made, data: Dataset) -> None:
    found = {}
    for factor in (1.0, 3.0):
        outer, inner = made(1, [2, 3, 4, 5], factor), made(1, [4, 5], factor)
        before = load_model(outer).digest
        record = calibrate(outer, [inner], data)
        model = load_model(outer)
        assert model.decision.temperature == record["temperature"] != 1
        assert model.digest != before
        found[factor] = record["temperature"]
        assert record["nll_after"] <= record["nll_before"]
        assert (record["train_folds"], record["test_fold"], record["clips"]) == ([2, 3], 1, 2 * PER_FOLD)
        assert record["inner"][0]["digest"] == load_model(inner).digest
        assert model.trainings[1]["data_digest"] == data.in_folds([2, 3]).digest()
    assert 0.3 < found[1.0] < 3
    assert found[3.0] == pytest.approx(3 * found[1.0], rel=1e-3)
    # by hand, on a grid: no other temperature is better
    logits = [load_model(outer).classify(clip.path).logits for clip in data.in_folds([2, 3]).clips]
    targets = np.array(data.in_folds([2, 3]).targets)
    at = [
        fitting.nll(np.log(softmax(np.array(logits)[:, 0], t)), targets)
        for t in (0.9 * found[3.0], found[3.0], 1.1 * found[3.0])
    ]
    assert min(at) == at[1]
    assert record["nll_after"] == pytest.approx(at[1], rel=1e-3)


@pytest.mark.parametrize("score", ["pattern", "energy", "max-logit", "probability"])
def test_a_threshold_keeps_the_share_of_inner_answers(made: Made, data: Dataset, score: Any) -> None:
    outer, inner = made(1, [2, 3, 4, 5], 3.0), made(1, [4, 5], 3.0)
    record = calibrate(outer, [inner], data, keep=0.75, score=score)
    decision = load_model(outer).decision
    assert (decision.unknown_score, decision.threshold) == (score, record["threshold"])
    assert (record["unknown_score"], record["keep"], record["clips"]) == (score, 0.75, 2 * PER_FOLD)
    clips = data.in_folds([2, 3]).clips
    kept = [not row.unknown for row in load_model(outer).classify_many([clip.path for clip in clips])]
    assert np.mean(kept) == record["kept"] == 0.75  # inner and outer are the same network here
    assert bool(decision.patterns) == (score == "pattern")
    assert load_model(outer).trainings[1]["threshold"] == decision.threshold
    before = (outer / "bundle.json").read_bytes()
    with pytest.raises(ConfigError, match="keep"):  # another temperature would move what was fitted
        calibrate(outer, [inner], data)
    assert (outer / "bundle.json").read_bytes() == before
    again = calibrate(outer, [inner], data, keep=0.5)
    assert again["unknown_score"] == score  # the model's own, unless another is named
    assert again["threshold"] > record["threshold"]
    with pytest.raises(ConfigError, match="share"):
        calibrate(outer, [inner], data, keep=1.5)


def test_without_keep_there_is_no_threshold(made: Made, data: Dataset) -> None:
    outer = made(1, [2, 3, 4, 5])
    record = calibrate(outer, [made(1, [3, 4, 5])], data)
    decision = load_model(outer).decision
    assert (decision.unknown_score, decision.threshold) == ("probability", 0.0)
    assert not {"keep", "threshold", "unknown_score"} & record.keys()


def test_the_judged_fold_is_never_heard(made: Made, data: Dataset) -> None:
    for clip in data.in_folds([1]).clips:
        clip.path.unlink()
    record = calibrate(made(1, [2, 3, 4, 5]), [made(1, [3, 4, 5]), made(2, [2, 3, 4])], data)
    assert [one["folds"] for one in record["inner"]] == [[2], [5]]
    assert record["clips"] == 2 * PER_FOLD
    assert record["train_folds"] == [2, 5]


@pytest.mark.parametrize(
    ("inner", "folds", "said"),
    [
        ((2, [1, 3, 4]), (), "TRAINED ON fold 1"),  # the fold that is judged on
        ((1, [2, 3, 4, 5]), (), "all folds that may be heard"),
        ((1, [3, 4, 5]), (3,), "TRAINED ON fold 3"),  # a held fold
        ((1, [3, 4, 5]), (1, 2), "fold 1 is the fold"),
        ((1, None), (), "UNKNOWN TRAINING"),
    ],
)
def test_an_inner_model_that_may_know_the_answers_is_refused(
    made: Made, data: Dataset, inner: Any, folds: tuple[int, ...], said: str
) -> None:
    outer = made(1, [2, 3, 4, 5])
    before = (outer / "bundle.json").read_bytes()
    with pytest.raises(DatasetError, match=said) as caught:
        calibrate(outer, [made(*inner)], data, folds=folds)
    assert caught.value.code == "leak"
    assert (outer / "bundle.json").read_bytes() == before


def test_of_another_split_or_system_nothing_is_learnt(made: Made, data: Dataset) -> None:
    outer = made(1, [2, 3, 4, 5])
    with pytest.raises(DatasetError, match="OTHER SPLIT"):
        calibrate(outer, [made(1, [3, 4, 5], split="0" * 64)], data)
    with pytest.raises(BundleError, match="'q'"):
        calibrate(outer, [made(1, [3, 4, 5], preset="q")], data)


def test_without_a_fold_kept_aside_all_that_were_not_trained_on_are_judged(made: Made, data: Dataset) -> None:
    assert outer_folds(load_model(made(0, [1, 2, 3])), data) == (4, 5)
    assert outer_folds(load_model(made(0, [1, 2, 3, 4, 5])), data) == ()
    with pytest.raises(DatasetError, match="does not say"):
        outer_folds(load_model(made(1, None)), data)
    whole = made(0, [1, 2, 3, 4, 5])  # what ships: its inner models are those of the folds
    record = calibrate(whole, [made(1, [2, 3, 4, 5]), made(2, [1, 3, 4, 5])], data)
    assert (record["train_folds"], "test_fold" in record) == ([1, 2], False)


def test_weights_are_those_of_the_pool_on_held_clips(
    call: Callable[..., tuple[object, str, str]],
    made: Made,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right, wrong = made(1, [2, 3, 4, 5], 2.0), made(1, [2, 3, 4, 5], 2.0, seed=5)
    inner = [
        made(1, [3, 4, 5], 2.0),
        made(1, [3, 4, 5], 2.0, seed=5),
        made(2, [2, 3, 4], 2.0),
        made(2, [2, 3, 4], 2.0, seed=5),
    ]
    fitted, record = weigh([load_model(right), load_model(wrong)], [load_model(one) for one in inner], data)
    clips = [*data.in_folds([2]).clips, *data.in_folds([5]).clips]
    targets = np.array([TINY_LABELS.index(clip.label) for clip in clips])
    logits = [[load_model(one).classify(clip.path).logits for clip in clips] for one in (right, wrong)]
    by_hand = fitting.fit_pool(logits, ["mean", "mean"], targets)
    assert (fitted.weights, fitted.temperatures) == (by_hand.weights, by_hand.temperatures)
    assert fitted.weights[0] > 0.7
    assert (record["clips"], record["train_folds"]) == (2 * PER_FOLD, [2, 5])
    assert record["nll_fitted"] < record["nll_equal"]

    monkeypatch.setattr("soundmark.sources.open_dataset", lambda *a, **k: data)
    args = [arg for one in (right, wrong) for arg in ("--member", one)]
    args += [arg for one in inner for arg in ("--inner", one)]
    status, out, _ = call("ensemble", tmp_path / "e", *args, "--data", data.root)
    assert (status, "held fold 2, 5" in out) == (0, True)
    whole = ensemble.Ensemble.load(tmp_path / "e")
    assert [member.weight for member in whole.manifest.members] == fitted.weights
    assert whole.decision.temperature == fitted.temperature
    assert whole.trainings[-1]["train_folds"] == [2, 5]
    status, out, err = call("ensemble", tmp_path / "e3", *args[:-2], "--data", data.root)
    assert (status, "3 inner models for 2 members" in err) == (2, True)
    with pytest.raises(ConfigError):
        weigh([load_model(right)], [], data)


def test_an_ensemble_is_calibrated_like_a_bundle(
    call: Callable[..., tuple[object, str, str]],
    made: Made,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, folds in (("outer", [2, 3, 4, 5]), ("inner", [3, 4, 5])):
        members = [load_model(made(1, folds)), load_model(made(1, folds, seed=5))]
        ensemble.write(tmp_path / name, members, name="two", combine="logits")
    monkeypatch.setattr("soundmark.sources.open_dataset", lambda *a, **k: data)
    args = ("calibrate", tmp_path / "outer", "--inner", tmp_path / "inner", "--data", data.root)
    status, out, _ = call(*args, "--json")
    assert status == 0
    record = json.loads(out)
    whole = load_model(tmp_path / "outer")
    assert whole.decision.temperature == record["temperature"] != 1
    assert whole.trainings[-1]["train_folds"] == [2]
    status, out, _ = call(*args)
    assert (status, f"temperature {record['temperature']:g}" in out) == (0, True)
    assert call("calibrate", tmp_path / "outer", "--data", data.root)[0] == 2
    assert call(*args, "--score", "energy")[0] == 2
    status, out, _ = call(*args, "--score", "energy", "--keep", 0.9)
    decision = load_model(tmp_path / "outer").decision
    assert (status, decision.unknown_score) == (0, "energy")
    assert f"threshold {decision.threshold:g} on energy (93.8% pass)" in out  # 15 of 16
    status, _, err = call(*args)
    assert (status, "fitted to keep 0.9" in err) == (2, True)


def test_clips_that_say_nothing_are_left_out(made: Made, data: Dataset) -> None:
    silent, broken, *_ = data.in_folds([2]).clips
    soundfile.write(silent.path, np.zeros(16_000, np.float32), 16_000)
    broken.path.write_bytes(b"no sound")
    heard: list[int] = []
    held = hear(load_model(made(1, [3, 4, 5])), data, outer=(1,), on_clip=heard.append)
    assert (len(held.logits), sum(heard)) == (PER_FOLD - 2, PER_FOLD)
    assert held.logits.keys() == held.targets.keys()
