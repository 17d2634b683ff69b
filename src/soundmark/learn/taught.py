"""What a student learns from: views of its clips, the labels in them, and what the teachers say.

It takes the place of `Batches` in the loop of `train`. Sources: Hinton, Vinyals and Dean, "Distilling the Knowledge in
a Neural Network", 2015 (T squared times the soft term); Ba and Caruana, NeurIPS 2014 (logits as numbers to hit); Beyer
et al., CVPR 2022 (mixed views).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from soundmark.errors import ConfigError
from soundmark.learn import views
from soundmark.learn.augment import mask
from soundmark.learn.batches import label_loss
from soundmark.learn.embeddings import Embedding
from soundmark.learn.seen import Seen
from soundmark.learn.teachers import Teacher, agreed
from soundmark.preset import Preset

Array = npt.NDArray[np.float32]


class Student(nn.Module):
    """A network and a projection that guesses its teachers' embeddings, which is thrown away in the end."""

    def __init__(self, network: nn.Module, width: int, n_teachers: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, n_teachers)  # first: the head's weight and bias stay last
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Return logits and guesses, ``(batch, n_labels + n_teachers)``."""
        network = self.network
        assert isinstance(network, Embedding)
        embedding = network.embed(features)
        return torch.cat([network.classify(embedding), self.projection(embedding)], dim=1)


def distill_loss(logits: Tensor, hard: Tensor, teacher: Tensor, *, soft: float, temperature: float) -> Tensor:
    """Return ``soft T^2 CE(student / T, teacher at T) + (1 - soft) CE(student, labels)``, the mean over the batch.

    Args:
        logits: of the student, ``(batch, n_labels)``.
        hard: the loss on labels, a number.
        teacher: logits ``(batch, n_labels)``.
        soft: weight of the teacher.
        temperature: T.
    """
    told = torch.softmax(teacher / temperature, dim=1)
    return soft * temperature**2 * functional.cross_entropy(logits / temperature, told) + (1 - soft) * hard


class Taught:
    """What `Batches` gives, from views: masked features, and in one tensor labels, answers and embeddings.

    Attributes:
        weights: ``(n_labels,)`` class weights, inverse to the clips of each label.
        targets: ``(n,)`` class index of every clip, as often as an epoch draws it.
    """

    steady = False

    def __init__(
        self,
        preset: Preset,
        folds: Sequence[views.Fold],
        teachers: Sequence[Teacher],
        seen: Seen,
        n_labels: int,
    ) -> None:
        """Open the blocks of all folds and let the teachers' heads answer."""
        self._preset, self._seen, self._n_labels = preset, seen, n_labels
        config = preset.distill
        deaf = [teacher.verified.path for teacher in teachers if not teacher.has_level]
        if config.logits and deaf:
            raise ConfigError(
                f"`distill.logits`, and {deaf[0]} hears several windows, so its answers have no level",
                wanted="teachers with windows as long as the student's, or 0",
            )
        self._where = [(fold, row) for fold in range(len(folds)) for row in range(len(folds[fold].clips))]
        self._features = [[_opened(seen, fold, view) for view in range(config.views)] for fold in folds]
        plans = [
            [views.plan(fold, config, preset.waves, view) for fold in folds] for view in range(config.views)
        ]
        labels = [
            np.concatenate(
                [views.soft_labels(p, fold.targets, n_labels) for p, fold in zip(row, folds, strict=True)]
            )
            for row in plans
        ]
        answers = [
            np.concatenate([_answer(teachers, fold, view) for fold in folds]) for view in range(config.views)
        ]
        self._told = torch.from_numpy(np.concatenate([np.stack(labels), np.stack(answers)], axis=2))
        self._embeddings = _Embeddings(teachers, folds, config.views) if config.embedding else None
        targets = torch.tensor([target for fold in folds for target in fold.targets])
        counts = torch.bincount(targets, minlength=n_labels)
        self.weights = len(targets) / (n_labels * counts.clamp_min(1).float())
        self.targets = targets.repeat(config.views_per_epoch)

    def __len__(self) -> int:
        return len(self.targets)

    def __call__(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return features ``(batch, n_rows, n_frames)`` of one view of each clip, drawn, and what was told about it."""
        clips = rows % len(self._where)
        drawn = torch.randint(self._preset.distill.views, (len(rows),), generator=generator)
        places = [
            (*self._where[clip], view) for clip, view in zip(clips.tolist(), drawn.tolist(), strict=True)
        ]
        stored = np.stack([self._features[fold][view][row] for fold, row, view in places])
        told = self._told[drawn, clips]
        if self._embeddings:
            told = torch.cat([told, self._embeddings(places)], dim=1)
        return mask(self._seen.features(stored), self._preset.augment, generator), told

    def plain(self, size: int) -> Iterator[Tensor]:
        """Yield the features of the plain view of every clip, ``size`` at a time."""
        for first in range(0, len(self._where), size):
            stored = [self._features[fold][0][row] for fold, row in self._where[first : first + size]]
            yield self._seen.features(np.stack(stored))

    def learner(self, network: nn.Module) -> nn.Module:
        """Return what learns: ``network``, with a projection where embeddings are learnt too."""
        if self._embeddings is None:
            return network
        width = getattr(network, "width", 0)
        if not isinstance(network, Embedding) or not width:
            raise ConfigError(
                f"`distill.embedding` with `network.kind` {self._preset.network.kind}",
                wanted="a network with an embedding (yamnet), or 0",
            )
        return Student(network, width, self._embeddings.width)

    def loss(self, out: Tensor, told: Tensor) -> Tensor:
        """Return the loss of what the learner gave on what was told."""
        config, n = self._preset.distill, self._n_labels
        logits, labels, answers = out[:, :n], told[:, :n], told[:, n : 2 * n]
        hard = label_loss(logits, labels, self._preset.train, self.weights)
        loss = distill_loss(logits, hard, answers, soft=config.soft, temperature=config.temperature)
        if config.logits:
            loss = loss + config.logits * functional.huber_loss(logits, answers)
        if self._embeddings:
            loss = loss + config.embedding * functional.huber_loss(out[:, n:], told[:, 2 * n :])
        return loss


class _Embeddings:
    """The embeddings of all trunks side by side, each number standardised over the training views."""

    def __init__(self, teachers: Sequence[Teacher], folds: Sequence[views.Fold], n_views: int) -> None:
        trunks = {teacher.trunk.key: teacher.trunk for teacher in teachers if teacher.head is not None}
        if not trunks:
            raise ConfigError(
                "`distill.embedding`, and no teacher has one",
                wanted="fp32 bundles (export.quantize = false) that end in one linear layer",
            )
        self._parts = []
        for trunk in trunks.values():
            blocks = [[_opened(trunk, fold, view) for view in range(n_views)] for fold in folds]
            total = square = np.zeros(trunk.row[1])
            n = 0
            for rows in (_pooled(block) for fold in blocks for block in fold):
                total, square, n = total + rows.sum(0), square + np.square(rows).sum(0), n + len(rows)
            spread = np.sqrt(np.maximum(square / n - np.square(total / n), 0.0))
            self._parts.append((blocks, (total / n).astype(np.float32), np.maximum(spread, 1e-3)))
        self.width = sum(trunk.row[1] for trunk in trunks.values())

    def __call__(self, places: Sequence[tuple[int, int, int]]) -> Tensor:
        """Return ``(n, width)`` of places (fold, row, view)."""
        found = [
            (_pooled(np.stack([blocks[fold][view][row] for fold, row, view in places])) - mean) / spread
            for blocks, mean, spread in self._parts
        ]
        return torch.from_numpy(np.concatenate(found, axis=1).astype(np.float32))


def _pooled(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return ``(n, width)`` of embeddings ``(n, n_windows, width)``: their mean."""
    mean: npt.NDArray[np.float64] = np.asarray(rows, np.float64).mean(axis=1)
    return mean


def _opened(consumer: views.Consumer, fold: views.Fold, view: int) -> npt.NDArray[Any]:
    rows = views.open_block(consumer, fold, view)
    assert rows is not None, "a block that was just built"
    return rows


def _answer(teachers: Sequence[Teacher], fold: views.Fold, view: int) -> Array:
    answers = [teacher.answers(_opened(teacher.trunk, fold, view)) for teacher in teachers]
    return agreed(answers, [teacher.weight for teacher in teachers])
