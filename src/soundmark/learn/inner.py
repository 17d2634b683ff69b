"""The inner split: a part of the training clips, by source recording, that only decides when to stop.

The fold that a run is judged on is never in it, and no source (nor copy of a file) stands on both of its sides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from soundmark.dataset import Dataset
from soundmark.errors import DatasetError
from soundmark.strategies import groups_of


def inner_split(train_set: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return ``(fit, held)``: clips to learn from, and about ``share`` of every label to decide with.

    Args:
        train_set: clips of the training folds.
        share: of each label's clips that are wanted in ``held``.
        seed: another seed, another draw.

    Raises:
        DatasetError: a label with one source alone, or too few clips to give any away.
    """
    clips = train_set.clips
    groups = groups_of(clips, train_set.hashes())
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    left = {label: n * share for label, n in Counter(clip.label for clip in clips).items()}
    kept = Counter(clip.label for clip in clips)
    held: set[int] = set()
    for group in np.random.default_rng(seed).permutation(len(members)).tolist():
        inside = Counter(clips[i].label for i in members[group])
        fits = all(left[label] >= n / 2 for label, n in inside.items())  # the nearest to what is wanted
        if fits and all(kept[label] > n for label, n in inside.items()):
            held.update(members[group])
            kept.subtract(inside)
            for label, n in inside.items():
                left[label] -= n
    if not held:
        raise DatasetError(
            f"no source can be set aside from {len(clips)} clips to stop early",
            wanted="two or more sources of a label, and more clips or a larger train.inner",
            cause="train.patience = 0 does without",
            code="bad_split",
        )
    fit = tuple(clip for i, clip in enumerate(clips) if i not in held)
    return replace(train_set, clips=fit), replace(
        train_set, clips=tuple(clip for i, clip in enumerate(clips) if i in held)
    )


@dataclass(slots=True)
class Patience:
    """The best inner loss so far and how long ago it was.

    Attributes:
        limit: epochs without a better loss that end the run, 0 for never.
        loss: the best one.
        epoch: when it was, from 1.
        stale: epochs since then.
    """

    limit: int
    loss: float = float("inf")
    epoch: int = 0
    stale: int = 0

    @property
    def spent(self) -> bool:
        """Whether the run should end."""
        return bool(self.limit) and self.stale >= self.limit

    def see(self, epoch: int, loss: float) -> bool:
        """Take note of the loss after ``epoch``; return whether it is the best so far. NaN never is."""
        if loss < self.loss:
            self.loss, self.epoch, self.stale = loss, epoch, 0
            return True
        self.stale += 1
        return False

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps; the loss of no epoch at all is left out (JSON knows no infinity)."""
        known = {"loss": self.loss} if self.epoch else {}
        return {"epoch": self.epoch, "stale": self.stale, **known}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from what `state` returned."""
        self.loss = float(state.get("loss", float("inf")))
        self.epoch, self.stale = int(state["epoch"]), int(state["stale"])
