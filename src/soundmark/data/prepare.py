"""A cleaned copy of a data set: mono, one rate, trimmed, levelled, with a before/after table. Originals are only read.

Every clip goes to the same relative name with another ending, licence and attribution are copied beside, and
``soundmark.csv`` (written last) makes the copy a data set with the same labels, folds and sources. ``prepare.jsonl`` is
the journal: a line per finished clip, keyed by the hash of the source and the config, and by the hash of what was
written. A killed run goes on and a finished one does nothing.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import threading
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile
import soxr
import tomli_w

from soundmark import __version__, storage
from soundmark.config import AudioLimits, PrepareConfig, to_dict
from soundmark.data.held_folder import held, pool, refuse_overlap
from soundmark.data.prepared_clip import Row, prepared
from soundmark.dataset import Clip, Dataset
from soundmark.errors import AudioError, DatasetError
from soundmark.inputs import path_error
from soundmark.sources import INDEX, write_index

PREPARE_VERSION = 1
"""Raised when the same source and config give another file."""

ABOUT, JOURNAL, TABLE, SUMMARY = "prepare.toml", "prepare.jsonl", "prepare.csv", "prepare.json"
NOTES = ("license", "licence", "readme", "attribution", "notice", "copying", "citation")
MAX_NOTE_BYTES = 4 << 20
_OURS = {name.casefold() for name in (ABOUT, JOURNAL, TABLE, SUMMARY, INDEX)}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run did."""

    out: Path
    config: PrepareConfig
    rows: tuple[Row, ...]  # one per clip, in the order of the data set
    written: int  # recordings written now
    kept: int  # recordings that were there
    notes: tuple[str, ...]  # licence and attribution, copied

    @property
    def failures(self) -> tuple[Row, ...]:
        """Recordings that could not be read: not in the copy."""
        return tuple(row for row in self.rows if row.error)

    @property
    def silent(self) -> tuple[Row, ...]:
        """Recordings without sound: kept whole and as they are."""
        return tuple(row for row in self.rows if "silent" in row.flags.split())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "out": str(self.out),
            "config": to_dict(self.config),
            "written": self.written,
            "kept": self.kept,
            "failed": len(self.failures),
            "silent": [row.name for row in self.silent],
            "rows": [row.to_dict() for row in self.rows],
        }


def prepare(
    dataset: Dataset,
    out: Path,
    config: PrepareConfig = PrepareConfig(),  # noqa: B008 - frozen
    *,
    limits: AudioLimits = AudioLimits(),  # noqa: B008 - frozen
    on_clip: Callable[[int], None] | None = None,
) -> Prepared:
    """Write a cleaned copy of ``dataset`` to ``out``, which `soundmark.sources.open_dataset` reads.

    Args:
        dataset: the clips; one that cannot be read is left out of the copy.
        out: a new folder, or one of an earlier run with the same ``config``; neither in the data nor around it.
        config: what to do.
        limits: what the loader accepts.
        on_clip: called with 1 after every recording.

    Raises:
        DatasetError: no clip can be read, or ``out`` is not a place for the copy.
        StorageError: the disk refuses, or another process works in ``out``.
    """
    refuse_overlap(dataset.root, out)
    targets = _targets(dataset, config)
    with held(out, marker=ABOUT):
        _claim(out, config)
        _refuse_links(out, {(out / target).parent for target in targets.values()})
        before = _read_journal(out)
        writing = threading.Lock()

        with (out / JOURNAL).open("ab") as journal, pool() as threads:

            def one(clip: Clip) -> tuple[Row, bool]:
                target, file = targets[clip.name], _relative(clip, dataset.root)
                try:
                    row, entry = _prepare_clip(clip, file, out, target, config, limits, before.get(clip.name))
                except AudioError as error:
                    return Row(name=clip.name, file=file, error=error.code, message=str(error)), False
                if entry is not None:
                    with writing:  # at once, so that a kill costs no more than the clips in work
                        journal.write(_line(entry))
                        journal.flush()
                return row, entry is not None

            done: list[tuple[Row, bool]] = []
            for result in threads.map(one, dataset.clips):
                done.append(result)
                if on_clip:
                    on_clip(1)
        rows = tuple(row for row, _ in done)
        written = sum(fresh for _, fresh in done)
        _write_index(dataset, out, rows)
        stale = {entry["row"]["written"] for entry in before.values()} - {row.written for row in rows}
        for name in stale:
            (out / name).unlink(missing_ok=True)
        notes = _copy_notes(dataset.root, out)
        kept = len(rows) - written - sum(bool(row.error) for row in rows)
        report = Prepared(out, config, rows, written, kept, notes)
        summary = {"data": dataset.name, "config": to_dict(config), "rows": [row.to_dict() for row in rows]}
        _write(out / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
        _write(out / TABLE, _csv(rows))
    return report


def _prepare_clip(
    clip: Clip,
    file: str,
    out: Path,
    target: str,
    config: PrepareConfig,
    limits: AudioLimits,
    before: dict[str, Any] | None,
) -> tuple[Row, dict[str, Any] | None]:
    """Return the row of one recording and, where it was written now, its journal entry.

    Raises:
        AudioError: it cannot be read; then no older copy of it is in the index.
    """
    sha256 = _sha256(clip.path)
    key = _key(sha256, clip, config)
    if before and before["key"] == key and before["row"]["written"] == target:
        with contextlib.suppress(AudioError):
            if _sha256(out / target) == before["out_sha256"]:
                return replace(Row(**before["row"]), file=file), None
    data, row = prepared(clip, file=file, written=target, sha256=sha256, config=config, limits=limits)
    storage.write_bytes(out / target, data, sync=False)  # its hash is looked at whenever it is kept
    return row, {"key": key, "out_sha256": hashlib.sha256(data).hexdigest(), "row": row.to_dict()}


def _write_index(dataset: Dataset, out: Path, rows: tuple[Row, ...]) -> None:
    """Write ``soundmark.csv`` with the clips that could be read, unless it says the same already."""
    good = [(clip, row) for clip, row in zip(dataset.clips, rows, strict=True) if not row.error]
    if not good:
        raise DatasetError(
            f"none of the {len(rows)} clips of {dataset.name} could be read",
            wanted="recordings",
            cause=rows[0].message if rows else "",
            code="no_audio",
        )
    clips = tuple(replace(clip, path=out / row.written) for clip, row in good)
    left = {clip.label for clip in clips}
    labels = tuple(label for label in dataset.labels if label in left)
    write_index(replace(dataset, root=out, clips=clips, labels=labels), out)


def _copy_notes(source: Path, out: Path) -> tuple[str, ...]:
    """Copy licence, attribution and the like; return their names."""
    copied = []
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        if path.stem.lower() not in NOTES or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError):
            if path.stat().st_size <= MAX_NOTE_BYTES:
                _write(out / path.name, path.read_bytes())
                copied.append(path.name)
    return tuple(copied)


def _claim(out: Path, config: PrepareConfig) -> None:
    """Write the config into ``out``, or refuse a copy that was made with another one."""
    about = {"version": PREPARE_VERSION, "soundmark": __version__, **to_dict(config)}
    try:
        before = tomllib.loads((out / ABOUT).read_text("utf-8"))
    except FileNotFoundError:
        before = about
    except ValueError:
        raise DatasetError(f"{out / ABOUT} is damaged", wanted="a new folder") from None
    changed = sorted(name for name in to_dict(config) if before.get(name) != about[name])
    if changed:
        raise DatasetError(
            f"{out} holds a copy with another {', '.join(changed)} (see {ABOUT})",
            wanted="the same options",
            cause="name another --out: a folder holds one copy",
            code="other_features",
        )
    _write(out / ABOUT, tomli_w.dumps(about).encode())


def _refuse_links(out: Path, folders: set[Path]) -> None:
    """Refuse links in the copy that lead out of it: writing through them could reach the originals."""
    real = os.path.realpath(out)
    for folder in folders:
        if os.path.commonpath([real, os.path.realpath(folder)]) != real:
            raise DatasetError(
                f"{folder} leads out of {out}", wanted="a copy without links", code="outside_root"
            )


def _relative(clip: Clip, root: Path) -> str:
    """Return where a clip lies below the root of its data set."""
    try:
        return clip.path.relative_to(root).as_posix()
    except ValueError:
        return clip.name


def _targets(dataset: Dataset, config: PrepareConfig) -> dict[str, str]:
    """Return clip name -> relative name of the copy; the old ending stays where two would be the same."""
    files = {clip.name: PurePosixPath(_relative(clip, dataset.root)) for clip in dataset.clips}
    for file in files.values():
        if file.is_absolute() or ".." in file.parts:
            raise DatasetError(f"clip {str(file)!r}", wanted="a name that stays below the folder")
    counts = Counter(str(file.with_suffix("")).casefold() for file in files.values())
    targets: dict[str, str] = {}
    for name, file in files.items():
        bare = str(file.with_suffix(""))
        twice = counts[bare.casefold()] > 1
        targets[name] = f"{file if twice else bare}.{config.format}"
    if len({target.casefold() for target in targets.values()} - _OURS) < len(dataset.clips):
        raise DatasetError("two clips have the same name", wanted="names that differ in more than case")
    return targets


def _key(sha256: str, clip: Clip, config: PrepareConfig) -> str:
    libraries = [soxr.__version__, soundfile.__libsndfile_version__, __version__]
    parts = [PREPARE_VERSION, sha256, clip.label, to_dict(config), libraries]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise path_error(repr(os.fspath(path)), error) from None


def _read_journal(out: Path) -> dict[str, dict[str, Any]]:
    """Return clip name -> last entry; a line that a killed run left half written is ignored."""
    entries: dict[str, dict[str, Any]] = {}
    path = out / JOURNAL
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            entry = json.loads(line)
            row = Row(**entry["row"])
            written = PurePosixPath(row.written)
            inside = row.written and not written.is_absolute() and ".." not in written.parts
            if {"key", "out_sha256"} <= entry.keys() and inside and row.written not in _OURS:
                entries[row.name] = entry
    return entries


def _line(entry: dict[str, Any]) -> bytes:
    """Return a journal line; it begins with a line end, so that a torn line before it cannot spoil it."""
    return b"\n" + json.dumps(entry).encode()


def _csv(rows: tuple[Row, ...]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Row.__slots__)
    for row in rows:
        values = row.to_dict()
        table.writerow([_cell(v) if isinstance(v, str) else v for v in values.values()])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _cell(text: str) -> str:
    """Return text that no spreadsheet runs as a formula (CWE-1236)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _write(path: Path, data: bytes) -> None:
    """Write what is not there already, so that a second run changes nothing."""
    if not path.is_file() or path.read_bytes() != data:
        storage.write_bytes(path, data)
