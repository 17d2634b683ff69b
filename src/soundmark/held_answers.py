"""What models say about folds that decide nothing yet: held answers of inner models, and answers on what was learnt.

For a model that is judged on outer fold k, an *inner* model is one of the same system that was trained on fewer folds.
The folds that neither it nor k's judgement needs are *held*: answers on them are honest; no clip of fold k is heard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from soundmark import pattern
from soundmark.config import DecisionConfig
from soundmark.dataset import Dataset
from soundmark.errors import DatasetError
from soundmark.evaluate import stamps
from soundmark.model import Model
from soundmark.postprocess import Failure, pool_logits

OnClip = Callable[[int], None] | None


@dataclass(frozen=True, slots=True)
class Held:
    """What an inner model said about the clips of its held folds.

    Attributes:
        folds: the held folds.
        data_digest: of their clips.
        logits: clip name -> ``(n_windows, n_labels)``; clips that are silent or cannot be used are not in it.
        targets: clip name -> place of the true label.
    """

    folds: tuple[int, ...]
    data_digest: str
    logits: dict[str, npt.NDArray[np.float32]]
    targets: dict[str, int]


def outer_folds(model: Model, dataset: Dataset) -> tuple[int, ...]:
    """Return the folds that a model is judged on: the one kept aside, else all that it was not trained on.

    Raises:
        DatasetError: it does not say what it was trained on, or its parts were trained for different folds.
    """
    found: set[tuple[int, ...]] = set()
    for training in model.trainings:
        aside, seen = training.get("test_fold"), training.get("train_folds")
        if not isinstance(seen, list):
            raise _leak(f"{model.path} does not say which folds it was trained on")
        found.add((aside,) if aside in dataset.folds else tuple(sorted({*dataset.folds} - {*seen})))
    if len(found) != 1:
        raise _leak(f"parts of {model.path} keep different folds aside: {sorted(found)}")
    return found.pop()


def hear(
    inner: Model,
    dataset: Dataset,
    *,
    outer: tuple[int, ...],
    folds: tuple[int, ...] = (),
    on_clip: OnClip = None,
) -> Held:
    """Return what ``inner`` says about its held folds.

    Args:
        inner: the inner model.
        dataset: with folds, and the labels of the model or more.
        outer: folds whose clips must not be heard, nor have been trained on.
        folds: the held folds; default: all that are neither in ``outer`` nor were trained on.
        on_clip: called with 1 per clip.

    Raises:
        DatasetError: ``inner`` was trained on one of ``outer`` or of the held folds, may have been (other data, other
            split, it does not say), or no fold is left; code ``leak``.
    """
    seen = {fold for training in inner.trainings for fold in training.get("train_folds") or ()}
    held = tuple(sorted(folds or {*dataset.folds} - {*outer} - seen))
    if both := sorted({*held} & {*outer}):
        raise _leak(f"fold {both[0]} is the fold that the model is judged on")
    if not held:
        raise _leak(f"{inner.path} was trained on all folds that may be heard ({', '.join(map(str, seen))})")
    known = [text for text in stamps(inner, dataset, (*outer, *held)) if not text.startswith("LEAKY")]
    if known:
        raise _leak(f"{inner.path}: {'; '.join(known)}")
    return _heard(inner, dataset.narrowed(inner.labels).in_folds(held), on_clip)


def _heard(model: Model, part: Dataset, on_clip: OnClip) -> Held:
    logits: dict[str, npt.NDArray[np.float32]] = {}
    for clip, row in zip(
        part.clips, model.classify_many([clip.path for clip in part.clips], top_k=1), strict=True
    ):
        if not isinstance(row, Failure) and "silent" not in row.flags:
            logits[clip.name] = row.logits
        if on_clip:
            on_clip(1)
    targets = {
        clip.name: target
        for clip, target in zip(part.clips, part.targets, strict=True)
        if clip.name in logits
    }
    return Held(part.folds, part.digest(), logits, targets)


def with_patterns(model: Model, dataset: Dataset, *, on_clip: OnClip = None) -> DecisionConfig:
    """Return the decision of ``model`` with the patterns of `soundmark.pattern`, and no threshold.

    They are fitted on what it says about the clips that it was trained on. Those are louder answers than it gives to
    others, but there are enough of them: of 8 clips a label of one inner fold, the variances are guesses.

    Args:
        model: any bundle or ensemble that says which folds it was trained on.
        dataset: with those folds.
        on_clip: called with 1 per clip.

    Raises:
        DatasetError: the folds are not there, or hold other clips; code ``bad_dataset``.
        ConfigError: a label has fewer than two clips that can be used.
    """
    part = dataset.narrowed(model.labels).in_folds(training_folds(model))
    if model.training.get("data_digest", part.digest()) != part.digest():
        raise DatasetError(
            f"{model.path} was trained on other clips than folds {', '.join(map(str, part.folds))} of {dataset.name}",
            wanted="the data that it was trained on: the score pattern compares with it",
            code="bad_dataset",
        )
    heard = _heard(model, part, on_clip)
    pooled = [pool_logits(one, model.decision.pooling) for one in heard.logits.values()]
    patterns = pattern.fit(pooled, targets_of([list(heard.targets.values())]))
    return replace(
        model.decision, unknown_score="pattern", patterns=patterns, threshold=0.0, label_thresholds={}
    )


def training_folds(model: Model) -> tuple[int, ...]:
    """Return the folds that a model was trained on, () where it does not say."""
    folds = model.training.get("train_folds")
    return tuple(folds) if isinstance(folds, list) else ()


def targets_of(parts: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Return the places of all labels, one after the other.

    Raises:
        DatasetError: there is none.
    """
    targets = np.array([target for part in parts for target in part], dtype=np.int64)
    if not len(targets):
        raise DatasetError("no clip of the held folds can be used", code="bad_dataset")
    return targets


def _leak(saw: str) -> DatasetError:
    return DatasetError(
        saw,
        wanted="inner models trained on fewer folds (--train-folds), with a whole fold left that is not judged on",
        cause="a fold that is judged on, or was trained on, says nothing about temperature or weights",
        code="leak",
    )
