"""What is fitted on answers of inner models: a temperature, a threshold, or the weights of an ensemble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from soundmark import bundle, ensemble_manifest, fitting, storage, unknowns
from soundmark.classifier import Classifier
from soundmark.config import DecisionConfig, UnknownScore
from soundmark.cross_validation import refuse_mixed
from soundmark.dataset import Dataset
from soundmark.ensemble import Ensemble, load_model
from soundmark.errors import ConfigError
from soundmark.fitting import short
from soundmark.held_answers import Held, OnClip, hear, outer_folds, targets_of, with_patterns
from soundmark.model import Model


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
    the score pattern first the patterns, see `with_patterns`.

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
    targets = targets_of([list(held.targets.values()) for held in heard])
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
    if keep is not None and score == "pattern":
        decision = with_patterns(judged, dataset, on_clip=on_clip)
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
    true = targets_of(targets)
    fitted = fitting.fit_pool(logits, [member.decision.pooling for member in members], true)
    record = {
        **_record(inner, heard, dataset, outer),
        "clips": len(true),
        **_figures("equal", fitted.equal, true),
        **_figures("fitted", fitted.pooled, true),
    }
    return fitted, record


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
