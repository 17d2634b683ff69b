"""Inner runs: trainings on fewer folds, whose answers on what they left out are honest for the outer folds.

For the folds 1 to 5 there are three: on 3,4,5, on 1,2,5 and on 2,3,4. The first says for outer fold 1 what it thinks
of fold 2, and for outer fold 2 what it thinks of fold 1; so every outer fold has answers on a whole fold that no
network in them has seen, and inner runs are shared between outer folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InnerRun:
    """One training on fewer folds.

    Attributes:
        train_folds: those it learns from.
        aside: the two that it does not.
        serves: the outer folds, of those that were asked for, that its answers on the other one of ``aside`` are for.
    """

    train_folds: tuple[int, ...]
    aside: tuple[int, int]
    serves: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of its folder, such as ``inner-3-4-5``."""
        return f"inner-{'-'.join(map(str, self.train_folds))}"


def pairs(folds: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of folds that leave others to learn from, every fold in one at least; none for two folds."""
    found = list(zip(folds[::2], folds[1::2], strict=False))
    if len(folds) % 2:
        found.append((folds[-1], folds[0]))
    return found if len(folds) > 2 else []


def inner_runs(folds: Sequence[int], wanted: Iterable[int]) -> list[InnerRun]:
    """Return the inner runs that the outer folds ``wanted`` of data with ``folds`` need."""
    outer = set(wanted)
    return [
        InnerRun(
            train_folds=tuple(fold for fold in folds if fold not in pair),
            aside=pair,
            serves=tuple(fold for fold in pair if fold in outer),
        )
        for pair in pairs(folds)
        if outer & {*pair}
    ]
