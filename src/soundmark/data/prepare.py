"""A cleaned copy of a data set: mono, one rate, trimmed, levelled, in the same layout, with a before/after table.

Whatever the layout, every recording of the folder is decoded by `soundmark.audio` and written under the same relative
name as 16-bit WAV or FLAC; tables and notes (licence, attribution) are copied beside it, without the rows of recordings
that could not be read. ``meta/prepare.jsonl`` is the journal (keyed by the hash of the source and the config, and by
the hash of what was written), so a killed run goes on and a finished one does nothing. Originals are only read.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from soundmark import __version__, audio, storage
from soundmark.config import AudioLimits, Config, to_dict
from soundmark.containers import AUDIO_SUFFIXES
from soundmark.data import measure
from soundmark.data.extract import hold, pool, storage_errors, sweep
from soundmark.errors import AudioError, DatasetError
from soundmark.scan import scan

Samples = npt.NDArray[np.float32]

PREPARE_VERSION = 1
"""Raised when the same source and config give another file."""

JOURNAL, TABLE = Path("meta/prepare.jsonl"), Path("meta/prepare.csv")
FULL_SCALE = 32767 / 32768  # the highest 16-bit value
KEEP_S = 0.1  # trimming leaves at least this much, or the whole of a shorter recording
NOTES = (".csv", ".tsv", ".txt", ".md", ".json", ".toml", ".yaml", ".yml")
NOTE_NAMES = ("license", "licence", "readme", "attribution", "notice", "copying")
MAX_NOTE_BYTES = 32 << 20
TAGS = ("title", "artist", "album", "copyright", "comment", "date", "license", "genre")


class PrepareConfig(Config, frozen=True, kw_only=True):
    """What a cleaned copy is like."""

    sample_rate: Annotated[int, msgspec.Meta(ge=1_000, le=192_000)] = 44_100  # Hz of what is written
    trim: bool = True  # cut quiet off both ends
    trim_db: Annotated[
        float, msgspec.Meta(ge=-120, lt=0)
    ] = -60.0  # quiet is below this, relative to the peak
    normalise: Literal["none", "peak", "loudness"] = (
        "peak"  # peak: to full scale; loudness: to `loudness_lufs`
    )
    loudness_lufs: Annotated[
        float, msgspec.Meta(ge=-70, le=0)
    ] = -23.0  # ITU-R BS.1770; peaks stay within full scale
    format: Literal["wav", "flac"] = "wav"  # 16 bits in either


@dataclass(frozen=True, slots=True)
class Row:
    """One recording before and after; with ``error`` there is no after. Levels are dB re full scale."""

    file: str  # relative to the source folder
    written: str = ""  # relative to the copy
    sha256: str = ""  # of the source file
    container: str = ""
    rate_hz: int = 0
    channels: int = 0
    before_s: float = 0.0
    after_s: float = 0.0
    trimmed_start_s: float = 0.0
    trimmed_end_s: float = 0.0
    before_peak_db: float = 0.0
    after_peak_db: float = 0.0
    before_rms_db: float = 0.0
    after_rms_db: float = 0.0
    gain_db: float = 0.0
    flags: str = ""  # of the loader, and "gain_limited", "clamped"
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    out: Path
    rows: tuple[Row, ...]
    written: int  # recordings written now
    kept: int  # recordings that were there
    notes: tuple[str, ...]  # tables and notes that were copied
    rows_left_out: int  # rows of tables that named a recording which could not be read

    @property
    def failures(self) -> tuple[Row, ...]:
        """Recordings that could not be read."""
        return tuple(row for row in self.rows if row.error)

    @property
    def silent(self) -> tuple[Row, ...]:
        """Recordings without sound: kept whole and as they are."""
        return tuple(row for row in self.rows if "silent" in row.flags.split())


def prepare(
    source: Path,
    out: Path,
    config: PrepareConfig,
    *,
    limits: AudioLimits = AudioLimits(),  # noqa: B008 - frozen
    on_found: Callable[[int], None] | None = None,
    on_clip: Callable[[int], None] | None = None,
) -> Report:
    """Write a cleaned copy of the data set at ``source`` to ``out``.

    Args:
        source: a folder of recordings in any layout.
        out: a new folder, or one of an earlier run; neither in ``source`` nor around it.
        config: what to do.
        limits: what the loader accepts.
        on_found: called once with the number of recordings.
        on_clip: called with 1 after every recording.

    Raises:
        DatasetError: ``source`` has no recordings, or ``out`` is not a place for the copy.
        StorageError: the disk refuses, or another process works in ``out``.
    """
    _check_places(source, out)
    found = [one for one in scan([source], root=source) if not _hidden(one.path.relative_to(source))]
    if not found:
        wanted = f"a folder with recordings ({', '.join(AUDIO_SUFFIXES)})"
        raise DatasetError(f"{source} holds no recordings", wanted=wanted, code="no_audio")
    if on_found:
        on_found(len(found))
    targets = _targets([one.path.relative_to(source) for one in found], config)
    written = kept = 0
    rows: list[Row] = []
    with storage_errors(out), hold(out):
        sweep(out)
        before = _read_journal(out)
        (out / JOURNAL).parent.mkdir(exist_ok=True)
        _check_folders(out, {(out / target).parent for target in targets.values() if target})

        def one(index: int) -> tuple[Row, dict[str, Any]]:
            path, relative = found[index].path, found[index].path.relative_to(source)
            target = targets[relative]
            error = found[index].error or (None if target else _taken(relative, config))
            if error or target is None:
                return _failed(relative, error or _taken(relative, config)), {}
            return _prepare_file(path, relative, out, target, config, limits, before.get(str(relative)))

        with (out / JOURNAL).open("ab") as journal, pool() as threads:
            for row, entry in threads.map(one, range(len(found))):
                rows.append(row)
                written += bool(entry.get("fresh"))
                kept += bool(entry) and not entry["fresh"]
                if entry.get("fresh"):
                    journal.write(_line(row, entry))
                    journal.flush()
                if on_clip:
                    on_clip(1)
        present = {row.written for row in rows if not row.error}
        for stale in {entry["row"]["written"] for entry in before.values()} - present:
            (out / stale).unlink(missing_ok=True)
        notes, left_out = _copy_notes(source, out, rows)
        storage.write_bytes(out / TABLE, _csv(rows))
    return Report(out, tuple(rows), written, kept, notes, left_out)


def trimmed(samples: Samples, *, trim_db: float, keep: int) -> tuple[int, int]:
    """Return first and last-plus-one sample of what stays: from the first to the last one above the threshold.

    ``trim_db`` is relative to the peak; at least ``keep`` samples stay (fewer only if there are fewer).
    """
    level = np.abs(samples)
    loud = np.flatnonzero(level >= level.max(initial=0.0) * 10 ** (trim_db / 20))
    if not loud.size:
        return 0, samples.size
    start, stop = int(loud[0]), int(loud[-1]) + 1
    missing = min(keep, samples.size) - (stop - start)
    if missing > 0:
        start = max(0, min(start - missing // 2, samples.size - min(keep, samples.size)))
        stop = max(stop, start + min(keep, samples.size))
    return start, stop


def gain_of(samples: Samples, config: PrepareConfig) -> tuple[float, bool]:
    """Return the factor that ``config.normalise`` asks for, and whether full scale limited it."""
    peak = float(np.abs(samples).max(initial=0.0))
    if config.normalise == "none" or peak <= 0:
        return 1.0, False
    most = FULL_SCALE / peak
    if config.normalise == "peak":
        return most, False
    loudness = measure.loudness(measure.spectrum(samples, config.sample_rate), config.sample_rate)
    if loudness <= measure.FLOOR_DB:
        return 1.0, False
    asked = 10 ** ((config.loudness_lufs - loudness) / 20)
    return min(asked, most), asked > most


def _prepare_file(
    path: Path,
    relative: Path,
    out: Path,
    target: str,
    config: PrepareConfig,
    limits: AudioLimits,
    before: dict[str, Any] | None,
) -> tuple[Row, dict[str, Any]]:
    """Return the row and the journal entry of one recording, written now or kept."""
    try:
        sha256 = _sha256(path)
        key = _key(sha256, config)
        if before and before["key"] == key and before["row"]["written"] == target:
            with contextlib.suppress(AudioError):
                if _sha256(out / target) == before["out_sha256"]:
                    return Row(**before["row"]), {**before, "fresh": False}
        heard = audio.load(path, sample_rate=config.sample_rate, limits=limits)
    except AudioError as error:
        (out / target).unlink(missing_ok=True)
        return _failed(relative, error), {}
    samples, flags = heard.samples, list(heard.flags)
    start, stop, gain = 0, samples.size, 1.0
    if "silent" not in flags:
        if config.trim:
            start, stop = trimmed(samples, trim_db=config.trim_db, keep=round(KEEP_S * config.sample_rate))
        gain, limited = gain_of(samples[start:stop], config)
        flags += ["gain_limited"] * limited
    after = samples[start:stop] * np.float32(gain)
    if np.abs(after).max(initial=0.0) > 1:
        flags.append("clamped")
    data = _encoded(after, config, _tags(path))
    storage.write_bytes(out / target, data)
    rate = config.sample_rate
    row = Row(
        file=str(relative),
        written=target,
        sha256=sha256,
        container=heard.container,
        rate_hz=heard.source_rate,
        channels=heard.channels,
        before_s=round(samples.size / rate, 6),
        after_s=round(after.size / rate, 6),
        trimmed_start_s=round(start / rate, 6),
        trimmed_end_s=round((samples.size - stop) / rate, 6),
        before_peak_db=_peak_db(samples),
        after_peak_db=_peak_db(after),
        before_rms_db=_rms_db(samples),
        after_rms_db=_rms_db(after),
        gain_db=round(20 * float(np.log10(gain)), 2),
        flags=" ".join(flags),
    )
    return row, {"key": key, "out_sha256": hashlib.sha256(data).hexdigest(), "fresh": True}


def _encoded(samples: Samples, config: PrepareConfig, tags: dict[str, str]) -> bytes:
    values = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", config.sample_rate, 1, subtype="PCM_16", format=config.format.upper()
    ) as sound:
        for name, text in tags.items():
            with contextlib.suppress(soundfile.SoundFileError, UnicodeError):
                setattr(sound, name, text)
        sound.software = f"soundmark {__version__}"
        sound.write(values)
    return file.getvalue()


def _tags(path: Path) -> dict[str, str]:
    """Return what a recording says of itself (who recorded it, under which licence), as far as it says so."""
    try:
        with soundfile.SoundFile(path) as sound:
            return {name: text for name in TAGS if (text := getattr(sound, name, ""))}
    except (soundfile.SoundFileError, OSError, UnicodeError, ValueError):
        return {}


def _copy_notes(source: Path, out: Path, rows: list[Row]) -> tuple[tuple[str, ...], int]:
    """Copy tables and notes; return their names and how many table rows were left out."""
    copied, left_out = [], 0
    for folder in (source, source / "meta", source / "metadata"):
        for path in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ():
            relative = path.relative_to(source)
            is_note = path.suffix.lower() in NOTES or path.stem.lower() in NOTE_NAMES
            if not is_note or path.is_symlink() or not path.is_file() or _hidden(relative):
                continue
            if relative in (JOURNAL, TABLE) or path.stat().st_size > MAX_NOTE_BYTES:
                continue
            data = path.read_bytes()
            if path.suffix.lower() in (".csv", ".tsv"):
                data, dropped = _table_of(data, "\t" if path.suffix.lower() == ".tsv" else ",", rows)
                left_out += dropped
            storage.write_bytes(out / relative, data)
            copied.append(str(relative))
    return tuple(copied), left_out


def _table_of(data: bytes, delimiter: str, rows: list[Row]) -> tuple[bytes, int]:
    """Return a table of clips with the new file names and without what failed (and how many rows that is).

    A table that needs no change, or is no table of clips, stays as it is, byte by byte.
    """
    try:
        table = list(
            csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
        )
    except (UnicodeDecodeError, csv.Error):
        return data, 0
    head = table[0] if table else []
    column = next((head.index(name) for name in ("filename", "slice_file_name") if name in head), None)
    if column is None:
        return data, 0
    by_stem = (
        head[column] == "slice_file_name" or "src_file" in head
    )  # official layouts: the suffix is not read
    fold = head.index("fold") if "fold" in head else None
    outcome = {row.file: row for row in rows} | {
        str(PurePosixPath(row.file).with_suffix("")): row for row in rows
    }
    kept, left_out, changed = [head], 0, False
    for cells in table[1:]:
        name = cells[column] if len(cells) > column else ""
        stem = str(PurePosixPath(name).with_suffix("")) if by_stem and name else name
        places = [stem, f"audio/{stem}"]
        if fold is not None and len(cells) > fold:
            places.append(f"audio/fold{cells[fold]}/{stem}")
        row = next((outcome[place] for place in places if place in outcome), None)
        if row is not None and row.error:
            left_out += 1
            continue
        if row is not None and not by_stem:
            new = str(PurePosixPath(name).with_suffix(PurePosixPath(row.written).suffix))
            changed |= new != name
            cells = [*cells[:column], new, *cells[column + 1 :]]
        kept.append(cells)
    if not left_out and not changed:
        return data, 0
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(kept)
    return text.getvalue().encode(), left_out


def _check_places(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder", wanted="the folder of a data set", code="no_table")
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    if here == there or here in there.parents or there in here.parents:
        raise DatasetError(
            f"--out {out} is, lies in or lies around {source}",
            wanted="another place",
            cause="originals stay untouched",
        )
    if out.is_dir() and any(p for p in out.iterdir() if p.name != ".lock") and not (out / JOURNAL).is_file():
        raise DatasetError(f"{out} holds something else", wanted="a new folder, or one of an earlier run")


def _check_folders(out: Path, folders: set[Path]) -> None:
    """Refuse links in the copy that lead out of it: writing through them could reach the originals."""
    real = os.path.realpath(out)
    for folder in folders:
        if os.path.commonpath([real, os.path.realpath(folder)]) != real:
            raise DatasetError(
                f"{folder} leads out of {out}", wanted="a copy without links", code="outside_root"
            )


def _targets(files: list[Path], config: PrepareConfig) -> dict[Path, str | None]:
    """Return source file -> relative name of the copy, None where an earlier file has that name already."""
    targets: dict[Path, str | None] = {}
    taken: set[str] = set()
    for file in files:
        target = str(file.with_suffix(f".{config.format}"))
        targets[file] = None if target.casefold() in taken else target
        taken.add(target.casefold())
    return targets


def _taken(relative: Path, config: PrepareConfig) -> AudioError:
    saw = f"{str(relative)!r}: another recording is written to {relative.with_suffix('.' + config.format)}"
    return AudioError(saw, wanted="names that differ in more than case and ending", code="io_error")


def _failed(relative: Path, error: AudioError) -> Row:
    return Row(file=str(relative), error=error.code, message=str(error))


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.parts)


def _key(sha256: str, config: PrepareConfig) -> str:
    libraries = [soxr.__version__, soundfile.__libsndfile_version__, __version__]
    parts = [PREPARE_VERSION, sha256, to_dict(config), libraries]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AudioError(f"{str(path)!r}: {error.strerror}", code="io_error") from None


def _read_journal(out: Path) -> dict[str, dict[str, Any]]:
    """Return file -> last entry; a line that a killed run left half written is ignored."""
    entries: dict[str, dict[str, Any]] = {}
    for line in _lines(out / JOURNAL):
        with contextlib.suppress(ValueError, LookupError, TypeError):
            entry = json.loads(line)
            row = Row(**entry["row"])
            if {"key", "out_sha256"} <= entry.keys() and not _outside(row.written):
                entries[row.file] = entry
    return entries


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        yield from path.read_bytes().split(b"\n")


def _outside(name: str) -> bool:
    return not name or name.startswith("/") or ".." in PurePosixPath(name).parts


def _line(row: Row, entry: dict[str, Any]) -> bytes:
    """Return a journal line; it begins with a line end, so that a torn line before it cannot spoil it."""
    values = {name: getattr(row, name) for name in Row.__slots__}
    return (
        b"\n" + json.dumps({"key": entry["key"], "out_sha256": entry["out_sha256"], "row": values}).encode()
    )


def _csv(rows: list[Row]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Row.__slots__)
    for row in rows:
        safe = replace(row, file=_cell(row.file), written=_cell(row.written), message=_cell(row.message))
        table.writerow([getattr(safe, name) for name in Row.__slots__])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _cell(text: str) -> str:
    """Return text that no spreadsheet runs as a formula (CWE-1236)."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _peak_db(samples: Samples) -> float:
    return _db(float(np.abs(samples).max(initial=0.0)))


def _rms_db(samples: Samples) -> float:
    return _db(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))


def _db(amplitude: float) -> float:
    return (
        round(max(measure.FLOOR_DB, 20 * float(np.log10(amplitude))), 2)
        if amplitude > 0
        else measure.FLOOR_DB
    )
