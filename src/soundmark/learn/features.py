"""Linear features of a whole data set, cached on disk and shared by all runs with the same front end.

What is cached is `Frontend.linear` (band power before the logarithm), because power is what mixes by addition. The
key holds everything that can change a value: front end config and code version, window, decoder and resampler
versions, and the hash of every clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from soundmark import audio, storage
from soundmark.config import FrontendConfig, WindowConfig
from soundmark.dataset import Clip, Dataset
from soundmark.errors import AudioError, DatasetError, StorageError
from soundmark.frontend import Frontend, fingerprint
from soundmark.storage import CACHE_VARIABLE, cache_dir

MAX_BAD = 0.2
"""Largest share of clips that may be left out because they cannot be read."""

AHEAD = 64
"""Clips that are decoded before the first of them is written: what bounds memory."""

NOT_THE_CONTENT = frozenset(
    {"not_found", "not_regular_file", "symlink_loop", "permission_denied", "io_error"}
)
OnBad = Callable[[Clip, str], None]


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Linear features of every window of a data set.

    Attributes:
        linear: float32 ``(n_windows, n_linear, n_frames)``, memory-mapped.
        clip_of: ``(n_windows,)`` index of the clip that a window was cut from.
        frontend: the front end whose `finish` turns them into features.
        skipped: index -> error code of the clips that cannot be read and have no windows.
    """

    linear: npt.NDArray[np.float32]
    clip_of: npt.NDArray[np.int64]
    frontend: Frontend
    skipped: dict[int, str] = field(default_factory=dict)


def extract(
    dataset: Dataset,
    frontend: FrontendConfig,
    window: WindowConfig,
    *,
    progress: Callable[[int], None] | None = None,
    on_bad: OnBad | None = None,
) -> FeatureStore:
    """Return the linear features of ``dataset``, from the cache where it has them.

    Args:
        dataset: the clips; the order of windows follows the order of clips.
        frontend: what to compute.
        window: how clips are cut; the same rule as when classifying.
        progress: called with 1 after every clip.
        on_bad: called with every clip whose content cannot be used and its error code, and that clip is left out;
            without it, such a clip is an error.

    Raises:
        AudioError: a clip cannot be read (never silently a clip less).
        DatasetError: more than `MAX_BAD` of the clips are bad, or all clips of a label.
        StorageError: the cache cannot be written.
    """
    hashes = dataset.hashes()
    key = _key(frontend, window, [hashes[clip.name] for clip in dataset.clips])
    home = cache_dir() / "features" / key
    front = Frontend(frontend)
    store = _open(home, len(dataset.clips), front)
    if store is None or (store.skipped and not on_bad):
        store = _build(home, dataset, front, window, progress, skip=on_bad is not None)
    elif progress:
        progress(len(dataset.clips))
    if on_bad:
        for index, code in sorted(store.skipped.items()):
            on_bad(dataset.clips[index], code)
    _refuse_too_many(dataset, store.skipped)
    return store


def _refuse_too_many(dataset: Dataset, skipped: dict[int, str]) -> None:
    left = {clip.label for index, clip in enumerate(dataset.clips) if index not in skipped}
    gone = sorted({clip.label for clip in dataset.clips} - left)
    if gone or len(skipped) > MAX_BAD * len(dataset.clips):
        names = [f"{dataset.clips[index].name} ({code})" for index, code in sorted(skipped.items())]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        of_label = f", among them all of {', '.join(gone)[:200]}" if gone else ""
        raise DatasetError(
            f"{len(skipped)} of {len(dataset.clips)} clips cannot be used{of_label}: {', '.join(names[:5])}{more}",
            wanted=f"at most {MAX_BAD:.0%} of the clips, and some of every label left",
            cause="damaged files, or another data set than was meant",
            code="too_many_bad",
        )


def _key(frontend: FrontendConfig, window: WindowConfig, hashes: list[str]) -> str:
    parts = {
        "frontend": fingerprint(frontend),
        "window": [window.window_s, window.hop_s],
        "libraries": [soxr.__version__, soundfile.__libsndfile_version__],
        "clips": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _open(home: Path, n_clips: int, front: Frontend) -> FeatureStore | None:
    """Return the store at ``home``, or None where there is none or it is damaged."""
    try:
        linear = np.load(home / "linear.npy", mmap_mode="r", allow_pickle=False)
        clip_of = np.load(home / "clip_of.npy", allow_pickle=False)
        bad = home / "skipped.json"  # there only if there are any
        skipped = (
            {int(i): str(code) for i, code in json.loads(bad.read_bytes()).items()} if bad.exists() else {}
        )
    except Exception:  # a damaged header makes np.load raise almost anything
        return None
    whole = linear.dtype == np.float32 and linear.ndim == 3 and clip_of.shape == linear.shape[:1]
    whole = whole and clip_of.dtype == np.int64
    whole = whole and sorted({*clip_of.tolist(), *skipped}) == list(range(n_clips))
    return FeatureStore(linear, clip_of, front, skipped) if whole else None


def _build(
    home: Path,
    dataset: Dataset,
    front: Frontend,
    window: WindowConfig,
    progress: Callable[[int], None] | None,
    *,
    skip: bool,
) -> FeatureStore:
    rate = front.config.sample_rate
    size, hop = round(window.window_s * rate), round(window.hop_s * rate)

    def of_clip(index: int) -> list[npt.NDArray[np.float32]] | AudioError:
        try:
            samples = audio.load(dataset.clips[index].path, sample_rate=rate).samples
        except AudioError as error:
            if not skip or error.code in NOT_THE_CONTENT:
                raise
            return error
        return [front.linear(part) for part in audio.windows(samples, window_samples=size, hop_samples=hop)]

    def fill(scratch: Path) -> None:
        clip_of: list[int] = []
        skipped: dict[int, str] = {}
        with (
            _Rows(scratch / "linear.npy", front.linear(np.zeros(size, np.float32)).shape) as rows,
            ThreadPoolExecutor() as pool,  # decoding releases the interpreter lock
        ):
            for first in range(0, len(dataset.clips), AHEAD):
                some = range(first, min(first + AHEAD, len(dataset.clips)))
                for index, parts in zip(some, pool.map(of_clip, some), strict=True):
                    if isinstance(parts, AudioError):
                        skipped[index] = parts.code
                    else:
                        for part in parts:
                            rows.add(part)
                        clip_of += [index] * len(parts)
                    if progress:
                        progress(1)
        if not clip_of:
            _refuse_too_many(dataset, skipped)
        if skipped:
            (scratch / "skipped.json").write_text(json.dumps(skipped), "utf-8")
        np.save(scratch / "clip_of.npy", np.array(clip_of, dtype=np.int64))

    refused: StorageError | None = None
    try:
        storage.write_folder(home, fill, overwrite=True)
    except StorageError as error:
        refused = error
    store = _open(home, len(dataset.clips), front)  # ours, or that of a process that was first
    if store is None:
        raise StorageError(
            refused.saw if refused else f"the feature cache {home} cannot be read back",
            wanted=f"a folder for about {len(dataset.clips) * front.config.n_rows // 1000 + 1} MB of features",
            cause=f"set {CACHE_VARIABLE} to a folder on another disk",
        )
    return store


class _Rows:
    """Writes a ``.npy`` file of float32 rows one by one, so that a data set need not fit in memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        """Open ``path``; numpy leaves room in the header for a first axis that grows."""
        self._file, self._shape, self._n = path.open("w+b"), shape, 0
        self._header()
        self._start = self._file.tell()

    def _header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": "<f4", "fortran_order": False, "shape": (self._n, *self._shape)}
        )

    def add(self, row: npt.NDArray[np.float32]) -> None:
        """Append one row."""
        assert row.shape == self._shape
        self._file.write(np.ascontiguousarray(row, dtype="<f4").tobytes())
        self._n += 1

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.seek(0)
        self._header()
        assert self._file.tell() == self._start
        self._file.close()
