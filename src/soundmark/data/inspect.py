"""A data set to its quality report: every recording measured once, in parallel, and what a person should know.

`inspect` never refuses a recording: what cannot be read is a finding like any other. Memory grows by about 16 kB per
clip of 5 s (fingerprints), not by the audio.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import soundmark
from soundmark.data import balance, outliers
from soundmark.data.duplicates import Copies, Progress, exact_copies, findings_of, near_copies, unseen
from soundmark.data.findings import Finding, counts, ordered, without_path
from soundmark.data.measure import Measures, measure
from soundmark.data.shortcut import Shortcut, shortcut_check
from soundmark.dataset import Dataset, leaking_sources, sources_across_folds
from soundmark.errors import AudioError, DatasetError, MissingExtraError

IN_THIS_PROCESS = (
    32  # up to this many clips no processes are started: each takes a second to import its libraries
)
IN_FLIGHT = 4  # clips handed to each process at once
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
FIGURES = (
    "duration_s",
    "silent_share",
    "peak_dbfs",
    "rms_dbfs",
    "loudness_lufs",
    "clipped_share",
    "dc",
    "bandwidth_hz",
    "noise_floor_dbfs",
    "snr_db",
)
"""The measures whose distribution is reported."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The report on a data set; ``measures[i]`` is None where clip i cannot be used."""

    dataset: Dataset
    measures: tuple[Measures | None, ...]
    errors: dict[int, AudioError]
    copies: tuple[Copies, ...]
    shortcut: Shortcut | None
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def readable(self) -> list[Measures]:
        """The measures that there are."""
        return [one for one in self.measures if one is not None]

    @property
    def hours(self) -> float:
        """Decoded hours."""
        return sum(one.duration_s for one in self.readable) / 3600

    @property
    def counts(self) -> dict[str, int]:
        """Severity -> how many findings."""
        return counts(self.findings)

    def of(self, *codes: str) -> list[Finding]:
        """Return the findings with one of ``codes``."""
        return [finding for finding in self.findings if finding.code in codes]

    def distributions(self) -> dict[str, dict[str, float]]:
        """Return measure -> quantile in percent -> value, over the readable clips."""
        found = self.readable
        if not found:
            return {}
        tables = {name: np.array([getattr(one, name) for one in found]) for name in FIGURES}
        return {
            name: {f"p{q}": round(float(np.percentile(x, q)), 6) for q in QUANTILES}
            for name, x in tables.items()
        }

    def formats(self) -> dict[str, dict[str, int]]:
        """Return what the files are: sample rates, channels and encodings, each with its count."""
        values = {
            "sample_rates": [str(one.sample_rate) for one in self.readable],
            "channels": [str(one.channels) for one in self.readable],
            "encodings": [one.container for one in self.readable],
        }
        return {name: dict(Counter(column).most_common()) for name, column in values.items()}

    def classes(self) -> list[dict[str, Any]]:
        """Return a row per label: clips, sources, clips per fold."""
        return balance.classes(self.dataset)

    def leaks(self) -> dict[str, Any]:
        """Return what stands on both sides of a fold: sources, sources known to, and copies."""
        across, leaking = sources_across_folds(self.dataset), leaking_sources(self.dataset)
        clips = self.dataset.clips
        of_source: dict[str, list[str]] = defaultdict(list)
        for clip in clips:
            of_source[clip.source].append(clip.name)
        rows = {s: {"folds": list(folds), "clips": of_source[s]} for s, folds in across.items()}
        return {
            "sources": {s: row for s, row in rows.items() if s in leaking},
            "known_sources": {s: row for s, row in rows.items() if s not in leaking},
            "copies": [
                {**one.to_dict(clips), "folds": sorted({clips[i].fold for i in one.clips})}
                for one in self.copies
                if len({clips[i].fold for i in one.clips}) > 1
            ],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the whole report, a row per clip included."""
        rows = []
        for i, (clip, one) in enumerate(zip(self.dataset.clips, self.measures, strict=True)):
            row = {"name": clip.name, "label": clip.label, "fold": clip.fold, "source": clip.source}
            rows.append({**row, **(one.to_dict() if one else {"error": self.errors[i].to_dict()})})
        dataset = self.dataset
        return {
            "soundmark_inspection": 1,
            "soundmark": soundmark.__version__,
            "data": dataset.name,
            "layout": dataset.layout,
            "root": str(dataset.root),
            "stamps": list(dataset.stamps),
            "clips": len(dataset.clips),
            "unreadable": len(self.errors),
            "hours": round(self.hours, 4),
            "folds": list(dataset.folds) if dataset.has_folds else [],
            "classes": self.classes(),
            "formats": self.formats(),
            "distributions": self.distributions(),
            "leaks": self.leaks(),
            "copies": [one.to_dict(dataset.clips) for one in self.copies],
            "shortcut": self.shortcut.to_dict() if self.shortcut else None,
            "counts": self.counts,
            "findings": [finding.to_dict() for finding in self.findings],
            "measures": rows,
            "seconds": round(self.seconds, 1),
        }


def inspect(dataset: Dataset, *, processes: int | None = None, progress: Progress = unseen) -> Inspection:
    """Return the report on ``dataset``, opened with ``strict=False`` so that its faults are findings.

    Args:
        dataset: the clips.
        processes: that measure; default: one per processor. More than `IN_THIS_PROCESS` clips in more than one process
            need a main module that can be imported (``if __name__ == "__main__":`` in scripts).
        progress: draws what takes long, see `duplicates.Progress`.
    """
    began = time.perf_counter()
    clips = dataset.clips
    with progress("measure", len(clips)) as on_clip:
        measures, errors = measure_all([clip.path for clip in clips], processes=processes, on_clip=on_clip)
    found = [
        Finding(error.code, clips[i].name, without_path(error, clips[i].path))
        for i, error in sorted(errors.items())
    ]
    found += balance.findings(dataset)
    found += outliers.findings(clips, measures)
    exact = exact_copies(measures)
    near, capped = near_copies(clips, measures, progress=progress)
    copies = (*exact, *near)
    found += findings_of(copies, clips)
    if capped:
        found.append(
            Finding(
                "capped", "copies", f"{capped} pairs that look alike were not compared by their waveforms"
            )
        )
    shortcut: Shortcut | None = None
    try:
        shortcut = shortcut_check(clips, measures)
        found += shortcut.findings()
    except (DatasetError, MissingExtraError) as error:
        found.append(Finding("shortcut_unknown", "shortcut check", str(error)))
    return Inspection(
        dataset=dataset,
        measures=tuple(measures),
        errors=errors,
        copies=copies,
        shortcut=shortcut,
        findings=ordered(found),
        seconds=time.perf_counter() - began,
    )


def measure_all(
    paths: Sequence[Path], *, processes: int | None = None, on_clip: Callable[[int], None] | None = None
) -> tuple[list[Measures | None], dict[int, AudioError]]:
    """Return the measures of every file in order, None where there is an error, and the errors by index.

    A file that ends the process which decodes it is a `decoder_crashed`; the others are measured all the same.
    """
    measures: list[Measures | None] = [None] * len(paths)
    errors: dict[int, AudioError] = {}
    done: set[int] = set()

    def keep(index: int, outcome: Measures | AudioError) -> None:
        if isinstance(outcome, AudioError):
            errors[index] = outcome
        else:
            measures[index] = outcome
        done.add(index)
        if on_clip:
            on_clip(1)

    processes = processes or _processors()
    if processes < 2 or len(paths) <= IN_THIS_PROCESS:
        for index, path in enumerate(paths):
            keep(index, _outcome(path))
        return measures, errors
    while left := [index for index in range(len(paths)) if index not in done]:
        try:
            _in_processes(paths, left, processes, keep)
        except BrokenProcessPool:  # one of those that were handed out: one at a time tells which
            for index in [index for index in left if index not in done][: IN_FLIGHT * processes]:
                try:
                    _in_processes(paths, [index], 1, keep)
                except BrokenProcessPool:
                    saw = f"{str(paths[index])!r}: the process that decoded it ended"
                    keep(index, AudioError(saw, wanted="an intact recording", code="decoder_crashed"))
    return measures, errors


def _in_processes(
    paths: Sequence[Path],
    indices: Sequence[int],
    processes: int,
    keep: Callable[[int, Measures | AudioError], None],
) -> None:
    """Measure in a pool of ``processes``, with few clips in flight, so that an interrupt leaves nothing running."""
    context = multiprocessing.get_context(
        "spawn"
    )  # fork would copy the threads of BLAS and of the progress bar
    waiting = iter(indices)
    running: dict[Future[Measures | AudioError], int] = {}
    with ProcessPoolExecutor(processes, context, initializer=_ignore_interrupts) as pool:
        try:
            while True:
                while len(running) < IN_FLIGHT * processes and (index := next(waiting, None)) is not None:
                    running[pool.submit(_outcome, paths[index])] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    keep(running.pop(future), future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _outcome(path: Path) -> Measures | AudioError:
    try:
        return measure(path)
    except AudioError as error:
        return error


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the pool


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
