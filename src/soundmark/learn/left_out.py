"""Leave-classes-out: bundles that were trained on a draw of the labels, and the report on what they say to the others.

``out`` holds unknowns.json (whose it is), draw<n>/run, draw<n>/bundle and report.json. The same command goes on
wherever it was ended: finished bundles are kept, and more draws can follow. No clip of a label that is left out goes
into training, export or int8 ranges: the data is narrowed before anything else. A preset that is an ensemble has its
members trained as `learn.teach` says, in the folder of each draw; such folders hold the teachers of students, each
draw with its own, which never heard of the labels either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from soundmark import storage
from soundmark.config import UnknownsConfig
from soundmark.cross_validation import find_named
from soundmark.dataset import Dataset
from soundmark.ensemble import load_model
from soundmark.errors import ConfigError
from soundmark.evaluate import refuse_stamped
from soundmark.learn import pretrained, teach
from soundmark.learn.fold_bundle import Training, bring
from soundmark.learn.fold_teachers import folds_of, names_of, prepare
from soundmark.learn.run_folder import lock, settle
from soundmark.learn.teachers import Given
from soundmark.learn.workers import refuse_several_devices
from soundmark.preset import Preset
from soundmark.splits import Split
from soundmark.unknown_report import fold_of, known_labels, unknown_report

OnCount = Callable[[int], None] | None
OnNote = Callable[[str], None] | None


def train_draws(
    preset: Preset,
    dataset: Dataset,
    *,
    test_folds: Sequence[int],
    out: Path,
    config: UnknownsConfig,
    train_folds: tuple[int, ...] = (),
    teachers: Given = (),
    split: Split | None = None,
    weights: Path | None = None,
    jobs: int = 1,
    on_view: OnCount = None,
    on_epoch: OnCount = None,
    on_note: OnNote = None,
) -> None:
    """Bring the bundle of every draw into ``out``.

    Args:
        preset: the whole configuration, of a network or an ensemble.
        dataset: clips of all folds and labels, see `Dataset.narrowed`.
        test_folds: those kept aside, by one draw each, in turn (`unknown_report.fold_of`).
        out: the folder; one that holds another preset, other data or another seed is refused.
        config: draws, labels that are left out of each, seed.
        train_folds: narrower choice of training folds, so that another fold is not looked at.
        teachers: such folders, of the same seed, and weights: draw 1 is distilled from what they have for draw 1.
        split: what gave ``dataset`` its folds (`splits.folded`).
        weights: file of pretrained weights to start from; default: `pretrained.at_hand`.
        jobs: trainings at a time.
        on_view: called with how many more views are there, of `n_views`.
        on_epoch: called with how many more epochs are done, of `n_epochs`.
        on_note: called with a line for a person.

    Raises:
        ConfigError: several devices; fewer than two labels would be known; an ensemble with teachers, weights or a
            choice of training folds; a student that cannot be distilled.
        DatasetError: there is no such fold.
        BundleError: a teacher is missing or damaged.
        TrainingError: ``out`` is another command's or in use; a training that cannot go on; a teacher that knows other
            labels or clips than its student may.
        SoundmarkError: what training and export raise, the draw named; other draws are finished first.
    """
    refuse_several_devices(preset)
    whole = bool(preset.ensemble.members)
    if whole and (teachers or weights or train_folds):
        raise ConfigError(
            f"{preset.name} is an ensemble, and teachers, weights or training folds were named",
            wanted="a preset that is one network, or none of them",
        )
    dataset.in_folds(test_folds)  # or it says which there are
    trainings = [
        _training(preset, dataset, config, n, test_folds, out, train_folds) for n in _numbers(config)
    ]
    parts = [dataset.narrowed(one.preset.labels) for one in trainings]
    hashes, named = dataset.hashes(), dict[str, list[str]]()
    if not whole:  # members find their own
        weights = weights or pretrained.at_hand(preset.network)  # the same for every draw
    if teachers:
        trainings = [with_changes(one, teachers=_of_draw(teachers, one)) for one in trainings]
        for one, part in zip(trainings, parts, strict=True):
            named |= names_of([one], part, hashes)
    with lock(out):
        settle(
            out / "unknowns.json",
            {
                **teach.identity(preset, dataset, weights, hashes),
                "test_folds": list(test_folds),
                "train_folds": list(train_folds) or "all others",
                "left_out": config.left_out,
                "seed": config.seed,
                **({"n_teachers": len(teachers), "teachers": named} if teachers else {}),
            },
            growing="teachers",
        )
        if whole:
            for number, one, part in zip(_numbers(config), trainings, parts, strict=True):
                fold = fold_of(test_folds, number)
                teach.teach(
                    preset,
                    part,
                    homes={fold: one.home},
                    targets={fold: one.home / "bundle"},
                    shared=one.home,
                    split=split,
                    jobs=jobs,
                    on_epoch=on_epoch,
                    on_note=on_note,
                )
            return
        if teachers:
            for one, part in zip(trainings, parts, strict=True):
                prepare([one], part, hashes, jobs=jobs, on_view=on_view, on_note=on_note)
        bring(
            trainings,
            dataset,
            split=split,
            weights=weights,
            jobs=jobs,
            on_epoch=on_epoch,
            on_note=on_note,
        )


def _numbers(config: UnknownsConfig) -> range:
    return range(1, config.draws + 1)


def _training(
    preset: Preset,
    dataset: Dataset,
    config: UnknownsConfig,
    number: int,
    test_folds: Sequence[int],
    out: Path,
    train_folds: tuple[int, ...],
) -> Training:
    known = replace(preset, labels=known_labels(dataset.labels, config, number))
    return Training(f"draw {number}", known, fold_of(test_folds, number), out / f"draw{number}", train_folds)


def _of_draw(teachers: Given, one: Training) -> Given:
    cause = "it has fewer draws: `soundmark unknowns TEACHER --draws N` goes on"
    return tuple((find_named(folder, one.home.name, cause=cause), weight) for folder, weight in teachers)


def n_epochs(preset: Preset, dataset: Dataset, test_folds: Sequence[int], config: UnknownsConfig) -> int:
    """Return how many epochs `train_draws` is going to report."""
    if not preset.ensemble.members:
        return config.draws * preset.train.epochs
    return sum(teach.n_epochs(preset, dataset, fold_of(test_folds, n)) for n in _numbers(config))


def n_views(
    preset: Preset,
    dataset: Dataset,
    test_folds: Sequence[int],
    config: UnknownsConfig,
    train_folds: Sequence[int] = (),
) -> int:
    """Return how many views `train_draws` is going to report where there are teachers and every clip can be read."""
    trainings = [
        _training(preset, dataset, config, n, test_folds, Path(), tuple(train_folds))
        for n in _numbers(config)
    ]
    clips = sum(
        len(dataset.narrowed(one.preset.labels).in_folds(folds_of(one, dataset)).clips) for one in trainings
    )
    return clips * preset.distill.views


def score_draws(
    dataset: Dataset,
    *,
    test_folds: Sequence[int],
    out: Path,
    config: UnknownsConfig,
    command: str = "",
    on_clip: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return `unknown_report` on the bundles that `train_draws` left in ``out``, also written to report.json.

    Raises:
        BundleError: a bundle is missing or damaged, or knows other labels than its draw.
        SoundmarkError: see `unknown_report`.
        StorageError: the report cannot be written.
    """
    with lock(out):
        models = [load_model(out / f"draw{number}" / "bundle") for number in _numbers(config)]
        report = unknown_report(
            models, dataset, test_folds=test_folds, config=config, command=command, on_clip=on_clip
        )
        path = out / "report.json"
        refuse_stamped(report["stamps"], path)
        storage.write_bytes(path, (json.dumps(report, indent=1) + "\n").encode())
    return report
