"""One's own recordings to a data set: a table (``filename,label[,fold][,source][,time]``) or a folder per label.

Labels and file names are kept exactly as they are. What leads nowhere, out of the folder, or to something that is not
a regular file is left out and listed; nothing is opened to find out.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from soundmark.dataset import Clip, Dataset, checked_folds
from soundmark.errors import DatasetError
from soundmark.scan import scan
from soundmark.tables import Skipped, listed, read_table, refuse

LAYOUTS = (
    "ESC-50 (meta/esc50.csv), UrbanSound8K (metadata/UrbanSound8K.csv), a table with the columns filename and label, "
    "or a folder per label"
)
TABLE_COLUMNS = ("filename", "label")
TABLES = {".csv": ",", ".tsv": "\t"}
"""Endings of tables, and what separates their cells."""

_SIDES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


def load_table(table: str | Path, *, strict: bool | None = None) -> Dataset:
    """Return the clips of a CSV or TSV file: ``filename,label[,fold][,source][,time]``.

    File names are relative to the folder of the table, or to ``audio/`` in it. A clip without a source is its own.

    Args:
        table: the file; ``.tsv`` is separated by tabs, everything else by commas.
        strict: True refuses rows without audio, False leaves out bad rows as well; default in between.

    Raises:
        DatasetError: no such table, missing columns, bad rows (with line numbers), a file with two labels, a leak.
    """
    table = Path(table).expanduser()
    return checked_folds(table_of_clips(table, strict=strict), table, strict=strict is not False)


def table_of_clips(table: Path, *, strict: bool | None = None) -> Dataset:
    """Return `load_table` without the check of sources against folds."""
    root = table.parent
    delimiter = TABLES.get(table.suffix.lower(), ",")
    rows, problems = read_table(table, TABLE_COLUMNS, delimiter=delimiter, wanted="a table of clips")
    clips, skipped = _table_clips(rows, root, problems)
    if (problems and strict is not False) or (skipped and strict):
        refuse(table, [*problems, *(s for s in skipped if strict)], wanted="one good row per clip")
    name = (
        root.resolve().name if table.stem in ("meta", "metadata", "labels", "index", "data") else table.stem
    )
    return finished(name, root, clips, "table", [*problems, *skipped])


def load_folder(root: str | Path, *, strict: bool = False) -> Dataset:
    """Return the recordings of a folder of folders: ``label/clip.wav`` or ``label/recording/clip.wav``.

    In the first form every file is its own source; in the second the folders below the label name the source, under
    whatever label they stand (``dog/2024-05-01/`` and ``cat/2024-05-01/`` are one recording).

    Raises:
        DatasetError: no recordings, folders that are sides of a split instead of labels, or ``strict`` and there are
            files that cannot be used (not regular, links out of the folder, no label).
    """
    root = Path(root).expanduser()
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    for found in scan([root], root=root):
        parts = found.path.relative_to(root).parts
        where = "/".join(parts)
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        if found.error:
            skipped.append(Skipped(where, found.error.code, str(found.error)))
        elif problem := _file_problem(found.path, where):
            skipped.append(problem)
        elif len(parts) == 1:
            skipped.append(Skipped(where, "no_label", f"{where}: lies in no folder that names its label"))
        else:
            source = "/".join(parts[1:-1]) or str(PurePosixPath(where).with_suffix(""))
            clips.append(Clip(where, found.path, parts[0], 0, source))
    if skipped and strict:
        refuse(root, skipped, wanted="recordings in folders named by their labels")
    sides = {clip.label.casefold() for clip in clips}
    if sides and sides <= _SIDES:
        raise DatasetError(
            f"the folders of {root} are {', '.join(sorted(sides))}: sides of a split, not labels",
            wanted="label/clip.wav; `soundmark data split` makes the sides",
        )
    return finished(root.resolve().name, root, clips, "folder", skipped)


def _table_clips(
    rows: Sequence[tuple[int, dict[str, str]]], root: Path, problems: list[Skipped]
) -> tuple[list[Clip], list[Skipped]]:
    """Return clips and the rows whose file is missing or must not be opened; bad rows are added to ``problems``."""
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    seen: dict[str, tuple[int, str]] = {}
    with_folds = any(row.get("fold") for _, row in rows)
    for line, row in rows:
        name, label, fold = row["filename"], row["label"], row.get("fold") or ""
        where = f"line {line}"
        text = _name_problem(name)
        if not text and not label.strip():
            text = "the label is empty"
        elif not text and with_folds and not re.fullmatch("[1-9][0-9]?", fold):
            text = f"fold {fold[:20]!r} is not a number from 1 to 99"
        if text:
            problems.append(Skipped(where, "bad_row", f"{where}: {text}"))
            continue
        name = str(PurePosixPath(name))
        path = root / name if os.path.lexists(root / name) else root / "audio" / name
        if problem := _file_problem(path, name, fence=root):
            skipped.append(replace(problem, where=f"{where} ({name})", message=f"{where}: {problem.message}"))
            continue
        before, other = seen.setdefault(_identity(path), (line, label))
        if before != line:
            text = (
                f"stands in line {before} already"
                if label == other
                else f"is {label[:60]!r}, {other[:60]!r} in line {before}"
            )
            problems.append(Skipped(where, "duplicate_row", f"{where}: {name} {text}"))
            continue
        clips.append(
            Clip(
                name, path, label, int(fold or 0), row.get("source") or name, (row.get("time") or "").strip()
            )
        )
    return clips, skipped


def _name_problem(name: str) -> str:
    """Return why a file name of a table is refused, or ""."""
    if not name.strip() or name in (".", "./"):
        return "the file name is empty"
    outside = name.startswith("/") or ".." in PurePosixPath(name).parts or re.match("[A-Za-z]:", name)
    if outside or "\\" in name or "\0" in name:
        return f"file name {name[:80]!r} leads out of the folder"
    return ""


def _file_problem(path: Path, name: str, *, fence: Path | None = None) -> Skipped | None:
    """Return why a file is not to be opened (it is not), or None."""
    try:
        name.encode()
        mode = os.stat(path).st_mode
    except UnicodeError:
        return Skipped(name.encode("utf-8", "backslashreplace").decode(), "bad_name", "the name is not UTF-8")
    except OSError as error:
        code = "symlink_loop" if os.path.islink(path) and error.errno == errno.ELOOP else "not_found"
        return Skipped(name, code, f"{name}: no audio file ({error.strerror})")
    if fence and not os.path.realpath(path).startswith(os.path.realpath(fence).rstrip("/") + "/"):
        return Skipped(name, "outside_root", f"{name}: a link out of the folder")
    if not stat.S_ISREG(mode):
        return Skipped(name, "not_regular_file", f"{name}: not a regular file")
    if not os.access(path, os.R_OK):
        return Skipped(name, "permission_denied", f"{name}: no permission to read it")
    return None


def finished(
    name: str,
    root: Path,
    clips: Iterable[Clip],
    layout: str,
    skipped: Sequence[Skipped],
    *,
    labels: tuple[str, ...] | None = None,
) -> Dataset:
    """Return the data set with what a person should be warned of; ``labels`` are sorted where not given.

    Raises:
        DatasetError: no clips.
    """
    clips = tuple(clips)
    if not clips:
        raise DatasetError(
            f"{root} holds no usable recordings ({len(skipped)} left out)",
            wanted=LAYOUTS,
            cause=skipped[0].message if skipped else "",
            code="no_audio",
        )
    sizes = Counter(clip.label for clip in clips)
    warnings = [
        f"labels that look alike: {', '.join(repr(x[:60]) for x in group)}" for group in _alike(sizes)
    ]
    warnings += listed("left out", [problem.where for problem in skipped])
    if len(sizes) == 1:
        warnings.append(f"there is only one label, {next(iter(sizes))[:60]!r}")
    few = sorted(label for label in sizes if len({c.source for c in clips if c.label == label}) < 2)
    warnings += listed(
        "label with one source only (it cannot be both learnt and tested)", [x[:60] for x in few]
    )
    if max(sizes.values()) > 10 * min(sizes.values()):
        warnings.append(f"unbalanced: {min(sizes.values())} to {max(sizes.values())} clips per label")
    return Dataset(
        name,
        root,
        labels or tuple(sorted(sizes)),
        clips,
        layout,
        warnings=tuple(warnings),
        skipped=tuple(skipped),
    )


def _alike(labels: Iterable[str]) -> list[list[str]]:
    """Return groups of labels that differ in case, Unicode form or surrounding space alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold()).strip()].append(
            label
        )
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]


def _identity(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_dev}:{status.st_ino}"
