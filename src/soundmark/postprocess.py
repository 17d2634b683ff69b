"""Logits to an answer: calibrated scores, pooled over windows, thresholds, and "unknown" where there is no evidence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import pattern
from soundmark.config import DecisionConfig
from soundmark.errors import ConfigError, SoundmarkError

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label and its score in 0...1."""

    label: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"label", "score"}``."""
        return {"label": self.label, "score": round(self.score, 6)}


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one set of windows, without where it came from."""

    label: str | None  # None is unknown
    score: float  # of the best label, whether or not it passed its threshold
    labels: tuple[LabelScore, ...]  # the best top_k, descending
    unknown: bool
    reason: str  # "", "silent" or "below_threshold"
    scores: Array = field(repr=False, compare=False)  # (n_labels,) sum 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was heard in one recording, with what is needed to explain and repeat it."""

    source: str  # path, or what the caller named it
    label: str | None  # None is unknown
    score: float  # of the best label, whether or not it passed its threshold
    labels: tuple[LabelScore, ...]  # the best top_k, descending
    flags: tuple[str, ...]  # quality flags, sorted, from errors.FLAGS
    unknown: bool
    reason: str  # "", "silent" or "below_threshold"
    duration_s: float  # decoded seconds
    n_windows: int
    timing_ms: dict[str, float] = field(compare=False)  # decode, frontend, model, total
    model: str  # name of the bundle
    model_digest: str
    scores: Array = field(repr=False, compare=False)  # (n_labels,) calibrated and pooled, sum 1
    logits: Array = field(repr=False, compare=False)  # (n_windows, n_labels) as the model gave them

    @property
    def ok(self) -> bool:
        """True; a `Failure` has False."""
        return True

    def to_dict(self, full: bool = False) -> dict[str, Any]:
        """Return plain data for JSON; with ``full`` also all ``scores`` and ``logits``."""
        row: dict[str, Any] = {
            "path": self.source,
            "label": self.label,
            "score": round(self.score, 6),
            "labels": [one.to_dict() for one in self.labels],
            "flags": list(self.flags),
            "unknown": self.unknown,
            "reason": self.reason,
            "duration_s": round(self.duration_s, 6),
            "n_windows": self.n_windows,
            "timing_ms": {key: round(value, 3) for key, value in self.timing_ms.items()},
            "model": self.model,
            "model_digest": self.model_digest,
        }
        if full:
            row["scores"] = self.scores.tolist()
            row["logits"] = self.logits.tolist()
        return row


@dataclass(frozen=True, slots=True)
class Failure:
    """A recording that gave no answer, as a row."""

    source: str
    code: str  # from errors.AUDIO_CODES
    message: str

    @property
    def ok(self) -> bool:
        """False; a `Prediction` has True."""
        return False

    @classmethod
    def of(cls, source: str, error: SoundmarkError) -> Failure:
        """Return the row of an error."""
        return cls(source, error.code, str(error))

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"path", "error": {"code", "message"}}``."""
        return {"path": self.source, "error": {"code": self.code, "message": self.message}}


def source_name(source: object) -> str:
    """Return what results call a source: its path, the name of a file object, ``<bytes>`` or ``<array>``."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, (tuple, np.ndarray)):
        return "<array>"
    name: Any = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return ``softmax(logits / temperature)`` over the last axis, float64, each row sums to 1.

    Source: temperature scaling, Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    x = np.asarray(logits, dtype=np.float64) / temperature
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    x /= x.sum(axis=-1, keepdims=True)
    return x  # type: ignore[no-any-return]


def pool(scores: npt.NDArray[np.float64], pooling: str) -> npt.NDArray[np.float64]:
    """Return one row ``(n_labels,)`` that sums to 1 from window scores ``(n_windows, n_labels)``."""
    if len(scores) == 1:
        return scores[0]  # type: ignore[no-any-return]
    if pooling == "mean":
        return scores.mean(axis=0)  # type: ignore[no-any-return]
    best = scores.max(axis=0)
    return best / best.sum()  # type: ignore[no-any-return]


def pool_logits(logits: npt.ArrayLike, pooling: str) -> npt.NDArray[np.float64]:
    """Return one row ``(n_labels,)``, mean or maximum of window logits: pooled scores would have no level left."""
    x = np.asarray(logits, dtype=np.float64)
    return x.mean(axis=0) if pooling == "mean" else x.max(axis=0)  # type: ignore[no-any-return]


def log_scores(logits: npt.ArrayLike, temperature: float, pooling: str) -> npt.NDArray[np.float64]:
    """Return the logarithm of pooled scores ``(..., n_labels)`` from window logits ``(..., n_windows, n_labels)``.

    The same as ``log(pool(softmax(logits, temperature), pooling))``, but finite where a score is too small for a float.
    """
    x = np.asarray(logits, dtype=np.float64) / temperature
    x = x - _log_sum(x, axis=-1)[..., None]
    if x.shape[-2] == 1:
        return x[..., 0, :]
    if pooling == "mean":
        return _log_sum(x, axis=-2) - np.log(x.shape[-2])  # type: ignore[no-any-return]
    best = x.max(axis=-2)
    return best - _log_sum(best, axis=-1)[..., None]  # type: ignore[no-any-return]


def unknown_score(logits: npt.ArrayLike, decision: DecisionConfig) -> float:
    """Return how much speaks for any of the labels, from window logits ``(n_windows, n_labels)``; low is unknown.

    ``probability``: the best pooled score, 0 to 1 (Hendrycks & Gimpel, ICLR 2017). ``max-logit``: the largest logit
    (Hendrycks et al., ICML 2022). ``energy``: ``T log(sum(exp(logits / T)))``, the negative energy of Liu et al.,
    NeurIPS 2020, equation 4, at the temperature of the decision. ``pattern``: see `soundmark.pattern`. The softmax
    forgets the level of the logits, which these three keep; several windows are pooled as logits.
    """
    x = np.asarray(logits, dtype=np.float64)
    if decision.unknown_score == "probability":
        return float(pool(softmax(x, decision.temperature), decision.pooling).max())
    x = pool_logits(x, decision.pooling)
    if decision.unknown_score == "pattern":
        return pattern.score(x, decision.patterns)
    if decision.unknown_score == "max-logit":
        return float(x.max())
    return float(decision.temperature * _log_sum(x / decision.temperature, axis=-1))


def _log_sum(x: npt.NDArray[np.float64], *, axis: int) -> npt.NDArray[np.float64]:
    """Return ``log(sum(exp(x)))`` over ``axis``, without overflow."""
    top = x.max(axis=axis, keepdims=True)
    total = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return np.squeeze(total, axis=axis)  # type: ignore[no-any-return]


def decide(
    logits: Array,
    *,
    labels: Sequence[str],
    decision: DecisionConfig,
    flags: Sequence[str] = (),
    top_k: int = 3,
) -> Decision:
    """Return the answer for the windows of one recording.

    With the flag ``silent`` there is no evidence for any label: scores are uniform and the answer is unknown, whatever
    the model says about zeros (RELIABILITY T6).

    Args:
        logits: ``(n_windows, n_labels)``, at least one window.
        labels: names of the columns.
        decision: temperature, pooling and thresholds.
        flags: quality flags of the recording.
        top_k: how many labels to list; more than there are is all of them.

    Raises:
        ConfigError: ``top_k`` below 1, or no window.
    """
    if top_k < 1:
        raise ConfigError(f"`top_k` is {top_k}", wanted="at least 1")
    if logits.ndim != 2 or not len(logits) or logits.shape[1] != len(labels):
        raise ConfigError(f"logits of shape {logits.shape}", wanted=f"(at least 1, {len(labels)})")
    silent = "silent" in flags
    if silent:
        scores = np.full(len(labels), 1.0 / len(labels))
    else:
        scores = pool(softmax(logits, decision.temperature), decision.pooling)
    order = np.argsort(-scores, kind="stable")[:top_k]  # equal scores: the order of the labels
    best = labels[order[0]]
    score = float(scores[order[0]])
    reason = ""
    if silent:
        reason = "silent"
    else:
        known = score if decision.unknown_score == "probability" else unknown_score(logits, decision)
        if known < decision.label_thresholds.get(best, decision.threshold):
            reason = "below_threshold"
    return Decision(
        label=None if reason else best,
        score=score,
        labels=tuple(LabelScore(labels[i], float(scores[i])) for i in order),
        unknown=bool(reason),
        reason=reason,
        scores=scores.astype(np.float32),
    )
