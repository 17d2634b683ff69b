"""Bundles of presets for folds, each brought there from wherever its run stands, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from soundmark import bundle
from soundmark.dataset import Dataset
from soundmark.errors import BundleError, SoundmarkError
from soundmark.learn.distill import distill
from soundmark.learn.export import export
from soundmark.learn.run_folder import Run, epochs_done, open_run
from soundmark.learn.teachers import Given
from soundmark.learn.train import train
from soundmark.learn.workers import in_processes
from soundmark.preset import Preset
from soundmark.splits import Split


@dataclass(frozen=True, slots=True)
class Training:
    """One bundle that is wanted.

    Attributes:
        name: for notes and errors.
        preset: the whole configuration.
        test_fold: the fold kept aside, None to learn from all.
        home: ``run`` and ``bundle`` are in it.
        train_folds: narrower choice of training folds; empty: all others.
        teachers: folders and weights of those it is distilled from; empty: it learns from the clips alone.
    """

    name: str
    preset: Preset
    test_fold: int | None
    home: Path
    train_folds: tuple[int, ...] = ()
    teachers: Given = ()

    @property
    def exported(self) -> bool:
        """Whether its bundle is there, and whole."""
        try:
            bundle.read(self.home / "bundle")
        except BundleError:  # none yet, or a damaged one
            return False
        return True

    @property
    def begun(self) -> bool:
        """Whether there is a run, finished or not."""
        return (self.home / "run" / "run.json").exists()

    @property
    def learnt(self) -> bool:
        """Whether nothing is left to learn."""
        return self.begun and bool(open_run(self.home / "run").info.get("finished"))


def bring(
    trainings: Sequence[Training],
    dataset: Dataset,
    *,
    split: Split | None = None,
    weights: Path | None = None,
    jobs: int = 1,
    on_epoch: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Bring every training to its bundle; what is finished is kept, what was begun goes on.

    Args:
        trainings: what is wanted.
        dataset: clips of all folds.
        split: what gave ``dataset`` its folds.
        weights: file of pretrained weights to start from.
        jobs: trainings at a time, each in a process with its share of the cores.
        on_epoch: called with how many more epochs are done.
        on_note: called with a line for a person.

    Raises:
        SoundmarkError: what training and export raise, the training named; others are finished first.
    """
    seen = [0] * len(trainings)

    def look() -> None:
        for index, one in enumerate(trainings):
            done = epochs_done(one.home / "run")
            if on_epoch and done > seen[index]:
                on_epoch(done - seen[index])
            seen[index] = max(seen[index], done)

    calls = [(one, dataset, split, weights) for one in trainings]
    results = in_processes(bring_one, calls, jobs=jobs, on_wait=look)
    for one, result in zip(trainings, results, strict=True):
        for note in result if isinstance(result, list) else ():
            if on_note:
                on_note(f"{one.name}: {note}")
    for one, result in zip(trainings, results, strict=True):
        if isinstance(result, SoundmarkError):
            saw = f"{one.name}: {result.saw}"
            raise type(result)(saw, wanted=result.wanted, cause=result.cause, code=result.code)


def bring_one(one: Training, dataset: Dataset, split: Split | None, weights: Path | None) -> list[str]:
    """Bring one training to its bundle; return notes for a person."""
    notes: list[str] = []
    if one.exported:
        return notes
    if one.learnt:
        run = open_run(one.home / "run")
    else:
        learn: Callable[..., Run] = partial(distill, teachers=one.teachers) if one.teachers else train
        run = learn(
            one.preset,
            dataset,
            test_fold=one.test_fold,
            out=one.home / "run",
            train_folds=one.train_folds,
            split=split,
            weights=weights,
            resume=one.begun,
            on_note=notes.append,
        )
    export(run, one.home / "bundle", data=dataset, overwrite=True)
    return notes
