"""Recordings of any accepted kind as mono float32 at the asked rate, in blocks or whole, and fixed windows of them.

One road for paths, bytes, file objects, stdin and arrays: decode (or slice) `BLOCK_FRAMES` frames, check them,
average the channels, resample with one stateful soxr HQ stream. `load` is `Reader` to the end, so that a stream and
a file give the same samples. The block size is one constant because damaged Ogg decodes differently by block size
(measured: RELIABILITY, section 2). On damaged MP3, libmpg123 writes lines to stderr from C; they are left alone,
because redirecting a descriptor of the whole process is not safe with threads.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from soundmark.config import AudioLimits
from soundmark.containers import ACCEPTED, AUDIO_SUFFIXES, SUFFIXES, Input, inspect
from soundmark.errors import AudioError, ConfigError

Samples: TypeAlias = npt.NDArray[np.float32]
Source: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | tuple[npt.NDArray[Any], int]
    | npt.NDArray[Any]
)
"""What can be read; ``"-"`` is stdin, arrays are ``(samples, sample_rate)`` of shape (n,) or (n, channels)."""

BLOCK_FRAMES = 65_536
"""Frames decoded at once, everywhere."""

SPOOL_LIMIT_BYTES = 4 << 30  # read from a pipe when AudioLimits.max_bytes is None
IN_MEMORY_BYTES = 16 << 20  # smaller files are read once and decoded from memory
MAX_ABSOLUTE = 1e3  # beyond +60 dBFS the samples are integers in float clothing, or garbage
SILENT_PEAK = 1e-4  # -80 dBFS
MAX_DC = 0.05  # of full scale
CLIPPED_SHARE = 0.01  # of all samples, in runs of three or more on the extreme value
CLIPPED_LEVEL = 0.25  # extremes below are quiet sounds with few steps, not clipping
OVER_FULL_SCALE = {"VORBIS": 1.5, "OPUS": 1.5, "MPEG_LAYER_III": 1.5}  # lossy decoders overshoot
MAX_DENSITY = 8192  # samples per byte that a compressed stream can hold; more is a lying header
FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC", "OGG", "MP3"})
COARSE = frozenset({"PCM_U8", "PCM_S8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"})
SUBTYPES = COARSE | {"PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_III"}
FAULTS = frozenset({"truncated", "header_length_wrong", "length_unknown", "extension_mismatch", "chained"})
"""Flags that ``strict`` turns into `corrupt_audio`."""


@dataclass(frozen=True, slots=True)
class Audio:
    """A recording as mono float32, and what was found on the way."""

    samples: Samples  # (n_samples,) mono at sample_rate
    sample_rate: int  # Hz, as asked for
    source_rate: int  # Hz, as recorded
    channels: int  # as recorded
    duration_s: float  # decoded seconds of the source
    flags: tuple[str, ...]  # sorted, from errors.FLAGS
    container: str  # for example "WAV/PCM_16", or "array"


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A `SoundFile` read strictly forwards: soundfile seeks after each read of a seekable file, which re-reads Ogg."""

    def seekable(self) -> bool:
        return False


class _Checks:
    """Mono blocks out of decoded blocks, with running quality checks."""

    def __init__(self, name: str, subtype: str) -> None:
        self.name = name
        self.full_scale = OVER_FULL_SCALE.get(subtype, 1.01)
        self.clip_level = 0.98 if subtype in COARSE else CLIPPED_LEVEL
        self.frames, self.values = 0, 0
        self.low, self.high = np.inf, -np.inf  # of all channels
        self.mono_low, self.mono_high = np.inf, -np.inf
        self.total, self.mono_energy, self.channel_energy = 0.0, 0.0, 0.0
        self.at_low, self.at_high = 0, 0  # samples in runs on the lowest and highest value
        self.channels = 1

    def see(self, block: Samples) -> Samples:
        """Return the mean over channels of ``block`` (n, channels); `AudioError` for unusable values."""
        low, high = float(block.min()), float(block.max())
        if not (low >= -MAX_ABSOLUTE and high <= MAX_ABSOLUTE):
            self._refuse(block)
        if low <= min(self.low, -self.clip_level):
            self.at_low = (self.at_low if low == self.low else 0) + _in_runs(block == np.float32(low))
        if high >= max(self.high, self.clip_level):
            self.at_high = (self.at_high if high == self.high else 0) + _in_runs(block == np.float32(high))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.channels = block.shape[1]
        self.values += block.size
        mono: Samples = block[:, 0]
        if self.channels > 1:
            mono = block[:, 0] + block[:, 1]
            for channel in range(2, self.channels):
                mono += block[:, channel]
            mono *= np.float32(1 / self.channels)
            flat = block.reshape(-1)
            self.channel_energy += float(np.dot(flat, flat)) / self.channels
            self.mono_energy += float(np.dot(mono, mono))
            low, high = float(mono.min()), float(mono.max())
        self.mono_low, self.mono_high = min(self.mono_low, low), max(self.mono_high, high)
        self.total += float(mono.sum())
        self.frames += len(mono)
        return mono

    def _refuse(self, block: Samples) -> None:
        bad = ~np.isfinite(block)
        if bad.any():
            row = self.frames + int(np.argmax(bad.any(axis=1)))
            raise AudioError(
                f"{self.name}: NaN or infinity at sample {row}",
                wanted="finite samples",
                code="nonfinite_samples",
            )
        raise AudioError(
            f"{self.name}: a sample of {float(np.abs(block).max()):.3g}",
            wanted="samples within -1 ... 1",
            cause="integers stored as float without dividing by full scale",
            code="sample_out_of_range",
        )

    def flags(self) -> set[str]:
        """Return the quality flags of everything seen."""
        found = set()
        if (self.mono_high - self.mono_low) / 2 < SILENT_PEAK:
            found.add("silent")
        if abs(self.total) > MAX_DC * self.frames:
            found.add("dc_offset")
        if max(self.high, -self.low) > self.full_scale:
            found.add("over_full_scale")
        if self.low < self.high and self.at_low + self.at_high >= CLIPPED_SHARE * self.values:
            found.add("clipped")
        # n unrelated channels leave 1/n of the energy of one in the mean; far less is cancellation
        if self.channel_energy > self.frames * SILENT_PEAK**2:
            if self.mono_energy * self.channels < 0.05 * self.channel_energy:
                found.add("downmix_cancelled")
        return found


def _in_runs(at: npt.NDArray[np.bool_]) -> int:
    """Return how many values lie in runs of at least three along axis 0, a run counted as its length - 2."""
    return int(np.count_nonzero(at[2:] & at[1:-1] & at[:-2]))


class Reader:
    """Mono float32 blocks of a recording at ``sample_rate``, in bounded memory, for recordings of any length.

    Args:
        source: see `Source`.
        sample_rate: Hz of the blocks.
        limits: what is accepted; ``max_seconds`` holds here too, pass a larger one for long streams.
        strict: refuse what is cut or does not agree with its header or name (`FAULTS`) instead of flagging it.
        array_rate: Hz of ``source`` if it is a bare array.

    Iterate once; ``flags`` and ``duration_s`` are complete afterwards. Closes itself at the end and in ``with``.

    Raises:
        AudioError: with a code of `AUDIO_CODES`, from the constructor (the way to the file, its header) or while
            iterating (its samples).
        ConfigError: the arguments make no sense.
    """

    source_rate: int
    channels: int
    container: str

    def __init__(
        self,
        source: Source,
        *,
        sample_rate: int,
        limits: AudioLimits = AudioLimits(),  # noqa: B008 - frozen
        strict: bool = False,
        array_rate: int | None = None,
    ) -> None:
        if _whole(sample_rate) < 1:
            raise ConfigError(f"sample_rate {sample_rate!r}", wanted="a positive whole number of Hz")
        self.sample_rate, self.limits, self.strict = int(sample_rate), limits, strict
        self._found: set[str] = set()
        self._promised: int | None = None
        self._input: Input | None = None
        self._file: soundfile.SoundFile | None = None
        self._array: npt.NDArray[Any] | None = None
        self._failure: str | None = None
        try:
            if isinstance(source, (tuple, np.ndarray)):
                self._open_array(source, array_rate)
            else:
                self._open_file(source)
            self._check_header()
            self._resampler = self._make_resampler()
        except BaseException as error:
            self.close()
            if isinstance(error, MemoryError):
                raise self._error("does not fit in memory", "file_too_large") from None
            raise
        self._checks = _Checks(self._name, self.container.rpartition("/")[2])
        self._blocks = self._run()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Samples]:
        return self._blocks

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags found so far, sorted; complete when all blocks were taken."""
        return tuple(sorted(self._found))

    @property
    def duration_s(self) -> float:
        """Seconds of the source decoded so far."""
        return self._checks.frames / self.source_rate

    def close(self) -> None:
        """Let go of the file; also done at the end of the blocks."""
        if self._file is not None:
            try:
                self._file.close()
            except soundfile.SoundFileError:  # nothing was written, so nothing is lost
                pass
            self._file = None
        if self._input is not None:
            self._input.close()

    def _error(
        self, saw: str, code: str, *, wanted: str = "an intact recording", cause: str = ""
    ) -> AudioError:
        return AudioError(f"{self._name}: {saw}", wanted=wanted, cause=cause, code=code)

    def _open_array(self, source: Any, array_rate: int | None) -> None:
        samples, rate = source if isinstance(source, tuple) and len(source) == 2 else (source, array_rate)
        kind = samples.dtype.kind if isinstance(samples, np.ndarray) else ""
        if (
            not kind
            or kind not in "fiu"
            or (kind in "iu" and samples.dtype.itemsize > 4)
            or samples.ndim not in (1, 2)
        ):
            what = f"{samples.dtype} of shape {samples.shape}" if kind else type(samples).__name__
            raise ConfigError(
                f"an array source with {what}", wanted="float or 8- to 32-bit integers, (n,) or (n, channels)"
            )
        if _whole(rate) < 0:
            raise ConfigError(
                f"an array with sample rate {rate!r}", wanted="(samples, sample_rate), or array_rate="
            )
        self._name, self.container, self.source_rate = (
            f"array of shape {samples.shape}",
            "array",
            _whole(rate),
        )
        self._array = samples[:, np.newaxis] if samples.ndim == 1 else samples
        self._promised, self.channels = self._array.shape
        if self.channels > self.limits.max_channels and self.channels > self._promised:
            raise self._error(
                f"{self.channels} channels", "unsupported_channels", cause="(channels, n): transpose it"
            )

    def _open_file(self, source: Any) -> None:
        self._input = data = open_input(source, self.limits.max_bytes)
        self._name = data.name
        header = inspect(data)
        self._found |= header.flags
        self.source_rate, self.channels, self.container = (
            header.sample_rate or 0,
            header.channels or 0,
            header.kind,
        )
        if header.sample_rate is not None:
            self._check_limits()
        try:
            self._file = file = _Stream(data)
        except (soundfile.SoundFileError, ValueError, TypeError, OverflowError) as error:
            reason = str(getattr(error, "error_string", error))
            code = (
                "unsupported_format" if "encoding" in reason or "nimplemented" in reason else "corrupt_header"
            )
            raise self._error(f"{header.kind} that cannot be opened: {reason}", code) from None
        self.source_rate, self.channels = file.samplerate, file.channels
        self.container = f"{file.format}/{file.subtype}"
        if file.format not in FORMATS or file.subtype not in SUBTYPES:
            raise self._error(self.container, "unsupported_format", wanted=ACCEPTED)
        trusted = header.frames if header.frames is not None else file.frames
        self._promised = None if "length_unknown" in header.flags and header.kind == "FLAC" else trusted
        suffix = os.path.splitext(data.path)[1].lower()
        if suffix in AUDIO_SUFFIXES and suffix not in SUFFIXES[header.kind]:
            self._found.add("extension_mismatch")
        if self._promised is not None and self._promised > MAX_DENSITY * data.size:
            self._found.add("header_length_wrong")
            self._promised = None

    def _check_limits(self) -> None:
        limits = self.limits
        if not limits.min_sample_rate <= self.source_rate <= limits.max_sample_rate:
            wanted = f"{limits.min_sample_rate} to {limits.max_sample_rate} Hz"
            raise self._error(f"sample rate {self.source_rate} Hz", "unsupported_sample_rate", wanted=wanted)
        if not 1 <= self.channels <= limits.max_channels:
            wanted = f"1 to {limits.max_channels}"
            raise self._error(f"{self.channels} channels", "unsupported_channels", wanted=wanted)

    def _check_header(self) -> None:
        """Refuse by limits; a promised length is believed only where the file could hold it."""
        self._check_limits()
        if self._promised is not None and self._promised > self.limits.max_seconds * self.source_rate:
            raise self._too_long(self._promised)

    def _too_long(self, frames: int) -> AudioError:
        wanted = f"at most {self.limits.max_seconds:g} s"
        return self._error(f"{frames / self.source_rate:.1f} s or more", "too_long", wanted=wanted)

    def _make_resampler(self) -> soxr.ResampleStream | None:
        if self.source_rate == self.sample_rate:
            return None
        try:
            return soxr.ResampleStream(self.source_rate, self.sample_rate, 1, dtype="float32", quality="HQ")
        except (ValueError, RuntimeError) as error:
            saw = f"{self.source_rate} Hz, not convertible to {self.sample_rate} Hz: {error}"
            raise self._error(saw, "unsupported_sample_rate") from None

    def _run(self) -> Iterator[Samples]:
        """Yield the blocks; then finish the resampler, so that their lengths sum to round(n * to / from)."""
        given = 0
        try:
            for block in self._decode():
                mono = self._checks.see(block)
                if self._checks.frames > self.limits.max_seconds * self.source_rate:
                    raise self._too_long(self._checks.frames)
                if self._resampler is not None:
                    mono = self._resampler.resample_chunk(mono)
                given += len(mono)
                if len(mono):
                    yield mono
            self._finish()
            if self._resampler is not None:
                left = round(Fraction(self._checks.frames * self.sample_rate, self.source_rate)) - given
                tail = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)[: max(left, 0)]
                if left > 0:
                    yield np.pad(tail, (0, left - len(tail)))
        except MemoryError:
            raise self._error("does not fit in memory", "file_too_large") from None
        finally:
            self.close()

    def _decode(self) -> Iterator[Samples]:
        """Yield float32 blocks (n, channels), each freshly allocated."""
        if self._array is not None:
            for start in range(0, len(self._array), BLOCK_FRAMES):
                yield _float_block(self._array[start : start + BLOCK_FRAMES])
            return
        file, subtype = self._file, self.container.rpartition("/")[2]
        shape = (BLOCK_FRAMES, self.channels)
        if subtype == "PCM_16" and not self.container.startswith(
            "FLAC"
        ):  # as libsndfile scales, but vectorised
            buffer = np.empty(shape, np.int16)
            while self._failure is None and (count := self._read(file, buffer)):
                yield np.multiply(buffer[:count], np.float32(1 / 32768), dtype=np.float32)
            return
        while self._failure is None:
            block = np.full(shape, np.nan, np.float32)  # what a failing read leaves untouched stays NaN
            count = self._read(file, block)
            if not count:
                return
            yield _flushed(block[:count])

    def _read(self, file: Any, buffer: npt.NDArray[Any]) -> int:
        """Return how many good frames are in ``buffer``; sets ``_failure`` where the decoder gave up."""
        try:
            return len(file.read(out=buffer))
        except (soundfile.SoundFileError, ValueError, OverflowError) as error:
            self._failure = str(getattr(error, "error_string", error))
            if buffer.dtype != np.float32:
                return 0
            unread = np.isnan(buffer[:, -1])
            return int(np.argmax(unread)) if unread.any() else len(buffer)

    def _finish(self) -> None:
        """Judge the whole: lengths against the header, then quality; raises where nothing useful came out."""
        frames, found = self._checks.frames, self._found
        if self._input is not None and self._input.error is not None:
            raise self._error(f"reading failed: {self._input.error!r}", "io_error")
        if self._failure is not None and frames == 0:
            raise self._error(f"no sound could be decoded: {self._failure}", "corrupt_audio")
        if frames == 0:
            raise self._error("no samples", "no_audio", wanted="a recording with sound in it")
        if frames < self.limits.min_seconds * self.source_rate:
            wanted = f"at least {self.limits.min_seconds:g} s"
            raise self._error(f"{frames} samples at {self.source_rate} Hz", "too_short", wanted=wanted)
        slack = 4096 if self.container.startswith("MP3") else 0  # encoder delay and padding
        if self._failure is not None or (self._promised or 0) - slack > frames:
            found.add("truncated")
        elif self._promised is not None and frames > self._promised + slack and "truncated" not in found:
            found.add("header_length_wrong")
        found |= self._checks.flags()
        if self.strict and found & FAULTS:
            raise self._error(
                ", ".join(sorted(found & FAULTS)), "corrupt_audio", cause="refused because of strict"
            )


def _whole(rate: Any) -> int:
    """Return a sample rate as int, -1 if it is no whole number."""
    try:
        return int(rate) if not isinstance(rate, (bool, str)) and int(rate) == rate else -1
    except (TypeError, ValueError, OverflowError):
        return -1


def _float_block(block: npt.NDArray[Any]) -> Samples:
    """Return a new float32 copy; integers are scaled to [-1, 1)."""
    if block.dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return _flushed(block.astype(np.float32, order="C"))
    half = 1 << (8 * block.dtype.itemsize - 1)
    if block.dtype.itemsize < 4:
        middle = half if block.dtype.kind == "u" else 0
        scaled = (block.astype(np.float32, order="C") - np.float32(middle)) * np.float32(1 / half)
    else:
        scaled = (block.astype(np.float64, order="C") - (half if block.dtype.kind == "u" else 0)) / half
    return scaled.astype(np.float32, copy=False)


def _flushed(block: Samples) -> Samples:
    """Set denormal numbers to 0 in place: they are inaudible and slow every later step."""
    block[np.abs(block) < np.finfo(np.float32).tiny] = 0
    return block


def load(
    source: Source,
    *,
    sample_rate: int,
    limits: AudioLimits = AudioLimits(),  # noqa: B008 - frozen
    strict: bool = False,
    array_rate: int | None = None,
) -> Audio:
    """Return the whole recording as mono float32 at ``sample_rate``: all blocks of `Reader`, whose arguments it has.

    Raises:
        AudioError: with a code of `AUDIO_CODES`.
        ConfigError: the arguments make no sense.
    """
    with Reader(
        source, sample_rate=sample_rate, limits=limits, strict=strict, array_rate=array_rate
    ) as reader:
        try:
            blocks = list(reader)
            samples = (
                blocks[0]
                if len(blocks) == 1
                else np.concatenate(blocks)
                if blocks
                else np.zeros(0, np.float32)
            )
        except MemoryError:
            raise reader._error("does not fit in memory", "file_too_large") from None
        return Audio(
            samples,
            reader.sample_rate,
            reader.source_rate,
            reader.channels,
            reader.duration_s,
            reader.flags,
            reader.container,
        )


def windows(samples: Samples, *, window_samples: int, hop_samples: int) -> Samples:
    """Return ``samples`` cut into windows, (n_windows, window_samples) float32, read-only where no copy was needed.

    Window k starts at ``k * hop_samples`` and is kept if k is 0 or at least half of it holds samples; the rest of it
    is zeros.

    Raises:
        ConfigError: not one-dimensional, or a length below 1.
    """
    if samples.ndim != 1 or window_samples < 1 or hop_samples < 1:
        saw = f"shape {samples.shape}, window_samples {window_samples}, hop_samples {hop_samples}"
        raise ConfigError(saw, wanted="shape (n,) and lengths of at least 1")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    n = len(samples)
    count = max(1, (n - -(-window_samples // 2)) // hop_samples + 1)
    needed = (count - 1) * hop_samples + window_samples
    if needed > n:
        samples = np.pad(samples, (0, needed - n))
    strides = (hop_samples * samples.itemsize, samples.itemsize)
    return np.lib.stride_tricks.as_strided(samples, (count, window_samples), strides, writeable=False)


@dataclass(frozen=True, slots=True)
class Found:
    """One path of a scan; with ``error`` it is not to be opened, and becomes a row."""

    path: Path
    error: AudioError | None = None


def scan(
    paths: Iterable[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    patterns: tuple[str, ...] = AUDIO_SUFFIXES,
) -> Iterator[Found]:
    """Yield the recordings under ``paths``, each file once (by device and inode), sorted within folders.

    Files are taken as they are, even when missing (`load` then says so); folders are walked for the endings in
    ``patterns``, without ``._*`` (macOS metadata); other names with ``* ? [`` are glob patterns (``**`` recurses).
    Links out of the folder, or out of ``root`` where given, are `outside_root`; loops end.
    """
    seen: set[tuple[int, int]] = set()
    for path in map(os.fspath, paths):
        found = (
            [path]
            if os.path.lexists(path) or not glob.has_magic(path)
            else sorted(glob.glob(path, recursive=True))
        )
        for one in found or [path]:
            fence = os.path.realpath(root if root is not None else one)
            if os.path.isdir(one) and (root is None or _inside(one, fence)):
                yield from _walk(one, fence, patterns, seen)
            else:
                yield from _one(one, fence if root is not None else None, seen, listed=True)


def _inside(path: str, fence: str) -> bool:
    real = os.path.realpath(path)
    return real == fence or real.startswith(fence.rstrip(os.sep) + os.sep)


def _walk(folder: str, fence: str, patterns: tuple[str, ...], seen: set[tuple[int, int]]) -> Iterator[Found]:
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield Found(Path(folder), path_error(repr(folder), error))
        return
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            if _inside(path, fence):
                yield from _walk(path, fence, patterns, seen)
            else:
                yield Found(Path(path), _outside(path))
        elif name.lower().endswith(patterns) and not name.startswith("._"):
            yield from _one(path, fence, seen, listed=False)


def _one(path: str, fence: str | None, seen: set[tuple[int, int]], *, listed: bool) -> Iterator[Found]:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        failed = isinstance(error, OSError) and not listed
        yield Found(Path(path), path_error(repr(path), error) if failed else None)  # type: ignore[arg-type]
        return
    if fence is not None and not _inside(path, fence):
        yield Found(Path(path), _outside(path))
    elif not listed and not stat.S_ISREG(status.st_mode):
        yield Found(Path(path), AudioError(f"{path!r}: not a regular file", code="not_regular_file"))
    elif (status.st_dev, status.st_ino) not in seen:
        seen.add((status.st_dev, status.st_ino))
        yield Found(Path(path))


def _outside(path: str) -> AudioError:
    return AudioError(f"{path!r}: leads out of the folder", wanted="files inside it", code="outside_root")


def open_input(source: Any, max_bytes: int | None) -> Input:
    """Return the opened source: path, ``-`` for stdin, bytes-like or binary file object (from its current position).

    Paths are opened once, without blocking, and checked on the descriptor, so that FIFOs and devices neither hang
    nor are raced. Pipes are spooled.

    Raises:
        AudioError: ``not_found``, ``not_regular_file``, ``symlink_loop``, ``permission_denied``, ``io_error``,
            ``file_too_large``, ``empty_file``.
        ConfigError: the source is of no accepted type.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(source)
        view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        opened = Input(f"audio of {len(view)} bytes", len(view), view, None, False)
    elif isinstance(source, (str, os.PathLike)) and source != "-":
        opened = _open_path(os.fsdecode(source))
    elif source == "-" or hasattr(source, "read"):
        opened = _open_file(sys.stdin.buffer if isinstance(source, str) else source, max_bytes)
    else:
        raise ConfigError(
            f"a source of type {type(source).__name__}",
            wanted="a path, '-', bytes, a binary file object or (samples, sample_rate)",
        )
    if max_bytes is not None and opened.size > max_bytes:
        opened.close()
        raise AudioError(
            f"{opened.name}: {opened.size} bytes", wanted=f"at most {max_bytes}", code="file_too_large"
        )
    if opened.size <= 0:
        opened.close()
        raise AudioError(f"{opened.name}: 0 bytes", wanted=ACCEPTED, code="empty_file")
    if opened.file is not None and opened.size <= IN_MEMORY_BYTES:
        data, path = opened.peek(0, opened.size), opened.path
        if opened.error is not None:
            opened.close()
            raise AudioError(f"{opened.name}: {opened.error!r}", code="io_error")
        opened.close()
        opened = Input(opened.name, len(data), memoryview(data), None, False, path)
    return opened


def _open_path(path: str) -> Input:
    name = repr(path)
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0)
    )
    try:
        descriptor = os.open(path, flags)
    except ValueError:  # NUL byte, or characters that the file system encoding lacks
        raise AudioError(f"{name}: no such file", wanted="a path to a recording", code="not_found") from None
    except OSError as error:
        raise path_error(name, error) from None
    file = os.fdopen(descriptor, "rb", buffering=0, closefd=True) if _is_regular(descriptor) else None
    if file is None:
        os.close(descriptor)
        raise AudioError(f"{name}: not a regular file", wanted="a recording", code="not_regular_file")
    return Input(name, os.fstat(descriptor).st_size, None, file, True, path)


def path_error(name: str, error: OSError) -> AudioError:
    """Return the `AudioError` for an `OSError` on the way to a file."""
    missing = dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG), "not_found")
    denied = dict.fromkeys((errno.EACCES, errno.EPERM), "permission_denied")
    special = dict.fromkeys((errno.ENXIO, errno.ENODEV, errno.EISDIR), "not_regular_file")
    codes = {**missing, **denied, **special, errno.ELOOP: "symlink_loop"}
    code = codes.get(error.errno or 0, "io_error")
    return AudioError(
        f"{name}: {error.strerror or type(error).__name__}", wanted="a readable recording", code=code
    )


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _open_file(file: IO[bytes], max_bytes: int | None) -> Input:
    name = repr(getattr(file, "name", None) or type(file).__name__)
    limit = SPOOL_LIMIT_BYTES if max_bytes is None else max_bytes
    try:
        if getattr(file, "seekable", lambda: False)():
            start = file.tell()
            opened = Input(name, file.seek(0, os.SEEK_END), None, file, False)
            opened.base = start
            return opened
        spool = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - Input closes it
        while chunk := file.read(1 << 20):
            spool.write(chunk)
            if spool.tell() > limit:
                spool.close()
                raise AudioError(
                    f"{name}: over {limit} bytes", wanted=f"at most {limit}", code="file_too_large"
                )
        return Input(name, spool.tell(), None, spool, True)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{name} gives text", wanted="a file object opened in binary mode") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{name}: {error!r}", wanted="a readable recording", code="io_error") from None
