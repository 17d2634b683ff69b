"""Measures and index to findings: what stands out in a clip, in the classes and in the folds."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from soundmark.data.findings import CODES, Finding
from soundmark.data.measure import Measures
from soundmark.dataset import ESC50_SHARED_SOURCES, Clip, Dataset, leaking_sources, sources_across_folds

HALF = 0.5
COMMON = 0.6  # of the clips must agree before the others are odd
SAME_LENGTH = 0.02  # relative: quartiles this close mean that clips are meant to be of one length
ODD_LENGTH = 0.05  # relative to the median
NARROW = 0.5  # of the median bandwidth
QUIET_LU = 30.0  # below the median loudness
IMBALANCE = 2.0
FEW_CLIPS = 5


def judge_clips(dataset: Dataset, measures: Sequence[Measures | None]) -> Iterator[Finding]:
    """Yield findings about single clips, each compared with what is usual in this data set."""
    heard = [(clip, one) for clip, one in zip(dataset.clips, measures, strict=True) if one is not None]
    if not heard:
        return
    rate, channels = _usual([m.sample_rate for _, m in heard]), _usual([m.channels for _, m in heard])
    durations = np.array([m.duration_s for _, m in heard])
    low, duration, high = np.percentile(durations, [25, 50, 75])
    one_length = high - low <= SAME_LENGTH * duration
    sounding = [m for _, m in heard if "silent" not in m.flags]
    bandwidth = float(np.median([m.bandwidth_hz for m in sounding])) if sounding else 0.0
    loudness = float(np.median([m.loudness_lufs for m in sounding])) if sounding else 0.0
    for clip, m in heard:
        for flag in m.flags:
            yield Finding(flag, clip.name, _about_flag(flag, m))
        if m.silent_share > HALF:
            text = f"{m.silent_share:.0%} digital silence ({m.silent_share * m.duration_s:.2f} of {m.duration_s:.2f} s)"
            yield Finding("mostly_silence", clip.name, text)
        if rate and m.sample_rate != rate:
            yield Finding("odd_sample_rate", clip.name, f"{m.sample_rate} Hz where {rate} Hz is usual")
        if channels and m.channels != channels:
            yield Finding("odd_channels", clip.name, f"{m.channels} channels where {channels} is usual")
        if one_length and abs(m.duration_s - duration) > ODD_LENGTH * duration:
            yield Finding("odd_duration", clip.name, f"{m.duration_s:.3f} s where {duration:.3f} s is usual")
        if "silent" in m.flags:
            continue
        if m.bandwidth_hz < NARROW * bandwidth:
            text = f"nothing above {m.bandwidth_hz:.0f} Hz where {bandwidth:.0f} Hz is usual"
            yield Finding("narrow_band", clip.name, text)
        if m.loudness_lufs < loudness - QUIET_LU:
            text = f"{m.loudness_lufs:.1f} LUFS where {loudness:.1f} LUFS is usual"
            yield Finding("quiet", clip.name, text)


def judge_set(dataset: Dataset, measures: Sequence[Measures | None]) -> Iterator[Finding]:
    """Yield findings about classes, folds and sources, and about the set as a whole."""
    heard = [one for one in measures if one is not None]
    silent = [one for one in heard if "silent" in one.flags]
    if len(heard) > 1 and (len(silent) == len(heard) or len({one.audio_hash for one in heard}) == 1):
        what = "silent" if len(silent) == len(heard) else "the same"
        yield Finding("no_information", dataset.name, f"all {len(heard)} recordings are {what}")
    yield from _judge_sources(dataset)
    yield from _judge_classes(dataset)


def _judge_sources(dataset: Dataset) -> Iterator[Finding]:
    names: dict[str, list[Clip]] = defaultdict(list)
    for clip in dataset.clips:
        names[clip.source].append(clip)
    leaking = leaking_sources(dataset)
    for source, folds in sources_across_folds(dataset).items():
        labels = sorted({clip.label for clip in names[source]})
        text = f"source {source} stands in folds {', '.join(map(str, folds))}, as {', '.join(labels)}"
        code = "leak" if source in leaking or source not in ESC50_SHARED_SOURCES else "known_shared_source"
        yield Finding(code, source, text, tuple(clip.name for clip in names[source]))
    if not dataset.has_folds:
        yield Finding("no_folds", dataset.name, "`soundmark data split` makes folds that keep sources together")
    if len(names) == len(dataset.clips) > 1:
        yield Finding("no_sources", dataset.name, "every clip is its own source")


def _judge_classes(dataset: Dataset) -> Iterator[Finding]:
    sizes = Counter(clip.label for clip in dataset.clips)
    sources: dict[str, set[str]] = defaultdict(set)
    folds: dict[str, set[int]] = defaultdict(set)
    similar: dict[str, list[str]] = defaultdict(list)
    for clip in dataset.clips:
        sources[clip.label].add(clip.source)
        folds[clip.label].add(clip.fold)
    largest, smallest = max(sizes.values()), min(sizes[label] for label in dataset.labels)
    if largest > IMBALANCE * smallest:
        yield Finding("imbalance", dataset.name, f"{smallest} to {largest} clips per class")
    for label in dataset.labels:
        similar[" ".join(unicodedata.normalize("NFKC", label).casefold().replace("_", " ").split())].append(label)
        if sizes[label] < FEW_CLIPS:
            yield Finding("few_clips", label, f"class {label} has {sizes[label]} clips")
        if len(sources[label]) < 2:
            yield Finding("few_sources", label, f"all clips of class {label} come from one source")
        missing = sorted(set(dataset.folds) - folds[label])
        if missing:
            yield Finding("class_absent", label, f"class {label} has no clip in fold {', '.join(map(str, missing))}")
    for group in similar.values():
        if len(group) > 1:
            yield Finding("similar_labels", group[0], f"labels {', '.join(map(repr, group))}", tuple(group[1:]))


def _usual(values: list[int]) -> int:
    """Return the value that `COMMON` of the clips share, 0 where there is none."""
    value, times = Counter(values).most_common(1)[0]
    return value if times >= COMMON * len(values) else 0


def _about_flag(flag: str, m: Measures) -> str:
    figures = {
        "dc_offset": f"mean {m.dc:+.3f} of full scale",
        "clipped": f"{m.clipped_share:.1%} of the samples on the extreme value",
        "over_full_scale": f"peak {m.peak_dbfs:+.1f} dBFS",
        "silent": f"peak {m.peak_dbfs:.0f} dBFS",
        "extension_mismatch": f"the content is {m.container}",
        "truncated": f"{m.duration_s:.3f} s are left",
    }
    return figures.get(flag) or CODES.get(flag, ("error", flag.replace("_", " ")))[1]
