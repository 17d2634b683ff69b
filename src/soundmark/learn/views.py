"""Views: changed and mixed recordings that teachers and student both hear, and what each made of them, on disk.

View v of a clip is a pure function of the clips of its fold, the preset and ``distill.view_seed``: a window changed by
`waves.apply` and mixed, at equal loudness and as a wave, with a changed window of another clip *of the same fold*; view
0 is the clip as it is. So no view of a training clip holds anything of a test clip, and what is stored serves every
outer fold. What a consumer made of one view of one fold is a *block*: a file that is whole or not there.

Source: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022 (function matching).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from msgspec.structs import replace

from soundmark import audio, storage
from soundmark.config import DistillConfig, WaveConfig, to_dict
from soundmark.dataset import Clip, Dataset
from soundmark.errors import AudioError, StorageError
from soundmark.learn import waves
from soundmark.learn.features import NOT_THE_CONTENT
from soundmark.learn.recordings import Recordings
from soundmark.preset import Preset

RENDER_RATE = 44_100
"""Sample rate in Hz at which views are made; each consumer gets its own from there."""
CHUNK = 16
"""Clips whose waves are in memory at a time."""
VERSION = 1
"""Raised when the same config gives other views."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class View:
    """How one window is made; the defaults are the clip as it is.

    Attributes:
        clip: index in its fold.
        change: what is done to it.
        partner: index of the clip that is mixed in.
        partner_change: what is done to that one.
        share: of the clip, in amplitude; 1 is unmixed.
    """

    clip: int
    change: waves.WaveChange = waves.WaveChange()  # noqa: RUF009 - frozen
    partner: int = 0
    partner_change: waves.WaveChange = waves.WaveChange()  # noqa: RUF009
    share: float = 1.0


@dataclass(frozen=True)
class Fold:
    """The usable clips of one fold and what decides how their views sound.

    Attributes:
        number: of the fold.
        clips: those that can be read, in file order.
        targets: class index of each.
        key: SHA-256 over the fold's content and everything that changes a view.
        skipped: clip name -> error code of those that cannot be read.
    """

    number: int
    clips: tuple[Clip, ...]
    targets: tuple[int, ...]
    key: str
    skipped: dict[str, str]


class Consumer(Protocol):
    """Something that makes one row of numbers out of each window of a view.

    Attributes:
        key: a name for its folder of blocks; equal keys give equal rows.
        sample_rate: at which it hears, in Hz.
        row: shape of a row.
        dtype: of the numbers.
    """

    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def sample_rate(self) -> int: ...  # noqa: D102
    @property
    def row(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    def __call__(self, samples: Array) -> npt.NDArray[Any]:
        """Return ``(n, *row)`` of windows ``(n, n_samples)`` at `sample_rate`."""


def folds_of(dataset: Dataset, preset: Preset, hashes: dict[str, str]) -> tuple[Fold, ...]:
    """Return the folds of ``dataset``; clips that cannot be read are looked for once, and left out.

    Raises:
        AudioError: a clip cannot be reached at all (permission, a broken disk).
    """
    rules = {
        "version": VERSION,
        "window": preset.window.window_s,
        "waves": to_dict(preset.waves),
        "mix": [preset.distill.mix, preset.distill.mix_alpha],
        "seed": preset.distill.view_seed,
        "libraries": [soxr.__version__, soundfile.__libsndfile_version__],
    }
    index = {label: i for i, label in enumerate(dataset.labels)}
    found = []
    for number in dataset.folds:
        part = dataset.in_folds([number])
        content = part.digest(hashes)
        key = hashlib.sha256(json.dumps({**rules, "clips": content}, sort_keys=True).encode()).hexdigest()
        skipped = _unreadable(part, content)
        clips = tuple(clip for clip in part.clips if clip.name not in skipped)
        found.append(Fold(number, clips, tuple(index[clip.label] for clip in clips), key, skipped))
    return tuple(found)


def plan(fold: Fold, config: DistillConfig, changes: WaveConfig, view: int) -> list[View]:
    """Return view number ``view`` of every clip of ``fold``; all chance follows from ``fold.key`` and ``view``."""
    n = len(fold.clips)
    if view == 0:
        return [View(clip) for clip in range(n)]
    seed = int.from_bytes(hashlib.sha256(f"{fold.key} {view}".encode()).digest()[:7])
    generator = torch.Generator().manual_seed(seed)
    cut = replace(changes, clip_s=1.0)  # where a clip is longer than the window, the place is drawn
    own, of_partner = waves.decide(cut, n, generator), waves.decide(cut, n, generator)
    drawn = np.random.default_rng(seed)
    partners = drawn.permutation(n).tolist()
    shares = drawn.beta(config.mix_alpha, config.mix_alpha, n).tolist()
    mixed = (drawn.random(n) < config.mix).tolist()
    return [
        View(i, own[i], partners[i], of_partner[i], shares[i] if mixed[i] and partners[i] != i else 1.0)
        for i in range(n)
    ]


def soft_labels(views: Sequence[View], targets: Sequence[int], n_labels: int) -> Array:
    """Return ``(n, n_labels)`` float32: of each view, how much of which label is in it."""
    shares = np.zeros((len(views), n_labels), dtype=np.float32)
    for row, view in enumerate(views):
        shares[row, targets[view.clip]] += view.share
        shares[row, targets[view.partner]] += 1.0 - view.share
    return shares


def render(view: View, read: Recordings, window_s: float, sample_rate: int = RENDER_RATE) -> Array:
    """Return the samples of one view at ``sample_rate``: ``(window_s * sample_rate,)``.

    Raises:
        AudioError: a clip cannot be read.
    """
    size = round(window_s * sample_rate)

    def changed(clip: int, change: waves.WaveChange) -> Array:
        samples = read(clip, sample_rate)
        return waves.apply(samples, change, window_samples=size, sample_rate=sample_rate)

    wave = changed(view.clip, view.change)
    return wave if view.share == 1.0 else mix(wave, changed(view.partner, view.partner_change), view.share)


def mix(wave: Array, other: Array, share: float) -> Array:
    """Return both ``(n,)`` in one, ``share`` of the first in amplitude, at the power of the first."""
    own, its = (max(1e-12, float(np.mean(np.square(one, dtype=np.float64)))) for one in (wave, other))
    match = min(31.6, max(0.0316, (own / its) ** 0.5))  # 30 dB either way: a whisper stays one
    norm = (share**2 + (1 - share) ** 2) ** 0.5
    return (np.float32(share / norm) * wave + np.float32((1 - share) * match / norm) * other).astype(
        np.float32
    )


def block_path(consumer: Consumer, fold: Fold, view: int) -> Path:
    """Return where the block of a consumer, a fold and a view is, or will be."""
    name = hashlib.sha256(f"{consumer.key} {fold.key}".encode()).hexdigest()[:32]
    return storage.cache_dir() / "views" / name / f"{view:04d}.npy"


def open_block(consumer: Consumer, fold: Fold, view: int) -> npt.NDArray[Any] | None:
    """Return the memory-mapped rows ``(n_clips, *consumer.row)`` of a block, None where it is not there or damaged."""
    try:
        rows = np.load(block_path(consumer, fold, view), mmap_mode="r", allow_pickle=False)
    except Exception:  # a damaged header makes np.load raise almost anything
        return None
    whole = rows.shape == (len(fold.clips), *consumer.row) and rows.dtype == consumer.dtype
    return rows if whole else None


def missing(consumers: Sequence[Consumer], folds: Sequence[Fold], views: int) -> list[tuple[Fold, int]]:
    """Return the folds and views of which some consumer has no block yet, fold after fold."""
    return missing_of(consumers, [(fold, view) for fold in folds for view in range(views)])


def missing_of(consumers: Sequence[Consumer], wanted: Sequence[tuple[Fold, int]]) -> list[tuple[Fold, int]]:
    """Return those of ``wanted`` of which some consumer has no block yet."""
    return [one for one in wanted if any(open_block(consumer, *one) is None for consumer in consumers)]


def build(
    consumers: Sequence[Consumer],
    wanted: Sequence[tuple[Fold, int]],
    preset: Preset,
    *,
    on_view: Callable[[int], None] | None = None,
) -> None:
    """Write the blocks that are missing; what a killed call has finished is kept, and the next one goes on.

    Args:
        consumers: who hears each view; it is made once for all of them.
        wanted: folds and views (`missing`).
        preset: sections ``waves``, ``window`` and ``distill``.
        on_view: called with how many more views are done.

    Raises:
        AudioError: a clip cannot be read any more.
        StorageError: the cache cannot be written.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        read = Recordings(())
        for fold, view in wanted:
            if read.clips is not fold.clips:
                read = Recordings(fold.clips)
            todo = [consumer for consumer in consumers if open_block(consumer, fold, view) is None]
            views = plan(fold, preset.distill, preset.waves, view)
            with ExitStack() as stack:
                files = [stack.enter_context(_Block(consumer, fold, view)) for consumer in todo]
                for first in range(0, len(views), CHUNK):
                    some = views[first : first + CHUNK]
                    for file, samples in _heard(some, read, preset, files, pool):
                        file.add(samples)
                    if on_view:
                        on_view(len(some))


def _heard(
    some: Sequence[View], read: Recordings, preset: Preset, files: Sequence[_Block], pool: ThreadPoolExecutor
) -> Iterator[tuple[_Block, Array]]:
    """Yield for every file the samples ``(n, n_samples)`` of ``some`` views, at its consumer's rate."""
    seconds, at_rate = preset.window.window_s, dict[int, Array]()
    plain = all(view == View(view.clip) for view in some)
    made: Array | None = None
    for file in files:
        rate = file.consumer.sample_rate
        if rate not in at_rate and plain:  # as the classifier hears it
            at_rate[rate] = np.stack([*pool.map(lambda view: render(view, read, seconds, rate), some)])  # noqa: B023
        elif rate not in at_rate:
            if made is None:
                made = np.stack([*pool.map(lambda view: render(view, read, seconds), some)])
            at_rate[rate] = np.stack([*pool.map(lambda wave: at(wave, rate, seconds), made)])  # noqa: B023
        yield file, at_rate[rate]


def at(wave: Array, sample_rate: int, seconds: float) -> Array:
    """Return ``wave`` (n,) at `RENDER_RATE` as ``seconds`` of samples at ``sample_rate``."""
    if sample_rate == RENDER_RATE:
        return wave
    size = round(seconds * sample_rate)
    lower = np.asarray(soxr.resample(wave, RENDER_RATE, sample_rate, quality="HQ"), dtype=np.float32)[:size]
    return np.pad(lower, (0, size - len(lower)))


class _Block:
    """A block that is being written, row after row; it takes its name when it is whole."""

    def __init__(self, consumer: Consumer, fold: Fold, view: int) -> None:
        self.consumer = consumer
        self._left, self._path = len(fold.clips), block_path(consumer, fold, view)
        self._shape = (len(fold.clips), *consumer.row)
        self._stack = ExitStack()

    def __enter__(self) -> _Block:
        size = int(np.prod(self._shape)) * self.consumer.dtype.itemsize
        try:
            self._file = self._stack.enter_context(storage.writing(self._path, size=size))
        except StorageError as error:
            raise StorageError(
                error.saw, wanted=error.wanted, cause="set SOUNDMARK_CACHE to a folder on another disk"
            ) from None
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self.consumer.dtype.str, "fortran_order": False, "shape": self._shape}
        )
        return self

    def __exit__(self, *exc_info: object) -> bool | None:
        assert exc_info[0] is not None or not self._left
        return self._stack.__exit__(*exc_info)  # type: ignore[arg-type]

    def add(self, samples: Array) -> None:
        rows = self.consumer(samples)
        assert rows.shape[1:] == self.consumer.row
        assert rows.dtype == self.consumer.dtype
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self._left -= len(rows)


def _unreadable(part: Dataset, content: str) -> dict[str, str]:
    """Return clip name -> error code of the clips of one fold that cannot be read; kept beside the blocks."""
    path = storage.cache_dir() / "views" / f"{content[:32]}-unreadable.json"
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return {str(name): str(code) for name, code in found.items()}
    except (OSError, ValueError):
        pass

    def code(clip: Clip) -> str:
        try:
            audio.load(clip.path, sample_rate=RENDER_RATE)
        except AudioError as error:
            if error.code in NOT_THE_CONTENT:
                raise
            return error.code
        return ""

    with ThreadPoolExecutor() as pool:
        codes = pool.map(code, part.clips)
        skipped = {clip.name: code for clip, code in zip(part.clips, codes, strict=True) if code}
    storage.write_bytes(path, json.dumps(skipped, indent=1).encode())
    return skipped
