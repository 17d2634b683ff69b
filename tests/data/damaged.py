"""Sixty good clips in the layout of ESC-50, and thirty of them damaged, each in its own way."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

from synthetic import RATE, sound, table_rows, write_esc50, write_table

Row = dict[str, str]
Damage = Callable[[Path, Row, list[Row]], None]
FOLDS = 3
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(200)


def _samples(row: Row) -> np.ndarray:
    return sound(row["category"], int(row["src_file"]), ord(row["take"]))


def _write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> None:
    soundfile.write(path, samples, rate, format="WAV", subtype=subtype)


def _cut(path: Path, row: Row, rows: list[Row]) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def _nan(path: Path, row: Row, rows: list[Row]) -> None:
    samples = _samples(row)
    samples[5000] = np.nan
    _write(path, samples, subtype="FLOAT")


def _rate(path: Path, row: Row, rows: list[Row]) -> None:
    _write(path, soxr.resample(_samples(row), RATE, 22_050), 22_050)


def _stereo(path: Path, row: Row, rows: list[Row]) -> None:
    _write(path, np.stack([_samples(row), 0.5 * _samples(row)], axis=1))


def _header(path: Path, row: Row, rows: list[Row]) -> None:
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 2000)  # of 32 000 bytes of samples
    path.write_bytes(data)


def _garbage(path: Path, row: Row, rows: list[Row]) -> None:
    data = bytearray(path.read_bytes())
    data[12:16] = b"junk"  # no format chunk any more
    path.write_bytes(data)


def _half_silent(path: Path, row: Row, rows: list[Row]) -> None:
    samples = _samples(row)
    samples[6000:] = 0
    _write(path, samples)


def _low_passed(path: Path, row: Row, rows: list[Row]) -> None:
    _write(path, soxr.resample(soxr.resample(_samples(row), RATE, 4000), 4000, RATE))


def _cancelling(path: Path, row: Row, rows: list[Row]) -> None:
    _write(path, np.stack([_samples(row), -_samples(row)], axis=1))


def _twin(path: Path, rows: list[Row], row: Row) -> tuple[Path, Row]:
    """Return the clip after this row's class in another fold."""
    other = next(r for r in rows[::-1] if r["fold"] != row["fold"] and r["category"] == row["category"])
    return path.parent / other["filename"], other


def _copied(path: Path, row: Row, rows: list[Row]) -> None:
    other, _ = _twin(path, rows, row)
    other.write_bytes(path.read_bytes())


def _louder_copy(path: Path, row: Row, rows: list[Row]) -> None:
    other, _ = _twin(path, rows, row)
    _write(other, 0.5 * _samples(row))


def _loop(path: Path, row: Row, rows: list[Row]) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path, row: Row, rows: list[Row]) -> None:
    path.unlink()
    os.mkfifo(path)


def _other_fold(path: Path, row: Row, rows: list[Row]) -> None:
    """Rename the clip and its row, so that its source stands in two folds."""
    row["fold"] = "3" if row["fold"] != "3" else "1"
    row["filename"] = f"{row['fold']}{row['filename'][1:]}"
    path.rename(path.parent / row["filename"])


DAMAGES: dict[str, tuple[int, str, Damage]] = {  # what -> (row, code of the finding, how)
    "cut": (0, "truncated", _cut),
    "NaN": (1, "nonfinite_samples", _nan),
    "wrong rate": (2, "odd_sample_rate", _rate),
    "stereo": (3, "odd_channels", _stereo),
    "header lies": (5, "header_length_wrong", _header),
    "PNG named .wav": (6, "unsupported_format", lambda path, row, rows: void(path.write_bytes(PNG))),
    "empty file": (7, "empty_file", lambda path, row, rows: void(path.write_bytes(b""))),
    "wrong label": (9, "bad_row", lambda path, row, rows: row.update(category="chirp")),
    "duplicate in another fold": (12, "duplicate_across_folds", _copied),
    "clipped": (13, "clipped", lambda p, row, rows: _write(p, np.clip(20 * _samples(row), -0.9, 0.9))),
    "silent": (14, "silent", lambda path, row, rows: _write(path, np.zeros(RATE))),
    "DC": (15, "dc_offset", lambda path, row, rows: _write(path, 0.5 * _samples(row) + 0.2)),
    "half silence": (16, "mostly_silence", _half_silent),
    "8-bit": (17, "odd_encoding", lambda path, row, rows: _write(path, _samples(row), subtype="PCM_U8")),
    "missing": (18, "not_found", lambda path, row, rows: path.unlink()),
    "renamed source": (19, "bad_row", lambda path, row, rows: row.update(src_file="123456")),
    "row twice": (21, "duplicate_row", lambda path, row, rows: rows.append(dict(row))),
    "damaged header": (24, "corrupt_header", _garbage),
    "low-passed": (25, "narrow_band", _low_passed),
    "quiet": (26, "quiet", lambda path, row, rows: _write(path, 1e-3 * _samples(row), subtype="PCM_24")),
    "path outside the root": (
        28,
        "bad_row",
        lambda p, row, rows: row.update(filename="../" + row["filename"]),
    ),
    "symlink loop": (30, "symlink_loop", _loop),
    "pipe": (31, "not_found", _pipe),
    "fold 7": (33, "bad_row", lambda path, row, rows: row.update(fold="7")),
    "target 50": (34, "bad_row", lambda path, row, rows: row.update(target="50")),
    "nearly a duplicate": (37, "near_duplicate_across_folds", _louder_copy),
    "channels cancel": (38, "downmix_cancelled", _cancelling),
    "too long": (
        39,
        "odd_duration",
        lambda path, row, rows: _write(path, np.tile(_samples(row), 2)[:20_000]),
    ),
    "source in two folds": (41, "leak", _other_fold),
}
EXTRA = "extra.wav"  # a file that is not in the table


def void(_: object) -> None:
    """Return nothing, for lambdas."""


def write_damaged(root: Path) -> dict[str, str]:
    """Write the data set below ``root``; return what was done -> the name of the clip (of its file, without ending)."""
    write_esc50(root, folds=FOLDS)
    rows = table_rows(folds=FOLDS)
    assert len(rows) == 60
    names = {}
    for what, (index, _, damage) in DAMAGES.items():
        row = rows[index]
        path = root / "audio" / row["filename"]
        damage(path, row, rows)
        names[what] = Path(row["filename"]).stem
    write_table(root, rows)
    _write(root / "audio" / EXTRA, sound("hum", 1, 1))
    return names
