"""unknowns: AUROC against a count of pairs, thresholds that keep what was asked for, intervals over sources."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundmark import unknowns
from soundmark.config import DecisionConfig
from soundmark.errors import ConfigError
from soundmark.unknowns import Heard, auroc, auroc_interval, fpr, threshold

SCORES = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 1.0, 7.0]), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_with_ties_as_halves(known: list[float], unknown: list[float]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(known, unknown)]
    assert auroc(known, unknown) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auroc(unknown, known) == pytest.approx(1 - auroc(known, unknown), abs=1e-12)


def test_the_ends_and_the_middle() -> None:
    assert auroc([2, 3], [0, 1]) == 1
    assert auroc([0, 1], [2, 3]) == 0
    assert auroc([1, 1], [1]) == 0.5
    for known, unknown in (([], [1.0]), ([1.0], [])):
        with pytest.raises(ConfigError, match="some of both"):
            auroc(known, unknown)


@settings(max_examples=200, deadline=None)
@given(SCORES, st.floats(0.01, 1.0))
def test_a_threshold_keeps_the_share_and_no_higher_one_does(known: list[float], keep: float) -> None:
    cut = threshold(known, keep)
    assert cut in known
    assert np.mean(np.array(known) >= cut) >= keep - 1e-9
    assert np.mean(np.array(known) > cut) < keep


def test_the_threshold_of_a_hundred() -> None:
    assert threshold(np.arange(100), 0.95) == 5  # 5 ... 99 are 95
    assert threshold(np.arange(20), 0.95) == 1  # 0.95 * 20 is a little more than 19 in binary
    assert threshold([3, 1, 2], 1.0) == 1
    assert fpr(np.arange(100), [4, 5, 6, 200]) == 0.75
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="keep"):
            threshold([1.0], keep)
    with pytest.raises(ConfigError, match="no known clip"):
        threshold([])


def test_the_interval_resamples_sources_not_clips(rng: np.random.Generator) -> None:
    known, unknown = rng.normal(1, 1, 60), rng.normal(0, 1, 40)
    alone = auroc_interval(known, unknown, list(map(str, range(60))), list(map(str, range(40))))
    assert alone[0] < auroc(known, unknown) < alone[1]
    # the same by hand: draw clips with replacement and count
    drawn = [auroc(rng.choice(known, 60), rng.choice(unknown, 40)) for _ in range(2000)]
    np.testing.assert_allclose(alone, np.quantile(drawn, [0.025, 0.975]), atol=0.015)
    # ten copies of every clip, of one source each, say nothing more
    many = auroc_interval(
        known.repeat(10), unknown.repeat(10), list(map(str, np.arange(60).repeat(10))),
        list(map(str, np.arange(40).repeat(10))),
    )  # fmt: skip
    np.testing.assert_allclose(many, alone, atol=0.01)


def test_scores_are_those_of_a_decision(rng: np.random.Generator) -> None:
    decision = DecisionConfig(temperature=2.0, threshold=0.9, label_thresholds={"a": 0.1})
    logits = [rng.normal(size=(windows, 4)) for windows in (1, 3)]
    by_hand = {
        "max-logit": [logits[0].max(), logits[1].mean(axis=0).max()],
        "energy": [2 * np.log(np.exp(one.mean(axis=0) / 2).sum()) for one in logits],
    }
    for kind, wanted in by_hand.items():
        np.testing.assert_allclose(unknowns.scores_of(logits, decision, kind), wanted, rtol=1e-12)  # type: ignore[arg-type]
    changed = unknowns.replaced(decision, "energy", -3.5)
    assert (changed.temperature, changed.threshold, changed.label_thresholds) == (2.0, -3.5, {})


def test_figures_see_the_level_that_the_softmax_forgets() -> None:
    known = [np.array([[9.0, 5.0, 5.0]])] * 10
    same_scores = [np.array([[2.0, -2.0, -2.0]])] * 5  # the softmax cannot tell them
    found = unknowns.figures(
        Heard(known, list("abcdefghij")),
        {"softer": Heard(same_scores, list("abcde")), "none": Heard([], [])},
        DecisionConfig(),
    )
    assert list(found) == ["probability", "max-logit", "energy"]
    assert found["probability"] == {
        "softer": {"clips": 5, "auroc": 0.5, "auroc_interval_95": [0.5, 0.5], "fpr_at_95": 1.0}
    }
    for kind in ("max-logit", "energy"):
        assert found[kind]["softer"] == {
            "clips": 5, "auroc": 1.0, "auroc_interval_95": [1.0, 1.0], "fpr_at_95": 0.0
        }  # fmt: skip
