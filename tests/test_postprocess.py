"""postprocess: calibrated scores, pooling, thresholds and silence."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from soundmark.config import DecisionConfig
from soundmark.errors import AudioError, ConfigError
from soundmark.postprocess import Failure, LabelScore, Prediction, decide, pool, softmax, unknown_score

LABELS = ("a", "b", "c")


def one(*rows: tuple[float, ...], **decision) -> object:
    return decide(np.array(rows, np.float32), labels=LABELS, decision=DecisionConfig(**decision))


def test_softmax_is_the_formula_and_temperature_flattens() -> None:
    np.testing.assert_allclose(softmax([[0.0, math.log(3.0)]]), [[0.25, 0.75]])
    np.testing.assert_allclose(softmax([0.0, math.log(9.0)], 2.0), [0.25, 0.75])


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 3), elements=st.floats(-(2.0**127), 2.0**127, width=32)),
    st.sampled_from(["mean", "max"]),
    st.floats(0.01, 100.0),
)
def test_scores_of_any_finite_logits_are_finite_and_sum_to_one(
    logits, pooling: str, temperature: float
) -> None:
    answer = decide(logits, labels=LABELS, decision=DecisionConfig(pooling=pooling, temperature=temperature))
    assert np.isfinite(answer.scores).all()
    assert abs(answer.scores.sum() - 1) < 1e-5
    assert answer.label in LABELS


def test_pooling_mean_and_renormalised_max() -> None:
    scores = np.array([[0.8, 0.2, 0.0], [0.2, 0.2, 0.6]])
    np.testing.assert_allclose(pool(scores, "mean"), [0.5, 0.2, 0.3])
    np.testing.assert_allclose(pool(scores, "max"), [0.5, 0.125, 0.375])


def test_labels_are_descending_and_ties_keep_the_order_of_labels() -> None:
    answer = one((0.0, 1.0, 0.0))
    assert [x.label for x in answer.labels] == ["b", "a", "c"]
    assert answer.labels[0].score == answer.score
    assert (answer.label, answer.unknown, answer.reason) == ("b", False, "")


def test_top_k_is_clipped_and_at_least_one() -> None:
    logits = np.zeros((1, 3), np.float32)
    assert len(decide(logits, labels=LABELS, decision=DecisionConfig(), top_k=99).labels) == 3
    assert len(decide(logits, labels=LABELS, decision=DecisionConfig(), top_k=1).labels) == 1
    with pytest.raises(ConfigError, match="top_k"):
        decide(logits, labels=LABELS, decision=DecisionConfig(), top_k=0)


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.zeros((1, 4)), np.zeros(3)])
def test_logits_of_another_shape_are_refused(logits) -> None:
    with pytest.raises(ConfigError):
        decide(logits, labels=LABELS, decision=DecisionConfig())


def test_thresholds_make_unknown_and_keep_the_scores() -> None:
    below = one((0.0, 1.0, 0.0), threshold=0.7)  # best is 0.576
    assert (below.label, below.unknown, below.reason) == (None, True, "below_threshold")
    assert below.labels[0].label == "b"
    assert below.score == pytest.approx(0.576, abs=1e-3)
    assert one((0.0, 1.0, 0.0), threshold=0.7, label_thresholds={"b": 0.5}).label == "b"
    assert one((0.0, 1.0, 0.0), threshold=0.1, label_thresholds={"b": 0.6}).unknown
    assert one((0.0, 1.0, 0.0), threshold=0.1, label_thresholds={"a": 0.9}).label == "b"


def test_scores_for_unknown_sounds_by_hand() -> None:
    def score(kind: str, *rows: tuple[float, ...], **decision) -> float:
        return unknown_score(np.array(rows, np.float32), DecisionConfig(unknown_score=kind, **decision))

    row = (math.log(1.0), math.log(2.0), math.log(5.0))
    assert score("probability", row) == pytest.approx(5 / 8, abs=1e-6)
    assert score("max-logit", row) == pytest.approx(math.log(5), abs=1e-6)
    assert score("energy", row) == pytest.approx(math.log(8), abs=1e-6)
    hot = tuple(2 * x for x in row)
    assert score("energy", hot, temperature=2.0) == pytest.approx(2 * math.log(8), abs=1e-6)
    assert score("max-logit", hot, temperature=2.0) == pytest.approx(2 * math.log(5), abs=1e-6)
    louder = tuple(x + 3 for x in row)  # what the softmax cannot see
    assert score("probability", louder) == pytest.approx(score("probability", row), abs=1e-6)
    assert score("energy", louder) == pytest.approx(score("energy", row) + 3, abs=1e-6)
    far = (-9.0, -9.0, 90.0)
    assert score("energy", far) == pytest.approx(90)


def test_windows_are_pooled_before_they_are_scored() -> None:
    rows = np.array([[4.0, 0.0, 0.0], [0.0, 0.0, 2.0]], np.float32)
    wanted = {
        ("probability", "mean"): softmax(rows).mean(axis=0).max(),
        ("probability", "max"): pool(softmax(rows), "max").max(),
        ("max-logit", "mean"): 2.0,
        ("max-logit", "max"): 4.0,
        ("energy", "mean"): math.log(math.exp(2) + 1 + math.exp(1)),
        ("energy", "max"): math.log(math.exp(4) + 1 + math.exp(2)),
    }
    for (kind, pooling), value in wanted.items():
        found = unknown_score(rows, DecisionConfig(unknown_score=kind, pooling=pooling))
        assert found == pytest.approx(value, abs=1e-9), (kind, pooling)


@pytest.mark.parametrize("kind", ["max-logit", "energy"])
def test_thresholds_on_logits_may_be_of_any_size(kind: str) -> None:
    sure, unsure = (12.0, 6.0, 6.0), (-1.0, -7.0, -7.0)  # the same scores
    for row, unknown in ((sure, False), (unsure, True)):
        answer = one(row, unknown_score=kind, threshold=5.5)
        assert (answer.unknown, answer.reason) == (unknown, "below_threshold" if unknown else "")
        assert answer.score == pytest.approx(one(sure).score)
        assert answer.labels[0].label == "a"
        assert not one(row, unknown_score=kind, threshold=-2.0).unknown
    assert one(unsure, unknown_score=kind, threshold=5.5, label_thresholds={"a": -2.0}).label == "a"
    assert one(sure, unknown_score=kind, threshold=5.5, label_thresholds={"a": 20.0}).unknown


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 3), elements=st.floats(-(2.0**127), 2.0**127, width=32)),
    st.sampled_from(["mean", "max"]),
    st.sampled_from(["probability", "max-logit", "energy"]),
    st.floats(0.01, 100.0),
)
def test_scores_of_any_finite_logits_are_finite(logits, pooling: str, kind: str, temperature: float) -> None:
    decision = DecisionConfig(unknown_score=kind, pooling=pooling, temperature=temperature)
    assert math.isfinite(unknown_score(logits, decision))


def test_silence_is_no_evidence_for_any_label() -> None:
    logits = np.array([[9.0, 0.0, 0.0]], np.float32)
    answer = decide(logits, labels=LABELS, decision=DecisionConfig(), flags=("dc_offset", "silent"))
    assert (answer.label, answer.unknown, answer.reason) == (None, True, "silent")
    np.testing.assert_allclose(answer.scores, 1 / 3)
    assert answer.score == pytest.approx(1 / 3)


def prediction() -> Prediction:
    return Prediction(
        source="x.wav",
        label="b",
        score=0.7,
        labels=(LabelScore("b", 0.7), LabelScore("a", 0.3)),
        flags=("short",),
        unknown=False,
        reason="",
        duration_s=1.25,
        n_windows=1,
        timing_ms={"total": 1.23456},
        model="tiny",
        model_digest="0" * 64,
        scores=np.array([0.3, 0.7], np.float32),
        logits=np.array([[0.0, 1.0]], np.float32),
    )


def test_rows_are_json() -> None:
    row = json.loads(json.dumps(prediction().to_dict()))
    assert row["path"] == "x.wav"
    assert row["labels"] == [{"label": "b", "score": 0.7}, {"label": "a", "score": 0.3}]
    assert row["flags"] == ["short"]
    assert row["timing_ms"] == {"total": 1.235}
    assert "logits" not in row
    full = json.loads(json.dumps(prediction().to_dict(full=True)))
    assert full["logits"] == [[0.0, 1.0]]
    assert len(full["scores"]) == 2


def test_predictions_compare_and_pickle() -> None:
    assert prediction() == prediction()
    assert pickle.loads(pickle.dumps(prediction())) == prediction()


def test_failure_rows() -> None:
    row = Failure.of("bad.wav", AudioError("no frames", code="empty_file"))
    assert row.to_dict() == {"path": "bad.wav", "error": {"code": "empty_file", "message": "no frames"}}
    assert not row.ok
    assert prediction().ok
