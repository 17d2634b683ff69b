"""A data set to feature files: one array per clip, one memory-mapped array of all clips, and what they belong to.

What the folder holds is written in `soundmark.feature_files`, which also reads it. Values are those of
`soundmark.frontend`. A run that was killed goes on with what is missing, stale or damaged. Nothing is held in memory
beyond the clips in work.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile
import soxr
import tomli_w

from soundmark import audio, storage
from soundmark.config import AudioLimits, FrontendConfig, to_dict
from soundmark.containers import AUDIO_SUFFIXES
from soundmark.data.held_folder import held, pool, refuse_overlap
from soundmark.dataset import Clip, Dataset
from soundmark.errors import AudioError, ConfigError, DatasetError
from soundmark.feature_files import ABOUT, CLIPS, INDEX, LABELS, SUFFIX, all_file, clip_bytes, read_clip
from soundmark.frontend import Frontend
from soundmark.inputs import path_error

WHOLE = 0.99
"""Share of the clips that the rows of the array of all clips hold whole, where no length is asked for."""

FAILED = "failed.csv"
COLUMNS = (
    "row", "name", "label", "target", "fold", "source", "n_frames", "duration_s", "flags", "sha256", "features",
)  # fmt: skip
"""Of ``index.csv``: ``sha256`` is that of the recording, ``features`` the checksum of the clip's feature file."""

_LIBRARIES = f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a run did; a clip of ``failures`` is in none of the arrays."""

    out: Path
    shape: tuple[int, int, int]  # of the array of all clips
    computed: int  # clips whose features were computed now
    kept: int  # clips whose features were there
    padded: int  # clips shorter than the rows of the array of all clips
    cut: int  # and longer
    padding: float  # share of the array of all clips that is padding
    failures: tuple[tuple[str, AudioError], ...]  # (clip name, why)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        failed = [{"name": name, **error.to_dict()} for name, error in self.failures]
        return {
            **values,
            "out": str(self.out),
            "shape": list(self.shape),
            "padding": round(self.padding, 4),
            "failures": failed,
        }


@dataclass(frozen=True, slots=True)
class _Entry:
    """One clip whose features are on disk."""

    clip: Clip
    path: Path
    n_frames: int
    duration_s: float
    flags: tuple[str, ...]
    sha256: str
    features: str  # checksum of the feature file
    fresh: bool


def extract(
    dataset: Dataset,
    out: Path,
    frontend: FrontendConfig,
    *,
    seconds: float | None = None,
    limits: AudioLimits = AudioLimits(),  # noqa: B008 - frozen
    on_clip: Callable[[int], None] | None = None,
) -> Extraction:
    """Write the features of ``dataset`` to ``out``; what is there already and still right is not computed again.

    Args:
        dataset: the clips.
        out: a new folder, or one of an earlier run with the same ``frontend``.
        frontend: what to compute; ``kind`` wave is refused.
        seconds: length of a row in the array of all clips; default: the shortest that holds `WHOLE` of the clips whole,
            so that one stray recording does not make an array of padding. Shorter clips are padded with the features
            of silence, longer ones cut; the file of a clip has its own length.
        limits: what the loader accepts.
        on_clip: called with 1 after every clip.

    Raises:
        ConfigError: a kind without coefficients, ``seconds`` that hold no frame.
        DatasetError: no clip could be read, or ``out`` holds something else, or lies in the data.
        StorageError: the disk refuses, or another process works in ``out``.
    """
    if frontend.kind not in SUFFIX:
        raise ConfigError(f"features of kind {frontend.kind}", wanted=f"one of: {', '.join(SUFFIX)}")
    front = Frontend(frontend)
    if seconds is not None and front.n_frames(round(seconds * frontend.sample_rate)) < 1:
        raise ConfigError(f"{seconds:g} seconds hold no frame", wanted="a longer row")
    refuse_overlap(dataset.root, out)
    stems = _stems(dataset.clips)

    def one(clip: Clip) -> _Entry | AudioError:
        path = out / CLIPS / f"{stems[clip.name]}_{SUFFIX[frontend.kind]}.npy"
        return _extract_clip(clip, path, front, limits)

    with _claimed(out, front, dataset):
        entries: list[_Entry] = []
        failures: list[tuple[str, AudioError]] = []
        with pool() as threads:
            for clip, done in zip(dataset.clips, threads.map(one, dataset.clips), strict=True):
                if isinstance(done, AudioError):
                    failures.append((clip.name, done))
                else:
                    entries.append(done)
                if on_clip:
                    on_clip(1)
        _write_failures(out / FAILED, failures)
        if not entries:
            raise DatasetError(
                f"none of the {len(dataset.clips)} clips of {dataset.name} could be read",
                wanted="recordings",
                cause=str(failures[0][1]) if failures else "",
                code="no_audio",
            )
        n_frames = _row_frames([entry.n_frames for entry in entries])
        if seconds is not None:
            n_frames = front.n_frames(round(seconds * frontend.sample_rate))
        _combine(out, dataset, front, entries, n_frames)
    return Extraction(
        out=out,
        shape=(len(entries), frontend.n_rows, n_frames),
        computed=sum(entry.fresh for entry in entries),
        kept=sum(not entry.fresh for entry in entries),
        padded=sum(entry.n_frames < n_frames for entry in entries),
        cut=sum(entry.n_frames > n_frames for entry in entries),
        padding=1 - sum(min(entry.n_frames, n_frames) for entry in entries) / (n_frames * len(entries)),
        failures=tuple(failures),
    )


def _extract_clip(clip: Clip, path: Path, front: Frontend, limits: AudioLimits) -> _Entry | AudioError:
    """Return the clip's entry, computed or kept, or why it cannot be read; then nothing of it is left.

    The file is not waited for (`storage.write_bytes`): its checksum is looked at whenever it is used.
    """
    try:
        sha256 = _sha256(clip.path)
        key = {"fingerprint": front.fingerprint, "clip": sha256, "libraries": _LIBRARIES}
        try:
            values, record, checksum = read_clip(path)
            fresh = any(record.get(name) != value for name, value in key.items())
        except DatasetError:
            fresh = True
        if fresh:
            heard = audio.load(clip.path, sample_rate=front.config.sample_rate, limits=limits)
            values = np.ascontiguousarray(front(heard.samples), dtype=np.float32)
            if not values.shape[1]:
                raise AudioError(
                    f"{str(clip.path)!r}: {heard.duration_s:g} s hold no frame",
                    wanted=f"at least {front.config.window_length} samples",
                    code="too_short",
                )
            record = {**key, "flags": list(heard.flags), "duration_s": round(heard.duration_s, 6)}
            data, checksum = clip_bytes(values, record)
            storage.write_bytes(path, data, sync=False)
    except AudioError as error:
        path.unlink(missing_ok=True)
        return error
    flags = tuple(map(str, record["flags"]))
    return _Entry(clip, path, values.shape[1], record["duration_s"], flags, sha256, checksum, fresh)


def _row_frames(lengths: list[int]) -> int:
    """Return the smallest number of frames that holds `WHOLE` of the clips; of fewer than 100 clips, all."""
    return sorted(lengths)[math.ceil(WHOLE * len(lengths)) - 1]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise path_error(repr(os.fspath(path)), error) from None


def _combine(out: Path, dataset: Dataset, front: Frontend, entries: Sequence[_Entry], n_frames: int) -> None:
    """Write all_*.npy, labels.npy and, last, index.csv, unless they are there and say the same."""
    target = {label: i for i, label in enumerate(dataset.labels)}
    rows: list[tuple[Any, ...]] = []
    for i, e in enumerate(entries):
        who = (i, e.clip.name, e.clip.label, target[e.clip.label], e.clip.fold, e.clip.source)
        rows.append((*who, e.n_frames, e.duration_s, " ".join(e.flags), e.sha256, e.features))
    text, shape = _csv(COLUMNS, rows), (len(entries), front.config.n_rows, n_frames)
    whole, index, labels = all_file(out, front.config.kind), out / INDEX, out / LABELS
    head = io.BytesIO()
    header = {"descr": np.dtype("<f4").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, header)
    size = head.tell() + 4 * int(np.prod(shape, dtype=np.int64))
    same = index.is_file() and index.read_bytes() == text and labels.is_file()
    if same and whole.is_file() and whole.stat().st_size == size and _starts(whole, head.getvalue()):
        return
    index.unlink(missing_ok=True)  # the arrays are about to change: from here to the end, not finished
    silence = front(np.zeros(4 * front.config.n_fft, dtype=np.float32))[:, :1]  # (n_coeff, 1)
    with storage.writing(whole, size=size) as file:
        file.write(head.getvalue())
        for entry in entries:
            values, _, _ = read_clip(entry.path)
            row = np.broadcast_to(silence, shape[1:]).copy()
            row[:, : values.shape[1]] = values[:, :n_frames]
            file.write(row.tobytes())
    targets = io.BytesIO()
    np.save(targets, np.array([row[3] for row in rows], dtype=np.int64))
    storage.write_bytes(labels, targets.getvalue())
    storage.write_bytes(index, text)


def _starts(path: Path, head: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _stems(clips: tuple[Clip, ...]) -> dict[str, str]:
    """Return clip name -> path below ``clips/`` without its end; the audio suffix stays where two would be the same."""
    bare = {}
    for clip in clips:
        name = PurePosixPath(clip.name)
        if name.is_absolute() or ".." in name.parts:
            raise DatasetError(f"clip {clip.name!r}", wanted="a name that stays below the folder")
        bare[clip.name] = str(name.with_suffix("") if name.suffix.lower() in AUDIO_SUFFIXES else name)
    counts = Counter(stem.casefold() for stem in bare.values())  # a file system may ignore case
    stems = {name: stem if counts[stem.casefold()] == 1 else name for name, stem in bare.items()}
    if len({stem.casefold() for stem in stems.values()}) < len(clips):
        raise DatasetError("two clips have the same name", wanted="names that differ in more than case")
    return stems


@contextmanager
def _claimed(out: Path, front: Frontend, dataset: Dataset) -> Iterator[None]:
    """Hold ``out`` for one process, with the config in it.

    Raises:
        DatasetError: it holds features of another config, or something else.
        StorageError: another process holds it.
    """
    about = {
        "fingerprint": front.fingerprint,
        "data": dataset.name,
        "labels": list(dataset.labels),
        "frontend": to_dict(front.config),
    }
    with held(out, marker=ABOUT):
        before = _about(out) if (out / ABOUT).is_file() else about
        if before.get("fingerprint") != about["fingerprint"]:
            raise DatasetError(
                f"{out} holds features of another config (see {ABOUT})",
                wanted="the same kind and values",
                cause="name another --out: a folder holds features of one config",
                code="other_features",
            )
        if before != about or not (out / ABOUT).is_file():
            storage.write_bytes(out / ABOUT, tomli_w.dumps(about).encode())
        yield


def _about(out: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((out / ABOUT).read_text("utf-8"))
    except (OSError, ValueError):
        raise DatasetError(f"{out / ABOUT} is damaged", wanted="a new folder") from None


def _write_failures(path: Path, failures: list[tuple[str, AudioError]]) -> None:
    path.unlink(missing_ok=True)
    if failures:
        rows = [(name, error.code, str(error)) for name, error in failures]
        storage.write_bytes(path, _csv(("name", "error", "message"), rows))


def _csv(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")
