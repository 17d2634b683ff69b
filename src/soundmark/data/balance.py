"""An index to findings: rows and files that lead nowhere, classes, sources, and sources in several folds."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import PurePath
from typing import Any

from soundmark.data.findings import CODES, Finding, without_path
from soundmark.dataset import Clip, Dataset, leaking_sources, sources_across_folds
from soundmark.scan import scan

IMBALANCE = 2.0  # the largest class has more than this many times the clips of the smallest
FEW_CLIPS = 5
NAMED = 6  # clips of a leaking source, in a message
ALL_CLASSES = "(all classes)"


def classes(dataset: Dataset) -> list[dict[str, Any]]:
    """Return a row per label, in target order: clips, sources, clips per fold."""
    members: dict[str, list[Clip]] = defaultdict(list)
    for clip in dataset.clips:
        members[clip.label].append(clip)
    rows = []
    for label in dataset.labels:
        clips = members[label]
        in_fold = Counter(clip.fold for clip in clips)
        folds = {str(fold): in_fold[fold] for fold in dataset.folds} if dataset.has_folds else {}
        sources = len({clip.source for clip in clips})
        rows.append({"label": label, "clips": len(clips), "sources": sources, "folds": folds})
    return rows


def findings(dataset: Dataset) -> list[Finding]:
    """Return what is to be said of the index, nothing decoded."""
    found = _of_rows(dataset) + _of_files(dataset) + _of_sources(dataset) + _of_classes(dataset)
    return found + [Finding("index", dataset.name, warning) for warning in dataset.warnings]


def _of_rows(dataset: Dataset) -> list[Finding]:
    found = []
    for problem in dataset.skipped:
        named = re.fullmatch(r"line \d+ \((.+)\)", problem.where, re.DOTALL)
        clip = named[1] if named else problem.where
        known = problem.code in CODES
        text = problem.message if known else f"{problem.code}: {problem.message}"
        found.append(Finding(problem.code if known else "skipped", clip, text))
    return found


def _of_files(dataset: Dataset) -> list[Finding]:
    """Return the recordings below the root that no row names, and paths that cannot be followed."""
    used = {os.path.abspath(clip.path) for clip in dataset.clips}
    said = {problem.where for problem in dataset.skipped}
    text = "\n".join(f"{problem.where}\n{problem.message}" for problem in dataset.skipped)
    words = [word.rstrip(":,;") for word in re.findall(r"[^\s'\"()/]+", text)]
    named = {*words, *(PurePath(word).stem for word in words)}  # what a bad row names has a row
    found = []
    for one in scan([dataset.root]):
        name = os.path.relpath(one.path, dataset.root)
        if any(
            part.startswith(".") or part == "__MACOSX" for part in one.path.parts[len(dataset.root.parts) :]
        ):
            continue
        if one.error is not None:
            if name not in said:
                found.append(Finding(one.error.code, name, without_path(one.error, one.path)))
        elif os.path.abspath(one.path) not in used and not {name, one.path.name, one.path.stem} & named:
            found.append(Finding("file_without_row", name, "no row names it"))
    return found


def _of_sources(dataset: Dataset) -> list[Finding]:
    clips: dict[str, list[Clip]] = defaultdict(list)
    for clip in dataset.clips:
        clips[clip.source].append(clip)
    found = []
    leaking = leaking_sources(dataset)
    for source, folds in sources_across_folds(dataset).items():
        members = clips[source]
        labels = sorted({clip.label for clip in members})
        where = f"folds {', '.join(map(str, folds))}, labels {', '.join(labels)}"
        code = "leak" if source in leaking else "known_shared_source"
        names = tuple(clip.name for clip in members)
        text = f"{where}: {', '.join(names[:NAMED])}{' ...' if len(names) > NAMED else ''}"
        found.append(Finding(code, f"source {source}", text, names))
    if not dataset.has_folds:
        found.append(
            Finding("no_folds", dataset.name, "`soundmark data split` makes folds that keep sources together")
        )
    if len(clips) == len(dataset.clips) > 1:
        found.append(Finding("no_sources", dataset.name, "every clip is its own source, as far as is known"))
    return found


def _of_classes(dataset: Dataset) -> list[Finding]:
    found = []
    rows = classes(dataset)
    sizes = sorted((row["clips"], row["label"]) for row in rows if row["clips"])
    if len(sizes) > 1 and sizes[-1][0] > IMBALANCE * sizes[0][0]:
        (low, rare), (high, common) = sizes[0], sizes[-1]
        text = f"{low} clips of {rare}, {high} of {common}: train with balance = weights or sampler"
        found.append(Finding("imbalance", ALL_CLASSES, text))
    if len(sizes) == 1:
        found.append(Finding("few_classes", ALL_CLASSES, f"there is only one label, {sizes[0][1]}"))
    for row in rows:
        label = f"class {row['label']}"
        if row["clips"] < FEW_CLIPS:
            found.append(Finding("few_clips", label, f"{row['clips']} clips"))
        if row["sources"] == 1:
            found.append(Finding("few_sources", label, f"{row['clips']} clips, all from one source"))
        absent = [fold for fold, n in row["folds"].items() if not n]
        if absent:
            found.append(Finding("class_absent", label, f"no clip in fold {', '.join(absent)}"))
    alike: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        alike["".join(unicodedata.normalize("NFKC", row["label"]).casefold().split())].append(row["label"])
    for group in alike.values():
        if len(group) > 1:
            text = f"looks like {', '.join(map(repr, group[1:]))}"
            found.append(Finding("similar_labels", f"class {group[0]}", text))
    return found
