"""Copies in a data set: exact ones by hash, near ones by fingerprint and then by the waveform itself.

Three steps, each on what the step before left. (1) Neighbours in what `pooled` keeps of a fingerprint. (2) The log-mel
pictures, each band without its mean, are slid over each other (`picture_match`): two clips of rain agree in their
spectrum, but only copies agree in how it wavers. (3) The loudest three seconds of one are looked for in the other,
sample by sample (`wave_match`), which two recordings of one kind of clock do not survive.

The thresholds, on the 2 000 clips of ESC-50: step 2 alone would report some hundred pairs of mouse clicks, glass and
alarms. Step 3 gives 0.94 to 1.00 for four pairs and at most 0.73 (two alarm clocks) for all others, so `WAVE_MATCH`
stands in a gap and not on a slope. Over one second instead of three, those beeps reach 0.86.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from soundmark import audio
from soundmark.data.findings import Finding
from soundmark.data.measure import FINGERPRINT_HOP, FINGERPRINT_RANGE_DB, FINGERPRINT_RATE_HZ, Measures
from soundmark.dataset import Clip
from soundmark.errors import AudioError

NEIGHBOURS = 20
POOLED_DISTANCE_DB = 8.0
PICTURE_MATCH = 0.7
WAVE_MATCH = 0.85
WAVE_S = 3.0
MAX_LAG_FRAMES = 25  # 0.5 s
MAX_CANDIDATES = 1000  # pairs whose waveforms are compared
_ACTIVE_DB = 10.0 - FINGERPRINT_RANGE_DB  # frames below are background
_SLACK = 640  # samples at 16 kHz around the lag of the picture
_PIECE = 4096  # OpenBLAS shares longer scalar products (10 000 and more) among threads
_STEADY_DB = 0.3  # a picture that wavers less says nothing

Array = npt.NDArray[np.float32]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""``progress(what, total)`` gives a context with a function that counts, as `render.clip_progress` does."""


@contextmanager
def unseen(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts for nobody: a `Progress`."""
    yield lambda _n: None


@dataclass(frozen=True, slots=True)
class Copies:
    """Clips (indices) with the same or nearly the same audio; ``match`` is 1 for the same."""

    clips: tuple[int, ...]
    match: float
    lag_s: float
    exact: bool

    def to_dict(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "clips": [clips[i].name for i in self.clips],
            "exact": self.exact,
            "match": round(self.match, 4),
            "lag_s": round(self.lag_s, 4),
        }


def exact_copies(measures: Sequence[Measures | None]) -> list[Copies]:
    """Return groups of clips with the same decoded audio (so a WAV and its FLAC copy), silent clips left out."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(measures):
        if one is not None and "silent" not in one.flags:
            groups[one.audio_hash].append(i)
    return [Copies(tuple(group), 1.0, 0.0, exact=True) for group in groups.values() if len(group) > 1]


def near_copies(
    clips: Sequence[Clip], measures: Sequence[Measures | None], *, progress: Progress = unseen
) -> tuple[list[Copies], int]:
    """Return pairs with nearly the same audio (another gain, coding, rate, or shifted by up to 0.5 s), not exact ones.

    Takes of one source with one label in one fold are no pair: they belong together anyway.

    Args:
        clips: the clips.
        measures: of every clip, None where it could not be read.
        progress: draws the two steps.

    Returns:
        The pairs, best first, and how many candidates were not followed up (beyond `MAX_CANDIDATES`).
    """
    usable = [i for i, one in enumerate(measures) if one is not None and len(one.fingerprint) >= 2]
    candidates: list[tuple[float, int, int, int]] = []
    pictures = _Pictures(measures)
    pairs = [
        (i, j) for i, j in sorted(_neighbours(usable, measures)) if _may_be_copies(i, j, clips, measures)
    ]
    with progress("compare", len(pairs)) as on_pair:
        for i, j in pairs:
            match, lag = picture_match(pictures(i), pictures(j))
            if match >= PICTURE_MATCH:
                candidates.append((match, i, j, lag))
            on_pair(1)
    candidates.sort(reverse=True)
    followed = sorted(
        candidates[:MAX_CANDIDATES], key=lambda one: one[1:]
    )  # by clip: each is decoded once or twice
    found = []
    waves = lru_cache(maxsize=32)(_wave)
    with progress("listen", len(followed)) as on_pair:
        for _, i, j, lag in followed:
            try:
                match, lag_s = wave_match(waves(clips[i].path), waves(clips[j].path), lag)
            except AudioError:  # changed since it was measured
                match, lag_s = 0.0, 0.0
            if match >= WAVE_MATCH:
                found.append(Copies((i, j), match, lag_s, exact=False))
            on_pair(1)
    found.sort(key=lambda one: -one.match)
    return found, len(candidates) - len(followed)


def pooled(fingerprint: npt.NDArray[np.float16]) -> Array:
    """Return mean, spread and 90th percentile of every band over the active frames: the same for shifted copies."""
    x = fingerprint.astype(np.float32)
    active = x[x.max(axis=1) > _ACTIVE_DB]
    x = active if len(active) >= 5 else x
    return np.concatenate([x.mean(axis=0), x.std(axis=0), np.percentile(x, 90, axis=0).astype(np.float32)])


def picture_match(a: Array, b: Array) -> tuple[float, int]:
    """Return the best correlation of two `_picture` arrays over lags of up to `MAX_LAG_FRAMES`, and that lag.

    Frame t of ``a`` is like frame t + lag of ``b``. Two steady sounds match by definition: there is nothing to compare.
    """
    own, other = _product(a, a, 0), _product(b, b, 0)
    if min(own / a.size, other / b.size) < _STEADY_DB**2:
        return 1.0, 0
    lags = range(max(-MAX_LAG_FRAMES, 1 - len(a)), min(MAX_LAG_FRAMES, len(b) - 1) + 1)
    sums = [_product(a, b, lag) for lag in lags]
    best = int(np.argmax(sums))
    return sums[best] / float(np.sqrt(own * other)), lags[best]


def wave_match(a: Array, b: Array, lag_frames: int) -> tuple[float, float]:
    """Return ``(match, lag_s)``: the correlation of the loudest `WAVE_S` of ``a`` with ``b`` near a lag of the picture.

    Normalised cross-correlation, its absolute value (a copy may be inverted), at 16 kHz. Less is compared where less is
    there, and nothing that stands outside of ``b``.
    """
    lag = lag_frames * FINGERPRINT_HOP
    width = min(int(WAVE_S * FINGERPRINT_RATE_HZ), len(a) - abs(lag), len(b) - abs(lag))
    energy = np.concatenate([[0.0], np.cumsum(np.square(a, dtype=np.float64))])
    starts = np.arange(max(0, -lag), min(len(a), len(b) - lag) - width + 1, FINGERPRINT_HOP)
    if width < FINGERPRINT_HOP or not len(starts):
        return 0.0, 0.0
    start = int(starts[np.argmax(energy[starts + width] - energy[starts])])
    x = a[start : start + width].astype(np.float64)
    y = np.pad(b, _SLACK)[start + lag : start + lag + width + 2 * _SLACK].astype(np.float64)
    power = np.concatenate([[0.0], np.cumsum(y * y)])
    power = power[width:] - power[:-width]
    scale = float(x @ x) * np.maximum(power, 1e-6 * float(power.max(initial=0.0)))
    if not scale.max() > 0:
        return 0.0, 0.0
    match = np.abs(_correlation(y, x)) / np.sqrt(np.maximum(scale, 1e-30))
    best = int(match.argmax())
    return min(1.0, float(match[best])), (lag + best - _SLACK) / FINGERPRINT_RATE_HZ


def findings_of(copies: Sequence[Copies], clips: Sequence[Clip]) -> list[Finding]:
    """Return a finding per group and fault: in several folds, under several labels, or else only twice."""
    found = []
    for group in copies:
        members = [clips[i] for i in group.clips]
        names = tuple(clip.name for clip in members)
        what = "has the same audio as" if group.exact else f"is nearly the same audio ({group.match:.2f}) as"
        text = f"{what} {', '.join(names[1:6])}{' ...' if len(names) > 6 else ''}"
        prefix = "duplicate" if group.exact else "near_duplicate"
        folds = sorted({clip.fold for clip in members})
        labels = sorted({clip.label for clip in members})
        if len(folds) > 1:
            where = f"{text}: folds {', '.join(map(str, folds))}"
            found.append(Finding(f"{prefix}_across_folds", names[0], where, names[1:]))
        if len(labels) > 1:
            found.append(
                Finding(f"{prefix}_labels", names[0], f"{text}: labels {', '.join(labels)}", names[1:])
            )
        if len(folds) == 1 and len(labels) == 1:
            found.append(Finding(prefix, names[0], text, names[1:]))
    return found


def _neighbours(usable: Sequence[int], measures: Sequence[Measures | None]) -> set[tuple[int, int]]:
    """Return pairs (i < j) that are among each other's nearest in `pooled`, by rows so that memory stays small."""
    if len(usable) < 2:
        return set()
    x = np.stack([pooled(one.fingerprint) for i in usable if (one := measures[i]) is not None])
    square = np.einsum("ij,ij->i", x, x)
    pairs: set[tuple[int, int]] = set()
    limit = POOLED_DISTANCE_DB**2 * x.shape[1]
    for row, own in enumerate(x):
        distance = square + square[row] - 2 * np.einsum("ij,j->i", x, own)
        distance[row] = np.inf
        nearest = np.argpartition(distance, min(NEIGHBOURS, len(x) - 1))[:NEIGHBOURS]
        pairs.update((min(row, int(j)), max(row, int(j))) for j in nearest if distance[j] < limit)
    return {(usable[i], usable[j]) for i, j in pairs}


def _may_be_copies(i: int, j: int, clips: Sequence[Clip], measures: Sequence[Measures | None]) -> bool:
    """Return whether two clips are neither takes that belong together nor equal (`exact_copies` has those)."""
    a, b, one, other = clips[i], clips[j], measures[i], measures[j]
    if one is None or other is None or one.audio_hash == other.audio_hash:
        return False
    return not (a.source == b.source != "" and a.label == b.label and a.fold == b.fold)


class _Pictures:
    """Pictures of the last clips that were asked for: all of them would be twice the fingerprints."""

    def __init__(self, measures: Sequence[Measures | None]) -> None:
        self._measures = measures
        self._get = lru_cache(maxsize=512)(self._made)

    def __call__(self, index: int) -> Array:
        return self._get(index)

    def _made(self, index: int) -> Array:
        one = self._measures[index]
        assert one is not None
        return _picture(one.fingerprint)


def _correlation(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ``np.correlate(y, x, "valid")``, in sums short enough that BLAS does not wake other threads for each."""
    n_lags = len(y) - len(x) + 1
    total = np.zeros(n_lags)
    for start in range(0, len(x), _PIECE):
        piece = x[start : start + _PIECE]
        total += np.correlate(y[start : start + len(piece) + n_lags - 1], piece, "valid")
    return total


def _product(a: Array, b: Array, lag: int) -> float:
    a, b = a[max(0, -lag) :], b[max(0, lag) :]
    n = min(len(a), len(b))
    return float(np.einsum("ij,ij->", a[:n], b[:n]))  # not BLAS, see _PIECE


def _picture(fingerprint: npt.NDArray[np.float16]) -> Array:
    """Return the fingerprint without the mean of each band, 0 where nothing sounds."""
    x = fingerprint.astype(np.float32)
    active = x.max(axis=1) > _ACTIVE_DB
    return np.where(active[:, None], x - x[active].mean(axis=0), np.float32(0))


def _wave(path: Path) -> Array:
    return audio.load(path, sample_rate=FINGERPRINT_RATE_HZ).samples[: 30 * FINGERPRINT_RATE_HZ]
