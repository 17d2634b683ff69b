"""ensemble: what members say is combined as written down; folders that were tampered with are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundmark import bundle, ensemble
from soundmark.bundle import Bundle
from soundmark.classifier import Classifier
from soundmark.config import DecisionConfig, FrontendConfig
from soundmark.cross_validation import evaluate_folds, find_bundles, load_bundles
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import BundleError, ConfigError, DatasetError, StorageError
from soundmark.evaluate import evaluate, stamps
from soundmark.frontend import Frontend, fingerprint
from soundmark.golden import golden
from soundmark.postprocess import softmax
from test_evaluate import make_data
from tiny import TINY_LABELS, TINY_WINDOW, tiny_graph

Make = Callable[..., Bundle]
OTHER_FRONTEND = FrontendConfig(sample_rate=8_000, n_fft=256, hop_length=128, n_mels=16, mean=-40.0, std=20.0)


def training(test_fold: int = 1, **changes: Any) -> dict[str, Any]:
    others = [fold for fold in (1, 2, 3, 4, 5) if fold != test_fold]
    return {
        "training": {
            "data": "ESC-50", "train_folds": others, "test_fold": test_fold, "preset": "p", "network": "n", **changes,
        }
    }  # fmt: skip


@pytest.fixture
def pair(make_bundle: Make) -> tuple[Bundle, Bundle]:
    """Return two bundles with the same labels: other weights, another sample rate, another temperature."""
    rows, frames = Frontend(OTHER_FRONTEND).shape(round(TINY_WINDOW.window_s * OTHER_FRONTEND.sample_rate))
    model = tiny_graph(rows=rows, frames=frames, seed=3).SerializeToString()
    other = make_bundle(
        model=model,
        name="other",
        frontend=OTHER_FRONTEND,
        frontend_fingerprint=fingerprint(OTHER_FRONTEND),
        golden=golden(OTHER_FRONTEND, TINY_WINDOW, model, n_labels=len(TINY_LABELS)),
        decision=DecisionConfig(temperature=2.5, pooling="max"),
        provenance=training(),
    )
    return make_bundle(provenance=training()), other


@pytest.fixture
def models(pair: tuple[Bundle, Bundle]) -> list[Classifier]:
    return [Classifier(one) for one in pair]


@pytest.fixture
def sound(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Return a recording of three windows."""
    path = tmp_path / "sound.wav"
    soundfile.write(path, (0.1 * rng.standard_normal(48_000)).astype(np.float32), 16_000)
    return path


def test_log_probabilities_are_added_by_weight(tmp_path: Path, models: list[Classifier], sound: Path) -> None:
    made = ensemble.write(
        tmp_path / "e", models, name="e", weights=[0.7, 0.3], temperatures=[1.5, 0.5],
        decision=DecisionConfig(temperature=0.8),
    )  # fmt: skip
    logits = [model.classify(sound).logits for model in models]
    assert [len(one) for one in logits] == [3, 3]
    first = softmax(logits[0], 1.5).mean(axis=0)
    second = softmax(logits[1], 0.5).max(axis=0)  # its own pooling
    by_hand = softmax(0.7 * np.log(first) + 0.3 * np.log(second / second.sum()), 0.8)
    heard = load_model(tmp_path / "e").classify(sound, top_k=4)
    np.testing.assert_allclose(heard.scores, by_hand, atol=1e-6)
    assert heard.label == TINY_LABELS[by_hand.argmax()]
    assert (heard.model, heard.model_digest) == ("e", made.digest)
    assert not np.allclose(by_hand, first, atol=0.01)


def test_logits_are_added_as_they_are(tmp_path: Path, models: list[Classifier], sound: Path) -> None:
    made = ensemble.write(tmp_path / "e", models, name="e", combine="logits")
    by_hand = sum(model.classify(sound).logits.mean(axis=0) for model in models)
    heard = made.classify(sound)
    np.testing.assert_allclose(heard.logits[0], by_hand, rtol=1e-5)
    np.testing.assert_allclose(heard.scores, softmax(by_hand), atol=1e-6)


def test_without_weights_all_are_equal_and_temperatures_are_those_of_the_bundles(
    tmp_path: Path, models: list[Classifier]
) -> None:
    manifest = ensemble.write(tmp_path / "e", [*models, models[0]], name="e").manifest
    assert [member.weight for member in manifest.members] == pytest.approx([1 / 3] * 3)
    assert [member.temperature for member in manifest.members] == [1.0, 2.5, 1.0]
    assert [member.name for member in manifest.members] == ["tiny", "other", "tiny-2"]


def test_an_ensemble_may_be_a_member(tmp_path: Path, models: list[Classifier], sound: Path) -> None:
    inner = ensemble.write(tmp_path / "inner", models, name="inner", combine="logits")
    outer = ensemble.write(tmp_path / "outer", [inner, models[1]], name="outer", temperatures=[1.0, 1.0])
    second = softmax(models[1].classify(sound).logits).max(axis=0)
    by_hand = softmax(0.5 * np.log(inner.classify(sound).scores) + 0.5 * np.log(second / second.sum()))
    np.testing.assert_allclose(load_model(outer.path).classify(sound).scores, by_hand, atol=1e-5)
    assert outer.n_bytes == inner.n_bytes + models[1].n_bytes


def test_the_digest_covers_members_weights_and_decision(tmp_path: Path, models: list[Classifier]) -> None:
    made = [
        ensemble.write(tmp_path / "a", models, name="e"),
        ensemble.write(tmp_path / "b", models, name="e", weights=[0.4, 0.6]),
        ensemble.write(tmp_path / "c", models[::-1], name="e"),
        ensemble.write(tmp_path / "d", models, name="e", decision=DecisionConfig(temperature=2.0)),
    ]
    assert len({one.digest for one in made}) == 4
    assert ensemble.write(tmp_path / "again", models, name="e").digest == made[0].digest


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("weights", "hash_mismatch"),
        ("cut", "bad_bundle"),
        ("member damaged", "hash_mismatch"),
        ("member replaced", "mixed_bundles"),
        ("member gone", "model_not_found"),
        ("stranger", "bad_bundle"),
        ("no members", "bad_bundle"),
    ],
)
def test_damaged_and_mixed_folders_are_refused(
    tmp_path: Path, models: list[Classifier], damage: str, code: str
) -> None:
    home = ensemble.write(tmp_path / "e", models, name="e").path
    manifest, members = home / "ensemble.json", home / "members"
    if damage == "weights":
        manifest.write_text(manifest.read_text().replace('"weight": 0.5', '"weight": 0.9', 1))
    elif damage == "cut":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif damage == "member damaged":
        (members / "tiny" / "model.onnx").write_bytes(b"x" + models[0].bundle.model[1:])
    elif damage == "member replaced":
        shutil.rmtree(members / "tiny")
        shutil.copytree(members / "other", members / "tiny")
    elif damage == "member gone":
        shutil.rmtree(members / "tiny")
    elif damage == "stranger":
        shutil.copytree(members / "other", members / "third")
    else:
        shutil.rmtree(members)
    with pytest.raises(BundleError) as caught:
        load_model(home)
    assert caught.value.code == code


def test_a_manifest_that_makes_no_sense_is_refused_though_its_digest_is_right(
    tmp_path: Path, models: list[Classifier]
) -> None:
    home = ensemble.write(tmp_path / "e", models, name="e").path
    tree = json.loads((home / "ensemble.json").read_text())
    for change in (
        {"members": []},
        {"format": 2},
        {"members": [{**tree["members"][0], "name": "../tiny"}]},
        {"members": [{**tree["members"][0], "weight": -1.0}]},
        {"members": [{**tree["members"][0], "weight": 0.0}]},
        {"combine": "logits"},  # with a temperature
        {"stranger": 1},
    ):
        changed = {**tree, **change}
        changed["digest"] = bundle.digest_of(changed)
        (home / "ensemble.json").write_bytes(bundle.canonical(changed))
        with pytest.raises(BundleError) as caught:
            load_model(home)
        assert caught.value.code == "bad_bundle", change


def test_members_with_other_labels_are_refused_and_nothing_is_left(
    tmp_path: Path, models: list[Classifier], make_bundle: Make
) -> None:
    other = Classifier(make_bundle(labels=TINY_LABELS[::-1]))
    with pytest.raises(BundleError) as caught:
        ensemble.write(tmp_path / "e", [models[0], other], name="e")
    assert caught.value.code == "mixed_bundles"
    assert not (tmp_path / "e").exists()


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path, models: list[Classifier]) -> None:
    home = ensemble.write(tmp_path / "e", models, name="e").path
    with pytest.raises(StorageError):
        ensemble.write(home, models, name="e")
    assert ensemble.write(home, models[:1], name="e", overwrite=True).manifest.members[0].weight == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(StorageError, match="not an ensemble"):
        ensemble.write(tmp_path / "mine", models, name="e", overwrite=True)


def test_rows_flags_and_sources(tmp_path: Path, models: list[Classifier], sound: Path) -> None:
    made = ensemble.write(tmp_path / "e", models, name="e")
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16_000, np.float32), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    good, silent, bad = made.classify_many([sound, silence, tmp_path / "bad.wav"])
    assert (good.ok, silent.ok, bad.ok) == (True, True, False)
    assert (silent.unknown, silent.reason) == (True, "silent")  # type: ignore[union-attr]
    np.testing.assert_allclose(silent.scores, 0.25)  # type: ignore[union-attr]
    assert made.classify(sound.read_bytes()).label == good.label  # type: ignore[union-attr]
    with sound.open("rb") as file, pytest.raises(ConfigError, match="open file"):
        made.classify(file)


def test_the_command_line_takes_an_ensemble_as_a_model(
    call: Callable[..., tuple[object, str, str]], tmp_path: Path, pair: tuple[Bundle, Bundle], sound: Path
) -> None:
    members = [arg for one in pair for arg in ("--member", one.path)]
    status, out, _ = call("ensemble", tmp_path / "e", *members, "--name", "two")
    assert (status, "equal weights" in out) == (0, True)
    status, out, _ = call("classify", sound, "--model", tmp_path / "e", "--format", "jsonl")
    assert status == 0
    assert json.loads(out)["model"] == "two"
    assert call("ensemble", tmp_path / "e", *members)[0] == 4
    status, out, _ = call("ensemble", tmp_path / "e2", *members, "--combine", "logits", "--json")
    assert json.loads(out)["combine"] == "logits"


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Dataset:
    """Return three clips in each of five folds."""
    rows = [(fold, f"s{fold}{i}", TINY_LABELS[(fold + i) % 4]) for fold in range(1, 6) for i in range(3)]
    (tmp_path / "clips").mkdir()
    made = make_data(tmp_path / "clips", rows)
    for clip in made.clips:
        soundfile.write(clip.path, (0.1 * rng.standard_normal(16_000)).astype(np.float32), 16_000)
    return replace(made, labels=TINY_LABELS)


def test_evaluate_says_what_the_members_say_together(
    tmp_path: Path, models: list[Classifier], data: Dataset
) -> None:
    made = ensemble.write(
        tmp_path / "e", models, name="e", weights=[0.6, 0.4], temperatures=[1.0, 1.0],
        decision=DecisionConfig(temperature=0.5),
    )  # fmt: skip
    report = evaluate(made, data, folds=[1])
    for clip, answer in zip(data.in_folds([1]).clips, report.answers, strict=True):
        a, b = (np.log(softmax(model.classify(clip.path).logits))[0] for model in models)
        scores = softmax(0.6 * a + 0.4 * b, 0.5)
        assert answer.heard == TINY_LABELS[scores.argmax()]
        assert answer.score == pytest.approx(scores.max(), abs=1e-5)
        assert answer.raw_score == pytest.approx(softmax(0.6 * a + 0.4 * b).max(), abs=1e-5)
    assert report.stamps == ()
    assert report.provenance["model_bytes"] == sum(model.n_bytes for model in models)
    assert report.provenance["training"]["members"] == ["tiny", "other"]
    assert report.figures["calibration"]["raw_ece"] != report.figures["calibration"]["ece"]


def test_every_member_is_asked_what_it_has_seen(
    tmp_path: Path, pair: tuple[Bundle, Bundle], make_bundle: Make, data: Dataset
) -> None:
    seen = Classifier(make_bundle(provenance=training(2)))
    mixed = ensemble.write(tmp_path / "e", [Classifier(pair[0]), seen], name="e")
    assert [text[:10] for text in stamps(mixed, data, (1,))] == ["TRAINED ON"]
    with pytest.raises(DatasetError) as caught:
        evaluate_folds({1: mixed}, data)
    assert caught.value.code == "leak"
    fitted = {"weights": {**training(1)["training"], "train_folds": [2, 3]}}
    weighed = ensemble.write(tmp_path / "w", [Classifier(pair[0])], name="w", provenance=fitted)
    assert [text[:10] for text in stamps(weighed, data, (2,))] == ["TRAINED ON"]
    assert stamps(weighed, data, (1,)) == []


def test_one_ensemble_per_fold_is_scored_like_bundles(
    tmp_path: Path, make_bundle: Make, data: Dataset
) -> None:
    for fold in (1, 2):
        members = [Classifier(make_bundle(provenance=training(fold))) for _ in range(2)]
        ensemble.write(tmp_path / "cv" / f"fold{fold}", members, name="two")
    found = load_bundles(find_bundles(tmp_path / "cv"))
    assert all(isinstance(one, Ensemble) for one in found.values())
    whole, parts = evaluate_folds(found, data)
    assert whole.provenance["folds"] == [1, 2]
    assert len(whole.answers) == 6
    assert [member["temperature"] for member in whole.provenance["members"]] == [1.0, 1.0]
    assert parts[1].provenance["training"]["network"] == "n + n"


def test_a_bundle_is_still_a_bundle(tiny_bundle: Path) -> None:
    model = load_model(tiny_bundle)
    assert isinstance(model, Classifier)
    with pytest.raises(BundleError) as caught:
        load_model(tiny_bundle, digest="0" * 64)
    assert caught.value.code == "mixed_bundles"
