"""cosine: scikit-learn's discriminants, cosines that are none above 1, and numbers that are always the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from soundmark.errors import DatasetError  # noqa: E402
from soundmark.learn.cosine import CosineHead, Discriminants, _whitened, fit  # noqa: E402

pytestmark = pytest.mark.train


def clouds(rng: np.random.Generator, n: int = 200, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return points of four labels that are stretched along a direction which says nothing."""
    targets = np.arange(n) % 4
    x = 2 * rng.standard_normal((4, width))[targets] + rng.standard_normal((n, width))
    return x + 20 * rng.standard_normal((n, 1)) * rng.standard_normal(width), targets


def cosines(seen: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the cosines between points and the means of labels, ``(n, 4)``."""
    means = np.stack([seen[targets == label].mean(0) for label in range(4)])
    one, two = (some / np.linalg.norm(some, axis=1, keepdims=True) for some in (seen, means))
    return one @ two.T


def logits(found: Discriminants, x: np.ndarray) -> np.ndarray:
    head = CosineHead(x.shape[1], len(found.means)).become(found, 8.0)
    return head(torch.from_numpy(x).float()).detach().numpy()


def test_logits_are_the_cosines_of_scikit_learns_discriminants(rng: np.random.Generator) -> None:
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    x, targets = clouds(rng)
    z = (x - x.mean(0)) / x.std(0)
    seen = analysis.LinearDiscriminantAnalysis(solver="eigen").fit(z, targets).transform(z)
    found = logits(fit(x, targets, 4, shrink=1e-9), x)
    np.testing.assert_allclose(found, 8 * cosines(seen, targets), atol=2e-3)
    assert np.abs(found).max() <= 8.0 + 1e-4


def test_shrunk_to_the_end_it_is_what_the_means_span(rng: np.random.Generator) -> None:
    x, targets = clouds(rng)
    z = (x - x.mean(0)) / x.std(0)
    means = np.stack([z[targets == label].mean(0) for label in range(4)])
    span = np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:3]
    found = logits(fit(x, targets, 4, shrink=1.0), x)
    np.testing.assert_allclose(found, 8 * cosines(z @ span.T, targets), atol=2e-3)


def test_a_number_that_is_always_the_same_says_nothing(rng: np.random.Generator) -> None:
    x, targets = clouds(rng)
    alone = fit(x, targets, 4, shrink=0.1)
    np.testing.assert_allclose(np.linalg.norm(alone.means, axis=1), 1.0)
    found = fit(np.column_stack([x, np.full(len(x), 3.0)]), targets, 4, shrink=0.1)
    assert found.weight.shape == (3, 13)
    assert not found.weight[:, -1].any()
    assert np.isfinite(found.weight).all()


def test_far_sounds_have_a_low_level_wherever_they_are(rng: np.random.Generator) -> None:
    """A linear layer is surer the farther it goes; a cosine is not."""
    targets = np.arange(300) % 3
    x = 4 * np.eye(3, 8)[targets] + 0.3 * rng.standard_normal((300, 8))
    head = CosineHead(8, 3).become(fit(x, targets, 3, shrink=0.1), 1.0)
    middle = torch.from_numpy(x.mean(0)).float()
    near, far = (head((middle + length * torch.ones(8))[None]).max().item() for length in (1.0, 1000.0))
    assert head(torch.from_numpy(x).float()).max(dim=1).values.min() > 0.8
    assert far <= 1.0 + 1e-5
    assert near == pytest.approx(far, abs=0.05)


def test_more_labels_than_numbers(rng: np.random.Generator) -> None:
    targets = np.arange(120) % 6
    x = rng.standard_normal((6, 2))[targets] + 0.1 * rng.standard_normal((120, 2))
    found = fit(x, targets, 6, shrink=0.1)
    assert found.weight.shape == (2, 2)
    head = CosineHead(2, 6).become(found, 8.0)
    assert torch.isfinite(head(torch.from_numpy(np.tile(x.mean(0), (2, 1))).float())).all()


def test_a_label_without_clips_is_named() -> None:
    with pytest.raises(DatasetError, match="label 2 has no clip"):
        fit(np.eye(4), np.array([0, 1, 3, 3]), 4, shrink=0.1)


@pytest.mark.parametrize("width", [8, 60])
def test_more_numbers_than_clips_take_another_way_to_the_same(rng: np.random.Generator, width: int) -> None:
    within, b = rng.standard_normal((20, width)), rng.standard_normal((width, 3))
    covariance = within.T @ within / 20
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / width * np.eye(width)
    np.testing.assert_allclose(_whitened(within, 0.3, b), np.linalg.solve(shrunk, b), rtol=1e-8)
