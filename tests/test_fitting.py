"""fitting: known temperatures and weights are found again, and the figures are those of the reports."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from soundmark import breakdowns, fitting
from soundmark.postprocess import log_scores, pool, softmax

LABELS, CLIPS = 6, 6000


def drawn(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """Return a label for each row of ``logits``, drawn from its softmax."""
    shares = softmax(logits).cumsum(axis=1)
    return np.asarray((rng.uniform(size=(len(logits), 1)) > shares).sum(axis=1), dtype=np.int64)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("windows", [1, 3])
def test_log_scores_are_the_logarithm_of_pooled_scores(
    rng: np.random.Generator, pooling: str, windows: int
) -> None:
    logits = rng.normal(size=(windows, LABELS)) * 4
    wanted = np.log(pool(softmax(logits, 1.7), pooling))
    np.testing.assert_allclose(log_scores(logits, 1.7, pooling), wanted, rtol=1e-12, atol=1e-12)
    far = log_scores(np.array([[0.0, -5000.0]]), 1.0, pooling)  # the score itself would be 0
    assert far.tolist() == [0.0, -5000.0]


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_a_known_scaling_is_found_again(rng: np.random.Generator, scale: float) -> None:
    true = rng.normal(size=(CLIPS, LABELS)) * 2
    targets = drawn(rng, true)
    found = fitting.fit_temperature((scale * true)[:, None], targets)
    assert found == pytest.approx(scale, rel=0.05)
    grid = [
        fitting.nll(fitting.of_clips((scale * true)[:, None], t, "mean"), targets)
        for t in (found * 0.97, found, found * 1.03)
    ]
    assert min(grid) == grid[1]


def test_known_weights_and_their_temperature_are_found_again(rng: np.random.Generator) -> None:
    a, b, noise = rng.normal(size=(3, CLIPS, LABELS)) * 2
    targets = drawn(rng, 2 * (0.7 * a + 0.3 * b))
    weights, temperature = fitting.fit_weights(np.stack([a, b, noise]), targets, shrinkage=0.0)
    np.testing.assert_allclose(weights, [0.7, 0.3, 0.0], atol=0.02)
    assert temperature == pytest.approx(0.5, rel=0.05)
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() >= 0


def test_shrinkage_draws_towards_equal_weights(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 300, LABELS))
    targets = drawn(rng, 2 * a + 0.5 * b)
    free, some, much = (
        fitting.fit_weights(np.stack([a, b]), targets, shrinkage=s)[0] for s in (0.0, 0.05, 100.0)
    )
    assert free[0] > some[0] > much[0] > 0.5 - 1e-3
    np.testing.assert_allclose(much, [0.5, 0.5], atol=0.01)


def test_a_pool_is_what_its_parts_say(rng: np.random.Generator) -> None:
    true = rng.normal(size=(400, LABELS)) * 2
    targets = drawn(rng, true)
    members = [list((3 * true + rng.normal(size=true.shape))[:, None]), list((0.5 * true)[:, None])]
    found = fitting.fit_pool(members, ["mean", "mean"], targets)
    by_hand = sum(
        w * np.log(softmax(np.array(one)[:, 0], t))
        for w, t, one in zip(found.weights, found.temperatures, members, strict=True)
    )
    np.testing.assert_allclose(np.exp(found.pooled), softmax(by_hand, found.temperature), atol=1e-9)
    assert fitting.nll(found.pooled, targets) <= fitting.nll(found.equal, targets)
    assert sum(found.weights) == pytest.approx(1.0, abs=1e-3)


def test_the_calibration_error_is_that_of_reports(rng: np.random.Generator) -> None:
    said = np.log(softmax(rng.normal(size=(500, LABELS)) * 2))
    targets = rng.integers(0, LABELS, 500)
    answers = [
        SimpleNamespace(score=float(np.exp(row.max())), right=bool(row.argmax() == target))
        for row, target in zip(said, targets, strict=True)
    ]
    assert fitting.ece(said, targets) == pytest.approx(breakdowns.calibration(answers)["ece"], abs=1e-6)  # type: ignore[arg-type]
