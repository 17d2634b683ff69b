"""density: Gaussians of logits against scipy's own, and texts that are none."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import multivariate_normal  # type: ignore[import-untyped]

from soundmark import density
from soundmark.bundle import Bundle
from soundmark.config import DecisionConfig
from soundmark.errors import ConfigError
from soundmark.postprocess import unknown_score


@pytest.fixture
def clips(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of three labels, (60, 3), around 5 at the label's own place, and the labels."""
    targets = np.repeat(np.arange(3), 20)
    return 5 * np.eye(3)[targets] + rng.normal(0, [0.5, 1, 2], (60, 3)), targets


def test_the_density_is_that_of_the_best_gaussian(
    clips: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    x, y = clips
    text = density.fit(x, y)
    pooled = np.mean([x[y == k].var(axis=0) for k in range(3)], axis=0)
    of_labels = [
        multivariate_normal(
            x[y == k].mean(axis=0),
            np.diag((20 * x[y == k].var(axis=0) + 4 * pooled) / 24),
        )
        for k in range(3)
    ]
    for one in (*x[::10], *rng.normal(0, 10, (5, 3))):
        wanted = max(gaussian.logpdf(one) for gaussian in of_labels) + 1.5 * np.log(2 * np.pi)
        assert density.density(one, text) == pytest.approx(wanted, rel=5e-3, abs=0.02)  # float16


def test_a_decision_pools_windows_and_scores_by_density(clips: tuple[np.ndarray, np.ndarray]) -> None:
    text = density.fit(*clips)
    decision = DecisionConfig(unknown_score="density", gaussians=text)
    windows = np.array([[5.0, 0, 0], [3.0, 2, 0]])
    assert unknown_score(windows, decision) == density.density([4.0, 1, 0], text)
    assert unknown_score([[5.0, 0, 0]], decision) > unknown_score(
        [[9.0, 9, 9]], decision
    )  # louder is not nearer
    with pytest.raises(ValueError, match="go together"):
        DecisionConfig(unknown_score="density")
    with pytest.raises(ValueError, match="go together"):
        DecisionConfig(gaussians=text)


def test_a_bundle_checks_them(
    make_bundle: Callable[..., Bundle], clips: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match="gaussians"):  # three labels, and the bundle has four
        make_bundle(decision=DecisionConfig(unknown_score="density", gaussians=density.fit(*clips)))


def test_labels_of_few_and_of_equal_clips(clips: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = clips
    with pytest.raises(ConfigError, match="label 2 has no clip"):
        density.fit(x[:40], y[:40])
    alone = density.fit(x[:41], y[:41])
    assert density.density(x[40], alone) > density.density(x[40] + 3, alone)
    same = density.fit(np.repeat(np.eye(3), 2, axis=0), np.repeat(np.arange(3), 2))  # no variance at all
    assert np.isfinite(density.density([1, 0, 0], same))


def test_what_fit_did_not_write_is_refused(clips: tuple[np.ndarray, np.ndarray]) -> None:
    text = density.fit(*clips)
    infinite = base64.b64encode(np.full((2, 3, 3), np.inf, "<f2").tobytes()).decode()
    for odd, labels in ((text, 4), (text[:-4], 3), ("ä", 3), ("abc", 3), (infinite, 3)):
        with pytest.raises(ValueError, match="gaussians"):
            density.read(odd, labels)
