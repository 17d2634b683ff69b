"""Cross-validation: for every fold a run that has never seen it, its int8 bundle, and one report over all of them.

A preset that is an ensemble has its members trained, and inner runs, as `learn.teach` says. Another one may be
distilled, each fold from the teacher of that fold, and its bundles calibrated on the answers of inner runs.

``out`` holds cv.json (whose it is), fold<k>/run, fold<k>/bundle, fold<k>/report.json, report.json, and of inner runs
inner-3-4-5/run and inner-3-4-5/bundle. The same command goes on wherever it was ended: finished bundles are kept,
unfinished runs go on from their last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from soundmark import bundle, inner_answers
from soundmark.cross_validation import evaluate_folds, load_bundles
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble
from soundmark.errors import ConfigError, DatasetError
from soundmark.evaluate import Report
from soundmark.learn import pretrained
from soundmark.learn.fold_bundle import Training, bring
from soundmark.learn.fold_teachers import folds_of, names_of, prepare, with_teachers
from soundmark.learn.inner_folds import InnerRun, inner_runs
from soundmark.learn.run_folder import lock, settle
from soundmark.learn.teach import identity, plan, teach
from soundmark.learn.teachers import Given
from soundmark.learn.workers import refuse_several_devices
from soundmark.preset import Preset
from soundmark.splits import Split

OnCount = Callable[[int], None] | None
OnNote = Callable[[str], None] | None


def cross_validate(
    preset: Preset,
    dataset: Dataset,
    *,
    out: Path,
    folds: tuple[int, ...] = (),
    teachers: Given = (),
    inner: bool = False,
    calibrate: bool = False,
    split: Split | None = None,
    weights: Path | None = None,
    jobs: int = 1,
    command: str = "",
    on_view: OnCount = None,
    on_epoch: OnCount = None,
    on_clip: OnCount = None,
    on_note: OnNote = None,
) -> Report:
    """Train, export and score ``preset`` once per fold and return the report over all ``folds``, also written.

    Args:
        preset: the whole configuration.
        dataset: clips of all folds.
        out: the folder; one that holds another preset, other data or other teachers is refused.
        folds: those to do, default all; others can follow later in the same folder.
        teachers: folders and weights; each fold is distilled from what such a folder has for it (`with_teachers`).
        inner: bring inner runs to bundles, too.
        calibrate: the same, and fit the temperature of each fold's bundle on their answers, unless that was done.
        split: what gave ``dataset`` its folds (`splits.folded`).
        weights: file of pretrained weights to start from; default: `pretrained.at_hand`.
        jobs: trainings at a time, each in a process with its share of the cores; before that, makers of views.
        command: what the user typed, for the report.
        on_view: called with how many more views are there, of `n_views`.
        on_epoch: called with how many more epochs are done, of `n_epochs`.
        on_clip: called with 1 per clip that is heard, of `n_clips`.
        on_note: called with a line for a person.

    Raises:
        ConfigError: teachers or a calibration for an ensemble; several devices; a student that cannot be distilled.
        BundleError: a teacher is missing, for a fold or an inner run; code ``model_not_found``.
        TrainingError: ``out`` holds another cross-validation or is in use; a training that cannot go on; a teacher that
            knows other clips than its student may.
        SoundmarkError: what training, export and evaluation raise, the fold named; other folds are finished first.
    """
    refuse_several_devices(preset)
    _refuse_for_ensembles(preset, weights, teachers, calibrate)
    dataset = dataset.narrowed(preset.labels)
    chosen = tuple(sorted(set(folds))) or dataset.folds
    dataset.in_folds(chosen)  # or it says which there are
    inner = inner or calibrate
    runs = inner_runs(dataset.folds, chosen) if inner else []
    if inner and not runs:
        raise DatasetError(
            f"{dataset.name} has {len(dataset.folds)} folds",
            wanted="three or more: an inner run learns without two of them",
        )
    homes = {fold: out / f"fold{fold}" for fold in chosen}
    hashes, trainings, named = dataset.hashes(), list[Training](), dict[str, list[str]]()
    if not preset.ensemble.members:  # those find their own weights
        weights = weights or pretrained.at_hand(
            preset.network
        )  # the same for every fold, and kept in cv.json
        trainings = _trainings(preset, homes, runs, out)
    if teachers:
        trainings = with_teachers(trainings, teachers)
        named = names_of(trainings, dataset, hashes, on_note=on_note)
    with lock(out):
        taught = {"n_teachers": len(teachers), "teachers": named} if teachers else {}
        settle(out / "cv.json", {**identity(preset, dataset, weights, hashes), **taught}, growing="teachers")
        if preset.ensemble.members:
            targets = {fold: home / "bundle" for fold, home in homes.items()}
            teach(
                preset,
                dataset,
                homes=homes,
                targets=targets,
                shared=out,
                inner_too=inner,
                split=split,
                jobs=jobs,
                on_epoch=on_epoch,
                on_note=on_note,
            )
        else:
            if teachers:
                prepare(trainings, dataset, hashes, jobs=jobs, on_view=on_view, on_note=on_note)
            bring(
                trainings,
                dataset,
                split=split,
                weights=weights,
                jobs=jobs,
                on_epoch=on_epoch,
                on_note=on_note,
            )
        if calibrate:
            _calibrate(homes, runs, out, dataset, on_clip, on_note)
        classifiers = load_bundles({fold: home / "bundle" for fold, home in homes.items()})
        whole, parts = evaluate_folds(
            classifiers, dataset, on_clip=on_clip, made_by="soundmark cv", command=command
        )
        for fold, report in parts.items():
            report.write(homes[fold] / "report.json")
        whole.write(out / "report.json")
    return whole


def _refuse_for_ensembles(preset: Preset, weights: Path | None, teachers: Given, calibrate: bool) -> None:
    if not preset.ensemble.members:
        return
    if weights:
        raise ConfigError(
            f"one file of weights for the members of {preset.name}",
            wanted="a variable for each network, such as SOUNDMARK_YAMNET=FILE",
        )
    if teachers or calibrate:
        raise ConfigError(
            f"{preset.name} is an ensemble, and {'a teacher was named' if teachers else '--calibrate is given'}",
            wanted="a preset that is one network",
            cause=""
            if teachers
            else "the temperature of an ensemble is fitted with its weights (ensemble.fit)",
        )


def _trainings(
    preset: Preset, homes: Mapping[int, Path], runs: Sequence[InnerRun], out: Path
) -> list[Training]:
    """Return the trainings of one network, those of whole folds first."""
    outer = [Training(f"fold {fold}", preset, fold, home) for fold, home in homes.items()]
    inner = [Training(run.name, preset, run.aside[0], out / run.name, run.train_folds) for run in runs]
    return [*outer, *inner]


def _calibrate(
    homes: Mapping[int, Path],
    runs: Sequence[InnerRun],
    out: Path,
    dataset: Dataset,
    on_clip: OnCount,
    on_note: OnNote,
) -> None:
    """Fit and write the temperature of each fold's bundle that has none yet."""
    for fold, home in homes.items():
        if "calibration" in bundle.read(home / "bundle").manifest.provenance:
            continue
        inner = [out / run.name / "bundle" for run in runs if fold in run.serves]
        record = inner_answers.calibrate(home / "bundle", inner, dataset, on_clip=on_clip)
        if on_note:
            on_note(
                f"fold {fold}: temperature {record['temperature']:g} on {record['clips']} inner answers, "
                f"ECE {record['ece_before']:.4f} before, {record['ece_after']:.4f} after"
            )


def train_ensemble(
    preset: Preset,
    dataset: Dataset,
    *,
    test_fold: int | None,
    out: Path,
    target: Path,
    split: Split | None = None,
    on_epoch: Callable[[int], None] | None = None,
    on_clip: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Ensemble:
    """Train the members of ``preset`` and inner runs below ``out`` and write the ensemble ``target``.

    ``test_fold`` is kept aside; None learns from all.

    The same command goes on wherever it was ended.

    Raises:
        TrainingError: ``out`` holds something else or is in use.
        SoundmarkError: see `teach`.
    """
    dataset = dataset.narrowed(preset.labels)
    if test_fold is not None:
        dataset.in_folds([test_fold])  # or it says which there are
    with lock(out):
        settle(out / "cv.json", {**identity(preset, dataset, None), "test_fold": test_fold})
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


def n_epochs(preset: Preset, dataset: Dataset, folds: tuple[int, ...], *, inner: bool = False) -> int:
    """Return how many epochs `cross_validate` is going to report."""
    return sum(one.preset.train.epochs for one in _all_trainings(preset, dataset, folds, inner))


def n_views(preset: Preset, dataset: Dataset, folds: tuple[int, ...], *, inner: bool = False) -> int:
    """Return how many views `cross_validate` is going to report where there are teachers and every clip can be read."""
    trainings = _all_trainings(preset, dataset, folds, inner)
    learnt = {fold for one in trainings for fold in folds_of(one, dataset)}
    return len(dataset.narrowed(preset.labels).in_folds(learnt).clips) * preset.distill.views


def n_clips(preset: Preset, dataset: Dataset, folds: tuple[int, ...], *, calibrate: bool = False) -> int:
    """Return how many clips `cross_validate` is going to hear: to fit on where nothing is fitted yet, and to score."""
    chosen = folds or dataset.folds
    runs = inner_runs(dataset.folds, chosen) if calibrate else []
    held = [other for run in runs for fold in run.serves for other in run.aside if other != fold]
    sizes = {fold: len(dataset.narrowed(preset.labels).in_folds([fold]).clips) for fold in {*chosen, *held}}
    return sum(sizes[fold] for fold in (*chosen, *held))


def _all_trainings(preset: Preset, dataset: Dataset, folds: tuple[int, ...], inner: bool) -> list[Training]:
    chosen = folds or dataset.folds
    homes = {fold: Path(f"fold{fold}") for fold in chosen}
    if preset.ensemble.members:
        return plan(preset, dataset, homes, Path(), inner_too=inner)[0]
    return _trainings(preset, homes, inner_runs(dataset.folds, chosen) if inner else [], Path())
