"""Answers to tables of figures: calibration, coverage against accuracy, accuracy by group, loudness and silence.

Every table is plain data for the JSON report. Clips without an answer count as wrong, with score 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from soundmark.dataset import ESC50_GROUPS

BOOTSTRAP_ROUNDS = 2000
ECE_BINS = 15
COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
LOUDNESS_LUFS = (-50.0, -40.0, -30.0, -20.0)
SILENT_SHARES = (0.25, 0.5, 0.75)
NOT_MEASURED = "not measured"
_GROUP_OF = {label: group for group, labels in ESC50_GROUPS.items() for label in labels.split()}


class Judged(Protocol):
    """What a table needs to know of one clip."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102
    @property
    def right(self) -> bool: ...  # noqa: D102


def calibration(answers: Sequence[Judged]) -> dict[str, Any]:
    """Return ``ece`` and its ``bins``: how far the scores of the best labels are from how often they are right.

    Expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2): `ECE_BINS` bins
    of equal width, closed above; the mean over clips of |accuracy - mean score| of their bin. Only clips with an answer
    have a score.
    """
    score = np.array([answer.score for answer in answers], dtype=np.float64)
    right = np.array([answer.right for answer in answers], dtype=np.float64)
    bin_of = np.clip(np.ceil(score * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    rows, error = [], 0.0
    for i in range(ECE_BINS):
        inside = bin_of == i
        n = int(inside.sum())
        mean_score, accuracy = (float(score[inside].mean()), float(right[inside].mean())) if n else (0.0, 0.0)
        error += n * abs(mean_score - accuracy)
        rows.append(
            {
                "above": round(i / ECE_BINS, 6),
                "up_to": round((i + 1) / ECE_BINS, 6),
                "clips": n,
                "score": round(mean_score, 6),
                "accuracy": round(accuracy, 6),
            }
        )
    return {"ece": round(error / len(score), 6) if len(score) else 0.0, "bins": rows}


def coverage(clips: Sequence[Judged]) -> list[dict[str, Any]]:
    """Return the accuracy on the most confident clips, a row per share of `COVERAGES` that the model answers.

    ``threshold`` is the lowest score that is answered; clips that share it are all in, so ``coverage`` may be larger
    than asked for (El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification").
    """
    if not clips:
        return []
    score = np.array([clip.score for clip in clips], dtype=np.float64)
    right = np.array([clip.right for clip in clips], dtype=np.int64)
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(right[order])
    rows = []
    for wanted in COVERAGES:
        threshold = float(score[max(1, round(wanted * len(score))) - 1])
        n = int(np.searchsorted(-score, -threshold, side="right"))
        row = {"coverage": share(n, len(score)), "threshold": round(threshold, 6), "clips": n}
        rows.append({**row, "accuracy": share(int(hits[n - 1]), n)})
    return rows


def by_group(clips: Sequence[Judged], labels: Iterable[str]) -> list[dict[str, Any]]:
    """Return a row per group of ESC-50 that has clips; none where a label is not one of ESC-50's."""
    if not set(labels) <= _GROUP_OF.keys():
        return []
    rows = _rows(clips, list(ESC50_GROUPS), lambda clip: _GROUP_OF[clip.label])
    return [row for row in rows if row["clips"]]


def by_loudness(clips: Sequence[Judged], loudness: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row per range of loudness in LUFS, clip name -> ``loudness``; clips without a value are a row too."""
    return _by_range(clips, loudness, LOUDNESS_LUFS, "{:g} LUFS")


def by_silence(clips: Sequence[Judged], silent_share: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row per range of the share of digital silence; clips without any silence are a row of their own."""
    return _by_range(clips, silent_share, SILENT_SHARES, "{:.0%}", first="no silence")


def worst_pairs(confusion: Sequence[Sequence[int]], most: int) -> list[tuple[int, int, int]]:
    """Return ``(true, heard, clips)`` of the most frequent confusions, by index, the most frequent first."""
    pairs = [(i, j, n) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def bootstrap_interval(clips: Sequence[Judged], *, seed: int = 0) -> list[float]:
    """Return the 95 % interval ``[low, high]`` of the accuracy, resampling whole sources `BOOTSTRAP_ROUNDS` times."""
    right: dict[str, list[bool]] = defaultdict(list)
    for clip in clips:
        right[clip.source].append(clip.right)
    return ratio_interval([(sum(group), len(group)) for group in right.values()], seed=seed)


def ratio_interval(pairs: Sequence[tuple[int, int]], *, seed: int = 0) -> list[float]:
    """Return the 95 % percentile bootstrap interval (Efron 1979) of sum / sum over resampled ``(part, whole)``."""
    if not pairs:
        return [0.0, 0.0]
    parts, wholes = np.array(pairs).T
    draws = np.random.default_rng(seed).integers(0, len(parts), (BOOTSTRAP_ROUNDS, len(parts)))
    ratios = parts[draws].sum(axis=1) / wholes[draws].sum(axis=1)
    return [round(float(q), 6) for q in np.quantile(ratios, [0.025, 0.975])]


def share(part: int, whole: int) -> float:
    """Return ``part / whole`` as reports write it: 6 digits, 0 where there is nothing."""
    return round(part / whole, 6) if whole else 0.0


def _by_range(
    clips: Sequence[Judged],
    values: dict[str, float],
    edges: Sequence[float],
    spec: str,
    *,
    first: str = "",
) -> list[dict[str, Any]]:
    shown = [spec.format(edge) for edge in edges]
    names = [f"below {shown[0]}", *(f"{a} to {b}" for a, b in pairwise(shown))]
    names.append(f"{shown[-1]} and more")
    names = [*([first] if first else []), *names]

    def name_of(clip: Judged) -> str:
        if (value := values.get(clip.name)) is None:
            return NOT_MEASURED
        place = int(np.searchsorted(edges, value, side="right"))
        return names[(place + 1 if value > 0 else 0) if first else place]

    rows = _rows(clips, [*names, NOT_MEASURED], name_of)
    return [row for row in rows if row["clips"] or row["name"] != NOT_MEASURED]


def _rows(
    clips: Sequence[Judged], names: Sequence[str], name_of: Callable[[Judged], str]
) -> list[dict[str, Any]]:
    of_name: dict[str, list[Judged]] = {name: [] for name in names}
    for clip in clips:
        of_name[name_of(clip)].append(clip)
    return [
        {
            "name": name,
            "clips": len(found),
            "accuracy": share(sum(clip.right for clip in found), len(found)),
            "interval_95": bootstrap_interval(found),
        }
        for name, found in of_name.items()
    ]
