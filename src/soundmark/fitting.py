"""A temperature, or weights of several models, that make held answers most likely. numpy alone, no randomness.

Sources: temperature scaling, Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2; the weighted
mean of log-probabilities is a logarithmic opinion pool (Heskes 1998, "Selecting weighting factors in logarithmic
opinion pools").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from soundmark.breakdowns import ECE_BINS
from soundmark.postprocess import log_scores

TEMPERATURES = (0.05, 20.0)
"""Where a temperature is looked for."""
SHRINKAGE = 0.01
"""What a weight of 1 for one member costs against equal weights, in nats per clip."""
_GOLDEN = (5**0.5 - 1) / 2
_STEPS, _ROUNDS = 80, 4

Matrix = npt.NDArray[np.float64]
Logits = Sequence[npt.NDArray[np.floating]] | Matrix
"""One ``(n_windows, n_labels)`` per clip; where all have as many windows, that may be one array."""


def nll(log_probabilities: Matrix, targets: npt.NDArray[np.int64]) -> float:
    """Return the mean negative log-likelihood of ``targets`` (n,) under ``(n, n_labels)``."""
    return float(-log_probabilities[np.arange(len(targets)), targets].mean())


def ece(log_probabilities: Matrix, targets: npt.NDArray[np.int64]) -> float:
    """Return the expected calibration error, as in `breakdowns.calibration`."""
    score, right = np.exp(log_probabilities.max(axis=1)), log_probabilities.argmax(axis=1) == targets
    bin_of = np.clip(np.ceil(score * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bin_of, weights=right - score, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(targets))


def of_clips(logits: Logits, temperature: float, pooling: str) -> Matrix:
    """Return the log-probabilities ``(n, n_labels)`` of clips."""
    if len({len(one) for one in logits}) == 1:
        return log_scores(np.asarray(logits), temperature, pooling)
    return np.stack([log_scores(one, temperature, pooling) for one in logits])


def fit_temperature(logits: Logits, targets: npt.NDArray[np.int64], pooling: str = "mean") -> float:
    """Return the temperature in `TEMPERATURES` with the smallest `nll`, by golden section on its logarithm.

    For one window a clip the loss is convex in the inverse of the temperature, so there is one minimum.
    """
    if len({len(one) for one in logits}) == 1:
        logits = np.asarray(logits, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return nll(of_clips(logits, float(np.exp(log_temperature)), pooling), targets)

    low, high = np.log(TEMPERATURES)
    return float(np.exp(_lowest(loss, float(low), float(high))))


def fit_weights(
    log_probabilities: Matrix, targets: npt.NDArray[np.int64], *, shrinkage: float = SHRINKAGE
) -> tuple[Matrix, float]:
    """Return weights ``(m,)``, not negative, sum 1, and the temperature of the weighted mean.

    In turn, both lower the same loss: `nll` of ``softmax(weights @ log_probabilities / temperature)`` plus
    ``shrinkage`` times the distance from equal weights, which is 1 where one member has all the weight.

    Args:
        log_probabilities: ``(m, n, n_labels)`` of m members.
        targets: ``(n,)``.
        shrinkage: nats per clip, at least 0.
    """
    members = len(log_probabilities)
    weights, temperature = np.full(members, 1.0 / members), 1.0
    for _ in range(_ROUNDS):
        pooled = np.tensordot(weights, log_probabilities, axes=1)
        temperature = fit_temperature(pooled[:, None], targets)
        if members == 1:
            break
        weights = _weights(log_probabilities / temperature, targets, weights, shrinkage)
    return weights, temperature


@dataclass(frozen=True, slots=True)
class Pool:
    """Members and what was fitted for them.

    Attributes:
        temperatures: of each member, on its own.
        weights: of each member, sum 1.
        temperature: of the weighted mean.
        equal: log-probabilities ``(n, n_labels)`` with equal weights and temperature 1.
        pooled: the same, as fitted.
    """

    temperatures: list[float]
    weights: list[float]
    temperature: float
    equal: Matrix
    pooled: Matrix


def fit_pool(logits: Sequence[Logits], poolings: Sequence[str], targets: npt.NDArray[np.int64]) -> Pool:
    """Return temperatures and weights of members from the ``logits`` of each on the same clips."""
    temperatures = [
        short(fit_temperature(one, targets, how)) for one, how in zip(logits, poolings, strict=True)
    ]
    each = np.stack([of_clips(*one) for one in zip(logits, temperatures, poolings, strict=True)])
    weights, temperature = fit_weights(each, targets)
    weights, temperature = weights.round(4), short(temperature)
    pooled = np.tensordot(weights, each, axes=1)
    return Pool(
        temperatures=temperatures,
        weights=weights.tolist(),
        temperature=temperature,
        equal=of_clips(each.mean(axis=0)[:, None], 1.0, "mean"),
        pooled=of_clips(pooled[:, None], temperature, "mean"),
    )


def short(value: float) -> float:
    """Return four significant digits: more would say nothing, and what is written down is what counts."""
    return float(f"{value:.4g}")


def _weights(x: Matrix, targets: npt.NDArray[np.int64], start: Matrix, shrinkage: float) -> Matrix:
    """Return the weights that minimise a convex loss on the simplex, by projected gradient with backtracking."""
    equal = np.full(len(x), 1.0 / len(x))
    scale = shrinkage * len(x) / (len(x) - 1)
    true = x[:, np.arange(len(targets)), targets]  # (m, n)

    def loss(weights: Matrix) -> tuple[float, Matrix]:
        pooled = np.tensordot(weights, x, axes=1)
        top = pooled.max(axis=1, keepdims=True)
        shares = np.exp(pooled - top)
        total = shares.sum(axis=1, keepdims=True)
        value = float((np.log(total) + top)[:, 0].mean() - (weights @ true).mean())
        slope = np.einsum("mnl,nl->m", x, shares / total) / len(targets) - true.mean(axis=1)
        away = weights - equal
        return value + scale * float(away @ away), slope + 2 * scale * away

    weights, step = start, 1.0
    value, slope = loss(weights)
    for _ in range(_STEPS):
        while True:
            new = _on_simplex(weights - step * slope)
            new_value, new_slope = loss(new)
            moved = new - weights
            if new_value <= value + float(slope @ moved) + float(moved @ moved) / (2 * step) + 1e-15:
                break
            step /= 2
        weights, value, slope, step = new, new_value, new_slope, step * 1.5
        if float(np.abs(moved).max()) < 1e-7:
            break
    return weights


def _on_simplex(x: Matrix) -> Matrix:
    """Return the nearest point with coordinates that are not negative and sum to 1 (Duchi et al. 2008, figure 1)."""
    ordered = np.sort(x)[::-1]
    excess = (np.cumsum(ordered) - 1.0) / np.arange(1, len(x) + 1)
    last = int(np.flatnonzero(ordered > excess)[-1])
    return np.maximum(x - excess[last], 0.0)  # type: ignore[no-any-return]


def _lowest(f: Callable[[float], float], low: float, high: float) -> float:
    """Return where ``f``, which falls and then rises, is smallest between ``low`` and ``high``."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = f(a), f(b)
    while high - low > 1e-5:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = f(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = f(b)
    return (low + high) / 2
