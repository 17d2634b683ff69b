"""rounding: few levels for each input, and outputs that stay about what they were."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from soundmark.learn.rounding import with_feedback

LARGEST = 7


def alike(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Inputs of very different size, most of what they are in common, around a mean that is far from 0."""
    common = rng.normal(0, 1, (n, 5)) @ rng.normal(0, 1, (5, width))
    sizes = np.geomspace(1e-2, 1e2, width)
    return (common + 0.3 * rng.normal(0, 1, (n, width)) + 4.0) * sizes


@pytest.mark.parametrize("n", [60, 2000])
def test_correlated_inputs_hide_the_rounding(rng: np.random.Generator, n: int) -> None:
    width = 300
    x = alike(rng, n + 500, width)
    learnt, new = x[:n], x[n:]
    weight = rng.normal(0, 1, (9, width)) / x.std(axis=0)
    levels, scales, shift = with_feedback(weight, learnt, largest=LARGEST)
    assert np.abs(levels).max() == LARGEST
    assert (scales > 0).all()

    plain = np.abs(weight).max(axis=0) / LARGEST
    rounded = np.round(weight / plain) * plain
    wanted = (new - learnt.mean(axis=0)) @ weight.T
    error = np.square(new @ (levels * scales).T + shift - learnt.mean(axis=0) @ weight.T - wanted).mean()
    error_of_plain = np.square((new - learnt.mean(axis=0)) @ rounded.T - wanted).mean()
    assert error < 0.25 * error_of_plain
    assert error < 0.01 * wanted.var()
    np.testing.assert_allclose((learnt @ (levels * scales).T + shift).mean(0), (learnt @ weight.T).mean(0))


def test_an_input_that_never_changes_is_rounded_like_any(rng: np.random.Generator) -> None:
    x = alike(rng, 50, 20)
    x[:, 4] = 3.0
    weight = rng.normal(0, 1, (4, 20))
    levels, scales, shift = with_feedback(weight, x, largest=LARGEST)
    assert np.isfinite(scales).all()
    assert np.abs(levels[:, 4]).max() == LARGEST
    np.testing.assert_allclose((x @ (levels * scales).T + shift).mean(0), (x @ weight.T).mean(0))


def test_where_an_input_stands_does_not_matter(rng: np.random.Generator) -> None:
    x, weight = alike(rng, 200, 40), rng.normal(0, 1, (6, 40))
    levels, scales, shift = with_feedback(weight, x, largest=LARGEST)
    other = rng.permutation(40)
    turned_levels, turned_scales, turned_shift = with_feedback(weight[:, other], x[:, other], largest=LARGEST)
    np.testing.assert_array_equal(turned_levels, levels[:, other])
    np.testing.assert_allclose(turned_scales, scales[other])
    np.testing.assert_allclose(turned_shift, shift)
