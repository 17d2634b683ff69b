"""How well labels can be guessed without hearing the sound: from duration, digital silence and bandwidth alone.

Where this works, a model may learn how the clips of a class were cut and encoded instead of what they sound like, and
its score says less about sounds from elsewhere. Source: Geirhos et al., "Shortcut learning in deep neural networks",
Nature Machine Intelligence 2, 2020.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark.data.findings import Finding
from soundmark.data.measure import Measures
from soundmark.dataset import Clip
from soundmark.errors import DatasetError, MissingExtraError

COLUMNS = {
    "duration": ("duration_s",),
    "silence": (
        "leading_silence_s",
        "trailing_silence_s",
        "inner_silence_s",
        "longest_silence_s",
        "silent_share",
    ),
    "bandwidth": ("bandwidth_hz",),
}
"""What the classifier sees: nothing of the sound itself."""

ALL = "all three"
TREES = 50
FOLDS = 5  # of data without folds, drawn by source
MIN_CLIPS = 20
NOTABLE = 2.0  # times chance, and above it beyond doubt

Table = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Accuracy on held-out folds, by what the classifier saw; ``chance`` is that of the most frequent label."""

    accuracy: dict[str, float]
    chance: float
    interval_95: tuple[float, float]  # of all three together (Wilson 1927)
    n_clips: int
    held_out: str  # "folds" or "sources"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "accuracy": {name: round(value, 4) for name, value in self.accuracy.items()},
            "chance": round(self.chance, 4),
            "interval_95": [round(value, 4) for value in self.interval_95],
            "n_clips": self.n_clips,
            "held_out": self.held_out,
        }

    def findings(self) -> list[Finding]:
        """Return one finding where labels can be guessed clearly better than by chance."""
        best = max(COLUMNS, key=lambda name: self.accuracy[name])
        if self.interval_95[0] <= self.chance or self.accuracy[ALL] < min(
            NOTABLE * self.chance, (1 + self.chance) / 2
        ):
            return []
        text = (
            f"{self.accuracy[ALL]:.1%} of the labels can be guessed from duration, silence and bandwidth "
            f"({best} alone: {self.accuracy[best]:.1%}); chance is {self.chance:.1%}"
        )
        return [Finding("shortcut", "(all clips)", text)]


def shortcut_check(clips: Sequence[Clip], measures: Sequence[Measures | None], *, seed: int = 0) -> Shortcut:
    """Return how well a forest of `TREES` extremely random trees guesses labels, cross-validated over folds or sources.

    Every fold of the data is held out once; data without folds is divided by source. Clips that cannot be read count
    neither way. Extremely random trees: Geurts et al., Machine Learning 63, 2006.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        DatasetError: too few clips, labels, folds or sources to say anything.
    """
    found = [(clip, one) for clip, one in zip(clips, measures, strict=True) if one is not None]
    labels = np.array([clip.label for clip, _ in found])
    folds = np.array([clip.fold for clip, _ in found])
    sources = [clip.source for clip, _ in found]
    if len(found) < MIN_CLIPS or len(set(labels)) < 2:
        raise DatasetError(
            f"{len(found)} readable clips of {len(set(labels))} labels",
            wanted=f"{MIN_CLIPS} clips of two labels or more",
        )
    if len(set(folds)) < 2 and len(set(sources)) < FOLDS:
        raise DatasetError(
            f"{len(set(sources))} sources", wanted=f"folds, or {FOLDS} sources to hold out in turn"
        )
    try:
        from sklearn.ensemble import ExtraTreesClassifier
        from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold
    except ImportError:
        raise MissingExtraError.of("data", "sklearn") from None
    held_out = "folds" if len(set(folds)) > 1 else "sources"
    tables = {name: _table([one for _, one in found], columns) for name, columns in COLUMNS.items()}
    tables[ALL] = np.concatenate(list(tables.values()), axis=1)
    right = dict.fromkeys(tables, 0)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # labels with fewer clips than folds, or nearly one per clip
        if held_out == "folds":
            sides = list(LeaveOneGroupOut().split(labels, labels, folds))
        else:
            splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
            sides = list(splitter.split(labels, labels, sources))
        for name, table in tables.items():
            for train, test in sides:
                forest = ExtraTreesClassifier(TREES, min_samples_leaf=2, random_state=seed)
                guessed = forest.fit(table[train], labels[train]).predict(table[test])
                right[name] += int(np.count_nonzero(guessed == labels[test]))
    frequent = sum(int(np.count_nonzero(labels[test] == _most(labels[train]))) for train, test in sides)
    n = sum(len(test) for _, test in sides)
    return Shortcut(
        accuracy={name: hits / n for name, hits in right.items()},
        chance=max(frequent / n, 1 / len(set(labels))),
        interval_95=_wilson(right[ALL], n),
        n_clips=n,
        held_out=held_out,
    )


def _table(measures: Sequence[Measures], columns: Sequence[str]) -> Table:
    return np.array([[float(getattr(one, name)) for name in columns] for one in measures])


def _most(labels: npt.NDArray[np.str_]) -> str:
    names: list[str] = labels.tolist()
    return min(Counter(names).items(), key=lambda item: (-item[1], item[0]))[0]


def _wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    p, spread = hits / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
