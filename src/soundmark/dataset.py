"""Clips with labels, folds and source recordings: an index over files, never the audio itself.

ESC-50 (Piczak, ACM Multimedia 2015) comes with five official folds that keep the clips of one source recording
together, except for four sources that this module knows by name. Audio files are found by stem, so that ``.wav``,
``.flac`` and ``.ogg`` copies of the data set are the same data set.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from soundmark.errors import DatasetError

ESC50_VARIABLE = "SOUNDMARK_ESC50"
"""Environment variable that names the ESC-50 folder when ``--data`` is not given."""

ESC50_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
ESC50_SHARED_SOURCES = frozenset({"131943", "134049", "209698", "234879"})
"""Sources that stand in several official folds of ESC-50, each time under another label (9 clips)."""

_ESC50_NAME = re.compile(
    r"(?P<stem>(?P<fold>[1-5])-(?P<source>[0-9]+)-(?P<take>[A-Z])-(?P<target>[0-9]+))(\.[A-Za-z0-9]{1,5})?"
)
_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled recording: where it is, what is in it, which fold and which source recording it belongs to."""

    name: str
    path: Path
    label: str
    fold: int
    source: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Clips in file order, and the labels in target order (label ``i`` is class ``i`` everywhere)."""

    name: str
    root: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that occur, sorted."""
        return tuple(sorted({clip.fold for clip in self.clips}))

    @property
    def targets(self) -> list[int]:
        """The class index of every clip."""
        index = {label: i for i, label in enumerate(self.labels)}
        return [index[clip.label] for clip in self.clips]

    def in_folds(self, folds: Iterable[int]) -> Dataset:
        """Return the clips of ``folds``, labels unchanged.

        Raises:
            DatasetError: a fold holds no clip.
        """
        wanted = set(folds)
        missing = wanted - set(self.folds)
        if missing or not wanted:
            raise DatasetError(
                f"{self.name} has no clip in fold {', '.join(map(str, sorted(missing))) or '(none given)'}",
                wanted=f"folds out of {', '.join(map(str, self.folds))}",
                code="unknown_fold",
            )
        return replace(self, clips=tuple(clip for clip in self.clips if clip.fold in wanted))

    def with_labels(self, labels: Sequence[str]) -> Dataset:
        """Return the clips of ``labels`` only, with those labels in that order (ESC-10, ten-class subsets)."""
        unknown = sorted(set(labels) - set(self.labels))
        if not labels or len(set(labels)) != len(labels):
            raise DatasetError(
                f"labels {', '.join(labels) or '(none)'}", wanted="one or more labels, each once"
            )
        if unknown:
            raise DatasetError(
                f"{self.name} has no label {', '.join(unknown)}",
                wanted=f"labels out of {', '.join(self.labels)}",
            )
        kept = tuple(clip for clip in self.clips if clip.label in set(labels))
        return replace(self, name=f"{self.name} ({len(labels)} classes)", labels=tuple(labels), clips=kept)

    def hashes(self, progress: Callable[[int], None] | None = None) -> dict[str, str]:
        """Return clip name -> SHA-256 of the file's bytes."""
        done: dict[str, str] = {}
        with ThreadPoolExecutor() as pool:
            for clip, digest in zip(self.clips, pool.map(_sha256, self.clips), strict=True):
                done[clip.name] = digest
                if progress:
                    progress(1)
        return done

    def digest(self, hashes: dict[str, str] | None = None) -> str:
        """Return one SHA-256 over names, labels, folds, sources and file contents: equal digests are equal data."""
        hashes = hashes or self.hashes()
        rows = sorted(f"{c.name}\t{c.label}\t{c.fold}\t{c.source}\t{hashes[c.name]}" for c in self.clips)
        return hashlib.sha256("\n".join(["\t".join(self.labels), *rows]).encode()).hexdigest()


def find_esc50(data: str | Path | None = None) -> Path:
    """Return the ESC-50 folder: ``data``, else the environment variable `ESC50_VARIABLE`.

    Raises:
        DatasetError: neither is given.
    """
    chosen = data or os.environ.get(ESC50_VARIABLE)
    if not chosen:
        raise DatasetError(
            "no data set was named",
            wanted=f"--data DIR, or the environment variable {ESC50_VARIABLE}",
            cause="ESC-50 is not part of this package; get it from its publisher",
            code="no_dataset",
        )
    return Path(chosen).expanduser()


def load_esc50(root: str | Path | None = None) -> Dataset:
    """Return the ESC-50 index of ``root``: ``meta/esc50.csv`` and ``audio/<stem>.<any audio suffix>``.

    Raises:
        DatasetError: table missing or malformed (with line numbers), a file name that contradicts its row, clips
            without audio, duplicate rows, a source in several folds beyond the four known ones.
    """
    root = find_esc50(root)
    table = root / "meta" / "esc50.csv"
    rows = _read_table(table, ESC50_COLUMNS)
    audio = _by_stem(root / "audio")
    clips: list[Clip] = []
    names: dict[int, str] = {}
    problems: list[str] = []
    for line, row in rows:
        match = _ESC50_NAME.fullmatch(row["filename"])  # a plain name: no folder, no way out of audio/
        stem = match["stem"] if match else ""
        if not match:
            problems.append(
                f"line {line}: file name {row['filename'][:80]!r} is not FOLD-SOURCE-TAKE-TARGET.wav"
            )
        elif match.group("fold", "source", "take", "target") != (
            row["fold"],
            row["src_file"],
            row["take"],
            row["target"],
        ):
            problems.append(
                f"line {line}: {row['filename']} contradicts fold, src_file, take or target of its row"
            )
        elif names.setdefault(int(row["target"]), row["category"]) != row["category"]:
            problems.append(
                f"line {line}: target {row['target']} is {row['category']!r} here, {names[int(row['target'])]!r} above"
            )
        elif stem not in audio:
            problems.append(f"line {line}: no audio file {stem}.* in {root / 'audio'}")
        else:
            clips.append(Clip(stem, audio[stem], row["category"], int(row["fold"]), row["src_file"]))
    for stem, times in Counter(clip.name for clip in clips).items():
        if times > 1:
            problems.append(f"{stem} stands in {times} rows")
    _refuse(table, problems)
    if not clips:
        raise DatasetError(f"{table} has no rows", wanted="one row per clip")
    if len(set(names.values())) != len(names):
        raise DatasetError(f"{table}: two targets share one category name", wanted="one name per target")
    dataset = Dataset("ESC-50", root, tuple(names[target] for target in sorted(names)), tuple(clips))
    leaking = set(sources_across_folds(dataset)) - ESC50_SHARED_SOURCES
    if leaking:
        raise DatasetError(
            f"{table}: source {', '.join(sorted(leaking))} stands in more than one fold",
            wanted="every source recording in one fold",
            cause="the table was edited, or the folds were drawn anew",
            code="leak",
        )
    return dataset


def sources_across_folds(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Return source -> folds for every source that stands in more than one fold: a leak, unless known."""
    folds: dict[str, set[int]] = defaultdict(set)
    for clip in dataset.clips:
        folds[clip.source].add(clip.fold)
    return {source: tuple(sorted(found)) for source, found in sorted(folds.items()) if len(found) > 1}


def _read_table(table: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return ``(line number, row)`` of a CSV file, every missing column named at once."""
    try:
        text = table.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DatasetError(
            f"{table} cannot be read ({reason})",
            wanted="ESC-50: a folder with meta/esc50.csv and audio/",
            cause="--data names another folder",
            code="no_table",
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        return _checked_rows(reader, table, columns)
    except csv.Error as error:
        _refuse(table, [f"line {reader.line_num}: {error}"])
        raise


def _checked_rows(
    reader: csv.DictReader[str], table: Path, columns: Sequence[str]
) -> list[tuple[int, dict[str, str]]]:
    missing = [name for name in columns if name not in (reader.fieldnames or [])]
    if missing:
        raise DatasetError(
            f"{table} lacks the columns {', '.join(missing)}",
            wanted=f"columns {', '.join(columns)}",
            code="bad_table",
        )
    rows, problems = [], []
    for row in reader:
        if None in row or any(row[name] is None for name in columns):
            problems.append(
                f"line {reader.line_num}: {len(row)} cells where {len(reader.fieldnames or [])} are due"
            )
        elif not re.fullmatch("[1-5]", row["fold"]):
            problems.append(f"line {reader.line_num}: fold {row['fold'][:20]!r} is not 1 to 5")
        elif not re.fullmatch("[1-4]?[0-9]", row["target"]):
            problems.append(f"line {reader.line_num}: target {row['target'][:20]!r} is not 0 to 49")
        else:
            rows.append((reader.line_num, row))
    _refuse(table, problems)
    return rows


def _refuse(table: Path, problems: list[str]) -> None:
    if problems:
        more = f" ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DatasetError(
            f"{table}: {'; '.join(problems[:10])}{more}", wanted="the official table", code="bad_table"
        )


def _by_stem(folder: Path) -> dict[str, Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be read ({error.strerror})",
            wanted="ESC-50: meta/esc50.csv and audio/",
            code="no_audio",
        ) from None
    wanted = (e for e in entries if Path(e.name).suffix.lower() in _SUFFIXES)
    return {
        Path(e.name).stem: Path(e.path) for e in wanted if os.path.isfile(e.path)
    }  # a FIFO would block for ever


def _sha256(clip: Clip) -> str:
    try:
        with clip.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{clip.path} cannot be read ({error.strerror})", code="unreadable_clip") from None
