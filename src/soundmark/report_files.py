"""Files of `soundmark evaluate` read back, checked against their own rows, completed, and measured.

A report whose figures do not follow from its rows is refused. Files of older versions get the figures that they lack.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec

from soundmark import breakdowns
from soundmark.data.inspect import measure_all
from soundmark.dataset import Clip, Dataset
from soundmark.errors import DatasetError
from soundmark.evaluate import Answer, Report, figures, missed
from soundmark.postprocess import Failure

TOLERANCE = 2e-6
"""Largest accepted difference between a stored share and the rows it follows from: both have six digits."""
CHECKED = ("accuracy", "top3", "macro_f1", "failed", "confusion", "per_class")


class _ClassRow(TypedDict):
    label: str
    clips: int
    precision: float
    recall: float
    f1: float


class _Row(TypedDict):
    name: str
    clips: int
    accuracy: float
    interval_95: tuple[float, float]


class _Figures(TypedDict):
    accuracy: float
    accuracy_interval_95: tuple[float, float]
    top3: float
    macro_f1: float
    failed: int
    per_fold: dict[str, float]
    per_class: list[_ClassRow]
    labels: list[str]
    confusion: list[list[int]]
    by_group: NotRequired[list[_Row]]
    by_loudness: NotRequired[list[_Row]]
    by_silence: NotRequired[list[_Row]]


class _Error(TypedDict):
    code: str
    message: str


class _FailureRow(TypedDict):
    path: str
    error: _Error


class _File(TypedDict):
    report: str
    soundmark: str
    model: str
    model_digest: str
    model_bytes: int
    data: str
    data_digest: str
    folds: list[int]
    n_clips: int
    stamps: list[str]
    training: dict[str, Any]
    seconds: float
    machine: str
    onnxruntime: str
    figures: _Figures
    failures: list[_FailureRow]
    clips: list[Answer]
    temperature: NotRequired[float]
    split: NotRequired[str]
    numpy: NotRequired[str]
    command: NotRequired[str]
    measured: NotRequired[dict[str, Any]]


def read(path: Path) -> Report:
    """Return the report at ``path``, with all figures that follow from its rows.

    Raises:
        DatasetError: no such file, not a report, or figures that do not follow from its rows (``bad_report``).
    """
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise _refused(path, "is not a regular file")
    try:
        tree = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        file = msgspec.convert(tree, _File)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(path, f"is not a report ({error})") from None
    answers, stored = tuple(file["clips"]), file["figures"]
    labels = tuple(stored["labels"])
    unknown = {answer.label for answer in answers} - {*labels}
    if unknown or len(set(labels)) < len(labels) or len({a.name for a in answers}) < len(answers):
        raise _refused(path, "names a label or a clip twice, or clips of labels that it does not have")
    n_clips = sum(row["clips"] for row in stored["per_class"])
    if n_clips != file["n_clips"] or n_clips != len(answers) + len(file["failures"]):
        raise _refused(path, "counts other clips than it has rows for")
    found = figures(answers, without_answer(answers, stored["per_class"]), labels)
    plain = tree["figures"]
    for name in CHECKED:
        if not _same(plain[name], found[name]):
            raise _refused(path, f"says {name} {plain[name]!s:.40}, and its rows {found[name]!s:.40}")
    failures = tuple(Failure(row["path"], **row["error"]) for row in file["failures"])
    made = {name: value for name, value in tree.items() if name not in ("figures", "failures", "clips")}
    follows = {name: found[name] for name in ("per_class", "calibration", "coverage")}
    return Report({**found, **plain, **follows}, made, answers, failures)


def without_answer(answers: tuple[Answer, ...], per_class: list[Any]) -> list[Clip]:
    """Return a clip for each that ``per_class`` counts and no answer is for; of those, only the label is known."""
    there = Counter(answer.label for answer in answers)
    return [
        Clip(
            f"({row['label']} without an answer, {i + 1})", Path(), row["label"], 0, f"{row['label']} {i + 1}"
        )
        for row in per_class
        for i in range(row["clips"] - there[row["label"]])
    ]


def clips_of(report: Report, dataset: Dataset) -> dict[str, Clip]:
    """Return name -> clip in ``dataset`` for every answer of the report.

    Raises:
        DatasetError: the data set has no such clip, or calls it something else (``other_clips``).
    """
    clips = {clip.name: clip for clip in dataset.clips}
    for answer in report.answers:
        clip = clips.get(answer.name)
        if clip is None or clip.label != answer.label:
            saw = (
                f"{dataset.name} has no clip {answer.name}"
                if clip is None
                else f"{clip.name} is {clip.label!r}"
            )
            raise DatasetError(
                f"{saw}; in the report it is {answer.label!r}",
                wanted=f"the data that was scored: {report.provenance['data']}",
                code="other_clips",
            )
    return {answer.name: clips[answer.name] for answer in report.answers}


def measured(
    report: Report,
    dataset: Dataset,
    *,
    processes: int | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> Report:
    """Return the report with accuracy by loudness and by silence, measured on the recordings of ``dataset``.

    ``measured`` in the JSON says whether the files are, byte for byte, those that were scored.

    Raises:
        DatasetError: it is other data, see `clips_of`.
    """
    clips = clips_of(report, dataset)
    found, _ = measure_all([clip.path for clip in clips.values()], processes=processes, on_clip=on_clip)
    there = {name: one for name, one in zip(clips, found, strict=True) if one is not None}
    lost = without_answer(report.answers, report.figures["per_class"])
    judged = [*report.answers, *map(missed, lost)]
    more = {
        "by_loudness": breakdowns.by_loudness(judged, {name: m.loudness_lufs for name, m in there.items()}),
        "by_silence": breakdowns.by_silence(judged, {name: m.silent_share for name, m in there.items()}),
    }
    same = None
    if not lost and len(there) == len(clips):
        scored = tuple(replace(clips[a.name], fold=a.fold, source=a.source) for a in report.answers)
        hashes = {name: one.file_hash for name, one in there.items()}
        same = replace(dataset, clips=scored).digest(hashes) == report.provenance["data_digest"]
    made = {**report.provenance, "measured": {"data": dataset.name, "same_files": same}}
    return replace(report, figures={**report.figures, **more}, provenance=made)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= TOLERANCE
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _refused(path: Path, what: str) -> DatasetError:
    return DatasetError(
        f"{path} {what}", wanted="a report that soundmark evaluate wrote, unchanged", code="bad_report"
    )
