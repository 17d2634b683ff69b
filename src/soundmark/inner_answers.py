"""Answers on inner splits, and what is fitted on them: a temperature, or the weights of an ensemble.

For a model that is judged on outer fold k, an *inner* model is one of the same system that was trained on fewer folds.
The folds that neither it nor k's judgement needs are *held*: answers on them are honest; no clip of fold k is heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from soundmark import bundle, density, ensemble_manifest, fitting, storage, unknowns
from soundmark.classifier import Classifier
from soundmark.config import DecisionConfig, UnknownScore
from soundmark.cross_validation import refuse_mixed
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import ConfigError, DatasetError
from soundmark.evaluate import stamps
from soundmark.fitting import short
from soundmark.model import Model
from soundmark.postprocess import Failure, pool_logits

OnClip = Callable[[int], None] | None


@dataclass(frozen=True, slots=True)
class Held:
    """What an inner model said about the clips of its held folds.

    Attributes:
        folds: the held folds.
        data_digest: of their clips.
        logits: clip name -> ``(n_windows, n_labels)``; clips that are silent or cannot be used are not in it.
        targets: clip name -> place of the true label.
    """

    folds: tuple[int, ...]
    data_digest: str
    logits: dict[str, npt.NDArray[np.float32]]
    targets: dict[str, int]


def outer_folds(model: Model, dataset: Dataset) -> tuple[int, ...]:
    """Return the folds that a model is judged on: the one kept aside, else all that it was not trained on.

    Raises:
        DatasetError: it does not say what it was trained on, or its parts were trained for different folds.
    """
    found: set[tuple[int, ...]] = set()
    for training in model.trainings:
        aside, seen = training.get("test_fold"), training.get("train_folds")
        if not isinstance(seen, list):
            raise _leak(f"{model.path} does not say which folds it was trained on")
        found.add((aside,) if aside in dataset.folds else tuple(sorted({*dataset.folds} - {*seen})))
    if len(found) != 1:
        raise _leak(f"parts of {model.path} keep different folds aside: {sorted(found)}")
    return found.pop()


def hear(
    inner: Model,
    dataset: Dataset,
    *,
    outer: tuple[int, ...],
    folds: tuple[int, ...] = (),
    on_clip: OnClip = None,
) -> Held:
    """Return what ``inner`` says about its held folds.

    Args:
        inner: the inner model.
        dataset: with folds, and the labels of the model or more.
        outer: folds whose clips must not be heard, nor have been trained on.
        folds: the held folds; default: all that are neither in ``outer`` nor were trained on.
        on_clip: called with 1 per clip.

    Raises:
        DatasetError: ``inner`` was trained on one of ``outer`` or of the held folds, may have been (other data, other
            split, it does not say), or no fold is left; code ``leak``.
    """
    seen = {fold for training in inner.trainings for fold in training.get("train_folds") or ()}
    held = tuple(sorted(folds or {*dataset.folds} - {*outer} - seen))
    if both := sorted({*held} & {*outer}):
        raise _leak(f"fold {both[0]} is the fold that the model is judged on")
    if not held:
        raise _leak(f"{inner.path} was trained on all folds that may be heard ({', '.join(map(str, seen))})")
    known = [text for text in stamps(inner, dataset, (*outer, *held)) if not text.startswith("LEAKY")]
    if known:
        raise _leak(f"{inner.path}: {'; '.join(known)}")
    return _heard(inner, dataset.narrowed(inner.labels).in_folds(held), on_clip)


def _heard(model: Model, part: Dataset, on_clip: OnClip) -> Held:
    logits: dict[str, npt.NDArray[np.float32]] = {}
    for clip, row in zip(
        part.clips, model.classify_many([clip.path for clip in part.clips], top_k=1), strict=True
    ):
        if not isinstance(row, Failure) and "silent" not in row.flags:
            logits[clip.name] = row.logits
        if on_clip:
            on_clip(1)
    targets = {
        clip.name: target
        for clip, target in zip(part.clips, part.targets, strict=True)
        if clip.name in logits
    }
    return Held(part.folds, part.digest(), logits, targets)


def with_density(model: Model, dataset: Dataset, *, on_clip: OnClip = None) -> DecisionConfig:
    """Return the decision of ``model`` with the Gaussians of `soundmark.density`, and no threshold.

    They are fitted on what it says about the clips that it was trained on. Those are louder answers than it gives to
    others, but there are enough of them: of 8 clips a label of one inner fold, the variances are guesses.

    Args:
        model: any bundle or ensemble that says which folds it was trained on.
        dataset: with those folds.
        on_clip: called with 1 per clip.

    Raises:
        DatasetError: the folds are not there, or hold other clips; code ``bad_dataset``.
        ConfigError: a label has fewer than two clips that can be used.
    """
    part = dataset.narrowed(model.labels).in_folds(training_folds(model))
    if model.training.get("data_digest", part.digest()) != part.digest():
        raise DatasetError(
            f"{model.path} was trained on other clips than folds {', '.join(map(str, part.folds))} of {dataset.name}",
            wanted="the data that it was trained on: the score density compares with it",
            code="bad_dataset",
        )
    heard = _heard(model, part, on_clip)
    pooled = [pool_logits(one, model.decision.pooling) for one in heard.logits.values()]
    gaussians = density.fit(pooled, _targets([list(heard.targets.values())]))
    return replace(
        model.decision, unknown_score="density", gaussians=gaussians, threshold=0.0, label_thresholds={}
    )


def training_folds(model: Model) -> tuple[int, ...]:
    """Return the folds that a model was trained on, () where it does not say."""
    folds = model.training.get("train_folds")
    return tuple(folds) if isinstance(folds, list) else ()


def calibrate(
    model: str | Path,
    inner: Sequence[str | Path],
    dataset: Dataset,
    *,
    folds: tuple[int, ...] = (),
    keep: float | None = None,
    score: UnknownScore | None = None,
    on_clip: OnClip = None,
) -> dict[str, Any]:
    """Fit the temperature of a bundle or ensemble on inner answers, write it there, and return what was fitted.

    With ``keep`` also the threshold below which a recording is unknown, after the temperature, on the same answers; for
    the score density first its Gaussians, see `with_density`.

    Args:
        model: directory of the bundle or ensemble; it gets a new digest.
        inner: inner models of the same system; what each says about its held folds counts.
        dataset: with folds.
        folds: see `hear`.
        keep: share of the inner answers, all of known sounds, that are not to be called unknown; None: no threshold.
        score: what the threshold is about; default: what the model has.
        on_clip: called with 1 per clip.

    Raises:
        ConfigError: ``keep`` is no share, or the model has a fitted threshold, which another temperature would move.
        DatasetError: code ``leak``, see `hear`.
        BundleError: an inner model is of another system (``mixed_bundles``).
    """
    judged, models = load_model(model), [load_model(path) for path in inner]
    refuse_mixed({str(one.path): one for one in (judged, *models)})
    _check_keep(judged, keep)
    outer = outer_folds(judged, dataset)
    heard = [hear(one, dataset, outer=outer, folds=folds, on_clip=on_clip) for one in models]
    logits = [one for held in heard for one in held.logits.values()]
    targets = _targets([list(held.targets.values()) for held in heard])
    pooling = judged.decision.pooling
    temperature = short(fitting.fit_temperature(logits, targets, pooling))
    record: dict[str, Any] = {
        **_record(models, heard, dataset, outer),
        "clips": len(targets),
        "temperature": temperature,
        **_figures("before", fitting.of_clips(logits, 1.0, pooling), targets),
        **_figures("after", fitting.of_clips(logits, temperature, pooling), targets),
    }
    decision, score = judged.decision, score or judged.decision.unknown_score
    if keep is not None and score == "density":
        decision = with_density(judged, dataset, on_clip=on_clip)
    decision = replace(decision, temperature=temperature)
    if keep is not None:
        decision = _with_threshold(decision, logits, keep, score)
        known = unknowns.scores_of(logits, decision, decision.unknown_score)
        record |= {
            "unknown_score": decision.unknown_score,
            "threshold": decision.threshold,
            "keep": keep,
            "kept": short(float((known >= decision.threshold).mean())),
        }
    _rewrite(judged, decision, record)
    return record


def weigh(
    members: Sequence[Model],
    inner: Sequence[Model],
    dataset: Dataset,
    *,
    folds: tuple[int, ...] = (),
    on_clip: OnClip = None,
) -> tuple[fitting.Pool, dict[str, Any]]:
    """Return weights and temperatures of ``members``, fitted on inner answers, and the record of that.

    Args:
        members: of one ensemble.
        inner: one inner model per member, in the same order; more rounds of them may follow.
        dataset: with folds.
        folds: see `hear`.
        on_clip: called with 1 per clip and inner model.

    Raises:
        ConfigError: not as many inner models as members, or a multiple of that.
        DatasetError: code ``leak``, see `hear`.
        BundleError: an inner model is of another system than its member (``mixed_bundles``).
    """
    if not inner or len(inner) % len(members):
        raise ConfigError(
            f"{len(inner)} inner models for {len(members)} members",
            wanted="one inner model per member, in the same order, or several rounds of that",
        )
    for index, one in enumerate(inner):
        member = members[index % len(members)]
        refuse_mixed({str(member.path): member, str(one.path): one})
    outer = tuple(sorted({fold for member in members for fold in outer_folds(member, dataset)}))
    heard = [hear(one, dataset, outer=outer, folds=folds, on_clip=on_clip) for one in inner]
    logits: list[list[npt.NDArray[np.float32]]] = [[] for _ in members]
    targets: list[list[int]] = []
    for first in range(0, len(heard), len(members)):
        of_round = heard[first : first + len(members)]
        shared = [clip for clip in of_round[0].logits if all(clip in held.logits for held in of_round)]
        targets.append([of_round[0].targets[clip] for clip in shared])
        for mine, held in zip(logits, of_round, strict=True):
            mine += [held.logits[clip] for clip in shared]
    true = _targets(targets)
    fitted = fitting.fit_pool(logits, [member.decision.pooling for member in members], true)
    record = {
        **_record(inner, heard, dataset, outer),
        "clips": len(true),
        **_figures("equal", fitted.equal, true),
        **_figures("fitted", fitted.pooled, true),
    }
    return fitted, record


def _targets(parts: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    targets = np.array([target for part in parts for target in part], dtype=np.int64)
    if not len(targets):
        raise DatasetError("no clip of the held folds can be used", code="bad_dataset")
    return targets


def _record(
    models: Sequence[Model], heard: Sequence[Held], dataset: Dataset, outer: tuple[int, ...]
) -> dict[str, Any]:
    """Return what was fitted on, in the words of a training: `evaluate.stamps` asks for it as for any other."""
    folds = sorted({fold for held in heard for fold in held.folds})
    record: dict[str, Any] = {
        "data": dataset.name,
        "data_digest": dataset.in_folds(folds).digest(),
        "train_folds": folds,
        "inner": [
            {"digest": model.digest, "folds": list(held.folds), "clips": len(held.logits)}
            for model, held in zip(models, heard, strict=True)
        ],
    }
    if len(outer) == 1:
        record["test_fold"] = outer[0]
    if dataset.split:
        record["split"] = dataset.split
    if dataset.stamps:
        record["stamps"] = list(dataset.stamps)
    return record


def _figures(name: str, said: npt.NDArray[np.float64], targets: npt.NDArray[np.int64]) -> dict[str, float]:
    return {
        f"nll_{name}": short(fitting.nll(said, targets)),
        f"ece_{name}": short(fitting.ece(said, targets)),
        f"accuracy_{name}": short(float((said.argmax(axis=1) == targets).mean())),
    }


def _check_keep(model: Model, keep: float | None) -> None:
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"`keep` is {keep:g}", wanted="a share above 0, at most 1")
    assert isinstance(model, Classifier | Ensemble)
    before = model.manifest.provenance.get("calibration", {}).get("keep")
    if keep is None and before is not None:
        raise ConfigError(
            f"{model.path} has a threshold that was fitted to keep {before:g} of the known clips",
            wanted="`keep`, so that it is fitted again",
            cause="at another temperature it would keep another share",
        )


def _with_threshold(
    decision: DecisionConfig, logits: Sequence[npt.NDArray[np.floating]], keep: float, score: UnknownScore
) -> DecisionConfig:
    """Return ``decision`` with the threshold that keeps the share; it is rounded down, or the last clip would fall."""
    fitted = unknowns.threshold(unknowns.scores_of(logits, decision, score), keep)
    return unknowns.replaced(decision, score, math.floor(fitted * 1e4) / 1e4)


def _rewrite(model: Model, decision: DecisionConfig, record: dict[str, Any]) -> None:
    """Write the decision and the record of what was fitted into the folder of ``model``, whole or not at all."""
    if isinstance(model, Ensemble):
        provenance = {**model.manifest.provenance, "calibration": record}
        new = replace(model.manifest, decision=decision, provenance=provenance)
        storage.write_bytes(model.path / ensemble_manifest.MANIFEST, ensemble_manifest.sealed(new))
        return
    assert isinstance(model, Classifier)
    provenance = {**model.manifest.provenance, "calibration": record}
    others = [name for name in model.manifest.files if name != bundle.MODEL]
    extra = {name: (model.path / name).read_bytes() for name in others}
    bundle.write(
        model.path,
        manifest=replace(model.manifest, decision=decision, provenance=provenance),
        model=model.bundle.model,
        readme=extra.pop(bundle.README).decode(),
        extra=extra,
        overwrite=True,
    )


def _leak(saw: str) -> DatasetError:
    return DatasetError(
        saw,
        wanted="inner models trained on fewer folds (--train-folds), with a whole fold left that is not judged on",
        cause="a fold that is judged on, or was trained on, says nothing about temperature or weights",
        code="leak",
    )
