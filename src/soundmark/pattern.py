"""How much speaks for one known label: the level of the logits, less the distance of their pattern from all labels'.

The level is the largest logit. Texts that were fitted before heads of cosines came take half of the next from it: a
sound that nobody named is often torn between two labels, but cosines of labels that are alike are large together.

A dog's logits also say which other labels it is a little like. Every label's pattern is the mean of the logits of its
clips, with a spread for each logit; the distance is Mahalanobis' with a diagonal matrix per label. All of it lives in
the space of the logits, so the graph of a bundle needs no second output, and two numbers per pair of labels fit into
the manifest.

Source: Lee et al., NeurIPS 2018, for distances (there one full matrix for all labels); Wang et al., CVPR 2022 ("ViM"),
for adding them to the logit in its own unit.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from soundmark.errors import ConfigError

PRIOR_CLIPS = 4
"""Clips with the variance of all labels together that each label's variance gets as if they were its own."""
SHARE = 1 / 3
"""Spread of the weighted distance over known clips, in spreads of their level."""
RIVAL = 0.0
"""Share of the next logit that is taken from the largest."""
_RIVAL_BEFORE = 0.5
"""That of texts which do not say it."""
_LEAST = 1e-3
"""Least variance: a float16 still holds its root and the inverse of that."""

Matrix = npt.NDArray[np.float64]


class Patterns(NamedTuple):
    """What `fit` finds; arrays are read-only."""

    means: Matrix  # (n_labels, n_labels): label, logit
    spreads: Matrix  # standard deviations, the same shape
    weight: float  # of a distance, in units of the logits
    rival: float  # share of the next logit that is taken from the largest


def fit(logits: npt.ArrayLike, targets: npt.ArrayLike) -> str:
    """Return the patterns of all labels as text: base64 of float16 means, spreads, weight of a distance and `RIVAL`.

    With that weight the distance of the clips spreads a third (`SHARE`) as much as their level.

    Args:
        logits: ``(n, n_labels)`` of clips of known labels, pooled over windows.
        targets: ``(n,)`` places of their labels.

    Raises:
        ConfigError: a label has no clip.
    """
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    n_labels = x.shape[1]
    counts = np.bincount(y, minlength=n_labels)[:, None]  # (n_labels, 1)
    if not counts.all():
        raise ConfigError(f"label {counts.argmin()} has no clip", wanted="clips of every label")
    means = np.stack([x[y == label].mean(axis=0) for label in range(n_labels)])
    away = (x - means[y]) ** 2
    own = np.stack([away[y == label].sum(axis=0) for label in range(n_labels)])
    variances = (own + PRIOR_CLIPS * away.mean(axis=0)) / (counts + PRIOR_CLIPS)
    spreads = np.sqrt(np.maximum(variances, _LEAST))
    distances = np.array([_distance(one, means, spreads) for one in x])
    weight = SHARE * _levels(x, RIVAL).std() / max(float(distances.std()), _LEAST)
    numbers = np.concatenate([means.ravel(), spreads.ravel(), [weight, RIVAL]])
    return base64.b64encode(numbers.astype("<f2").tobytes()).decode("ascii")


@lru_cache(maxsize=16)
def read(patterns: str, n_labels: int) -> Patterns:
    """Return the patterns of a text.

    Raises:
        ValueError: not what `fit` gives for that many labels.
    """
    try:
        numbers = np.frombuffer(base64.b64decode(patterns, validate=True), dtype="<f2").astype(np.float64)
        means, spreads = numbers[: 2 * n_labels**2].reshape(2, n_labels, n_labels)
        weight, rival = (*numbers[2 * n_labels**2 :], _RIVAL_BEFORE)[:2]
        if numbers.size > 2 * n_labels**2 + 2:
            raise ValueError
    except (binascii.Error, ValueError):
        raise ValueError(f"`patterns` are not 2 x {n_labels} x {n_labels} + 2 float16 in base64") from None
    if not np.isfinite(numbers).all() or (spreads <= 0).any():
        raise ValueError("`patterns` hold numbers that are not finite, or spreads that are not positive")
    means.setflags(write=False)
    spreads.setflags(write=False)
    return Patterns(means, spreads, float(weight), float(rival))


def score(logits: npt.ArrayLike, patterns: str) -> float:
    """Return the level of ``logits`` (n_labels,) less the weighted distance to the nearest pattern."""
    x = np.asarray(logits, dtype=np.float64)
    means, spreads, weight, rival = read(patterns, len(x))
    return float(_levels(x, rival)) - weight * _distance(x, means, spreads)


def _levels(logits: Matrix, rival: float) -> Matrix:
    """Return the largest of ``logits`` (..., n_labels) less a share of the next largest, (...)."""
    ordered = np.sort(logits, axis=-1)
    levels: Matrix = ordered[..., -1] - rival * ordered[..., -2:-1].sum(axis=-1)  # a single label has no next
    return levels


def _distance(x: Matrix, means: Matrix, spreads: Matrix) -> float:
    """Return half of the squared distance to the nearest label."""
    return 0.5 * float((((x - means) / spreads) ** 2).sum(axis=1).min())
