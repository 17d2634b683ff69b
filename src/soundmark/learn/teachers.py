"""Teachers: bundles that know the training folds and no other, and their common answer to a view.

The answer of several is the weighted mean of their log-probabilities, each at its own temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import bundle
from soundmark.bundle import Bundle
from soundmark.config import DecisionConfig
from soundmark.dataset import Dataset
from soundmark.errors import TrainingError
from soundmark.learn.trunks import Head, Trunk
from soundmark.postprocess import softmax

Array = npt.NDArray[np.float32]
LEAST = 1e-12
"""Smallest probability that is told from zero."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """One bundle with its weight among the others; equal trunks are one object."""

    verified: Bundle
    weight: float
    trunk: Trunk
    head: Head | None

    def log_scores(self, rows: npt.NDArray[Any]) -> Array:
        """Return log-probabilities ``(n, n_labels)`` of what the trunk gave, ``(n, n_windows, width)``."""
        logits = np.asarray(rows, np.float32) if self.head is None else self.head(rows)
        return log_scores(logits, self.verified.manifest.decision)


def log_scores(logits: Array, decision: DecisionConfig) -> Array:
    """Return log-probabilities ``(n, n_labels)`` of logits ``(n, n_windows, n_labels)``, pooled as when classifying."""
    scores = softmax(logits, decision.temperature)
    pooled = scores.mean(axis=1) if decision.pooling == "mean" else scores.max(axis=1)
    pooled /= pooled.sum(axis=1, keepdims=True)
    return _log(pooled)


def agreed(answers: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted mean of log-probabilities ``(n, n_labels)``, as log-probabilities again."""
    mean = np.average(np.stack(answers), axis=0, weights=weights)
    return _log(softmax(mean))


def _log(scores: npt.NDArray[np.float64]) -> Array:
    logs: Array = np.log(np.maximum(scores, LEAST)).astype(np.float32)
    return logs


def members(folder: Path) -> list[tuple[Bundle, float]]:
    """Return the bundles at ``folder`` and their weights: the one place that knows how teachers lie on the disk."""
    return [(bundle.read(folder), 1.0)]


def open_teachers(
    given: Sequence[tuple[Path, float]], *, window_s: float, threads: int = 1
) -> tuple[Teacher, ...]:
    """Return the teachers at these folders, weights multiplied with those of their members.

    Raises:
        BundleError: one is missing, damaged or not allowed.
        TrainingError: weights that are none; code ``bad_teacher``.
    """
    trunks: dict[str, Trunk] = {}
    found = []
    for folder, weight in given:
        if not 0 < weight < float("inf"):
            raise TrainingError(
                f"{folder} has weight {weight}", wanted="a number above 0", code="bad_teacher"
            )
        for verified, share in members(folder):
            trunk = Trunk(verified, window_s=window_s, threads=threads)
            head = trunk.head
            found.append(Teacher(verified, weight * share, trunks.setdefault(trunk.key, trunk), head))
    if not found:
        raise TrainingError("no teacher was named", wanted="--teacher DIR", code="bad_teacher")
    return tuple(found)


def training_of(verified: Bundle) -> dict[str, Any]:
    """Return what a bundle says about its training."""
    return verified.manifest.provenance.get("training", {})


def refuse_strangers(
    teachers: Sequence[Teacher], dataset: Dataset, train_folds: Sequence[int], hashes: dict[str, str]
) -> None:
    """Refuse teachers that know clips which the student does not learn from, or other labels.

    Args:
        teachers: who teaches.
        dataset: clips of all folds, of the student's labels.
        train_folds: folds that the student learns from.
        hashes: of the files of those folds.

    Raises:
        TrainingError: ``leak``: a teacher knows another fold, or does not say which; ``other_data``: it learnt from
            other clips, so its folds say nothing; ``bad_teacher``: other labels.
    """
    for teacher in teachers:
        name, training = teacher.verified.path, training_of(teacher.verified)
        if teacher.verified.manifest.labels != dataset.labels:
            raise TrainingError(
                f"teacher {name} knows {len(teacher.verified.manifest.labels)} labels, the data has "
                f"{len(dataset.labels)}, or in another order",
                wanted="teachers of the same labels",
                code="bad_teacher",
            )
        folds = training.get("train_folds")
        if not isinstance(folds, list) or not folds or not all(isinstance(fold, int) for fold in folds):
            raise TrainingError(
                f"teacher {name} does not say which folds it was trained on",
                wanted="a bundle made by `soundmark export`",
                code="leak",
            )
        beyond = sorted(set(folds) - set(train_folds))
        if beyond:
            raise TrainingError(
                f"teacher {name} was trained on fold {', '.join(map(str, beyond))}",
                wanted=f"teachers of the student's training folds alone: {', '.join(map(str, train_folds))}",
                cause="the teacher of another fold",
                code="leak",
            )
        if dataset.in_folds(folds).digest(hashes) != training.get("data_digest"):
            raise TrainingError(
                f"teacher {name} was trained on other data, so its folds {folds} may hold the test clips",
                wanted="teachers trained on this data set",
                cause="another copy, split or choice of labels",
                code="other_data",
            )


def described(teachers: Sequence[Teacher]) -> list[dict[str, Any]]:
    """Return for every teacher what a run and a bundle keep: name, digest, weight, folds, and what it had outside."""
    return [
        {
            "name": teacher.verified.manifest.name,
            "digest": teacher.verified.digest,
            "weight": teacher.weight,
            "train_folds": training_of(teacher.verified)["train_folds"],
            "external": external(training_of(teacher.verified)),
        }
        for teacher in teachers
    ]


def external(training: dict[str, Any]) -> list[str]:
    """Return the data beyond its clips that a model knows, directly or through its teachers."""
    found = {str(one) for teacher in training.get("teachers", []) for one in teacher.get("external", [])}
    start = str(training.get("start", ""))
    if start.startswith("weights "):
        found.add(str(training.get("pretrained") or start))
    return sorted(found)
