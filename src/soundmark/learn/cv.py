"""Cross-validation: for every fold a run that has never seen it, its int8 bundle, and one report over all of them.

``out`` holds cv.json (whose it is), fold<k>/run, fold<k>/bundle, fold<k>/report.json and report.json. The same command
goes on wherever it was ended: finished bundles are kept, unfinished runs go on from their last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import soundmark
from soundmark import bundle
from soundmark.config import to_dict
from soundmark.cross_validation import evaluate_folds, load_bundles
from soundmark.dataset import Dataset
from soundmark.errors import BundleError, SoundmarkError
from soundmark.evaluate import Report
from soundmark.learn import pretrained
from soundmark.learn.export import export
from soundmark.learn.run_folder import epochs_done, file_digest, lock, open_run, settle
from soundmark.learn.train import train
from soundmark.learn.workers import in_processes, refuse_several_devices
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
    if preset.labels and preset.labels != dataset.labels:
        dataset = dataset.with_labels(preset.labels)
    chosen = tuple(sorted(set(folds))) or dataset.folds
    dataset.in_folds(chosen)  # or it says which there are
    homes = {fold: out / f"fold{fold}" for fold in chosen}
    seen = dict.fromkeys(chosen, 0)

    def look() -> None:
        for fold, home in homes.items():
            done = epochs_done(home / "run")
            if on_epoch and done > seen[fold]:
                on_epoch(done - seen[fold])
            seen[fold] = max(seen[fold], done)

    weights = weights or pretrained.at_hand(preset.network)  # the same for every fold, and kept in cv.json
    with lock(out):
        settle(out / "cv.json", _identity(preset, dataset, weights))
        calls = [(preset, dataset, fold, home, split, weights) for fold, home in homes.items()]
        results = in_processes(train_fold, calls, jobs=jobs, on_wait=look)
        for fold, result in zip(chosen, results, strict=True):
            for note in result if isinstance(result, list) else ():
                if on_note:
                    on_note(f"fold {fold}: {note}")
        for fold, result in zip(chosen, results, strict=True):
            if isinstance(result, SoundmarkError):
                saw = f"fold {fold}: {result.saw}"
                raise type(result)(saw, wanted=result.wanted, cause=result.cause, code=result.code)
        classifiers = load_bundles({fold: home / "bundle" for fold, home in homes.items()})
        whole, parts = evaluate_folds(
            classifiers, dataset, on_clip=on_clip, made_by="soundmark cv", command=command
        )
        for fold, report in parts.items():
            report.write(homes[fold] / "report.json")
        whole.write(out / "report.json")
    return whole


def train_fold(
    preset: Preset, dataset: Dataset, fold: int, home: Path, split: Split | None, weights: Path | None
) -> list[str]:
    """Bring one fold from where it stands to its bundle ``home/bundle``; return notes for a person."""
    notes: list[str] = []
    try:
        bundle.read(home / "bundle")
    except BundleError:  # none yet, or a damaged one
        pass
    else:
        return notes
    begun = (home / "run" / "run.json").exists()
    if begun and open_run(home / "run").info.get("finished"):
        run = open_run(home / "run")
    else:
        run = train(
            preset,
            dataset,
            test_fold=fold,
            out=home / "run",
            split=split,
            weights=weights,
            resume=begun,
            on_note=notes.append,
        )
    export(run, home / "bundle", data=dataset, overwrite=True)
    return notes


def _identity(preset: Preset, dataset: Dataset, weights: Path | None) -> dict[str, Any]:
    return {
        "soundmark": soundmark.__version__,
        "torch": torch.__version__.split("+")[0],
        "data": dataset.name,
        "data_digest": dataset.digest(),
        "split": dataset.split,
        "weights": file_digest(weights) if weights else "",
        "preset": to_dict(preset),
    }
