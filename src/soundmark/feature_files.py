"""Feature files as arrays: what `soundmark features extract` writes, and how it is read back without holding it.

A folder of features has ``clips/<stem>_mfcc.npy`` (``_logmel``, ``_spec``), one float32 ``(n_coeff, n_frames)`` per
clip, ``all_mfcc.npy`` with the rows of all clips, ``labels.npy``, ``index.csv`` and ``features.toml``. Behind its
values each clip's file carries a record and a checksum (numpy ignores what follows the values), so that the files are
their own journal: what is missing, stale or damaged shows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from soundmark.errors import DatasetError

Array = npt.NDArray[np.float32]

SUFFIX = {"mfcc": "mfcc", "logmel": "logmel", "spectrogram": "spec"}
"""Kind of features -> what file names end in."""

CLIPS, INDEX, LABELS, ABOUT = "clips", "index.csv", "labels.npy", "features.toml"
_MAGIC = b"SMKF1"
_TAIL = 32 + 4 + len(_MAGIC)  # checksum, length of the record, magic


class Features(NamedTuple):
    """What `load_features` returns, in scikit-learn's order and shapes; row i is line i of ``index.csv``."""

    X: Array  # (n_clips, n_coeff, n_frames), memory-mapped, read-only
    y: npt.NDArray[np.int64]  # (n_clips,) class indices, in the label order of the data set
    groups: npt.NDArray[np.str_]  # (n_clips,) source recordings
    folds: npt.NDArray[np.int64]  # (n_clips,), 0 for a clip without a fold


def load_features(folder: str | Path) -> Features:
    """Return ``(X, y, groups, folds)`` of a folder that `soundmark features extract` wrote.

    ``X`` is read from the disk as it is used. ``n_frames`` of ``index.csv`` says how many columns of a row are the
    recording; behind them stands what silence gives.

    Raises:
        DatasetError: no such folder, an unfinished or damaged one.
    """
    folder = Path(folder).expanduser()
    again = "run `soundmark features extract` again: it completes what is missing"
    try:
        about = tomllib.loads((folder / ABOUT).read_text("utf-8"))
        with (folder / INDEX).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        whole = all_file(folder, about["frontend"]["kind"])
        x = np.load(whole, mmap_mode="r", allow_pickle=False)
        y = np.load(folder / LABELS, allow_pickle=False)
        folds = np.array([row["fold"] for row in rows]).astype(np.int64)
        groups = np.array([row["source"] for row in rows], dtype=np.str_)
    except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
        raise DatasetError(
            f"{folder} has no finished features ({error})",
            wanted="a folder of extracted features",
            cause=again,
        ) from None
    if x.dtype != np.float32 or x.ndim != 3 or y.dtype != np.int64 or not len(x) == len(y) == len(rows):
        saw = f"{folder}: {whole.name} {x.dtype} {x.shape}, {LABELS} {y.dtype} {y.shape}, {len(rows)} rows"
        raise DatasetError(saw, wanted="arrays that belong together", cause=again)
    return Features(x, y, groups, folds)


def all_file(folder: Path, kind: str) -> Path:
    """Return the file of the array of all clips."""
    return folder / f"all_{SUFFIX[kind]}.npy"


def clip_bytes(values: Array, record: dict[str, Any]) -> tuple[bytes, str]:
    """Return the file of one clip, and its checksum (hex): ``values`` (n_coeff, n_frames) as NPY, then ``record``."""
    file = io.BytesIO()
    np.save(file, values)
    tail = json.dumps(record).encode()
    body = file.getvalue() + tail
    checksum = hashlib.sha256(body)
    return body + checksum.digest() + len(tail).to_bytes(4, "little") + _MAGIC, checksum.hexdigest()


def read_clip(path: Path) -> tuple[Array, dict[str, Any], str]:
    """Return the features of one clip, what they were made from, and their checksum (hex).

    Raises:
        DatasetError: missing, damaged, or not written by `soundmark features extract`.
    """
    try:
        data = path.read_bytes()
        at = len(data) - _TAIL
        if at <= 0 or not data.endswith(_MAGIC):
            raise ValueError("no record at its end")
        size = int.from_bytes(data[at + 32 : at + 36], "little")
        checksum = data[at : at + 32]
        if hashlib.sha256(memoryview(data)[:at]).digest() != checksum or size > at:
            raise ValueError("its checksum is wrong")
        values: Array = np.load(io.BytesIO(data[: at - size]), allow_pickle=False)
        record = json.loads(data[at - size : at])
        if values.ndim != 2 or values.dtype != np.float32 or not isinstance(record, dict):
            raise ValueError(f"{values.dtype} {values.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path}: {error}", wanted="features of one clip") from None
    return values, record, checksum.hex()
