"""Clips to sides and folds: the strategies of a split, drawn by scikit-learn (extra ``data``).

Clips that belong together (`groups_of`) stay together in every strategy but ``stratified``; whether the result leaks is
checked by `soundmark.splits`, not believed.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from soundmark.dataset import Clip, Dataset
from soundmark.errors import DatasetError, MissingExtraError

Strategy = Literal["official", "stratified", "group", "group-kfold", "time"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
TRAIN, TEST = 1, 2
"""The folds that the two sides of a split without folds become."""

DRAWS = 50  # grouped train/test splits that are drawn; the one with the most even labels is taken


def groups_of(clips: tuple[Clip, ...], hashes: Mapping[str, str]) -> list[int]:
    """Return a number per clip: equal for clips of one source, for equal files, and for what those connect."""
    parent = list(range(len(clips)))

    def top(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, clip in enumerate(clips):
        for key in (("source", clip.source), ("file", hashes[clip.name])):
            parent[top(i)] = top(first.setdefault(key, i))
    number: dict[int, int] = {}
    return [number.setdefault(top(i), len(number)) for i in range(len(clips))]


def drawn(
    targets: list[int], groups: list[int], strategy: Strategy, test_size: float, folds: int, seed: int
) -> list[int]:
    """Return the fold of every clip, drawn by scikit-learn."""
    try:
        from sklearn import model_selection as sk
    except ImportError:
        raise MissingExtraError.of("data", "sklearn") from None
    rows, n_groups = [[0]] * len(targets), len(set(groups))
    wanted = folds if strategy == "group-kfold" else 2
    if strategy != "stratified" and n_groups < wanted:
        raise DatasetError(
            f"there are {n_groups} independent sources (copies counted once)",
            wanted=f"at least {wanted}: one for each {'fold' if strategy == 'group-kfold' else 'side'}",
            code="bad_split",
        )
    numbers = [TRAIN] * len(targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few clips of a label: `_missing_labels` says which
            if strategy == "stratified":
                one = sk.StratifiedShuffleSplit(1, test_size=test_size, random_state=seed)
                tests = [test for _, test in one.split(rows, targets)]
            elif strategy == "group":
                many = sk.GroupShuffleSplit(DRAWS, test_size=test_size, random_state=seed)
                tests = [
                    min(
                        (t for _, t in many.split(rows, targets, groups)), key=_unevenness(targets, test_size)
                    )
                ]
            else:
                tests = _grouped_folds(sk, targets, groups, folds, seed)
    except ValueError as error:
        raise DatasetError(
            f"{strategy} split: {error}", wanted="more clips or sources per label", code="bad_split"
        ) from None
    for number, test in enumerate(tests, start=1 if strategy == "group-kfold" else TEST):
        for i in test:
            numbers[i] = number
    return numbers


def _grouped_folds(sk: Any, targets: list[int], groups: list[int], folds: int, seed: int) -> list[Any]:
    """Return the clips of every fold: stratified where the labels allow it, none empty."""
    rows = [[0]] * len(targets)
    stratified = sk.StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    if max(Counter(targets).values()) >= folds:
        found = [test for _, test in stratified.split(rows, targets, groups)]
        if all(len(test) for test in found):
            return found
    return [test for _, test in sk.GroupKFold(folds).split(rows, targets, groups)]


def _unevenness(targets: list[int], test_size: float) -> Any:
    """Return a function: clips of the test side -> how far the shares of the labels are from ``test_size``."""
    sizes = Counter(targets)

    def score(test: Any) -> float:
        tested = Counter(targets[i] for i in test)
        return sum((tested[label] / n - test_size) ** 2 for label, n in sizes.items())

    return score


def by_time(dataset: Dataset, groups: list[int], test_size: float) -> list[int]:
    """Return `TRAIN` or `TEST` per clip; what belongs together is on the side of its earliest clip."""
    when = _times(dataset)
    parts: list[list[int]] = [sorted(range(len(dataset.clips)), key=lambda i: (when[i], i))] if when else []
    if not when:
        parts = [
            [i for i, t in enumerate(dataset.targets) if t == label] for label in range(len(dataset.labels))
        ]
    late = {
        i for part in parts for i in part[len(part) - math.ceil(test_size * len(part)) :] if len(part) > 1
    }
    early_groups = {groups[i] for i in range(len(groups)) if i not in late}
    numbers = [TRAIN if group in early_groups else TEST for group in groups]
    if set(numbers) != {TRAIN, TEST}:
        raise DatasetError(
            "the latest clips all belong to sources that began earlier",
            wanted="sources that end before others begin",
            cause="use --strategy group",
            code="bad_split",
        )
    return numbers


def _times(dataset: Dataset) -> list[float] | None:
    """Return when every clip was recorded, None where the table has no times."""
    if not any(clip.time for clip in dataset.clips):
        return None
    times: list[float] = []
    for clip in dataset.clips:
        try:
            times.append(float(clip.time))
        except ValueError:
            try:
                times.append(_utc(clip.time))
            except (ValueError, OverflowError, OSError):
                times.append(math.nan)
        if not math.isfinite(times[-1]):
            raise DatasetError(
                f"{clip.name}: time {clip.time[:40]!r}",
                wanted="a number or an ISO 8601 date for every clip, or no times",
                code="bad_split",
            )
    return times


def _utc(text: str) -> float:
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
