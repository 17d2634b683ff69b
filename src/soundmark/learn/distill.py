"""Distillation: a run whose student learned what its teachers say about many views of the training clips.

The loop is that of `train`; what it learns from is `Taught`, made here from teachers and the store of views.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from soundmark.dataset import Dataset
from soundmark.errors import ConfigError, DatasetError
from soundmark.learn import views
from soundmark.learn.features import OnBad
from soundmark.learn.run_folder import EpochReport, Run
from soundmark.learn.seen import Seen
from soundmark.learn.taught import Taught
from soundmark.learn.teachers import Given, Teacher, described, open_teachers, refuse_strangers
from soundmark.learn.train import train
from soundmark.learn.workers import in_processes
from soundmark.preset import Preset
from soundmark.splits import Split


@dataclass(frozen=True)
class Lesson:
    """Teachers and what they are asked; `train` calls it for what a run learns from."""

    preset: Preset
    given: Given
    teachers: tuple[Teacher, ...]
    hashes: dict[str, str]
    jobs: int = 1

    @property
    def info(self) -> dict[str, Any]:
        """What makes a run this one, beside its preset and data."""
        return {"teachers": described(self.teachers)}

    def __call__(
        self, train_set: Dataset, *, progress: Callable[[int], None] | None = None, on_bad: OnBad
    ) -> Taught:
        """Return the views of ``train_set`` with answers; what is not stored yet is made first."""
        preset, seen = self.preset, Seen(self.preset)
        folds = views.folds_of(train_set, preset, self.hashes)
        by_name = {clip.name: clip for clip in train_set.clips}
        skipped = {name: code for fold in folds for name, code in fold.skipped.items()}
        for name, code in skipped.items():
            on_bad(by_name[name], code)
        learnt = {target for fold in folds for target in fold.targets}
        if len(learnt) < len({clip.label for clip in train_set.clips}):
            raise DatasetError(
                f"{len(skipped)} clips cannot be used, among them all of a label",
                wanted="some of every label",
                code="too_many_bad",
            )
        self.store(folds, progress=progress)
        return Taught(preset, folds, self.teachers, seen, len(train_set.labels))

    def store(
        self,
        folds: Sequence[views.Fold],
        *,
        progress: Callable[[int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        """Make and keep the views of ``folds``, and what is heard of them, that are not stored yet.

        Args:
            folds: with their clips (`views.folds_of`).
            progress: called with how many more views are there.
            on_note: told what is going to be made.
        """
        consumers, n = _consumers(self.preset, self.teachers), self.preset.distill.views
        wanted = views.missing(consumers, folds, n)
        total, left = sum(len(fold.clips) for fold in folds) * n, _clips(wanted)
        if progress:
            progress(total - left)  # those that are there
        if on_note and wanted:
            names = ", ".join(str(fold.number) for fold in folds)
            on_note(f"fold {names}: {left} of {total} views are made now and stored for every run")
        if self.jobs > 1 and wanted:
            self._in_processes(wanted, progress)
        else:
            views.build(consumers, wanted, self.preset, on_view=progress)

    def _in_processes(
        self, wanted: list[tuple[views.Fold, int]], progress: Callable[[int], None] | None
    ) -> None:
        jobs = min(self.jobs, len(wanted))
        calls = [(self.preset, self.given, wanted[first::jobs]) for first in range(jobs)]
        consumers = _consumers(self.preset, self.teachers)
        left, looked = _clips(wanted), time.monotonic()

        def look() -> None:
            nonlocal left, looked
            if progress and time.monotonic() - looked > 2:
                now = _clips(views.missing_of(consumers, wanted))
                progress(left - now)
                left, looked = now, time.monotonic()
            elif progress:
                progress(0)

        for result in in_processes(build_views, calls, jobs=jobs, on_wait=look):
            if isinstance(result, Exception):
                raise result
        if progress:
            progress(left)


def _clips(wanted: Sequence[tuple[views.Fold, int]]) -> int:
    return sum(len(fold.clips) for fold, _ in wanted)


def build_views(preset: Preset, given: Given, wanted: list[tuple[views.Fold, int]]) -> None:
    """Write some blocks, in a process of its own."""
    teachers = open_teachers(given, window_s=preset.window.window_s, threads=torch.get_num_threads())
    views.build(_consumers(preset, teachers), wanted, preset)


def _consumers(preset: Preset, teachers: Sequence[Teacher]) -> list[views.Consumer]:
    """Return who hears every view: the student, and each trunk once."""
    return [Seen(preset), *{teacher.trunk.key: teacher.trunk for teacher in teachers}.values()]


def store_views(
    preset: Preset,
    dataset: Dataset,
    lessons: Sequence[tuple[Given, tuple[int, ...]]],
    *,
    hashes: dict[str, str],
    jobs: int = 1,
    on_view: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Store what several students of one preset are going to learn from, fold by fold: each view is made once.

    Args:
        preset: of the students.
        dataset: clips of all folds.
        lessons: teachers of each student and the folds it learns from; a teacher hears no others.
        hashes: of the files of those folds.
        jobs: processes that make views and answers.
        on_view: called with how many more views are there.
        on_note: told what is going to be made.

    Raises:
        SoundmarkError: see `views.build` and `open_teachers`.
    """
    threads = torch.get_num_threads()
    for number in sorted({fold for _, folds in lessons for fold in folds}):
        given = tuple(dict.fromkeys(one for some, folds in lessons if number in folds for one in some))
        opened = open_teachers(given, window_s=preset.window.window_s, threads=threads)
        part = views.folds_of(dataset.in_folds([number]), preset, hashes)
        Lesson(preset, given, opened, hashes, jobs).store(part, progress=on_view, on_note=on_note)


def refuse_student(preset: Preset) -> None:
    """Refuse a preset that cannot be distilled, before work begins.

    Raises:
        ConfigError: it stops early, or its features cannot be stored.
    """
    if preset.train.patience:
        raise ConfigError(
            f"`train.patience` {preset.train.patience}", wanted="0: a student has a fixed schedule"
        )
    Seen(preset)


def distill(
    preset: Preset,
    dataset: Dataset,
    *,
    teachers: Sequence[tuple[Path, float]],
    test_fold: int | None,
    out: Path,
    train_folds: tuple[int, ...] = (),
    split: Split | None = None,
    weights: Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    on_clip: Callable[[int], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Run:
    """Train ``preset`` on what ``teachers`` say about views of the training clips; return the finished run.

    Args:
        preset: the student and section ``distill``.
        dataset: clips of all folds.
        teachers: folders of bundles and their weights; see `teachers.open_teachers`.
        test_fold: as of `train`, like all that is not named here.
        jobs: processes that make views and answers.
        out: run folder.
        train_folds: narrower choice of folds; teachers may know these alone.
        split: what gave ``dataset`` its folds.
        weights: file of pretrained weights to start from.
        resume: go on where ``out`` stands.
        on_clip: called with how many more views are made.
        on_epoch: called after every epoch.
        on_note: called with a line for a person.

    Raises:
        ConfigError: a preset whose features cannot be stored, or that stops early.
        TrainingError: a teacher that knows other clips than the student may, and what `train` raises.
    """
    dataset = dataset.narrowed(preset.labels)
    refuse_student(preset)
    folds = train_folds or tuple(fold for fold in dataset.folds if fold != test_fold)
    opened = open_teachers(teachers, window_s=preset.window.window_s, threads=torch.get_num_threads())
    hashes = dataset.in_folds(folds).hashes()
    refuse_strangers(opened, dataset, folds, hashes)
    whole = [str(t.verified.path) for t in opened if t.head is None]
    if whole and on_note:
        on_note(
            f"answers of {', '.join(whole)} serve this fold alone: an fp32 bundle's trunk would serve all"
        )
    lesson = Lesson(preset, tuple(teachers), opened, hashes, jobs)
    return train(
        preset,
        dataset,
        test_fold=test_fold,
        out=out,
        train_folds=train_folds,
        split=split,
        weights=weights,
        resume=resume,
        lesson=lesson,
        on_clip=on_clip,
        on_epoch=on_epoch,
        on_note=on_note,
    )
