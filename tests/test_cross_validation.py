"""cross_validation: a bundle answers only for the fold that it has never seen; figures are those of all answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soundmark.cross_validation import evaluate_folds, find_bundles, load_bundles, merged, refuse_if_seen
from soundmark.dataset import Dataset
from soundmark.errors import BundleError, DatasetError
from soundmark.evaluate import evaluate, figures
from test_evaluate import LABELS, Told, make_data

ROWS = [(1, "s1", "cat"), (1, "s1", "dog"), (2, "s2", "rain"), (2, "s3", "siren"), (3, "s4", "cat")]


def training(fold: int, **changes: Any) -> dict[str, Any]:
    others = [one for one in (1, 2, 3) if one != fold]
    return {"data": "ESC-50", "train_folds": others, "test_fold": fold, "preset": "p", **changes}


def told(dataset: Dataset, fold: int, wrong: tuple[str, ...] = (), **changes: Any) -> Any:
    """Return a classifier that is right about all clips but ``wrong`` ones; None is a failure."""
    scores: dict[str, list[float] | None] = {}
    for clip in dataset.clips:
        target = LABELS.index(clip.label)
        scores[clip.path.stem] = np.eye(len(LABELS))[(target + (clip.name in wrong)) % len(LABELS)].tolist()
    return Told(scores, training(fold, **changes))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return make_data(tmp_path, ROWS)


def test_each_bundle_answers_for_its_own_fold_alone(data: Dataset) -> None:
    # every classifier is wrong about all clips of the other folds, which must not matter
    others = {fold: tuple(clip.name for clip in data.clips if clip.fold != fold) for fold in (1, 2, 3)}
    others[2] += ("a3",)
    seen: list[int] = []
    whole, parts = evaluate_folds({k: told(data, k, others[k]) for k in (1, 2, 3)}, data, on_clip=seen.append)
    assert [answer.name for answer in whole.answers] == ["a0", "a1", "a2", "a3", "a4"]
    assert whole.figures["accuracy"] == 0.8
    assert whole.figures["per_fold"] == {"1": 1.0, "2": 0.5, "3": 1.0}
    assert whole.figures["accuracy_fold_mean"] == pytest.approx(2.5 / 3, abs=1e-6)
    assert whole.figures["accuracy_fold_std"] == pytest.approx(np.std([1, 0.5, 1], ddof=1), abs=1e-6)
    assert {k: part.figures["accuracy"] for k, part in parts.items()} == {1: 1.0, 2: 0.5, 3: 1.0}
    again = figures(whole.answers, (), data.labels)  # the interval is over the sources of all folds
    assert {name: whole.figures[name] for name in again} == again
    made = whole.provenance
    assert (made["folds"], made["n_clips"], made["stamps"]) == ([1, 2, 3], 5, [])
    assert made["data_digest"] == data.digest()
    assert [member["fold"] for member in made["members"]] == [1, 2, 3]
    assert [member["training"]["test_fold"] for member in made["members"]] == [1, 2, 3]
    assert made["training"] == {"data": "ESC-50", "preset": "p"}  # what they have in common
    assert sum(seen) == 5
    assert whole.to_dict()["figures"]["accuracy"] == 0.8


def test_a_clip_that_cannot_be_classified_counts_as_wrong(data: Dataset) -> None:
    deaf = told(data, 1)
    deaf.scores["a0"] = None
    reports = {1: evaluate(deaf, data, folds=[1]), 2: evaluate(told(data, 2), data, folds=[2])}
    whole = merged(reports, data, made_by="test")
    assert whole.figures["accuracy"] == 0.75
    assert (whole.figures["failed"], len(whole.failures)) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_fold": 2}, "fold 2 was kept aside"),
        ({"test_fold": 2, "train_folds": [1, 3]}, "TRAINED ON fold 1"),
        ({"train_folds": [1, 2, 3]}, "TRAINED ON fold 1"),
        ({"train_folds": None}, "UNKNOWN TRAINING"),
        ({"split": "0" * 64}, "OTHER SPLIT"),
        ({"data": "UrbanSound8K"}, "trained on 'UrbanSound8K'"),
        ({"data": "UrbanSound8K", "train_folds": [1, 7]}, "fold 1 was trained on"),
    ],
)
def test_a_bundle_that_may_know_its_fold_is_refused(data: Dataset, changes: Any, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        refuse_if_seen(told(data, 1, **changes), data, 1)
    assert caught.value.code == "leak"
    mixed = {1: told(data, 1, **changes), 2: told(data, 2), 3: told(data, 3)}
    with pytest.raises(DatasetError):
        evaluate_folds(mixed, data)


def test_other_names_for_the_same_clips_are_the_same_clips(data: Dataset) -> None:
    refuse_if_seen(told(data, 1, data="ESC-50 (10 classes)"), data, 1)
    digest = data.in_folds([2, 3]).digest()
    refuse_if_seen(told(data, 1, data="my sounds", data_digest=digest), data, 1)


def test_bundles_are_found_in_both_layouts_and_missing_ones_are_named(tmp_path: Path) -> None:
    for home in ("fold1", "fold2/bundle", "fold10/bundle", "folder", "fold3/run"):
        (tmp_path / home).mkdir(parents=True)
    for home in ("fold1", "fold2/bundle", "fold10/bundle", "folder"):
        (tmp_path / home / "bundle.json").touch()
    found = find_bundles(tmp_path)
    assert list(found) == [1, 2, 10]
    assert found[1] == tmp_path / "fold1"
    assert found[2] == tmp_path / "fold2" / "bundle"
    assert list(find_bundles(tmp_path, [2])) == [2]
    for folder, folds, said in ((tmp_path, [1, 3], "fold 3"), (tmp_path / "x", [], "any fold")):
        with pytest.raises(BundleError, match=said) as caught:
            find_bundles(folder, folds)
        assert caught.value.code == "model_not_found"


def test_bundles_of_several_systems_are_refused(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {Path("1"): told(data, 1), Path("2"): told(data, 2, preset="other")}
    monkeypatch.setattr("soundmark.cross_validation.load_model", lambda path, threads: made[path])
    with pytest.raises(BundleError, match="'other'") as caught:
        load_bundles({1: Path("1"), 2: Path("2")})
    assert caught.value.code == "mixed_bundles"
    made[Path("2")] = told(data, 2)
    made[Path("2")].labels = LABELS[::-1]
    with pytest.raises(BundleError, match="other labels"):
        load_bundles({1: Path("1"), 2: Path("2")})


def test_training_time_is_that_of_all_folds(data: Dataset) -> None:
    took = {1: 20.5, 2: 0.25, 3: 3}
    whole, _ = evaluate_folds({k: told(data, k, seconds=took[k]) for k in took}, data)
    assert whole.provenance["training"] == {"data": "ESC-50", "preset": "p", "seconds": 23.8}
    some = {k: told(data, k, **({"seconds": took[k]} if k != 2 else {})) for k in took}
    assert "seconds" not in evaluate_folds(some, data)[0].provenance["training"]  # one does not say
