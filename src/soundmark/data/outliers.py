"""Measures to findings: what is wrong with a recording by itself, and what sets it apart from the others.

Thresholds are on the safe side of what ESC-50 shows: a clip that is named is worth a listen, and most are not named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from soundmark.data.findings import Finding
from soundmark.data.loudness import FLOOR_DB
from soundmark.data.measure import Measures
from soundmark.dataset import Clip

MOSTLY_SILENCE = 0.5  # share of the clip that is digital silence
USUAL_SHARE = 0.8  # of the clips must agree on a rate, an encoding ... for the others to be odd
DURATION_TOLERANCE = 0.05  # of the median
NARROW = 0.5  # of the median bandwidth
QUIET_LU = 30.0  # below the median loudness
SET = "(all clips)"
"""What a finding about the whole set has in the place of a clip."""

_FLAGS = {
    "truncated": "cut off: {0.duration_s:.2f} s are there, its header says more",
    "header_length_wrong": "{0.duration_s:.2f} s long; its header says another length",
    "extension_mismatch": "holds {0.container}, whatever its name says",
    "dc_offset": "mean sample {0.dc:+.3f} of full scale",
    "clipped": "{0.clipped_share:.1%} of its samples are cut off at one level",
    "over_full_scale": "samples above full scale (mono peak {0.peak_dbfs:+.1f} dBFS)",
    "silent": "peak {0.peak_dbfs:.0f} dBFS",
    "downmix_cancelled": "its {0.channels} channels cancel each other",
    "chained": "several streams; {0.duration_s:.2f} s, the first, are heard",
    "length_unknown": "its header does not say how long it is ({0.duration_s:.2f} s)",
}


def findings(clips: Sequence[Clip], measures: Sequence[Measures | None]) -> list[Finding]:
    """Return what sets clips apart, by clip, and what is wrong with the whole set."""
    found = [(clip.name, one) for clip, one in zip(clips, measures, strict=True) if one is not None]
    if not found:
        return [Finding("no_information", SET, "no recording can be used")]
    every: list[Finding] = []
    for name, one in found:
        every += [Finding(flag, name, text.format(one)) for flag, text in _FLAGS.items() if flag in one.flags]
        if one.silent_share > MOSTLY_SILENCE:
            text = f"{one.silent_share:.0%} of its {one.duration_s:.2f} s are digital silence"
            every.append(Finding("mostly_silence", name, text))
    rates = [(name, f"{one.sample_rate} Hz") for name, one in found]
    every += _odd("odd_sample_rate", "sample rates", rates)
    every += _odd(
        "odd_channels", "numbers of channels", [(name, f"{one.channels} ch") for name, one in found]
    )
    every += _odd("odd_encoding", "encodings", [(name, one.container) for name, one in found])
    every += _odd_durations(found)
    sounding = [(name, one) for name, one in found if one.loudness_lufs > FLOOR_DB]
    every += _below(
        "narrow_band",
        [(name, one.bandwidth_hz) for name, one in sounding if one.bandwidth_hz > 0],
        lambda middle: NARROW * middle,
        "nothing above {0:,.0f} Hz; half of the clips go up to {1:,.0f} Hz",
    )
    every += _below(
        "quiet",
        [(name, one.loudness_lufs) for name, one in sounding],
        lambda middle: middle - QUIET_LU,
        "{0:.0f} LUFS; half of the clips are above {1:.0f}",
    )
    return every + _no_information([one for _, one in found])


def _odd(code: str, what: str, values: Sequence[tuple[str, str]]) -> list[Finding]:
    """Return a finding per clip that differs from what `USUAL_SHARE` of them have, or one where none is usual."""
    sizes = Counter(value for _, value in values)
    (usual, n), *others = sizes.most_common()
    if not others:
        return []
    if n < USUAL_SHARE * len(values):
        several = ", ".join(f"{size} x {value}" for value, size in sizes.most_common(6))
        return [Finding(code, SET, f"{len(sizes)} {what}: {several}")]
    return [
        Finding(code, name, f"{value}; {n} clips have {usual}") for name, value in values if value != usual
    ]


def _odd_durations(found: Sequence[tuple[str, Measures]]) -> list[Finding]:
    lengths = np.array([one.duration_s for _, one in found])
    middle = float(np.median(lengths))
    odd = np.abs(lengths - middle) > DURATION_TOLERANCE * middle
    if not odd.any():
        return []
    if np.count_nonzero(odd) > (1 - USUAL_SHARE) * len(found):
        low, high = lengths.min(), lengths.max()
        return [Finding("durations_differ", SET, f"{low:.2f} to {high:.2f} s, median {middle:.2f} s")]
    text = "{0:.2f} s; half of the clips are within 5 % of {1:.2f} s"
    return [
        Finding("odd_duration", name, text.format(one.duration_s, middle))
        for (name, one), is_odd in zip(found, odd, strict=True)
        if is_odd
    ]


def _below(
    code: str, values: Sequence[tuple[str, float]], limit_of: Callable[[float], float], text: str
) -> Iterable[Finding]:
    if not values:
        return []
    middle = float(np.median([value for _, value in values]))
    limit = limit_of(middle)
    return [Finding(code, name, text.format(value, middle)) for name, value in values if value < limit]


def _no_information(found: Sequence[Measures]) -> list[Finding]:
    if all("silent" in one.flags for one in found):
        return [Finding("no_information", SET, "all recordings are silent")]
    if len(found) > 1 and len({one.audio_hash for one in found}) == 1:
        return [Finding("no_information", SET, "all recordings are the same")]
    return []
