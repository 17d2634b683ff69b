"""A data set to feature files: one array per clip, one memory-mapped array of all clips, and what they belong to.

``clips/<stem>_mfcc.npy`` (``_logmel``, ``_spec``) is float32 ``(n_coeff, n_frames)``. Behind its values each carries
the front end's fingerprint, the hash of the recording and a checksum (numpy ignores what follows the values), so that
the files are their own journal: a run that was killed goes on with what is missing, stale or damaged. ``all_mfcc.npy``
is ``(n_clips, n_coeff, n_frames)`` in the order of ``index.csv`` and ``labels.npy``; ``features.toml`` is the config.
Values are those of `soundmark.frontend`. Nothing is held in memory beyond the clips in work.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import re
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import tomli_w

from soundmark import audio, storage
from soundmark.config import AudioLimits, FrontendConfig, to_dict
from soundmark.containers import AUDIO_SUFFIXES
from soundmark.dataset import Clip, Dataset
from soundmark.errors import AudioError, DatasetError, StorageError
from soundmark.frontend import Frontend, fingerprint

Array = npt.NDArray[np.float32]

SUFFIX = {"mfcc": "mfcc", "logmel": "logmel", "spectrogram": "spec"}
"""Kind of features -> what file names end in."""

INDEX, FAILED, LABELS, ABOUT = "index.csv", "failed.csv", "labels.npy", "features.toml"
COLUMNS = ("row", "name", "label", "target", "fold", "source", "n_frames", "duration_s", "flags", "sha256")
MAGIC = b"SMKF1"
_LEFTOVER = re.compile(
    r"\..+\.(npy|csv|toml|jsonl|wav|flac)\.[a-z0-9_]{8}"
)  # as storage names what it writes aside
_LIBRARIES = f"libsndfile {soundfile.__libsndfile_version__}, soxr {soxr.__version__}"


class Features(NamedTuple):
    """What `load_features` returns, in scikit-learn's order and shapes; row i is line i of ``index.csv``."""

    X: Array  # (n_clips, n_coeff, n_frames), memory-mapped, read-only
    y: npt.NDArray[np.int64]  # (n_clips,) class indices, in the label order of the data set
    groups: npt.NDArray[np.str_]  # (n_clips,) source recordings
    folds: npt.NDArray[np.int64]  # (n_clips,), 0 for a clip without a fold


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a run did; a clip of ``failures`` is in none of the arrays."""

    out: Path
    shape: tuple[int, int, int]  # of the array of all clips
    computed: int  # clips whose features were computed now
    kept: int  # clips whose features were there
    padded: int  # clips shorter than the rows of the array of all clips
    cut: int  # and longer
    failures: tuple[tuple[str, AudioError], ...]  # (clip name, why)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One clip whose features are on disk."""

    clip: Clip
    path: Path
    n_frames: int
    duration_s: float
    flags: tuple[str, ...]
    sha256: str
    fresh: bool


def extract(
    dataset: Dataset,
    out: Path,
    frontend: FrontendConfig,
    *,
    window_s: float | None = None,
    limits: AudioLimits = AudioLimits(),  # noqa: B008 - frozen
    on_clip: Callable[[int], None] | None = None,
) -> Extraction:
    """Write the features of ``dataset`` to ``out``; what is there already and still right is not computed again.

    Args:
        dataset: the clips.
        out: a new folder, or one of an earlier run with the same ``frontend`` and ``window_s``.
        frontend: what to compute; ``kind`` wave is refused.
        window_s: length of a row in the array of all clips; default: the most frequent length. Shorter clips are padded
            with the features of silence (which is what zeros behind the recording would give), longer ones cut.
        limits: what the loader accepts.
        on_clip: called with 1 after every clip.

    Raises:
        DatasetError: no clip could be read, or ``out`` holds other features.
        StorageError: the disk refuses, or another process works in ``out``.
    """
    if frontend.kind not in SUFFIX:
        raise DatasetError(f"features of kind {frontend.kind}", wanted=f"one of: {', '.join(SUFFIX)}")
    front = Frontend(frontend)
    with storage_errors(out), _claimed(out, front, window_s, dataset):
        stems = _stems(dataset.clips)
        entries: list[_Entry] = []
        failures: list[tuple[str, AudioError]] = []

        def one(clip: Clip) -> _Entry | AudioError:
            path = out / "clips" / f"{stems[clip.name]}_{SUFFIX[frontend.kind]}.npy"
            return _extract_clip(clip, path, front, limits)

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
            )
        n_frames = _row_frames(front, entries, window_s)
        _combine(out, dataset, front, entries, n_frames)
    return Extraction(
        out=out,
        shape=(len(entries), frontend.n_rows, n_frames),
        computed=sum(entry.fresh for entry in entries),
        kept=sum(not entry.fresh for entry in entries),
        padded=sum(entry.n_frames < n_frames for entry in entries),
        cut=sum(entry.n_frames > n_frames for entry in entries),
        failures=tuple(failures),
    )


def load_features(folder: str | Path) -> Features:
    """Return ``(X, y, groups, folds)`` of a folder that `extract` wrote; ``X`` is read from disk as it is used.

    Raises:
        DatasetError: no such folder, an unfinished or damaged one.
    """
    folder = Path(folder).expanduser()
    again = "run `soundmark features extract` again: it completes what is missing"
    try:
        about = tomllib.loads((folder / ABOUT).read_text("utf-8"))
        with (folder / INDEX).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        name = f"all_{SUFFIX[about['frontend']['kind']]}.npy"
        x = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        y = np.load(folder / LABELS, allow_pickle=False)
        folds = np.array([row["fold"] for row in rows]).astype(np.int64)
        groups = np.array([row["source"] for row in rows], dtype=np.str_)
    except (OSError, ValueError, LookupError, EOFError) as error:
        raise DatasetError(
            f"{folder} has no finished features ({error})",
            wanted="a folder of extracted features",
            cause=again,
        ) from None
    if x.dtype != np.float32 or x.ndim != 3 or y.dtype != np.int64 or not len(x) == len(y) == len(rows):
        raise DatasetError(f"{folder}: {name} {x.shape}, {LABELS} {y.shape}, {len(rows)} rows", cause=again)
    return Features(x, y, groups, folds)


def read_clip(path: Path) -> tuple[Array, dict[str, Any]]:
    """Return the features of one clip and what they were made from (fingerprint, clip, libraries, flags, duration_s).

    Raises:
        DatasetError: damaged, or not written by `extract`.
    """
    try:
        data = path.read_bytes()
        if data[-len(MAGIC) :] != MAGIC:
            raise ValueError("no record at its end")
        at = len(data) - len(MAGIC) - 36
        size = int.from_bytes(data[at + 32 : at + 36], "little")
        if hashlib.sha256(data[:at]).digest() != data[at : at + 32]:
            raise ValueError("its checksum is wrong")
        values = np.load(io.BytesIO(data[: at - size]), allow_pickle=False)
        record = json.loads(data[at - size : at])
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path}: {error}", wanted="features of one clip") from None
    return values, record


def _clip_bytes(values: Array, record: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    tail = json.dumps(record).encode()
    body = file.getvalue() + tail
    return body + hashlib.sha256(body).digest() + len(tail).to_bytes(4, "little") + MAGIC


def _extract_clip(clip: Clip, path: Path, front: Frontend, limits: AudioLimits) -> _Entry | AudioError:
    """Return the clip's entry, computed or kept, or why it cannot be read; then nothing of it is left."""
    try:
        with clip.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        key = {"fingerprint": front.fingerprint, "clip": sha256, "libraries": _LIBRARIES}
        try:
            values, record = read_clip(path)
            fresh = any(record.get(name) != value for name, value in key.items())
        except DatasetError:
            fresh = True
        if fresh:
            heard = audio.load(clip.path, sample_rate=front.config.sample_rate, limits=limits)
            values = np.ascontiguousarray(front(heard.samples), dtype=np.float32)
            record = {**key, "flags": list(heard.flags), "duration_s": round(heard.duration_s, 6)}
            storage.write_bytes(path, _clip_bytes(values, record))
    except AudioError as error:
        path.unlink(missing_ok=True)
        return error
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) != os.fspath(clip.path):
            raise
        path.unlink(missing_ok=True)
        return AudioError(f"{str(clip.path)!r}: {error.strerror}", code="io_error")
    return _Entry(clip, path, values.shape[1], record["duration_s"], tuple(record["flags"]), sha256, fresh)


def _row_frames(front: Frontend, entries: list[_Entry], window_s: float | None) -> int:
    """Return the frames of a row: of the window, or the most frequent number (of equally frequent ones the largest)."""
    if window_s is not None:
        return front.n_frames(round(window_s * front.config.sample_rate))
    counts = Counter(entry.n_frames for entry in entries)
    return max(counts, key=lambda n: (counts[n], n))


def _combine(out: Path, dataset: Dataset, front: Frontend, entries: list[_Entry], n_frames: int) -> None:
    """Write all_*.npy, labels.npy and, last, index.csv, unless they are there and say the same."""
    target = {label: i for i, label in enumerate(dataset.labels)}
    rows: list[tuple[Any, ...]] = []
    for i, e in enumerate(entries):
        who = (i, e.clip.name, e.clip.label, target[e.clip.label], e.clip.fold, e.clip.source)
        rows.append((*who, e.n_frames, e.duration_s, " ".join(e.flags), e.sha256))
    text, shape = _csv(COLUMNS, rows), (len(entries), front.config.n_rows, n_frames)
    whole = out / f"all_{SUFFIX[front.config.kind]}.npy"
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.dtype("<f4").str, "fortran_order": False, "shape": shape}
    )
    size = head.tell() + 4 * int(np.prod(shape))
    index, labels = out / INDEX, out / LABELS
    same = index.is_file() and index.read_bytes() == text and labels.is_file()
    if same and whole.is_file() and whole.stat().st_size == size:
        return
    index.unlink(missing_ok=True)  # the arrays are about to change: from here to the end, not finished
    silence = front(np.zeros(4 * front.config.n_fft, dtype=np.float32))[:, :1]
    with _written_aside(whole) as file:
        file.write(head.getvalue())
        for entry in entries:
            values, _ = read_clip(entry.path)
            row = np.broadcast_to(silence, shape[1:]).copy()
            row[:, : values.shape[1]] = values[:, :n_frames]
            file.write(row.tobytes())
    targets = io.BytesIO()
    np.save(targets, np.array([row[3] for row in rows], dtype=np.int64))
    storage.write_bytes(labels, targets.getvalue())
    storage.write_bytes(index, text)


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
    if len(set(stems.values())) < len(clips):
        raise DatasetError("two clips have the same name", wanted="names that differ")
    return stems


@contextmanager
def _claimed(out: Path, front: Frontend, window_s: float | None, dataset: Dataset) -> Iterator[None]:
    """Hold ``out`` for one process, with the config in it; leftovers of a killed run are removed.

    Raises:
        DatasetError: it holds features of another config, or something else.
        StorageError: another process holds it.
    """
    about: dict[str, Any] = {
        "fingerprint": fingerprint(front.config),
        "data": dataset.name,
        "labels": list(dataset.labels),
        "frontend": to_dict(front.config),
    }
    if window_s is not None:
        about = {"window_s": float(window_s), **about}
    there = sorted(path.name for path in out.iterdir() if path.name != ".lock") if out.is_dir() else []
    if there and not (out / ABOUT).is_file():
        raise DatasetError(f"{out} holds something else ({there[0]})", wanted="a new folder")
    with hold(out):
        before = tomllib.loads((out / ABOUT).read_text("utf-8")) if there else about
        for name in ("fingerprint", "window_s"):
            if before.get(name) != about.get(name):
                raise DatasetError(
                    f"{out} holds features of another config (see {ABOUT})",
                    wanted="the same kind, values and window",
                    cause="name another --out: a folder holds features of one config",
                    code="other_features",
                )
        sweep(out)
        storage.write_bytes(out / ABOUT, tomli_w.dumps(about).encode())
        yield


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make ``folder`` and hold it for this process; the system lets go of it, also after kill -9.

    Raises:
        StorageError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(f"{folder} is in use by another process", wanted="one run at a time") from None
        yield


def sweep(folder: Path) -> None:
    """Remove what a killed run left half written below ``folder``, which is ours and held."""
    for path in folder.rglob(".*"):
        if _LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


@contextmanager
def _written_aside(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file that takes the name ``path`` once it is whole and on the disk: `storage.write_bytes` in pieces."""
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, (path.parent / ABOUT).stat().st_mode & 0o777)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


@contextmanager
def storage_errors(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into `StorageError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or out
        raise StorageError(
            f"{where} cannot be written ({error.strerror or error})",
            wanted="a writable place with enough space",
        ) from None


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Yield threads (decoding and matrix products let go of the interpreter lock); an error drops what waits."""
    threads = ThreadPoolExecutor()
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _write_failures(path: Path, failures: list[tuple[str, AudioError]]) -> None:
    path.unlink(missing_ok=True)
    if failures:
        storage.write_bytes(
            path, _csv(("name", "error", "message"), [(n, e.code, str(e)) for n, e in failures])
        )


def _csv(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerows([columns, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")
