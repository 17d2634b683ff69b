"""Scores a model over folds: one JSON report, from which every figure in the docs comes.

The clips go through `classify` like any user's file. What a bundle says about its training decides how
the report may be called: a report over clips that the model was trained on is stamped, never silently good.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import soundmark
from soundmark import breakdowns, storage
from soundmark.breakdowns import bootstrap_interval as bootstrap_interval
from soundmark.breakdowns import share
from soundmark.dataset import Clip, Dataset
from soundmark.errors import DatasetError
from soundmark.model import Model
from soundmark.postprocess import Failure, Prediction, log_scores

HEADLINE_TOP = 3
PUBLISHED = ("docs", "results")
"""The folder whose reports figures in text are copied from: no stamped report goes in there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said about one clip; ``rank`` is the place of the true label, 0 for right."""

    name: str
    fold: int
    source: str
    label: str
    heard: str
    score: float
    rank: int
    flags: tuple[str, ...]
    raw_score: float | None = None  # of the same label at temperature 1, where the model has another one

    @property
    def right(self) -> bool:
        """Whether the best label is the true one, and no other is as good."""
        return self.rank == 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        row = {**{name: getattr(self, name) for name in self.__slots__}, "flags": list(self.flags)}
        if self.raw_score is None:
            del row["raw_score"]
        return row


@dataclass(frozen=True, slots=True)
class Report:
    """Figures and what they were made from; `to_dict` is the JSON file."""

    figures: dict[str, Any]
    provenance: dict[str, Any]
    answers: tuple[Answer, ...]
    failures: tuple[Failure, ...]

    @property
    def stamps(self) -> tuple[str, ...]:
        """Reasons why the figure is not an honest one; empty for a clean report."""
        return tuple(self.provenance["stamps"])

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain data."""
        return {
            **self.provenance,
            "figures": self.figures,
            "failures": [failure.to_dict() for failure in self.failures],
            "clips": [answer.to_dict() for answer in self.answers],
        }

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically.

        Raises:
            DatasetError: it is stamped, and ``path`` is published; see `refuse_stamped`.
            StorageError: the disk refuses.
        """
        refuse_stamped(self.stamps, path)
        storage.write_bytes(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())


def evaluate(
    model: Model,
    dataset: Dataset,
    *,
    folds: Iterable[int] | None = None,
    on_clip: Callable[[int], None] | None = None,
    command: str = "",
) -> Report:
    """Return the report of ``model`` on the clips of ``folds`` (all where None).

    Args:
        model: any bundle or ensemble; its labels must be those of the data set, in any order.
        dataset: the clips.
        folds: the folds to score.
        on_clip: called with 1 after every clip.
        command: what the user typed, for the report.

    Raises:
        DatasetError: unknown fold, or labels that the model does not know.
    """
    chosen = tuple(sorted(set(folds))) if folds is not None else dataset.folds
    test_set = dataset.in_folds(chosen)
    unknown = sorted(set(dataset.labels) - set(model.labels))
    if unknown:
        raise DatasetError(
            f"the model {model.name!r} does not know the label {', '.join(unknown[:5])}",
            wanted="a model trained on the labels of the data set",
            cause="it was trained on a choice of labels: --known-labels scores those alone",
            code="unknown_label",
        )
    began = time.perf_counter()
    answers: list[Answer] = []
    failures: list[Failure] = []
    failed: list[Clip] = []
    rows = model.classify_many([clip.path for clip in test_set.clips], top_k=1)
    for clip, row in zip(test_set.clips, rows, strict=True):
        if isinstance(row, Failure):
            failures.append(row)
            failed.append(clip)
        else:
            answers.append(answered(clip, model, row))
        if on_clip:
            on_clip(1)
    seconds = time.perf_counter() - began
    provenance = {
        "report": "soundmark evaluate",
        "soundmark": soundmark.__version__,
        "model": model.name,
        "model_digest": model.digest,
        "model_bytes": model.n_bytes,
        "temperature": model.decision.temperature,
        "data": dataset.name,
        "data_digest": test_set.digest(),
        "split": dataset.split,
        "folds": list(chosen),
        "n_clips": len(test_set.clips),
        "stamps": stamps(model, dataset, chosen),
        "training": model.training,
        "seconds": round(seconds, 2),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "command": command,
    }
    return Report(figures(answers, failed, dataset.labels), provenance, tuple(answers), tuple(failures))


def refuse_stamped(found: Iterable[str], path: Path) -> None:
    """Refuse to publish a report that is not an honest one: ``path`` is below a folder ``docs/results``.

    Raises:
        DatasetError: it has stamps; the code is ``stamped``.
    """
    stamps = list(found)
    if stamps and any(PUBLISHED in pairwise(one.parts[:-1]) for one in (path.absolute(), path.resolve())):
        raise DatasetError(
            f"a report stamped {stamps[0]!r} for {path}",
            wanted="an honest report, or a folder other than docs/results",
            cause="a model that was trained on the clips it is judged on, or a split that leaks",
            code="stamped",
        )


def stamps(model: Model, dataset: Dataset, folds: tuple[int, ...]) -> list[str]:
    """Return why a figure on these folds would not be an honest one; each training in the model is asked.

    ``TRAINED ON``: the model saw these folds. ``UNKNOWN TRAINING``: the bundle does not say what it saw.
    ``OTHER SPLIT``: it was trained under another split of the same data, and may have seen these clips. ``LEAKY``: the
    split of the data, or of the training, has a recording on both sides.
    """
    found = list(dataset.stamps)
    for training in model.trainings:
        found += [*map(str, training.get("stamps", [])), *_seen_before(training, dataset, folds)]
    return list(dict.fromkeys(found))


def _seen_before(training: dict[str, Any], dataset: Dataset, folds: tuple[int, ...]) -> list[str]:
    seen = training.get("train_folds")
    if not isinstance(seen, list) or not seen or not all(isinstance(fold, int) for fold in seen):
        return ["UNKNOWN TRAINING: the bundle does not say which clips it was trained on"]
    same = collection(str(training.get("data", dataset.name))) == collection(dataset.name)
    if not same and set(seen) <= set(dataset.folds):  # the same clips under another name
        same = dataset.in_folds(seen).digest() == training.get("data_digest")
    if same and training.get("split", "") != dataset.split:
        return ["OTHER SPLIT: the model was trained under other folds of this data; it may know these clips"]
    both = sorted(set(seen) & set(folds)) if same else []
    return [f"TRAINED ON fold {', '.join(map(str, both))}: not a test figure"] if both else []


def split_of(model: Model) -> str:
    """Return the hash of the split that a model was trained under, "" for the data's own folds."""
    return str(model.training.get("split", ""))


def collection(name: str) -> str:
    """Return the data set that a choice of its clips was made from (see `Dataset.with_labels`)."""
    name = name.partition(" (")[0]
    return "ESC-50" if name == "ESC-10" else name  # its clips are clips of ESC-50, in the same folds


def figures(answers: Sequence[Answer], failed: Sequence[Clip], labels: tuple[str, ...]) -> dict[str, Any]:
    """Return accuracy with its 95 % interval, top-3, macro F1, per fold and class, confusion, and `breakdowns`.

    A clip that could not be classified (``failed``) counts as wrong everywhere. The interval is a percentile bootstrap
    over *sources* (Efron 1979), because clips cut from one recording are not independent. Macro F1 averages the classes
    that occur.
    """
    index = {label: i for i, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)  # (true, heard)
    for answer in answers:
        if answer.heard in index:
            confusion[index[answer.label], index[answer.heard]] += 1
    clips = [*answers, *map(missed, failed)]
    n = len(clips)
    per_fold: dict[int, list[bool]] = defaultdict(list)
    for answer in clips:
        per_fold[answer.fold].append(answer.right)
    of_label = Counter(answer.label for answer in clips)
    per_class = [_class_figures(i, label, of_label[label], confusion) for i, label in enumerate(labels)]
    present = [row["f1"] for row in per_class if row["clips"]]
    return {
        "accuracy": share(sum(a.right for a in answers), n),
        "accuracy_interval_95": bootstrap_interval(clips),
        f"top{HEADLINE_TOP}": share(sum(a.rank < HEADLINE_TOP for a in answers), n),
        "macro_f1": round(float(np.mean(present)), 6) if present else 0.0,
        "failed": len(failed),
        "per_fold": {str(fold): share(sum(right), len(right)) for fold, right in sorted(per_fold.items())},
        "per_class": per_class,
        "labels": list(labels),
        "confusion": confusion.tolist(),
        "calibration": _calibration(answers),
        "coverage": breakdowns.coverage(clips),
        "by_group": breakdowns.by_group(clips, labels),
    }


def missed(clip: Clip) -> Answer:
    """Return what counts for a clip without an answer: wrong, with every label before the true one."""
    return Answer(clip.name, clip.fold, clip.source, clip.label, "", 0.0, sys.maxsize, ())


def agreement(one: Report, other: Report) -> float:
    """Return the share of clips on which two reports name the same label.

    Raises:
        DatasetError: they are not about the same clips.
    """
    first = {answer.name: answer.heard for answer in one.answers}
    second = {answer.name: answer.heard for answer in other.answers}
    if first.keys() != second.keys() or not first:
        raise DatasetError("the two reports are about different clips", wanted="the same data and folds")
    return share(sum(first[name] == second[name] for name in first), len(first))


def _calibration(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return `breakdowns.calibration`, and ``raw_ece`` at temperature 1 where the scores have another one."""
    table = breakdowns.calibration(answers)
    if any(answer.raw_score is not None for answer in answers):
        raw = [a if a.raw_score is None else replace(a, score=a.raw_score) for a in answers]
        table["raw_ece"] = breakdowns.calibration(raw)["ece"]
    return table


def answered(clip: Clip, model: Model, row: Prediction) -> Answer:
    """Return what ``model`` said in ``row`` about ``clip``, which has one of its labels."""
    scores, true = row.scores, model.labels.index(clip.label)
    rank = int(np.sum(scores >= scores[true])) - 1  # ties count against the model
    best = int(np.where(np.arange(len(scores)) == true, -1.0 if rank else 2.0, scores).argmax())
    raw_score = None
    if model.decision.temperature != 1 and "silent" not in row.flags:
        raw_score = round(float(np.exp(log_scores(row.logits, 1.0, model.decision.pooling)[best])), 6)
    return Answer(
        name=clip.name,
        fold=clip.fold,
        source=clip.source,
        label=clip.label,
        heard=model.labels[best],
        score=round(float(scores[best]), 6),
        rank=rank,
        flags=row.flags,
        raw_score=raw_score,
    )


def _class_figures(i: int, label: str, clips: int, confusion: npt.NDArray[np.int64]) -> dict[str, Any]:
    hits, named = int(confusion[i, i]), int(confusion[:, i].sum())
    return {
        "label": label,
        "clips": clips,
        "precision": share(hits, named),
        "recall": share(hits, clips),
        "f1": share(2 * hits, clips + named),
    }
