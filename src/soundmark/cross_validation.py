"""One report over all folds from one bundle per fold, each scored only on the fold that it has never seen.

What a bundle says about its training decides whether it may answer for a fold: one that knows the fold, that says
nothing, or that was made from other data or folds is refused, never stamped. The merged report has the layout of
`soundmark.evaluate`, its figures come from there, and ``members`` holds what belongs to one fold alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soundmark.dataset import Clip, Dataset
from soundmark.ensemble import load_model
from soundmark.ensemble_manifest import MANIFEST as ENSEMBLE
from soundmark.errors import BundleError, DatasetError
from soundmark.evaluate import Report, collection, evaluate, figures, stamps
from soundmark.model import Model

_HONEST = ("LEAKY",)
"""Stamps that say something about the data, not about what the bundle has seen."""


def find_bundles(folder: Path, folds: Iterable[int] = ()) -> dict[int, Path]:
    """Return fold -> bundle or ensemble: ``fold<k>/``, or ``fold<k>/bundle/`` as `soundmark cv` leaves them.

    Args:
        folder: holds them.
        folds: those that are wanted; default: what is there.

    Raises:
        BundleError: not a folder, no bundle in it, or none for a wanted fold.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("fold*")) if folder.is_dir() else []:
        match = re.fullmatch("fold([0-9]{1,4})", path.name)
        if match and (there := _model_in(path)):
            found.setdefault(int(match[1]), there)
    missing = sorted(set(folds) - set(found))
    if missing or not found:
        what = f"fold {', '.join(map(str, missing))}" if missing else "any fold"
        raise BundleError(
            f"{folder} has no bundle for {what}",
            wanted="bundle directories fold1, fold2 ..., or a folder made by `soundmark cv`",
            code="model_not_found",
        )
    return {fold: found[fold] for fold in sorted(set(folds) or found)}


def find_named(folder: Path, name: str, *, cause: str = "") -> Path:
    """Return the bundle or ensemble of an inner run or a draw in ``folder``: ``<name>/`` or ``<name>/bundle/``.

    Raises:
        BundleError: there is none; code ``model_not_found``.
    """
    found = _model_in(folder / name)
    if found is None:
        raise BundleError(
            f"{folder} has no bundle {name}",
            wanted=f"a bundle or ensemble in {folder / name}",
            cause=cause,
            code="model_not_found",
        )
    return found


def _model_in(home: Path) -> Path | None:
    """Return ``home/bundle`` or ``home``, whichever is a bundle or an ensemble, None where neither is."""
    for path in (home / "bundle", home):
        if any((path / name).is_file() for name in ("bundle.json", ENSEMBLE)):
            return path
    return None


def load_bundles(bundles: Mapping[int, Path], *, threads: int = 1) -> dict[int, Model]:
    """Return fold -> model.

    Raises:
        BundleError: one cannot be used, or they are not of one system; see `refuse_mixed`.
    """
    loaded = {fold: load_model(path, threads=threads) for fold, path in bundles.items()}
    refuse_mixed({f"fold {fold}": model for fold, model in loaded.items()})
    return loaded


def refuse_mixed(models: Mapping[str, Model]) -> None:
    """Refuse models that are not of one system: labels, preset or network differ from those of the first one.

    Raises:
        BundleError: the code is ``mixed_bundles``.
    """
    first = next(iter(models.values()))
    for name, model in models.items():
        problem = "has other labels than the first one" if model.labels != first.labels else ""
        for what in ("network", "preset"):
            here, there = (str(one.training.get(what, "")) for one in (model, first))
            if here != there:
                problem = f"has the {what} {here!r}, the first one {there!r}"
        if problem:
            raise BundleError(
                f"{name} {problem}",
                wanted="bundles of one system, trained on different folds",
                code="mixed_bundles",
            )


def evaluate_folds(
    classifiers: Mapping[int, Model],
    dataset: Dataset,
    *,
    on_clip: Callable[[int], None] | None = None,
    made_by: str = "soundmark evaluate --cv",
    command: str = "",
) -> tuple[Report, dict[int, Report]]:
    """Return the report over all folds, and that of each fold.

    Args:
        classifiers: fold -> the model that has never seen it (`load_bundles`).
        dataset: with folds; where the classifiers know a choice of its labels, only those clips count.
        on_clip: called with 1 after every clip.
        made_by: what the report is called.
        command: what the user typed, for the report.

    Raises:
        DatasetError: a bundle has seen its fold, does not say what it has seen, or was made from other data or folds.
    """
    labels = next(iter(classifiers.values())).labels
    if set(labels) < set(dataset.labels):
        dataset = dataset.with_labels(labels)
    dataset.in_folds(classifiers)  # or it says which there are
    for fold, classifier in classifiers.items():
        refuse_if_seen(classifier, dataset, fold)
    reports = {
        fold: evaluate(classifier, dataset, folds=[fold], on_clip=on_clip, command=command)
        for fold, classifier in classifiers.items()
    }
    return merged(reports, dataset, made_by=made_by), reports


def refuse_if_seen(model: Model, dataset: Dataset, fold: int) -> None:
    """Refuse a model that may know clips of ``fold``, going by what it says of each training in it.

    Raises:
        DatasetError: it was trained with another fold kept aside, on this fold, on other data, or does not say.
    """
    reasons = [text for text in stamps(model, dataset, (fold,)) if not text.startswith(_HONEST)]
    for training in model.trainings:
        aside, seen = training.get("test_fold"), training.get("train_folds")
        if aside != fold:
            reasons.append(f"it says that fold {aside} was kept aside")
        if isinstance(seen, list) and fold in seen:
            reasons.append(f"it says that fold {fold} was trained on")
        if not reasons and collection(str(training.get("data"))) != collection(dataset.name):
            known = set(seen or ()) <= set(dataset.folds)
            if not (known and dataset.in_folds(seen or ()).digest() == training.get("data_digest")):
                reasons.append(f"it was trained on {training.get('data')!r}, this is {dataset.name!r}")
    if reasons:
        raise DatasetError(
            f"{model.path} may not be scored on fold {fold}: {'; '.join(dict.fromkeys(reasons))}",
            wanted="a bundle that was trained on the other folds of this data, with this one kept aside",
            cause="folders that were mixed up, or bundles of another split",
            code="leak",
        )


def merged(reports: Mapping[int, Report], dataset: Dataset, *, made_by: str) -> Report:
    """Return one report over the clips of all ``reports`` (fold -> report on that fold of ``dataset``).

    Accuracy, its interval (resampled by source over all folds) and every other figure are `evaluate.figures` of all
    answers together; ``accuracy_fold_mean`` and ``accuracy_fold_std`` (n - 1) are over folds, as the temperature is.
    """
    folds = sorted(reports)
    parts = [reports[fold] for fold in folds]
    by_path: dict[str, Clip] = {str(clip.path): clip for clip in dataset.in_folds(folds).clips}
    answers = tuple(answer for part in parts for answer in part.answers)
    failures = tuple(failure for part in parts for failure in part.failures)
    made = figures(answers, [by_path[failure.source] for failure in failures], dataset.labels)
    each = [float(part.figures["accuracy"]) for part in parts]
    made["accuracy_fold_mean"] = round(float(np.mean(each)), 6)
    made["accuracy_fold_std"] = round(float(np.std(each, ddof=1)), 6) if len(each) > 1 else 0.0
    digests = "\n".join(str(part.provenance["model_digest"]) for part in parts)
    trainings = [part.provenance["training"] for part in parts]
    common = {key: value for key, value in trainings[0].items() if _common(key, value, trainings)}
    times = [training.get("seconds") for training in trainings]
    if all(isinstance(seconds, int | float) for seconds in times):
        common["seconds"] = round(sum(times), 1)  # what all of them took together
    provenance = {
        **parts[0].provenance,
        "report": made_by,
        "model_digest": hashlib.sha256(digests.encode()).hexdigest(),
        "temperature": round(float(np.mean([part.provenance["temperature"] for part in parts])), 6),
        "model_bytes": max(int(part.provenance["model_bytes"]) for part in parts),
        "data_digest": dataset.in_folds(folds).digest(),
        "folds": folds,
        "n_clips": sum(int(part.provenance["n_clips"]) for part in parts),
        "stamps": list(dict.fromkeys(stamp for part in parts for stamp in part.stamps)),
        "training": common,
        "seconds": round(sum(float(part.provenance["seconds"]) for part in parts), 2),
        "members": [
            {
                "fold": fold,
                "accuracy": part.figures["accuracy"],
                **{
                    key: part.provenance[key]
                    for key in ("model_digest", "model_bytes", "temperature", "seconds", "training")
                },
            }
            for fold, part in zip(folds, parts, strict=True)
        ],
    }
    return Report(made, provenance, answers, failures)


def _common(key: str, value: Any, trainings: list[dict[str, Any]]) -> bool:
    return all(training.get(key) == value for training in trainings)
