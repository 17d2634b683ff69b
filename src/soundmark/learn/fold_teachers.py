"""Teachers of every training of a cross-validation, from folders that hold one for each fold and each inner run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from soundmark.cross_validation import find_bundles, find_named
from soundmark.dataset import Dataset
from soundmark.learn.distill import refuse_student, store_views
from soundmark.learn.fold_bundle import Training
from soundmark.learn.teachers import Given, Teacher, open_teachers, refuse_strangers

ALIKE = 1.1
"""Teachers of outer and inner runs whose sharpness differs by more than this factor are told of."""

_WITHOUT = "it was made without inner runs: `soundmark cv ... --inner` makes them too"


def with_teachers(trainings: Sequence[Training], given: Given) -> list[Training]:
    """Return ``trainings``, each with its own teacher out of each folder of ``given``.

    A training on all folds but one gets ``fold<k>``, an inner one the folder of its own name (`find_named`).

    Raises:
        BundleError: a folder has none for one of them; code ``model_not_found``.
    """
    outer = [one.test_fold for one in trainings if not one.train_folds and one.test_fold is not None]
    found = [(folder, find_bundles(folder, outer) if outer else {}, weight) for folder, weight in given]

    def its_own(one: Training, folder: Path, of_fold: dict[int, Path]) -> Path:
        if one.train_folds or one.test_fold is None:
            return find_named(folder, one.home.name, cause=_WITHOUT)
        return of_fold[one.test_fold]

    return [
        replace(one, teachers=tuple((its_own(one, folder, there), weight) for folder, there, weight in found))
        for one in trainings
    ]


def folds_of(one: Training, dataset: Dataset) -> tuple[int, ...]:
    """Return the folds that a training learns from."""
    return one.train_folds or tuple(fold for fold in dataset.folds if fold != one.test_fold)


def names_of(
    trainings: Sequence[Training],
    dataset: Dataset,
    hashes: dict[str, str],
    *,
    on_note: Callable[[str], None] | None = None,
) -> dict[str, list[str]]:
    """Return for every training, by the name of its folder, who its teachers are: name, digest and weight.

    Raises:
        ConfigError: a student that cannot be distilled.
        BundleError: a teacher that is damaged.
        TrainingError: a teacher that knows other clips than its student may; code ``leak`` or ``other_data``.
    """
    said: dict[str, list[str]] = {}
    sharpness: dict[bool, list[float]] = {True: [], False: []}
    for one in trainings:
        refuse_student(one.preset)
        opened = open_teachers(
            one.teachers, window_s=one.preset.window.window_s, threads=torch.get_num_threads()
        )
        refuse_strangers(opened, dataset, folds_of(one, dataset), hashes)
        said[one.home.name] = [_named(teacher) for teacher in opened]
        sharpness[bool(one.train_folds)].append(sum(t.weight / t.temperature for t in opened))
    inner, outer = (sum(some) / len(some) if some else 1.0 for some in (sharpness[True], sharpness[False]))
    if on_note and sharpness[True] and max(inner / outer, outer / inner) > ALIKE:
        on_note(
            f"teachers of whole folds are {outer / inner:.2g} times as sharp as those of inner runs: a temperature "
            "that is fitted on inner students may be wrong for the others (wanted: ensemble.fit = false)"
        )
    return said


def _named(teacher: Teacher) -> str:
    return f"{teacher.verified.manifest.name} {teacher.verified.digest} {teacher.weight:.6g}"


def prepare(
    trainings: Sequence[Training],
    dataset: Dataset,
    hashes: dict[str, str],
    *,
    jobs: int = 1,
    on_view: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Store the views of all trainings that still have something to learn: later, no two make the same ones.

    Args:
        trainings: of one preset, with their teachers.
        dataset: clips of all folds.
        hashes: of their files.
        jobs: processes that make views and ask teachers.
        on_view: called with how many more views are there.
        on_note: told what is going to be made.

    Raises:
        SoundmarkError: see `store_views`.
    """
    open_ones = [one for one in trainings if not one.exported and not one.learnt]
    if open_ones:
        store_views(
            open_ones[0].preset,
            dataset,
            [(one.teachers, folds_of(one, dataset)) for one in open_ones],
            hashes=hashes,
            jobs=jobs,
            on_view=on_view,
            on_note=on_note,
        )
