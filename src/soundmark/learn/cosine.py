"""A head of cosines: how like every label an embedding is, in the directions that tell the labels apart.

An embedding is projected on the discriminants of the training clips, in which clips of one label spread alike in all
directions; a logit is the cosine between the projection and the mean of a label, times a scale. There is one answer, in
closed form, and nothing is drawn. Two things are better than in a linear layer on the same frozen embeddings: accuracy,
and that the level of the logits says something: a sound that nobody named is like no mean.

Source: Friedman, "Regularized Discriminant Analysis", JASA 1989 (shrinkage); Gidaris and Komodakis, CVPR 2018
(cosines).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from soundmark.errors import DatasetError

LEAST = 1e-6
"""Added to the length of a projection, so that none is divided by 0."""
SHRINK, SCALE = 0.2, 16.0
"""With which the head of a network begins; the scale is that of two teachers' cosines, 8 each, added up."""

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Discriminants:
    """What `fit` finds.

    Attributes:
        weight: ``(n, width)``, n at most the number of labels less one: the projection is ``x @ weight.T + bias``.
        bias: ``(n,)``.
        means: ``(n_labels, n)`` of the labels, each of length 1.
    """

    weight: Matrix
    bias: Matrix
    means: Matrix


def spreads(x: Matrix) -> Matrix:
    """Return the standard deviation ``(width,)`` of each number of ``x`` (n, width); of a constant, infinity."""
    found = x.std(axis=0)
    return np.where(found > 1e-6 * max(1e-12, float(found.max())), found, np.inf)  # a constant says nothing


def fit(x: Matrix, targets: npt.NDArray[np.int64], n_labels: int, *, shrink: float) -> Discriminants:
    """Return the discriminants of embeddings ``x`` (n, width), and where the labels are among them.

    Args:
        x: of training clips, some of every label.
        targets: ``(n,)`` labels.
        n_labels: how many there are.
        shrink: 0 to 1, how far the covariance within labels is drawn towards equal variances without correlation;
            above 0, since there are fewer clips than numbers.

    Raises:
        DatasetError: a label has no clip.
    """
    counts = np.bincount(targets, minlength=n_labels)
    if not counts.all():
        raise DatasetError(
            f"label {counts.argmin()} has no clip that can be used", wanted="clips of every label"
        )
    spread = spreads(x)
    middle = x.mean(axis=0)
    z = (x - middle) / spread
    means = np.stack([z[targets == label].mean(axis=0) for label in range(n_labels)])  # around 0
    towards = _whitened(z - means[targets], shrink, means.T)  # (width, n_labels)
    products = means @ towards  # of the means, where clips of one label spread alike in all directions
    centring = np.eye(n_labels) - 1 / n_labels
    sizes, turned = np.linalg.eigh(centring @ products @ centring)
    kept = min(n_labels - 1, x.shape[1])
    sizes, turned = sizes[-kept:], turned[:, -kept:]
    mixed = centring @ turned / np.sqrt(np.maximum(sizes, 1e-12 * sizes[-1]))  # (n_labels, kept)
    weight = (towards @ mixed).T / spread
    projected = products @ mixed
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    return Discriminants(weight, -weight @ middle, projected / np.maximum(lengths, LEAST))


def _whitened(within: Matrix, shrink: float, b: Matrix) -> Matrix:
    """Return the inverse of the shrunk covariance of ``within`` (n, width) times ``b`` (width, k).

    With fewer clips than numbers by way of a matrix of clips (Woodbury), which is quicker.
    """
    n, width = within.shape
    own = (1 - shrink) / n
    ridge = shrink * max(float((within * within).sum()) / (n * width), 1e-12)
    if width <= n:
        return np.linalg.solve(own * within.T @ within + ridge * np.eye(width), b)
    of_clips = own * within @ within.T + ridge * np.eye(n)
    return np.asarray((b - own * within.T @ np.linalg.solve(of_clips, within @ b)) / ridge)


class CosineHead(nn.Module):
    """Logits ``(batch, n_labels)`` of embeddings ``(batch, width)``: cosines times a scale, once it is fitted."""

    def __init__(self, width: int, n_labels: int) -> None:
        super().__init__()
        n = min(n_labels - 1, width)
        self.projection = nn.Linear(width, n)
        self.labels = nn.Linear(n, n_labels, bias=False)

    def become(self, found: Discriminants, scale: float) -> CosineHead:
        """Take what was found, and return itself."""
        with torch.no_grad():
            self.projection.weight.copy_(torch.from_numpy(found.weight))
            self.projection.bias.copy_(torch.from_numpy(found.bias))
            self.labels.weight.copy_(torch.from_numpy(scale * found.means))
        return self

    def fitted(self, x: Matrix, targets: npt.NDArray[np.int64]) -> CosineHead:
        """Take the discriminants of embeddings ``x`` (n, width) with labels ``targets`` (n,), and return itself."""
        return self.become(fit(x, targets, self.labels.out_features, shrink=SHRINK), SCALE)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits."""
        x = self.projection(embedding)
        logits: Tensor = self.labels(x / ((x * x).sum(dim=1, keepdim=True).sqrt() + LEAST))
        return logits
