"""A data set from whatever layout it comes in: ESC-50, ESC-10, UrbanSound8K, a table, a folder per label, our index.

`open_dataset` tells the layout by what lies in the folder. Every loader returns the same `Dataset`; nothing is decoded
or hashed here. Data without folds has fold 0 everywhere until `soundmark.splits` gives it some.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from soundmark import storage
from soundmark.dataset import (
    ESC50_COLUMNS,
    ESC50_GROUPS,
    ESC50_WANTED,
    Clip,
    Dataset,
    by_stem,
    checked_folds,
    find_esc50,
    load_esc50,
)
from soundmark.errors import DatasetError
from soundmark.own_data import (
    LAYOUTS,
    TABLE_COLUMNS,
    TABLES,
    finished,
    load_folder,
    load_table,
    table_of_clips,
)
from soundmark.tables import Skipped, read_table, refuse

US8K_COLUMNS = ("slice_file_name", "fsID", "fold", "classID", "class")
US8K_CLIPS, ESC50_CLIPS, ESC10_CLIPS = 8732, 2000, 400
INDEX, ABOUT = "soundmark.csv", "soundmark.json"
"""The table and the description that `write_index` puts into a data set made by our own tools."""

SYNTH_MARKER = "synth.json"
"""Holds the config of a synthetic set, so that nobody takes it for ESC-50."""

ESC50_LABELS = frozenset(" ".join(ESC50_GROUPS.values()).split())
"""The categories of ESC-50: a table with others is not ESC-50, whatever its layout."""

_US8K_NAME = re.compile(r"(?P<stem>(?P<source>[0-9]+)-(?P<target>[0-9])-[0-9]+-[0-9]+)(\.[A-Za-z0-9]{1,5})?")


def open_dataset(root: str | Path | None = None, *, strict: bool | None = None) -> Dataset:
    """Return the data set at ``root``, whatever its layout.

    Args:
        root: a folder, a table, or ``esc10:FOLDER`` for the ESC-10 rows of ESC-50; default: see `find_esc50`.
        strict: True refuses every row that is wrong or has no audio; False leaves them out (``skipped``) and stamps a
            leak. Default: True for official layouts and our own index; in a table of one's own and in a folder,
            rows and files that lead nowhere are left out.

    Raises:
        DatasetError: not a data set, or one that is refused.
    """
    if isinstance(root, str) and root.startswith("esc10:"):
        return load_esc10(root.removeprefix("esc10:") or None, strict=strict is not False)
    root = find_esc50(root)
    if root.is_file():
        return load_table(root, strict=strict)
    if (root / INDEX).is_file():
        return load_index(root, strict=strict is not False)
    if (root / "metadata" / "UrbanSound8K.csv").exists():
        return load_urbansound8k(root, strict=strict is not False)
    if (root / "meta" / "esc50.csv").exists():
        return _esc(load_esc50(root, strict=strict is not False))
    if not root.is_dir():
        raise DatasetError(f"{root} does not exist", wanted=f"{LAYOUTS}; {ESC50_WANTED}", code="no_table")
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLES and path.is_file())
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if len(tables) == 1 and (folders <= {"audio"} or _is_table_of_clips(tables[0])):
        return load_table(tables[0], strict=strict)
    if not folders - {"audio", "meta"}:
        if len(tables) > 1:
            names = ", ".join(path.name for path in tables)
            raise DatasetError(
                f"{root} has several tables: {names}", wanted="one", cause="name the table itself"
            )
        return load_esc50(root)  # which says what is missing
    ignored = tuple(f"{path.name} is not a table of clips (filename, label): ignored" for path in tables)
    dataset = load_folder(root, strict=bool(strict))
    return replace(dataset, warnings=(*ignored, *dataset.warnings))


def load_esc10(root: str | Path | None = None, *, strict: bool = True) -> Dataset:
    """Return the rows of ESC-50 that belong to ESC-10, under that name; errors are those of `load_esc50`."""
    dataset = load_esc50(root, strict=strict)
    return _named(_only_esc10(dataset), "ESC-10", ESC10_CLIPS)


def load_urbansound8k(root: str | Path, *, strict: bool = True) -> Dataset:
    """Return UrbanSound8K (Salamon et al., ACM Multimedia 2014): ten official folds, the source is its ``fsID``.

    Raises:
        DatasetError: as `load_esc50`, for ``metadata/UrbanSound8K.csv`` and ``audio/fold<n>/``.
    """
    root = Path(root).expanduser()
    table, wanted = (
        root / "metadata" / "UrbanSound8K.csv",
        "UrbanSound8K: metadata/UrbanSound8K.csv and audio/fold1/ ...",
    )
    rows, problems = read_table(table, US8K_COLUMNS, wanted=wanted)
    audio: dict[int, dict[str, Path]] = {}
    clips: dict[str, Clip] = {}
    names: dict[int, str] = {}
    for line, row in rows:
        match = _US8K_NAME.fullmatch(row["slice_file_name"])
        where, code, text = f"line {line}", "bad_row", ""
        if not re.fullmatch("[1-9]|10", row["fold"]):
            text = f"fold {row['fold'][:20]!r} is not 1 to 10"
        elif not re.fullmatch("[0-9]", row["classID"]):
            text = f"classID {row['classID'][:20]!r} is not 0 to 9"
        elif not match:
            text = f"file name {row['slice_file_name'][:80]!r} is not FSID-CLASSID-OCCURRENCE-SLICE.wav"
        elif (match["source"], match["target"]) != (row["fsID"], row["classID"]):
            text = f"{row['slice_file_name']} contradicts fsID or classID of its row"
        elif names.setdefault(int(row["classID"]), row["class"]) != row["class"]:
            text = f"classID {row['classID']} is {row['class']!r} here, {names[int(row['classID'])]!r} above"
        elif match["stem"] in clips:
            code, text = "duplicate_row", f"{match['stem']} stands in a row above"
        else:
            fold, stem = int(row["fold"]), match["stem"]
            folder = root / "audio" / f"fold{fold}"
            if fold not in audio:
                audio[fold] = by_stem(folder, wanted=wanted) if strict or folder.is_dir() else {}
            if stem in audio[fold]:
                clips[stem] = Clip(stem, audio[fold][stem], row["class"], fold, row["fsID"])
                continue
            where, code, text = f"{where} ({stem})", "not_found", f"no audio file {stem}.* in {folder}"
        problems.append(Skipped(where, code, f"line {line}: {text}"))
    if problems and strict:
        refuse(table, problems)
    if len(set(names.values())) != len(names):
        raise DatasetError(f"{table}: two classIDs share one class name", wanted="one name per classID")
    labels = tuple(names[target] for target in sorted(names))
    dataset = finished("UrbanSound8K", root, tuple(clips.values()), "UrbanSound8K", problems, labels=labels)
    return _named(checked_folds(dataset, table, strict=strict), "UrbanSound8K", US8K_CLIPS)


def load_index(root: str | Path, *, strict: bool = True) -> Dataset:
    """Return a data set that `write_index` wrote."""
    root = Path(root).expanduser()
    try:
        about = json.loads((root / ABOUT).read_bytes())
        name, layout, labels, stamps = (about[key] for key in ("name", "layout", "labels", "stamps"))
    except (OSError, ValueError, LookupError, TypeError):
        raise DatasetError(
            f"{root / ABOUT} is missing or damaged", wanted="what our tools wrote there"
        ) from None
    dataset = table_of_clips(root / INDEX, strict=strict)
    dataset = replace(dataset, name=str(name), layout=str(layout), stamps=tuple(map(str, stamps)))
    dataset = checked_folds(dataset, root / INDEX, strict=strict)
    if sorted(map(str, labels)) != sorted(dataset.labels):
        raise DatasetError(
            f"{root / ABOUT} names other labels than {INDEX}", wanted="the two that belong together"
        )
    return replace(dataset, labels=tuple(map(str, labels)))


def write_index(dataset: Dataset, root: Path) -> None:
    """Write ``soundmark.csv`` and ``soundmark.json`` into ``root``, so that `open_dataset` gives ``dataset`` again.

    For data sets that our own tools made below ``root``: name, layout, label order and stamps travel along.

    Raises:
        DatasetError: a clip does not lie below ``root``.
        StorageError: the disk refuses.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("filename", "label", "fold", "source", "time"))
    for clip in dataset.clips:
        if not clip.path.absolute().is_relative_to(root.absolute()):
            raise DatasetError(f"{clip.path} does not lie below {root}", wanted="clips of this data set")
        name = clip.path.absolute().relative_to(root.absolute()).as_posix()
        writer.writerow((name, clip.label, clip.fold or "", clip.source, clip.time))
    about = {key: getattr(dataset, key) for key in ("name", "layout", "labels", "stamps")}
    described = (json.dumps(about, indent=1) + "\n").encode()
    for path, data in ((root / ABOUT, described), (root / INDEX, text.getvalue().encode())):
        if not path.is_file() or path.read_bytes() != data:
            storage.write_bytes(path, data)


def _esc(dataset: Dataset) -> Dataset:
    """Return a set in ESC-50 layout under the name that it deserves: only the whole official one is "ESC-50"."""
    if (dataset.root / SYNTH_MARKER).is_file():
        return replace(dataset, name="synthetic", layout="ESC-50")
    if not set(dataset.labels) <= ESC50_LABELS:
        return replace(dataset, name=f"{dataset.root.resolve().name} (ESC-50 layout)")
    esc10 = _only_esc10(dataset)
    if len(esc10.clips) == len(dataset.clips):
        return _named(esc10, "ESC-10", ESC10_CLIPS)
    return _named(dataset, "ESC-50", ESC50_CLIPS)


def _named(dataset: Dataset, name: str, whole: int) -> Dataset:
    n = len(dataset.clips)
    return replace(dataset, name=name if n == whole else f"{name} (incomplete: {n} of {whole} clips)")


def _only_esc10(dataset: Dataset) -> Dataset:
    rows, _ = read_table(dataset.root / "meta" / "esc50.csv", ESC50_COLUMNS, wanted=ESC50_WANTED)
    chosen = {PurePosixPath(row["filename"]).stem for _, row in rows if row["esc10"] == "True"}
    clips = tuple(clip for clip in dataset.clips if clip.name in chosen)
    labels = tuple(label for label in dataset.labels if label in {clip.label for clip in clips})
    return replace(dataset, clips=clips, labels=labels)


def _is_table_of_clips(table: Path) -> bool:
    try:
        with table.open("rb") as file:
            header = file.readline(4096).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False
    cells = [cell.strip().strip('"') for cell in header.split(TABLES[table.suffix.lower()])]
    return set(TABLE_COLUMNS) <= set(cells)
