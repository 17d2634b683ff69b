"""Teachers: bundles and ensembles that know the training folds and no other, and their common answer to a view.

The answer of several is the weighted mean of their logits, each at its own temperature; of one that hears several
windows, of its log-probabilities, which have no level.
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
from soundmark.classifier import Classifier
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble
from soundmark.ensemble_manifest import MANIFEST
from soundmark.errors import TrainingError
from soundmark.learn.trunks import Head, Trunk
from soundmark.model import Model
from soundmark.postprocess import log_scores

Array = npt.NDArray[np.float32]
Given = tuple[tuple[Path, float], ...]
"""Folders of teachers and their weights, as a user names them."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """One bundle and its part in the common answer; equal trunks are one object.

    Attributes:
        verified: the bundle.
        weight: factor on its answers.
        temperature: its logits are divided by it.
        trunk: what hears a view.
        head: what makes logits of what the trunk gave, None where those are logits.
        fitted: folds that weights or temperatures were fitted on, its own or those of its ensemble.
    """

    verified: Bundle
    weight: float
    temperature: float
    trunk: Trunk
    head: Head | None
    fitted: tuple[int, ...] = ()

    @property
    def has_level(self) -> bool:
        """Whether its answers are logits, whose level says something."""
        return self.trunk.row[0] == 1

    def answers(self, rows: npt.NDArray[Any]) -> Array:
        """Return the answers ``(n, n_labels)`` to what the trunk gave, ``(n, n_windows, width)``; see above."""
        logits = np.asarray(rows, np.float32) if self.head is None else self.head(rows)
        if self.has_level:
            return logits[:, 0] / np.float32(self.temperature)
        return log_scores(logits, self.temperature, self.verified.manifest.decision.pooling).astype(
            np.float32
        )


def agreed(answers: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted sum ``(n, n_labels)`` of answers; its softmax is the common one."""
    total = sum(weight * answer.astype(np.float64) for weight, answer in zip(weights, answers, strict=True))
    return np.asarray(total).astype(np.float32)


def members(folder: Path) -> tuple[list[tuple[Bundle, float, float]], tuple[int, ...]]:
    """Return the bundles at ``folder``, of an ensemble all of them, each with weight and temperature; and `fitted`.

    An ensemble of single windows is a weighted sum of logits and one softmax, however deep it is: what a member's own
    softmax divides by is the same for all labels.
    """
    if (folder / MANIFEST).is_file():
        made = Ensemble.load(folder)
        parts = [(one, weight / made.decision.temperature, 1.0) for one, weight in _parts(made)]
        of_bundles = [training_of(one) for one, _, _ in parts]
        return parts, _folds([record for record in made.trainings if record not in of_bundles])
    verified = bundle.read(folder)
    record = verified.manifest.provenance.get("calibration", {})
    return [(verified, 1.0, verified.manifest.decision.temperature)], _folds([record])


def _folds(records: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    """Return the folds that were fitted on, going by records such as those of `inner_answers`."""
    return tuple(sorted({fold for record in records for fold in record.get("train_folds") or ()}))


def _parts(model: Model) -> list[tuple[Bundle, float]]:
    """Return bundles and the factors on their logits that give those of ``model``, up to a constant."""
    if not isinstance(model, Ensemble):
        assert isinstance(model, Classifier)
        return [(model.bundle, 1.0)]
    return [
        (one, weight * member.weight / member.temperature)
        for member, part in zip(model.manifest.members, model.models, strict=True)
        for one, weight in _parts(part)
    ]


def open_teachers(
    given: Sequence[tuple[Path, float]], *, window_s: float, threads: int = 1
) -> tuple[Teacher, ...]:
    """Return the teachers at these folders, bundles or ensembles; the weights of folders are made to sum to 1.

    Raises:
        BundleError: one is missing, damaged or not allowed.
        TrainingError: weights that are none, or a member of an ensemble that hears several windows in one of the
            student's; code ``bad_teacher``.
    """
    for folder, weight in given:
        if not 0 < weight < float("inf"):
            raise TrainingError(
                f"{folder} has weight {weight}", wanted="a number above 0", code="bad_teacher"
            )
    trunks: dict[str, Trunk] = {}
    found = []
    total = sum(weight for _, weight in given)
    for folder, weight in given:
        inside, fitted = members(folder)
        for verified, share, temperature in inside:
            trunk = Trunk(verified, window_s=window_s, threads=threads)
            if len(inside) > 1 and trunk.row[0] != 1:
                raise TrainingError(
                    f"{verified.path} hears {trunk.row[0]} windows in {window_s:g} s",
                    wanted="members of an ensemble with windows as long as the student's",
                    code="bad_teacher",
                )
            kept = trunks.setdefault(trunk.key, trunk)
            found.append(Teacher(verified, weight / total * share, temperature, kept, trunk.head, fitted))
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
        fitted = sorted(set(teacher.fitted) - set(train_folds))
        if beyond or fitted:
            how = "trained" if beyond else "calibrated or weighed"
            raise TrainingError(
                f"teacher {name} was {how} on fold {', '.join(map(str, beyond or fitted))}",
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
