"""Weights of a linear layer on few levels: what rounding one of them changes, those that are not rounded yet make good.

Inputs that weigh most come first, while there are many left to make good for them. Source: Frantar et al., "GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023; the order is that of its
published code (``act-order``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

DAMPING = 0.1
"""Added to the covariance of standardised inputs, since there are fewer windows than inputs."""
_BLOCK = 128


def with_feedback(
    weight: Matrix, inputs: Matrix, *, largest: int
) -> tuple[npt.NDArray[np.int64], Matrix, Matrix]:
    """Return levels and scales, of which the products give about what ``weight`` gave of these inputs.

    Args:
        weight: ``(after, before)``.
        inputs: ``(n, before)``, what the layer hears.
        largest: levels are whole numbers from its negative to it.

    Returns:
        Levels ``(after, before)``, the scale ``(before,)`` of each input, and what is to be added to the bias
        ``(after,)``, so that means stay.
    """
    middle, spread = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-9)
    order = np.argsort(-np.abs(weight).max(axis=0) * spread, kind="stable")
    z = ((inputs - middle) / spread)[:, order]
    left = (weight * spread)[:, order]  # of standardised inputs; rounded from the first to the last
    covariance = z.T @ z / len(z) + DAMPING * np.eye(len(spread))
    share = np.linalg.cholesky(np.linalg.inv(covariance)).T  # upper: of an error, what later inputs take over
    levels, scales = np.zeros(weight.shape, np.int64), np.zeros(len(spread))
    for first in range(0, len(spread), _BLOCK):
        last = min(first + _BLOCK, len(spread))
        errors = np.zeros((len(weight), last - first))
        for place in range(first, last):
            column = left[:, place]
            scales[place] = max(float(np.abs(column).max()) / largest, 1e-12)
            levels[:, place] = np.round(column / scales[place])
            error = (column - levels[:, place] * scales[place]) / share[place, place]
            left[:, place + 1 : last] -= np.outer(error, share[place, place + 1 : last])
            errors[:, place - first] = error
        left[:, last:] -= errors @ share[first:last, last:]
    place_of = np.argsort(order)
    levels, scales = levels[:, place_of], scales[place_of] / spread
    return levels, scales, (weight - levels * scales) @ middle
