"""Clips with labels, folds and source recordings: an index over files, never the audio itself.

Other layouts (ESC-10, UrbanSound8K, tables, folders) are in `soundmark.sources`, whose `open_dataset` tells them
apart; data without folds gets them from `soundmark.splits`. ESC-50 (Piczak, ACM Multimedia 2015) comes with five
official folds that keep the clips of one source recording together, except for four sources that this module knows by
name. Audio files are found by stem, so that ``.wav``, ``.flac`` and ``.ogg`` copies of the data set are the same one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from soundmark.errors import DatasetError
from soundmark.feature_files import Features as Features
from soundmark.feature_files import load_features as load_features
from soundmark.tables import Skipped, listed, read_table, refuse

ESC50_VARIABLE = "SOUNDMARK_ESC50"
"""Environment variable that names the ESC-50 folder when ``--data`` is not given."""

ESC50_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
ESC50_WANTED = "ESC-50: a folder with meta/esc50.csv and audio/"
ESC50_GROUPS = {
    "animals": "dog rooster pig cow frog cat hen insects sheep crow",
    "natural": "rain sea_waves crackling_fire crickets chirping_birds water_drops wind pouring_water toilet_flush "
    "thunderstorm",
    "human": "crying_baby sneezing clapping breathing coughing footsteps laughing brushing_teeth snoring "
    "drinking_sipping",
    "interior": "door_wood_knock mouse_click keyboard_typing door_wood_creaks can_opening washing_machine "
    "vacuum_cleaner clock_alarm clock_tick glass_breaking",
    "urban": "helicopter chainsaw siren car_horn engine train church_bells airplane fireworks hand_saw",
}
"""The five groups of ESC-50 (its README: targets 0-9, 10-19, ...), each with its ten labels in target order."""
ESC50_SHARED_SOURCES = frozenset({"131943", "134049", "209698", "234879"})
"""Sources that stand in several official folds of ESC-50, each time under another label (9 clips)."""

_ESC50_NAME = re.compile(
    r"(?P<stem>(?P<fold>[1-5])-(?P<source>[0-9]+)-(?P<take>[A-Z])-(?P<target>[0-9]+))(\.[A-Za-z0-9]{1,5})?"
)
_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled recording: where it is, what is in it, which fold and which source recording it belongs to.

    Fold 0 is no fold; ``time`` is when it was recorded, as its table says, or "".
    """

    name: str
    path: Path
    label: str
    fold: int
    source: str
    time: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Clips in file order, and the labels in target order (label ``i`` is class ``i`` everywhere).

    Attributes:
        name: what reports call it; never the name of an official data set that it is not.
        root: its folder.
        labels: in target order.
        clips: in file order.
        layout: which loader read it.
        warnings: what a person should look at.
        skipped: rows and files that are left out.
        stamps: why figures made from it are not honest ones (``LEAKY: ...``).
        split: hash of the split that gave it its folds, "" for folds of its own or none.
    """

    name: str
    root: Path
    labels: tuple[str, ...]
    clips: tuple[Clip, ...]
    layout: str = "ESC-50"
    warnings: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    stamps: tuple[str, ...] = ()
    split: str = ""

    @property
    def has_folds(self) -> bool:
        """Whether the clips are in folds at all."""
        return any(clip.fold for clip in self.clips)

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

    def narrowed(self, labels: Sequence[str]) -> Dataset:
        """Return `with_labels` of what a preset or a model is about, itself where that is nothing or its own labels."""
        return self.with_labels(labels) if labels and tuple(labels) != self.labels else self

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


def load_esc50(root: str | Path | None = None, *, strict: bool = True) -> Dataset:
    """Return the ESC-50 index of ``root``: ``meta/esc50.csv`` and ``audio/<stem>.<any audio suffix>``.

    Args:
        root: the folder, see `find_esc50`.
        strict: refuse what is wrong; False leaves bad rows out (``skipped``) and stamps a leak.

    Raises:
        DatasetError: table missing or malformed (with line numbers), a file name that contradicts its row, clips
            without audio, duplicate rows, a source in several folds beyond the four known ones.
    """
    root = find_esc50(root)
    table = root / "meta" / "esc50.csv"
    rows, problems = read_table(table, ESC50_COLUMNS, wanted=ESC50_WANTED)
    problems += filter(None, (_esc50_problem(line, row) for line, row in rows))
    named = {Path(row["filename"]).stem for _, row in rows}
    rows = [(line, row) for line, row in rows if not _esc50_problem(line, row)]
    if problems and strict:
        refuse(table, problems)
    audio = by_stem(root / "audio")
    clips: dict[str, Clip] = {}
    votes = Counter((int(row["target"]), row["category"]) for _, row in rows)
    names = dict(pair for pair, _ in reversed(votes.most_common()))  # target: what most of its rows call it
    times: Counter[str] = Counter()
    for line, row in rows:
        match = _ESC50_NAME.fullmatch(row["filename"])  # a plain name: no folder, no way out of audio/
        stem = match["stem"] if match else ""
        where, code, text = f"line {line}", "bad_row", ""
        if not match:
            text = f"file name {row['filename'][:80]!r} is not FOLD-SOURCE-TAKE-TARGET.wav"
        elif match.group("fold", "source", "take", "target") != (
            row["fold"],
            row["src_file"],
            row["take"],
            row["target"],
        ):
            text = f"{row['filename']} contradicts fold, src_file, take or target of its row"
        elif (usual := names[int(row["target"])]) != row["category"]:
            text = f"{stem}: target {row['target']} is {row['category']!r}, {usual!r} in most rows"
        elif stem not in audio:
            where, code = f"{where} ({stem})", "not_found"
            text = f"no audio file {stem}.* in {root / 'audio'}"
        else:
            times[stem] += 1
            clips.setdefault(
                stem, Clip(stem, audio[stem], row["category"], int(row["fold"]), row["src_file"])
            )
            continue
        problems.append(Skipped(where, code, f"line {line}: {text}"))
    problems += [
        Skipped(stem, "duplicate_row", f"{stem} stands in {n} rows") for stem, n in times.items() if n > 1
    ]
    if problems and strict:
        refuse(table, problems)
    if not clips:
        raise DatasetError(f"{table} has no rows", wanted="one row per clip")
    if len(set(names.values())) != len(names):
        raise DatasetError(f"{table}: two targets share one category name", wanted="one name per target")
    labels = tuple(names[target] for target in sorted(names))
    spare = listed("audio file without a row", sorted(set(audio) - named))
    dataset = Dataset("ESC-50", root, labels, tuple(clips.values()), warnings=spare, skipped=tuple(problems))
    return checked_folds(dataset, table, strict=strict)


def checked_folds(dataset: Dataset, table: Path, *, strict: bool = True) -> Dataset:
    """Return ``dataset``, stamped where a source stands in several folds.

    Raises:
        DatasetError: ``strict``, and there is such a source (beyond the four of ESC-50).
    """
    leaking = sorted(leaking_sources(dataset))
    if not leaking:
        return dataset
    if strict:
        raise DatasetError(
            f"{table}: source {', '.join(leaking[:10])} stands in more than one fold",
            wanted="every source recording in one fold",
            cause="the table was edited, or the folds were drawn anew",
            code="leak",
        )
    stamp = f"LEAKY: {len(leaking)} sources stand in more than one fold ({', '.join(leaking[:5])})"
    return replace(dataset, stamps=(*dataset.stamps, stamp))


def leaking_sources(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Return `sources_across_folds` without those that are known to be shared by official folds of ESC-50."""
    known = ESC50_SHARED_SOURCES if dataset.layout == "ESC-50" and not dataset.split else frozenset()
    return {s: folds for s, folds in sources_across_folds(dataset).items() if s not in known}


def sources_across_folds(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Return source -> folds for every source that stands in more than one fold: a leak, unless known."""
    folds: dict[str, set[int]] = defaultdict(set)
    for clip in dataset.clips:
        folds[clip.source].add(clip.fold)
    return {source: tuple(sorted(found)) for source, found in sorted(folds.items()) if len(found) > 1}


def by_stem(folder: Path, *, wanted: str = ESC50_WANTED) -> dict[str, Path]:
    """Return stem -> path of the recordings in ``folder``, regular files only (a FIFO would block for ever).

    Raises:
        DatasetError: the folder cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be read ({error.strerror})", wanted=wanted, code="no_audio"
        ) from None
    found = (e for e in entries if Path(e.name).suffix.lower() in _SUFFIXES)
    return {Path(e.name).stem: Path(e.path) for e in found if os.path.isfile(e.path)}


def _esc50_problem(line: int, row: dict[str, str]) -> Skipped | None:
    where, name = f"line {line}", row["filename"][:80]
    if not re.fullmatch("[1-5]", row["fold"]):
        return Skipped(where, "bad_row", f"{where}: fold {row['fold'][:20]!r} is not 1 to 5 ({name})")
    if not re.fullmatch("[1-4]?[0-9]", row["target"]):
        return Skipped(where, "bad_row", f"{where}: target {row['target'][:20]!r} is not 0 to 49 ({name})")
    return None


def _sha256(clip: Clip) -> str:
    try:
        with clip.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{clip.path} cannot be read ({error.strerror})", code="unreadable_clip") from None
