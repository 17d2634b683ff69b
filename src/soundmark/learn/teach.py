"""An ensemble from a preset that names its members: their runs, inner runs, and weights fitted on inner answers.

Which inner runs there are is said in `inner_folds`; each member has all of them.

Layout, all of it resumable: ``<home of the fold>/<preset>/`` and ``inner-3-4-5/<preset>/`` with run and bundle each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from msgspec.structs import replace

import soundmark
from soundmark import ensemble
from soundmark.config import DecisionConfig, to_dict
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import BundleError, ConfigError
from soundmark.evaluate import evaluate
from soundmark.inner_answers import weigh
from soundmark.learn.fold_bundle import Training, bring
from soundmark.learn.inner_folds import inner_runs
from soundmark.learn.run_folder import file_digest, open_run
from soundmark.learn.side_by_side import side_by_side
from soundmark.learn.smoke import few_clips
from soundmark.learn.smoke import smoke as smoke_one
from soundmark.learn.workers import refuse_several_devices
from soundmark.model import Model
from soundmark.preset import Preset, load_preset
from soundmark.splits import Split

OnClip = Callable[[int], None] | None
OnNote = Callable[[str], None] | None
Fold = TypeVar("Fold", bound=int | None)
"""The fold kept aside, None to learn from all."""


def members_of(preset: Preset) -> list[list[Preset]]:
    """Return the presets of each member, several where they stand side by side; fp32 ones where the ensemble is.

    Raises:
        ConfigError: an unknown preset, or one that is an ensemble itself.
    """
    found = [[load_preset(name.strip()) for name in entry.split(" + ")] for entry in preset.ensemble.members]
    for one in [one for member in found for one in member]:
        refuse_several_devices(one)
        if one.ensemble.members:
            raise ConfigError(f"the member {one.name!r} is an ensemble", wanted="presets that are trained")
    if preset.ensemble.quantize:
        return found
    return [[replace(one, export=replace(one.export, quantize=False)) for one in member] for member in found]


def identity(
    preset: Preset, dataset: Dataset, weights: Path | None, hashes: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return what makes a folder of bundles this one: preset, data, weights, versions; see `run_folder.settle`."""
    members = [[to_dict(one) for one in member] for member in members_of(preset)]
    return {
        "soundmark": soundmark.__version__,
        "torch": torch.__version__.split("+")[0],
        "data": dataset.name,
        "data_digest": dataset.digest(hashes),
        "split": dataset.split,
        "weights": file_digest(weights) if weights else "",
        "preset": to_dict(preset),
    } | ({"members": members} if members else {})


def plan(
    preset: Preset,
    dataset: Dataset,
    homes: Mapping[Fold, Path],
    shared: Path,
    *,
    inner_too: bool = False,
) -> tuple[list[Training], dict[Fold, list[Path]]]:
    """Return the trainings that the folds of ``homes`` need, and fold -> homes of its inner trainings.

    There are inner ones where weights are fitted on them, and where they are wanted for themselves (``inner_too``).
    """
    trainings: list[Training] = []
    inner: dict[Fold, list[Path]] = {fold: [] for fold in homes}
    presets = {one.name: one for member in members_of(preset) for one in member}
    for fold, home in homes.items():
        what = f"fold {fold}" if fold is not None else "all folds"
        trainings += [Training(f"{what}, {n}", one, fold, home / n) for n, one in presets.items()]
    if inner_too or _fits(preset):
        outer = [fold for fold in homes if fold is not None]
        for run in inner_runs(dataset.folds, dataset.folds if None in homes else outer):
            home = shared / run.name
            trainings += [
                Training(f"{run.name}, {n}", one, run.aside[0], home / n, run.train_folds)
                for n, one in presets.items()
            ]
            for fold in homes:  # what learns from all folds is not judged on any, so all answers are for it
                if fold is None or fold in run.serves:
                    inner[fold].append(home)
    return trainings, inner


def n_epochs(preset: Preset, dataset: Dataset, test_fold: int | None) -> int:
    """Return how many epochs `teach` is going to report for one fold."""
    return sum(one.preset.train.epochs for one in plan(preset, dataset, {test_fold: Path()}, Path())[0])


def _fits(preset: Preset) -> bool:
    """Whether weights are fitted on inner answers; a single preset has all the weight."""
    presets = {one.name for member in members_of(preset) for one in member}
    return preset.ensemble.fit and len(presets) > 1


def teach(
    preset: Preset,
    dataset: Dataset,
    *,
    homes: Mapping[Fold, Path],
    targets: Mapping[Fold, Path],
    shared: Path,
    inner_too: bool = False,
    split: Split | None = None,
    jobs: int = 1,
    on_epoch: Callable[[int], None] | None = None,
    on_clip: OnClip = None,
    on_note: OnNote = None,
) -> dict[Fold, Ensemble]:
    """Train what is missing and return the ensemble of each fold, also written.

    Args:
        preset: with ``ensemble.members``.
        dataset: clips of all folds.
        homes: fold -> folder of its runs; None learns from all folds.
        targets: fold -> folder of its ensemble.
        shared: folder of the inner runs, which folds share.
        inner_too: write an ensemble of each inner run, too: ``inner-3-4-5/bundle``, with equal weights, since nothing
            that it may hear is left to fit them on.
        split: see `train`.
        jobs: trainings at a time.
        on_epoch: called with how many more epochs are done.
        on_clip: called with 1 per clip that is embedded or heard.
        on_note: called with a line for a person.

    Raises:
        SoundmarkError: what training, export and fitting raise; trainings that can be finished are finished first.
    """
    members = members_of(preset)
    trainings, inner = plan(preset, dataset, homes, shared, inner_too=inner_too)
    bring(trainings, dataset, split=split, jobs=jobs, on_epoch=on_epoch, on_note=on_note)

    def bundles(home: Path) -> list[Path]:
        return [_bundle(preset, member, home, dataset, on_clip) for member in members]

    if inner_too:
        for home in dict.fromkeys(home for found in inner.values() for home in found):
            if not _is_there(home / "bundle"):
                parts = [load_model(path) for path in bundles(home)]
                ensemble.write(home / "bundle", parts, name=preset.name, overwrite=True)
    made: dict[Fold, Ensemble] = {}
    for fold, target in targets.items():
        try:
            there = load_model(target)
            assert isinstance(there, Ensemble)
            made[fold] = there
            continue
        except BundleError:  # none yet, or a damaged one
            pass
        models = [load_model(path) for path in bundles(homes[fold])]
        heard = inner[fold] if _fits(preset) else []
        others = [load_model(path) for home in heard for path in bundles(home)]
        if not others:
            if on_note and len(models) > 1 and preset.ensemble.fit:
                on_note(f"fold {fold}: no inner folds to fit weights on, so they are equal")
            made[fold] = ensemble.write(target, models, name=preset.name, overwrite=True)
            continue
        fitted, record = weigh(models, others, dataset, on_clip=on_clip)
        made[fold] = ensemble.write(
            target,
            models,
            name=preset.name,
            weights=fitted.weights,
            temperatures=fitted.temperatures,
            decision=DecisionConfig(temperature=fitted.temperature),
            provenance={"weights": record},
            overwrite=True,
        )
    return made


def smoke(
    preset: Preset, dataset: Dataset, *, test_fold: int, out: Path, on_note: OnNote = None
) -> list[str]:
    """Take every member, a few clips and two epochs each, the whole road to an ensemble; return what was seen.

    Members whose weights are not there start from random ones, and ``on_note`` is told. Weights are equal.
    """
    began = time.perf_counter()
    few = few_clips(dataset, test_fold)
    lines: list[str] = []
    members = members_of(preset)
    for one in {one.name: one for member in members for one in member}.values():
        seen = smoke_one(one, dataset, test_fold=test_fold, out=out / one.name, on_note=on_note)
        lines += [
            f"{one.name}: {seen.parameters:,} parameters, first loss {seen.loss:.3f}, {seen.seconds:.0f} s"
        ]
    models: list[Model] = [load_model(_bundle(preset, member, out, few, None)) for member in members]
    made = ensemble.write(out / "ensemble", models, name=preset.name)
    report = evaluate(made, few, folds=[test_fold])
    lines.append(
        f"{preset.name}: {len(models)} members, {made.n_bytes:,} bytes, {report.figures['accuracy']:.0%} of "
        f"{len(report.answers)} test clips (a sign of life): the whole road in {time.perf_counter() - began:.0f} s"
    )
    return lines


def _is_there(path: Path) -> bool:
    """Whether a whole bundle or ensemble is at ``path``."""
    try:
        load_model(path)
    except BundleError:
        return False
    return True


def _bundle(preset: Preset, member: Sequence[Preset], home: Path, dataset: Dataset, on_clip: OnClip) -> Path:
    """Return the bundle of a member below ``home``; side by side it is fitted now, unless it is there."""
    if len(member) == 1:
        return home / member[0].name / "bundle"
    out = home / "-beside-".join(one.name for one in member)
    if not _is_there(out):
        runs = [open_run(home / one.name / "run") for one in member]
        side_by_side(
            runs, out, data=dataset, config=preset.ensemble, name=out.name, overwrite=True, on_clip=on_clip
        )
    return out
