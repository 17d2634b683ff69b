"""Reports to one table: what each measured, and how far it is from the first, on the same clips."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soundmark.breakdowns import ratio_interval, worst_pairs
from soundmark.evaluate import Report

WORST_PAIRS = 10


def named(paths: Sequence[Path]) -> list[str]:
    """Return a short name per path: its stem, or as much of the path as tells two apart."""
    stems = Counter(path.stem for path in paths)
    return [path.stem if stems[path.stem] == 1 else str(path.with_suffix("")) for path in paths]


def compare(names: Sequence[str], reports: Sequence[Report]) -> dict[str, Any]:
    """Return the comparison as plain data: a row per report, and per label how much of it each found.

    ``difference`` is the accuracy less that of the first report, with a bootstrap interval over sources that resamples
    both together (their clips are the same, so their errors are not independent); None where the clips are others.
    """
    first = reports[0]
    return {
        "report": "soundmark compare",
        "same_clips": all(_clips(one) == _clips(first) for one in reports),
        "reports": [_row(name, one, first) for name, one in zip(names, reports, strict=True)],
        "recall": _recall(reports),
    }


def _row(name: str, report: Report, first: Report) -> dict[str, Any]:
    made, figures = report.provenance, report.figures
    labels = figures["labels"]
    same = report is not first and _clips(report) == _clips(first)
    seconds = made["training"].get("seconds")
    return {
        "name": name,
        **{key: made[key] for key in ("model", "model_digest", "data", "data_digest", "folds", "stamps")},
        "clips": made["n_clips"],
        **{key: figures[key] for key in ("accuracy", "accuracy_interval_95", "top3", "macro_f1", "failed")},
        "ece": figures["calibration"]["ece"],
        "model_bytes": made["model_bytes"],
        "ms_per_clip": round(1e3 * made["seconds"] / max(1, made["n_clips"]), 3),
        "machine": made["machine"],
        "training_seconds": seconds if isinstance(seconds, int | float) else None,
        "difference": round(figures["accuracy"] - first.figures["accuracy"], 6) if same else None,
        "difference_interval_95": _difference(report, first) if same else None,
        "worst_pairs": [
            {"label": labels[i], "heard": labels[j], "clips": n}
            for i, j, n in worst_pairs(figures["confusion"], WORST_PAIRS)
        ],
        "labels": labels,
        "confusion": figures["confusion"],
    }


def _clips(report: Report) -> tuple[str, list[str]]:
    """Return what says which clips a report is about: the digest of the data covers labels, folds and contents."""
    return report.provenance["data_digest"], sorted(report.figures["labels"])


def _difference(report: Report, first: Report) -> list[float]:
    right = {answer.name: answer.right for answer in first.answers}
    gain: dict[str, int] = defaultdict(int)
    size: Counter[str] = Counter()
    for answer in report.answers:
        gain[answer.source] += answer.right - right.pop(answer.name, False)
        size[answer.source] += 1
    source = {answer.name: answer.source for answer in first.answers}
    for name, hit in right.items():  # no answer from the other
        gain[source[name]] -= hit
        size[source[name]] += 1
    return ratio_interval([(gain[one], size[one]) for one in size])


def _recall(reports: Sequence[Report]) -> list[dict[str, Any]]:
    labels = dict.fromkeys(label for one in reports for label in one.figures["labels"])
    found = [{row["label"]: row for row in one.figures["per_class"]} for one in reports]
    return [
        {
            "label": label,
            "recall": [rows[label]["recall"] if label in rows else None for rows in found],
        }
        for label in labels
    ]
