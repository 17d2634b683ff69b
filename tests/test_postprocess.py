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
from soundmark.postprocess import Failure, LabelScore, Prediction, decide, pool, softmax

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
