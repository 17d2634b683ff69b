"""Cross-validation: for every fold a run that has never seen it, its int8 bundle, and one report over all of them.

A preset that is an ensemble has its members trained, and inner runs, as `learn.teach` says.

``out`` holds cv.json (whose it is), fold<k>/run, fold<k>/bundle, fold<k>/report.json and report.json. The same command
goes on wherever it was ended: finished bundles are kept, unfinished runs go on from their last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import soundmark
from soundmark.config import to_dict
from soundmark.cross_validation import evaluate_folds, load_bundles
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble
from soundmark.errors import ConfigError
from soundmark.evaluate import Report
from soundmark.learn import pretrained
from soundmark.learn.fold_bundle import Training, bring
from soundmark.learn.run_folder import file_digest, lock, settle
from soundmark.learn.teach import members_of, plan, teach
from soundmark.learn.workers import refuse_several_devices
from soundmark.preset import Preset
from soundmark.splits import Split


def cross_validate(
    preset: Preset,
    dataset: Dataset,
    *,
    out: Path,
    folds: tuple[int, ...] = (),
    split: Split | None = None,
    weights: Path | None = None,
    jobs: int = 1,
    command: str = "",
    on_epoch: Callable[[int], None] | None = None,
    on_clip: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Report:
    """Train, export and score ``preset`` once per fold and return the report over all ``folds``, also written.

    Args:
        preset: the whole configuration.
        dataset: clips of all folds.
        out: the folder; one that holds another preset or other data is refused.
        folds: those to do, default all; others can follow later in the same folder.
        split: what gave ``dataset`` its folds (`splits.folded`).
        weights: file of pretrained weights to start from; default: `pretrained.at_hand`.
        jobs: trainings at a time, each in a process with its share of the cores.
        command: what the user typed, for the report.
        on_epoch: called with how many more epochs are done, of ``train.epochs`` times folds.
        on_clip: called with 1 per clip that is scored.
        on_note: called with a line for a person.

    Raises:
        TrainingError: ``out`` holds another cross-validation or is in use; a training that cannot go on.
        SoundmarkError: what training, export and evaluation raise, the fold named; other folds are finished first.
    """
    refuse_several_devices(preset)
    if preset.ensemble.members and weights:
        raise ConfigError(
            f"one file of weights for the members of {preset.name}",
            wanted="a variable for each network, such as SOUNDMARK_YAMNET=FILE",
        )
    if preset.labels and preset.labels != dataset.labels:
        dataset = dataset.with_labels(preset.labels)
    chosen = tuple(sorted(set(folds))) or dataset.folds
    dataset.in_folds(chosen)  # or it says which there are
    homes = {fold: out / f"fold{fold}" for fold in chosen}
    if not preset.ensemble.members:  # those find their own
        weights = weights or pretrained.at_hand(
            preset.network
        )  # the same for every fold, and kept in cv.json
    with lock(out):
        settle(out / "cv.json", _identity(preset, dataset, weights))
        if preset.ensemble.members:
            targets = {fold: home / "bundle" for fold, home in homes.items()}
            teach(
                preset,
                dataset,
                homes=homes,
                targets=targets,
                shared=out,
                split=split,
                jobs=jobs,
                on_epoch=on_epoch,
                on_note=on_note,
            )
        else:
            bring(
                [Training(f"fold {fold}", preset, fold, home) for fold, home in homes.items()],
                dataset,
                split=split,
                weights=weights,
                jobs=jobs,
                on_epoch=on_epoch,
                on_note=on_note,
            )
        classifiers = load_bundles({fold: home / "bundle" for fold, home in homes.items()})
        whole, parts = evaluate_folds(
            classifiers, dataset, on_clip=on_clip, made_by="soundmark cv", command=command
        )
        for fold, report in parts.items():
            report.write(homes[fold] / "report.json")
        whole.write(out / "report.json")
    return whole


def train_ensemble(
    preset: Preset,
    dataset: Dataset,
    *,
    test_fold: int,
    out: Path,
    target: Path,
    split: Split | None = None,
    on_epoch: Callable[[int], None] | None = None,
    on_clip: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Ensemble:
    """Train the members of ``preset`` and inner runs for one fold below ``out`` and write the ensemble ``target``.

    The same command goes on wherever it was ended.

    Raises:
        TrainingError: ``out`` holds something else or is in use.
        SoundmarkError: see `teach`.
    """
    if preset.labels and preset.labels != dataset.labels:
        dataset = dataset.with_labels(preset.labels)
    dataset.in_folds([test_fold])  # or it says which there are
    with lock(out):
        settle(out / "cv.json", {**_identity(preset, dataset, None), "test_fold": test_fold})
        made = teach(
            preset,
            dataset,
            homes={test_fold: out},
            targets={test_fold: target},
            shared=out,
            split=split,
            on_epoch=on_epoch,
            on_clip=on_clip,
            on_note=on_note,
        )
    return made[test_fold]


def n_epochs(preset: Preset, dataset: Dataset, folds: tuple[int, ...]) -> int:
    """Return how many epochs `cross_validate` is going to report."""
    if not preset.ensemble.members:
        return preset.train.epochs * len(folds or dataset.folds)
    trainings, _ = plan(preset, dataset, {fold: Path() for fold in folds or dataset.folds}, Path())
    return sum(one.preset.train.epochs for one in trainings)


def _identity(preset: Preset, dataset: Dataset, weights: Path | None) -> dict[str, Any]:
    members = [[to_dict(one) for one in member] for member in members_of(preset)]
    return {
        "soundmark": soundmark.__version__,
        "torch": torch.__version__.split("+")[0],
        "data": dataset.name,
        "data_digest": dataset.digest(),
        "split": dataset.split,
        "weights": file_digest(weights) if weights else "",
        "preset": to_dict(preset),
        **({"members": members} if members else {}),
    }
