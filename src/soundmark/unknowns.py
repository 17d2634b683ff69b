"""How well a score tells known sounds from unknown ones, and the threshold that keeps a share of the known.

numpy alone. Known is positive: scores are high for what a model was trained on (`postprocess.unknown_score`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from soundmark.breakdowns import BOOTSTRAP_ROUNDS
from soundmark.config import DecisionConfig, UnknownScore
from soundmark.errors import ConfigError
from soundmark.postprocess import unknown_score

SCORES: tuple[UnknownScore, ...] = get_args(UnknownScore)
KEEP = 0.95
"""Share of the known clips that figures and thresholds keep, where nothing else is asked for."""

_Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model said about clips.

    Attributes:
        logits: one ``(n_windows, n_labels)`` per clip.
        sources: the recording that each clip was cut from; those of one source are not independent.
    """

    logits: Sequence[npt.NDArray[np.floating]]
    sources: Sequence[str]


def scores_of(
    logits: Sequence[npt.NDArray[np.floating]], decision: DecisionConfig, kind: UnknownScore
) -> _Scores:
    """Return the score ``(n,)`` of each clip, as a decision with that ``kind`` would have it."""
    return np.array([unknown_score(one, replaced(decision, kind)) for one in logits], dtype=np.float64)


def replaced(decision: DecisionConfig, kind: UnknownScore, threshold: float = 0.0) -> DecisionConfig:
    """Return ``decision`` with that score and ``threshold``; what was for another score goes."""
    patterns = decision.patterns if kind == "pattern" else ""
    return replace(decision, unknown_score=kind, threshold=threshold, label_thresholds={}, patterns=patterns)


def kinds(decision: DecisionConfig) -> tuple[UnknownScore, ...]:
    """Return the scores that a model with that decision has: pattern only where something was fitted for it."""
    return SCORES if decision.patterns else tuple(kind for kind in SCORES if kind != "pattern")


def auroc(known: npt.ArrayLike, unknown: npt.ArrayLike) -> float:
    """Return the share of pairs in which the known clip has the higher score, a tie counts half; 0.5 is chance.

    The area under the ROC curve is the Mann-Whitney statistic (Hanley & McNeil, Radiology 1982), here from ranks.

    Raises:
        ConfigError: no clip on one side.
    """
    a, b = _both(known, unknown)
    _, place, times = np.unique(np.concatenate([a, b]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]  # of equal scores: their mean
    return float((ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def threshold(known: npt.ArrayLike, keep: float = KEEP) -> float:
    """Return the highest threshold that at least the share ``keep`` of ``known`` scores is not below.

    Raises:
        ConfigError: no score, or ``keep`` is not within 0 and 1.
    """
    scores = np.sort(np.asarray(known, dtype=np.float64))[::-1]
    if not len(scores):
        raise ConfigError("no known clip", wanted="clips to fit a threshold on")
    if not 0 < keep <= 1:
        raise ConfigError(f"`keep` is {keep:g}", wanted="a share above 0, at most 1")
    return float(scores[int(np.ceil(keep * len(scores) - 1e-9)) - 1])  # 0.95 x 20 is not 19 in binary


def fpr(known: npt.ArrayLike, unknown: npt.ArrayLike, keep: float = KEEP) -> float:
    """Return the share of unknown clips that pass where the share ``keep`` of the known passes (FPR at 95 % TPR).

    Raises:
        ConfigError: no clip on one side, or ``keep`` is not within 0 and 1.
    """
    a, b = _both(known, unknown)
    return float((b >= threshold(a, keep)).mean())


def auroc_interval(
    known: npt.ArrayLike,
    unknown: npt.ArrayLike,
    known_sources: Sequence[str],
    unknown_sources: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval (Efron 1979) of `auroc`, resampling whole sources on both sides.

    `BOOTSTRAP_ROUNDS` rounds, as for an accuracy. It knows nothing of other trainings or other labels left out.
    """
    a, b = _both(known, unknown)
    rows, columns = _members(known_sources), _members(unknown_sources)  # (n_sources, n)
    above = (a[:, None] > b).astype(np.float64) + 0.5 * (a[:, None] == b)
    pairs = rows @ above @ columns.T  # (known sources, unknown sources)
    rng = np.random.default_rng(seed)
    n, m = len(rows), len(columns)
    first = rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAP_ROUNDS).astype(np.float64)
    second = rng.multinomial(m, np.full(m, 1 / m), BOOTSTRAP_ROUNDS).astype(np.float64)
    wins = ((first @ pairs) * second).sum(axis=1)
    drawn = wins / ((first @ rows.sum(axis=1)) * (second @ columns.sum(axis=1)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def figures(
    known: Heard, against: Mapping[str, Heard], decision: DecisionConfig
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return score kind -> what it is against -> ``clips``, ``auroc``, ``auroc_interval_95``, ``fpr_at_95``.

    Args:
        known: clips of labels that the model was trained on.
        against: name -> clips of nothing that it was trained on; those without clips are left out.
        decision: temperature and pooling of the model.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in kinds(decision):
        mine = scores_of(known.logits, decision, kind)
        found[kind] = {}
        for name, other in against.items():
            if not len(other.logits):
                continue
            theirs = scores_of(other.logits, decision, kind)
            interval = auroc_interval(mine, theirs, known.sources, other.sources)
            found[kind][name] = {
                "clips": len(theirs),
                "auroc": round(auroc(mine, theirs), 6),
                "auroc_interval_95": [round(end, 6) for end in interval],
                "fpr_at_95": round(fpr(mine, theirs), 6),
            }
    return found


def _both(known: npt.ArrayLike, unknown: npt.ArrayLike) -> tuple[_Scores, _Scores]:
    a, b = np.asarray(known, dtype=np.float64), np.asarray(unknown, dtype=np.float64)
    if not len(a) or not len(b):
        raise ConfigError(f"{len(a)} known clips and {len(b)} unknown ones", wanted="some of both")
    return a, b


def _members(sources: Sequence[str]) -> _Scores:
    """Return which clips a source has, 0 or 1, ``(n_sources, n)``."""
    _, place = np.unique(np.asarray(sources), return_inverse=True)
    return np.asarray(np.arange(place.max() + 1)[:, None] == place, dtype=np.float64)
