"""A data set to a quality report: every recording measured, copies and leaks found, labels checked for shortcuts.

The index is read leniently: what `open_dataset` would refuse becomes a finding, and so does every recording that cannot
be decoded. `Report.to_dict` is the JSON file; the terminal summary and the page are made from the same report.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import soundmark
from soundmark import scan, storage
from soundmark.data import duplicates, judge, measure, shortcut
from soundmark.data.duplicates import Copies
from soundmark.data.findings import Finding, counts, ordered
from soundmark.data.measure import Measures
from soundmark.data.shortcut import Shortcut
from soundmark.dataset import Clip, Dataset, sources_across_folds
from soundmark.errors import EXIT_OK, EXIT_SOME_FAILED, AudioError, DatasetError, MissingExtraError
from soundmark.sources import open_dataset

Progress = Callable[[str, int, int], None]
"""Called with a step, how much of it is done, and how much there is."""

MEASURED = (
    "duration_s",
    "silent_share",
    "leading_silence_s",
    "trailing_silence_s",
    "inner_silence_s",
    "peak_dbfs",
    "rms_dbfs",
    "loudness_lufs",
    "bandwidth_hz",
    "noise_floor_dbfs",
    "snr_db",
    "clipped_share",
    "dc",
)
PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


@dataclass(frozen=True, slots=True)
class Report:
    """What was found; ``measures`` stand in the order of ``dataset.clips``, None for a clip that cannot be read."""

    dataset: Dataset
    measures: tuple[Measures | None, ...]
    copies: tuple[Copies, ...]
    shortcut: Shortcut | None
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def exit_status(self) -> int:
        """0, or 3 where there is a finding of severity error."""
        return EXIT_SOME_FAILED if counts(self.findings)["error"] else EXIT_OK

    def heard(self) -> Iterator[tuple[Clip, Measures]]:
        """Yield the clips that could be read, with their measures."""
        for clip, one in zip(self.dataset.clips, self.measures, strict=True):
            if one is not None:
                yield clip, one

    def summary(self) -> dict[str, dict[str, float]]:
        """Return measure -> percentile -> value over all clips that could be read."""
        heard = [one for _, one in self.heard()]
        if not heard:
            return {}
        table = {}
        for name in MEASURED:
            values = np.percentile([getattr(one, name) for one in heard], list(PERCENTILES.values()))
            table[name] = dict(zip(PERCENTILES, (round(float(v), 4) for v in values), strict=True))
        return table

    def classes(self) -> list[dict[str, Any]]:
        """Return a row per class: clips, sources, clips per fold, medians of some measures."""
        rows: dict[str, list[tuple[Clip, Measures | None]]] = defaultdict(list)
        for clip, one in zip(self.dataset.clips, self.measures, strict=True):
            rows[clip.label].append((clip, one))
        return [_class_row(label, rows[label]) for label in self.dataset.labels]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole report as plain data."""
        clips = []
        for clip, one in zip(self.dataset.clips, self.measures, strict=True):
            row = {"name": clip.name, "label": clip.label, "fold": clip.fold, "source": clip.source}
            clips.append(row | (one.to_dict() if one else {"error": True}))
        shared = sources_across_folds(self.dataset)
        return {
            "report": "soundmark data inspect",
            "soundmark": soundmark.__version__,
            "data": self.dataset.name,
            "layout": self.dataset.layout,
            "root": str(self.dataset.root),
            "n_clips": len(self.dataset.clips),
            "n_unreadable": self.measures.count(None),
            "stamps": list(self.dataset.stamps),
            "seconds": round(self.seconds, 2),
            "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
            "counts": counts(self.findings),
            "exit_status": self.exit_status,
            "shortcut": self.shortcut.to_dict() if self.shortcut else None,
            "shared_sources": {source: list(folds) for source, folds in shared.items()},
            "copies": [group.to_dict(self.dataset.clips) for group in self.copies],
            "formats": dict(Counter(_format(one) for _, one in self.heard()).most_common()),
            "summary": self.summary(),
            "classes": self.classes(),
            "findings": [finding.to_dict() for finding in self.findings],
            "clips": clips,
        }

    def write(self, path: Path) -> None:
        """Write the report as JSON, atomically.

        Raises:
            StorageError: the disk refuses.
        """
        storage.write_bytes(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())


def inspect(
    root: str | Path | None,
    *,
    workers: int | None = None,
    on_step: Progress = lambda _step, _done, _total: None,
) -> Report:
    """Return the report on the data set at ``root``.

    Args:
        root: as of `open_dataset`.
        workers: threads that decode; default: one per processor that this process may use.
        on_step: told how far it is.

    Raises:
        DatasetError: there is no data set there at all.
    """
    began = time.perf_counter()
    dataset = open_dataset(root, strict=False)
    if not dataset.clips:
        raise DatasetError(f"{dataset.root} has no clip that could be inspected", wanted="at least one recording")
    measures, unreadable = _measure_all(dataset.clips, workers or _processors(), on_step)
    findings = [*_about_index(dataset), *unreadable]
    findings += judge.judge_clips(dataset, measures)
    findings += judge.judge_set(dataset, measures)
    exact = duplicates.exact_copies(measures)
    near, capped = duplicates.near_copies(
        dataset.clips, measures, on_pair=lambda done, total: on_step("compare", done, total)
    )
    copies = (*exact, *near)
    findings += duplicates.findings_of(copies, dataset.clips)
    if capped:
        findings.append(Finding("capped", dataset.name, f"{capped} more pairs of similar clips were not compared"))
    on_step("shortcut", 0, 1)
    found, more = _shortcut(dataset, measures)
    on_step("shortcut", 1, 1)
    seconds = time.perf_counter() - began
    return Report(dataset, tuple(measures), copies, found, ordered([*findings, *more]), seconds)


def _measure_all(
    clips: Sequence[Clip], workers: int, on_step: Progress
) -> tuple[list[Measures | None], list[Finding]]:
    def one(clip: Clip) -> Measures | AudioError:
        try:
            return measure.measure(clip.path)
        except AudioError as error:
            return error

    measures: list[Measures | None] = []
    findings: list[Finding] = []
    pool = ThreadPoolExecutor(workers)
    try:
        for done, (clip, got) in enumerate(zip(clips, pool.map(one, clips), strict=True), 1):
            if isinstance(got, AudioError):
                text = str(got).removeprefix(f"{os.fspath(clip.path)!r}: ")
                findings.append(Finding(got.code, clip.name, text))
                measures.append(None)
            else:
                measures.append(got)
            on_step("measure", done, len(clips))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest
    return measures, findings


def _about_index(dataset: Dataset) -> Iterator[Finding]:
    """Yield what the lenient index left out, and the recordings that no row names."""
    for problem in dataset.skipped:
        code = problem.code
        if code in ("bad_table", "bad_row") and re.search(r"\btarget\b.* (here|above)", problem.message):
            code = "bad_target"
        yield Finding(code, problem.where, problem.message)
    for warning in dataset.warnings:
        if "without a row" not in warning:
            yield Finding("index", dataset.name, warning)
    used = {os.path.realpath(clip.path) for clip in dataset.clips}
    told = "\n".join(f"{problem.where} {problem.message}" for problem in dataset.skipped)
    esc10 = dataset.name.startswith("ESC-10") and (dataset.root / "meta" / "esc50.csv").is_file()
    if esc10:  # the other forty classes are no strays
        return
    folder = dataset.root if dataset.root.is_dir() else dataset.root.parent
    for found in scan.scan([folder]):
        if found.error is not None:
            yield Finding("skipped", _relative(found.path, folder), str(found.error))
        elif os.path.realpath(found.path) not in used and not _named(found.path.stem, told):
            where = _relative(found.path, folder)
            yield Finding("file_without_row", where, f"{where} is in no row")


def _named(stem: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(stem)}(?![\w-])", text) is not None


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else os.fspath(path)


def _shortcut(dataset: Dataset, measures: Sequence[Measures | None]) -> tuple[Shortcut | None, list[Finding]]:
    try:
        found = shortcut.check(dataset, measures)
    except (MissingExtraError, DatasetError) as error:
        return None, [Finding("shortcut_unknown", dataset.name, str(error))]
    if not found.noteworthy:
        return found, []
    best = max(found.by, key=lambda name: found.by[name])
    text = (
        f"{found.accuracy:.1%} of the labels are guessed right from duration, silence and bandwidth alone "
        f"(chance {found.chance:.1%}; most from {best}, {found.by[best]:.1%})"
    )
    return found, [Finding("shortcut", dataset.name, text)]


def _class_row(label: str, rows: Sequence[tuple[Clip, Measures | None]]) -> dict[str, Any]:
    heard = [one for _, one in rows if one is not None]

    def median(name: str) -> float:
        return round(float(np.median([getattr(one, name) for one in heard])), 4) if heard else 0.0

    return {
        "label": label,
        "clips": len(rows),
        "unreadable": len(rows) - len(heard),
        "sources": len({clip.source for clip, _ in rows}),
        "folds": dict(sorted(Counter(clip.fold for clip, _ in rows).items())),
        "seconds": round(sum(one.duration_s for one in heard), 2),
        "mostly_silent": sum(one.silent_share > judge.HALF for one in heard),
        "silent_share": round(float(np.mean([one.silent_share for one in heard])), 4) if heard else 0.0,
        **{name: median(name) for name in ("loudness_lufs", "bandwidth_hz", "snr_db")},
    }


def _format(one: Measures) -> str:
    return f"{one.container}, {one.sample_rate} Hz, {one.channels} ch"


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
