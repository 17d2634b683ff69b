"""Leave-classes-out: bundles that were trained on a draw of the labels, and the report on what they say to the others.

``out`` holds unknowns.json (whose it is), draw<n>/run, draw<n>/bundle and report.json. The same command goes on
wherever it was ended: finished bundles are kept, and more draws can follow. No clip of a label that is left out goes
into training, export or int8 ranges: the data is narrowed before anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from soundmark import storage
from soundmark.config import UnknownsConfig
from soundmark.dataset import Dataset
from soundmark.ensemble import load_model
from soundmark.errors import ConfigError
from soundmark.evaluate import refuse_stamped
from soundmark.learn import pretrained
from soundmark.learn.fold_bundle import Training, bring, identity
from soundmark.learn.run_folder import lock, settle
from soundmark.learn.workers import refuse_several_devices
from soundmark.preset import Preset
from soundmark.splits import Split
from soundmark.unknown_report import known_labels, unknown_report


def train_draws(
    preset: Preset,
    dataset: Dataset,
    *,
    test_fold: int,
    out: Path,
    config: UnknownsConfig,
    train_folds: tuple[int, ...] = (),
    split: Split | None = None,
    weights: Path | None = None,
    jobs: int = 1,
    on_epoch: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> None:
    """Bring the bundle of every draw into ``out``.

    Args:
        preset: the whole configuration of one network.
        dataset: clips of all folds and labels, see `Dataset.narrowed`.
        test_fold: the fold kept aside.
        out: the folder; one that holds another preset, other data or another seed is refused.
        config: draws, labels that are left out of each, seed.
        train_folds: narrower choice of training folds, so that another fold is not looked at.
        split: what gave ``dataset`` its folds (`splits.folded`).
        weights: file of pretrained weights to start from; default: `pretrained.at_hand`.
        jobs: trainings at a time.
        on_epoch: called with how many more epochs are done, of ``train.epochs`` times draws.
        on_note: called with a line for a person.

    Raises:
        ConfigError: an ensemble, several devices, or fewer than two labels would be known.
        DatasetError: there is no such fold.
        TrainingError: ``out`` is another command's or in use; a training that cannot go on.
        SoundmarkError: what training and export raise, the draw named; other draws are finished first.
    """
    refuse_several_devices(preset)
    if preset.ensemble.members:
        raise ConfigError(f"{preset.name} is an ensemble", wanted="one of its members")
    dataset.in_folds([test_fold])  # or it says which there are
    trainings = []
    for number in range(1, config.draws + 1):
        known = known_labels(dataset.labels, config, number)
        one = replace(preset, labels=known)
        trainings.append(Training(f"draw {number}", one, test_fold, out / f"draw{number}", train_folds))
    weights = weights or pretrained.at_hand(preset.network)  # the same for every draw
    with lock(out):
        settle(
            out / "unknowns.json",
            {
                **identity(preset, dataset, weights),
                "test_fold": test_fold,
                "train_folds": list(train_folds or (fold for fold in dataset.folds if fold != test_fold)),
                "left_out": config.left_out,
                "seed": config.seed,
            },
        )
        bring(
            trainings,
            dataset,
            split=split,
            weights=weights,
            jobs=jobs,
            on_epoch=on_epoch,
            on_note=on_note,
        )


def score_draws(
    dataset: Dataset,
    *,
    test_fold: int,
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
        numbers = range(1, config.draws + 1)
        models = [load_model(out / f"draw{number}" / "bundle") for number in numbers]
        report = unknown_report(
            models, dataset, test_fold=test_fold, config=config, command=command, on_clip=on_clip
        )
        path = out / "report.json"
        refuse_stamped(report["stamps"], path)
        storage.write_bytes(path, (json.dumps(report, indent=1) + "\n").encode())
    return report
