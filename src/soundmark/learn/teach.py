"""An ensemble from a preset that names its members: their runs, inner runs, and weights fitted on inner answers.

For the folds 1 to 5 there are three inner trainings of each member: on 3,4,5, on 1,2,5 and on 2,3,4. The first says for
outer fold 1 what it thinks of fold 2, and for outer fold 2 what it thinks of fold 1; so every outer fold has answers on
a whole fold that no network in them has seen, and they are shared between folds.

Layout, all of it resumable: ``<home of the fold>/<preset>/`` and ``inner-3-4-5/<preset>/`` with run and bundle each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from soundmark import ensemble
from soundmark.config import DecisionConfig
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import BundleError, ConfigError
from soundmark.evaluate import evaluate
from soundmark.inner_answers import weigh
from soundmark.learn.fold_bundle import Training, bring
from soundmark.learn.run_folder import open_run
from soundmark.learn.side_by_side import side_by_side
from soundmark.learn.smoke import few_clips
from soundmark.learn.smoke import smoke as smoke_one
from soundmark.learn.workers import refuse_several_devices
from soundmark.model import Model
from soundmark.preset import Preset, load_preset
from soundmark.splits import Split

OnClip = Callable[[int], None] | None
OnNote = Callable[[str], None] | None


def members_of(preset: Preset) -> list[list[Preset]]:
    """Return the presets of each member, several where they stand side by side.

    Raises:
        ConfigError: an unknown preset, or one that is an ensemble itself.
    """
    found = [[load_preset(name.strip()) for name in entry.split(" + ")] for entry in preset.ensemble.members]
    for one in [one for member in found for one in member]:
        refuse_several_devices(one)
        if one.ensemble.members:
            raise ConfigError(f"the member {one.name!r} is an ensemble", wanted="presets that are trained")
    return found


def pairs(folds: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of folds that leave others to learn from, every fold in one at least; none for two folds."""
    found = list(zip(folds[::2], folds[1::2], strict=False))
    if len(folds) % 2:
        found.append((folds[-1], folds[0]))
    return found if len(folds) > 2 else []


def plan(
    preset: Preset, dataset: Dataset, homes: Mapping[int, Path], shared: Path
) -> tuple[list[Training], dict[int, list[Path]]]:
    """Return the trainings that the folds of ``homes`` need, and fold -> homes of its inner trainings."""
    trainings: list[Training] = []
    inner: dict[int, list[Path]] = {fold: [] for fold in homes}
    presets = {one.name: one for member in members_of(preset) for one in member}
    for fold, home in homes.items():
        trainings += [Training(f"fold {fold}, {n}", one, fold, home / n) for n, one in presets.items()]
    for pair in pairs(dataset.folds):
        of_pair = [fold for fold in pair if fold in homes]
        if not of_pair or len(presets) < 2:  # one member has all the weight
            continue
        left = tuple(fold for fold in dataset.folds if fold not in pair)
        name = f"inner-{'-'.join(map(str, left))}"
        home = shared / name
        trainings += [Training(f"{name}, {n}", one, pair[0], home / n, left) for n, one in presets.items()]
        for fold in of_pair:
            inner[fold].append(home)
    return trainings, inner


def teach(
    preset: Preset,
    dataset: Dataset,
    *,
    homes: Mapping[int, Path],
    targets: Mapping[int, Path],
    shared: Path,
    split: Split | None = None,
    jobs: int = 1,
    on_epoch: Callable[[int], None] | None = None,
    on_clip: OnClip = None,
    on_note: OnNote = None,
) -> dict[int, Ensemble]:
    """Train what is missing and return the ensemble of each fold, also written.

    Args:
        preset: with ``ensemble.members``.
        dataset: clips of all folds.
        homes: fold -> folder of its runs.
        targets: fold -> folder of its ensemble.
        shared: folder of the inner runs, which folds share.
        split: see `train`.
        jobs: trainings at a time.
        on_epoch: called with how many more epochs are done.
        on_clip: called with 1 per clip that is embedded or heard.
        on_note: called with a line for a person.

    Raises:
        SoundmarkError: what training, export and fitting raise; trainings that can be finished are finished first.
    """
    members = members_of(preset)
    trainings, inner = plan(preset, dataset, homes, shared)
    bring(trainings, dataset, split=split, jobs=jobs, on_epoch=on_epoch, on_note=on_note)

    def bundles(home: Path) -> list[Path]:
        return [_bundle(preset, member, home, dataset, on_clip) for member in members]

    made: dict[int, Ensemble] = {}
    for fold, target in targets.items():
        try:
            there = load_model(target)
            assert isinstance(there, Ensemble)
            made[fold] = there
            continue
        except BundleError:  # none yet, or a damaged one
            pass
        models = [load_model(path) for path in bundles(homes[fold])]
        others = [load_model(path) for home in inner[fold] for path in bundles(home)]
        if not others:
            if on_note and len(models) > 1:
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


def _bundle(preset: Preset, member: Sequence[Preset], home: Path, dataset: Dataset, on_clip: OnClip) -> Path:
    """Return the bundle of a member below ``home``; side by side it is fitted now, unless it is there."""
    if len(member) == 1:
        return home / member[0].name / "bundle"
    out = home / "-beside-".join(one.name for one in member)
    try:
        load_model(out)
    except BundleError:
        runs = [open_run(home / one.name / "run") for one in member]
        side_by_side(
            runs, out, data=dataset, l2=preset.ensemble.l2, name=out.name, overwrite=True, on_clip=on_clip
        )
    return out
