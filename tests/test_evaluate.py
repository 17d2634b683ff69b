"""evaluate: figures against hand-made answers and sklearn, honest stamps, failures that count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from soundmark.config import DecisionConfig
from soundmark.dataset import Clip, Dataset
from soundmark.errors import DatasetError
from soundmark.evaluate import Answer, Report, agreement, bootstrap_interval, evaluate, figures
from soundmark.postprocess import Failure

LABELS = ("cat", "dog", "rain", "siren")


class Told:
    """A classifier that answers with given scores, by file name; None is a failure."""

    name, digest = "told", "0" * 64

    def __init__(
        self, scores: dict[str, list[float] | None], training: Any = None, labels: tuple[str, ...] = LABELS
    ) -> None:
        self.scores, self.labels = scores, labels
        self.training = training or {}
        self.trainings = (self.training,)
        self.decision, self.n_bytes, self.path = DecisionConfig(), 4, Path("told")

    def classify_many(self, sources: Iterable[Path], *, top_k: int) -> Iterator[Any]:
        for path in sources:
            scores = self.scores[path.stem]
            if scores is None:
                yield Failure(str(path), "corrupt_audio", "broken")
            else:
                yield SimpleNamespace(scores=np.array(scores, np.float32), flags=("short",))


def make_data(root: Path, rows: list[tuple[int, str, str]], name: str = "ESC-50") -> Dataset:
    """Return clips ``a0, a1, ...`` of (fold, source, label)."""
    clips = []
    for index, (fold, source, label) in enumerate(rows):
        path = root / f"a{index}.wav"
        path.write_bytes(bytes([index]))
        clips.append(Clip(path.stem, path, label, fold, source))
    return Dataset(name, root, LABELS, tuple(clips))


def answer(label: str, heard: str, rank: int | None = None, *, source: str = "s", name: str = "n") -> Answer:
    return Answer(name, 1, source, label, heard, 0.5, (label != heard) if rank is None else rank, ())


def clip(label: str, fold: int = 1, source: str = "s") -> Clip:
    return Clip("f", Path("f.wav"), label, fold, source)


def hot(best: str, *then: str) -> list[float]:
    """Return scores in which labels rank in this order, the others last."""
    order = [best, *then]
    return [1.0 / (2 + order.index(label)) if label in order else 0.01 * i for i, label in enumerate(LABELS)]


def test_the_figures_of_eight_hand_made_answers(tmp_path: Path) -> None:
    data = make_data(
        tmp_path,
        [
            (1, "a", "cat"),
            (1, "a", "cat"),
            (1, "b", "dog"),
            (2, "c", "dog"),
            (2, "d", "rain"),
            (3, "e", "rain"),
        ],
    )
    model = Told(
        {
            "a0": hot("cat"),
            "a1": hot("dog", "cat"),
            "a2": hot("dog"),
            "a3": hot("dog"),
            "a4": hot("siren", "cat", "dog", "rain"),
            "a5": hot("rain"),
        },
        {"train_folds": [4, 5], "data": "ESC-50"},
    )
    seen: list[int] = []
    report = evaluate(model, data, on_clip=seen.append)  # type: ignore[arg-type]
    got = report.figures
    assert sum(seen) == 6
    assert got["accuracy"] == pytest.approx(4 / 6, abs=1e-6)
    assert got["top3"] == pytest.approx(5 / 6, abs=1e-6)
    assert got["per_fold"] == {"1": pytest.approx(2 / 3, abs=1e-6), "2": 0.5, "3": 1.0}
    assert got["labels"] == list(LABELS)
    assert got["confusion"] == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert got["failed"] == 0
    by_label = {row["label"]: row for row in got["per_class"]}
    assert by_label["cat"] == {"label": "cat", "clips": 2, "precision": 1.0, "recall": 0.5, "f1": 0.666667}
    assert by_label["dog"]["precision"] == 0.666667
    assert by_label["siren"] == {"label": "siren", "clips": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0.8 + 2 / 3) / 3, abs=1e-5)  # siren does not occur
    assert report.stamps == ()
    assert report.answers[4].rank == 3
    assert report.answers[0].flags == ("short",)


def test_the_figures_equal_those_of_sklearn(rng: np.random.Generator) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for n_true in (4, 2):
        true = [LABELS[i] for i in rng.integers(0, n_true, 200)]
        heard = [label if rng.random() < 0.6 else LABELS[rng.integers(0, 4)] for label in true]
        got = figures([answer(t, h) for t, h in zip(true, heard, strict=True)], [], LABELS)
        assert got["accuracy"] == pytest.approx(metrics.accuracy_score(true, heard), abs=1e-6)
        present = sorted(set(true))
        f1 = metrics.f1_score(true, heard, labels=present, average="macro", zero_division=0)
        assert got["macro_f1"] == pytest.approx(f1, abs=1e-5)
        assert got["confusion"] == metrics.confusion_matrix(true, heard, labels=LABELS).tolist()
        rows = metrics.precision_recall_fscore_support(true, heard, labels=LABELS, zero_division=0)
        for row, precision, recall, f1, support in zip(got["per_class"], *rows, strict=True):
            assert row["clips"] == support
            assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(
                [precision, recall, f1], abs=1e-5
            )


def test_ties_count_against_the_model(tmp_path: Path) -> None:
    data = make_data(tmp_path, [(1, "a", "cat"), (1, "b", "dog")])
    report = evaluate(Told({"a0": [0.25] * 4, "a1": [0.3, 0.3, 0.3, 0.1]}), data)  # type: ignore[arg-type]
    assert [a.rank for a in report.answers] == [3, 2]
    assert report.figures["accuracy"] == np.trace(report.figures["confusion"]) == 0
    assert report.figures["accuracy"] == 0.0
    assert report.figures["top3"] == 0.5


def test_failures_count_as_wrong_in_every_figure(tmp_path: Path) -> None:
    data = make_data(tmp_path, [(1, "a", "cat"), (1, "b", "cat"), (2, "c", "dog"), (3, "d", "rain")])
    model = Told({"a0": hot("cat"), "a1": None, "a2": hot("dog"), "a3": None})
    report = evaluate(model, data)  # type: ignore[arg-type]
    got = report.figures
    assert (got["accuracy"], got["top3"], got["failed"]) == (0.5, 0.5, 2)
    assert got["per_fold"] == {"1": 0.5, "2": 1.0, "3": 0.0}
    assert [row["clips"] for row in got["per_class"]] == [2, 1, 1, 0]
    assert [row["recall"] for row in got["per_class"]] == [0.5, 1.0, 0.0, 0.0]
    assert got["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3, abs=1e-5)
    assert got["accuracy_interval_95"][0] < 0.5 < got["accuracy_interval_95"][1] <= 1
    assert [failure.code for failure in report.failures] == ["corrupt_audio"] * 2
    assert report.provenance["n_clips"] == 4


def test_all_failed_and_none_at_all_are_figures_of_zero() -> None:
    got = figures([], [clip("cat")], LABELS)
    assert (got["accuracy"], got["macro_f1"], got["per_fold"]) == (0.0, 0.0, {"1": 0.0})
    assert got["accuracy_interval_95"] == [0.0, 0.0]
    got = figures([], [], LABELS)
    assert (got["accuracy"], got["macro_f1"], got["accuracy_interval_95"]) == (0.0, 0.0, [0.0, 0.0])
    assert json.dumps(got, allow_nan=False)


def test_a_label_outside_of_the_data_set_is_wrong_and_still_a_clip() -> None:
    got = figures([answer("cat", "cat"), answer("cat", "violin"), answer("dog", "dog")], [], ("cat", "dog"))
    assert got["per_class"][0] == {
        "label": "cat",
        "clips": 2,
        "precision": 1.0,
        "recall": 0.5,
        "f1": 0.666667,
    }
    assert got["accuracy"] == pytest.approx(2 / 3, abs=1e-6)


def test_the_interval_is_deterministic_and_wider_when_sources_repeat() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(40) < 0.7
    each = [
        answer("cat", "cat" if r else "dog", source=str(i)) for i, r in enumerate(right) for _ in range(5)
    ]
    alone = [answer("cat", a.heard, source=str(i)) for i, a in enumerate(each)]
    low, high = bootstrap_interval(each)
    assert bootstrap_interval(each) == [low, high]
    assert bootstrap_interval(each, seed=1) != [low, high]
    narrow = bootstrap_interval(alone)
    assert 0 <= low < narrow[0] < right.mean() < narrow[1] < high <= 1
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 40), rel=0.25)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.25)


def test_the_interval_of_a_perfect_and_of_a_useless_model() -> None:
    assert bootstrap_interval([answer("cat", "cat", source=str(i)) for i in range(9)]) == [1.0, 1.0]
    assert bootstrap_interval([answer("cat", "dog", source=str(i)) for i in range(9)]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("training", "name", "stamp"),
    [
        ({"train_folds": [2, 3, 4, 5], "data": "ESC-50"}, "ESC-50", None),
        ({"train_folds": [1, 2], "data": "ESC-50"}, "ESC-50", "TRAINED ON fold 1"),
        ({"train_folds": [1, 2], "data": "ESC-50"}, "ESC-50 (10 classes)", "TRAINED ON fold 1"),
        ({"train_folds": [1, 2], "data": "ESC-50 (10 classes)"}, "ESC-50", "TRAINED ON fold 1"),
        ({"train_folds": [1, 2], "data": "garden"}, "ESC-50", None),
        ({"train_folds": [1, 2]}, "ESC-50", "TRAINED ON fold 1"),
        ({"train_folds": []}, "ESC-50", "UNKNOWN TRAINING"),
        ({"train_folds": ["1"]}, "ESC-50", "UNKNOWN TRAINING"),
        ({"train_folds": "1"}, "ESC-50", "UNKNOWN TRAINING"),
        ({}, "ESC-50", "UNKNOWN TRAINING"),
        (None, "ESC-50", "UNKNOWN TRAINING"),
    ],
)
def test_a_figure_that_is_not_honest_is_stamped(
    tmp_path: Path, training: Any, name: str, stamp: str | None
) -> None:
    data = make_data(tmp_path, [(1, "a", "cat"), (2, "b", "dog")], name)
    report = evaluate(Told({"a0": hot("cat"), "a1": hot("dog")}, training), data, folds=[1])  # type: ignore[arg-type]
    assert len(report.stamps) == (stamp is not None)
    assert all(found.startswith(str(stamp)) for found in report.stamps)
    assert report.to_dict()["stamps"] == list(report.stamps)


def test_only_the_chosen_folds_are_scored(tmp_path: Path) -> None:
    data = make_data(tmp_path, [(1, "a", "cat"), (2, "b", "dog"), (3, "c", "dog")])
    report = evaluate(Told({"a1": hot("dog"), "a2": hot("cat")}), data, folds=iter([3, 2, 3]))  # type: ignore[arg-type]
    assert report.provenance["folds"] == [2, 3]
    assert report.provenance["data_digest"] == data.in_folds([2, 3]).digest()
    assert report.figures["per_fold"] == {"2": 1.0, "3": 0.0}
    with pytest.raises(DatasetError) as caught:
        evaluate(Told({}), data, folds=[4])  # type: ignore[arg-type]
    assert caught.value.code == "unknown_fold"


def test_labels_in_another_order_are_matched_by_name_and_unknown_ones_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path, [(1, "a", "cat"), (1, "b", "siren")])
    more = ("violin", *LABELS[::-1])
    model = Told({"a0": [0, 0, 0, 0, 1], "a1": [0, 1, 0, 0, 0]}, labels=more)
    assert evaluate(model, data).figures["accuracy"] == 1.0  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="does not know the label dog, rain") as caught:
        evaluate(Told({}, labels=("cat", "siren")), data)  # type: ignore[arg-type]
    assert caught.value.code == "unknown_label"


def test_the_report_survives_json(tmp_path: Path) -> None:
    data = make_data(tmp_path, [(1, "a", "cat"), (1, "b", "dog"), (2, "c", "dog")])
    report = evaluate(Told({"a0": hot("cat"), "a1": None, "a2": hot("rain")}), data)  # type: ignore[arg-type]
    report.write(tmp_path / "out" / "report.json")
    text = (tmp_path / "out" / "report.json").read_text("utf-8")
    read = json.loads(text, parse_constant=pytest.fail)
    assert read == report.to_dict()
    assert [row["name"] for row in read["clips"]] == ["a0", "a2"]
    assert read["failures"][0]["error"]["code"] == "corrupt_audio"
    assert {"model_digest", "data_digest", "folds", "machine", "onnxruntime", "soundmark"} <= set(read)


def report_of(heard: dict[str, str]) -> Report:
    answers = tuple(answer("cat", h, name=name) for name, h in heard.items())
    return Report({}, {"stamps": []}, answers, ())


def test_agreement_is_the_share_of_equal_answers_on_the_same_clips() -> None:
    one = report_of({"a": "cat", "b": "dog", "c": "dog", "d": "rain"})
    assert agreement(one, one) == 1.0
    assert agreement(one, report_of({"d": "rain", "c": "cat", "b": "dog", "a": "cat"})) == 0.75
    for other in ({"a": "cat"}, {}):
        with pytest.raises(DatasetError, match="different clips"):
            agreement(one, report_of(other))
    with pytest.raises(DatasetError, match="different clips"):
        agreement(report_of({}), report_of({}))
