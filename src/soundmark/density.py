"""How near the logits of a recording are to those of clips that a model was trained on: one Gaussian per label.

The Gaussians live in the space of the logits, so the graph of a bundle needs no second output, and what they take,
two numbers per pair of labels, fits into its manifest. Each has its own variances and no covariances (quadratic
discriminant analysis with diagonal matrices; as a score for unknown inputs, with one full matrix for all labels:
Lee et al., NeurIPS 2018). Variances are drawn towards those of all labels together, because a label has few clips.
"""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from soundmark.errors import ConfigError

PRIOR_CLIPS = 4
"""Clips with the variance of all labels together that each label's variance gets as if they were its own."""
_LEAST = 1e-3
"""Least variance: a float16 still holds its logarithm and its inverse."""

Matrix = npt.NDArray[np.float64]


def fit(logits: npt.ArrayLike, targets: npt.ArrayLike) -> str:
    """Return the Gaussians of all labels, as text: base64 of float16 means and logarithms of variances.

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
    spread = np.log(np.maximum((own + PRIOR_CLIPS * away.mean(axis=0)) / (counts + PRIOR_CLIPS), _LEAST))
    return base64.b64encode(np.stack([means, spread]).astype("<f2").tobytes()).decode("ascii")


@lru_cache(maxsize=16)
def read(gaussians: str, n_labels: int) -> tuple[Matrix, Matrix]:
    """Return means and logarithms of variances, each ``(n_labels, n_labels)``, read-only: label, logit.

    Raises:
        ValueError: not what `fit` gives for that many labels.
    """
    try:
        numbers = np.frombuffer(base64.b64decode(gaussians, validate=True), dtype="<f2")
        means, spread = numbers.astype(np.float64).reshape(2, n_labels, n_labels)
    except (binascii.Error, ValueError):
        raise ValueError(f"`gaussians` are not 2 x {n_labels} x {n_labels} float16 in base64") from None
    if not np.isfinite(numbers).all():
        raise ValueError("`gaussians` hold numbers that are not finite")
    means.setflags(write=False)
    spread.setflags(write=False)
    return means, spread


def density(logits: npt.ArrayLike, gaussians: str) -> float:
    """Return the logarithm of the highest density that a label gives ``logits`` (n_labels,), up to a constant."""
    x = np.asarray(logits, dtype=np.float64)
    means, spread = read(gaussians, len(x))
    return -0.5 * float((((x - means) ** 2) * np.exp(-spread) + spread).sum(axis=1).min())
