"""How far labels can be guessed without hearing the sound: from duration, digital silence and bandwidth alone.

Recordings of one class often come from one place, cut and padded in one way (RELIABILITY, D27). A network may learn
that instead of the sound, so this accuracy belongs beside every score that is reported on the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark.data.measure import Measures
from soundmark.dataset import Dataset
from soundmark.errors import DatasetError, MissingExtraError

GROUPS: dict[str, tuple[str, ...]] = {
    "duration": ("duration_s",),
    "silence": ("leading_silence_s", "trailing_silence_s", "inner_silence_s", "longest_silence_s", "silent_share"),
    "bandwidth": ("bandwidth_hz",),
}
"""What the classifier sees, and which measures that is."""

TREES = 100
MAX_FOLDS = 5
BOOTSTRAP_ROUNDS = 1000
NOTEWORTHY = 1.5  # times chance, with the whole interval above: a warning


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The accuracy of a classifier that hears nothing; shares, not percent."""

    accuracy: float
    interval_95: tuple[float, float]
    chance: float  # always the most frequent label of the training side
    by: dict[str, float]  # accuracy from one group of `GROUPS` alone
    folds: str  # how training and test were kept apart
    n_clips: int

    @property
    def noteworthy(self) -> bool:
        """Whether the labels leak through the way in which clips were cut and coded."""
        return self.interval_95[0] > NOTEWORTHY * self.chance

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "accuracy": round(self.accuracy, 6),
            "interval_95": [round(value, 6) for value in self.interval_95],
            "chance": round(self.chance, 6),
            "by": {name: round(value, 6) for name, value in self.by.items()},
            "folds": self.folds,
            "n_clips": self.n_clips,
            "noteworthy": self.noteworthy,
            "classifier": f"extremely randomised trees, {TREES}, on {sum(map(len, GROUPS.values()))} measures",
        }


def check(dataset: Dataset, measures: Sequence[Measures | None], *, seed: int = 0) -> Shortcut:
    """Return the cross-validated accuracy from `GROUPS`: over the folds of the data set, or else grouped by source.

    Extremely randomised trees (Geurts, Ernst and Wehenkel 2006) as in scikit-learn, untuned; the interval is a
    percentile bootstrap over sources (Efron 1979).

    Raises:
        MissingExtraError: scikit-learn is not installed.
        DatasetError: too few labels, sources or clips to keep training and test apart.
    """
    try:
        from sklearn.ensemble import ExtraTreesClassifier
    except ImportError:
        raise MissingExtraError.of("data", "sklearn") from None
    kept = [i for i, one in enumerate(measures) if one is not None]
    labels = np.array([dataset.clips[i].label for i in kept])
    sources = np.array([dataset.clips[i].source for i in kept])
    sides, how = _sides(dataset, kept, labels, sources)
    columns = [name for names in GROUPS.values() for name in names]
    x = np.array([[getattr(measures[i], name) for name in columns] for i in kept], dtype=np.float64)

    def right(names: Sequence[str]) -> npt.NDArray[np.bool_]:
        use = [columns.index(name) for name in names]
        answers = np.empty(len(labels), dtype=labels.dtype)
        for side in np.unique(sides):
            test = sides == side
            model = ExtraTreesClassifier(TREES, min_samples_leaf=2, random_state=seed, n_jobs=1)
            answers[test] = model.fit(x[~test][:, use], labels[~test]).predict(x[test][:, use])
        return answers == labels

    whole = right(columns)
    return Shortcut(
        accuracy=float(whole.mean()),
        interval_95=_interval(whole, sources, seed),
        chance=_chance(labels, sides),
        by={group: float(right(names).mean()) for group, names in GROUPS.items()},
        folds=how,
        n_clips=len(kept),
    )


def _sides(
    dataset: Dataset, kept: Sequence[int], labels: npt.NDArray[Any], sources: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], str]:
    """Return the test side of every clip, and in words where it comes from."""
    from sklearn.model_selection import StratifiedGroupKFold

    if len(set(labels)) < 2:
        raise DatasetError("there is only one label", wanted="two or more")
    folds = np.array([dataset.clips[i].fold for i in kept])
    if len(set(folds)) > 1:
        return folds, f"the {len(set(folds))} folds of the data set"
    per_label = Counter({label: len(set(sources[labels == label])) for label in set(labels)})
    n = min(MAX_FOLDS, min(per_label.values()))
    if n < 2:
        raise DatasetError("a label has only one source", wanted="two sources or more per label")
    sides = np.zeros(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(n, shuffle=True, random_state=0)
    for side, (_, test) in enumerate(splitter.split(sources, labels, sources)):
        sides[test] = side
    return sides, f"{n} folds, stratified by label and grouped by source"


def _chance(labels: npt.NDArray[Any], sides: npt.NDArray[np.int64]) -> float:
    right = 0
    for side in np.unique(sides):
        usual = Counter(labels[sides != side]).most_common(1)[0][0]
        right += int(np.count_nonzero(labels[sides == side] == usual))
    return max(right / len(labels), 1 / len(set(labels)))


def _interval(right: npt.NDArray[np.bool_], sources: npt.NDArray[Any], seed: int) -> tuple[float, float]:
    _, group = np.unique(sources, return_inverse=True)
    hits, sizes = np.bincount(group, weights=right), np.bincount(group)
    draws = np.random.default_rng(seed).integers(0, len(hits), (BOOTSTRAP_ROUNDS, len(hits)))
    low, high = np.quantile(hits[draws].sum(axis=1) / sizes[draws].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)
