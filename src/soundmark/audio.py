"""Recordings as mono float32 at the asked rate, in blocks or whole, and fixed windows of them.

One road for paths, bytes, file objects, stdin and arrays: decode (or slice) `BLOCK_FRAMES` frames, check
them, average the channels, resample with one stateful soxr HQ stream. `load` is `Reader` to its end, so that
a stream and a file give the same samples.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from soundmark.config import AudioLimits
from soundmark.containers import AUDIO_SUFFIXES, SUFFIXES, inspect
from soundmark.decoding import BLOCK_FRAMES, Samples, Stream, framed, sliced
from soundmark.errors import AudioError, ConfigError
from soundmark.inputs import ACCEPTED, Input, open_input
from soundmark.quality import Quality

Array: TypeAlias = npt.NDArray[Any]
Binary: TypeAlias = bytes | bytearray | memoryview | BinaryIO
Source: TypeAlias = str | os.PathLike[str] | Binary | tuple[Array, int] | Array
"""What can be read; ``"-"`` is stdin, arrays are ``(samples, sample_rate)``, (n,) or (n, channels)."""

PREALLOCATED = 4 << 20  # samples that a header is believed for; more grows as it comes
MAX_DENSITY = 8192  # samples per byte that a compressed stream can hold; more is a lying header
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


class Reader:
    """Mono float32 blocks of a recording at ``sample_rate``, in bounded memory, for recordings of any length.

    Args:
        source: see `Source`.
        sample_rate: Hz of the blocks.
        limits: what is accepted; ``max_seconds`` holds here too, pass a larger one for long streams.
        strict: refuse what is cut or disagrees with its header or name (`FAULTS`) instead of flagging it.
        array_rate: Hz of ``source`` if it is a bare array.

    Iterate once; ``flags`` and ``duration_s`` are complete afterwards. Closes itself at its end.

    Raises:
        AudioError: with a code of `AUDIO_CODES`, from the constructor (the way to the file, its header) or
            while iterating (its samples).
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
        self._name = f"a source of type {type(source).__name__}"
        self._found: set[str] = set()
        self._promised: int | None = None
        self._input: Input | None = None
        self._file: Stream | None = None
        self._array: Array | None = None
        self._out = np.empty(0, np.float32)  # the whole, where it is wanted
        try:
            if isinstance(source, (tuple, np.ndarray)):
                self._open_array(source, array_rate)
            else:
                self._open_file(source)
            self._check_limits()
            self._resampler = self._make_resampler()
        except BaseException as error:
            self.close()
            if isinstance(error, MemoryError):
                raise self._error("does not fit in memory", "file_too_large") from None
            raise
        self._checks = Quality(self._name, self.container.rpartition("/")[2])
        self._blocks = self._run()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Samples]:
        for block in self._blocks:
            yield block if block.base is None else block.copy()

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
            with contextlib.suppress(soundfile.SoundFileError):  # nothing was written, so nothing is lost
                self._file.close()
            self._file = None
        if self._input is not None:
            self._input.close()

    def _error(
        self, saw: str, code: str, *, wanted: str = "an intact recording", cause: str = ""
    ) -> AudioError:
        return AudioError(f"{self._name}: {saw}", wanted=wanted, cause=cause, code=code)

    def _open_array(self, source: Any, array_rate: int | None) -> None:
        pair = isinstance(source, tuple) and len(source) == 2
        samples, rate = source if pair else (source, array_rate)
        self._array = framed(samples)
        if _whole(rate) < 0:
            wanted = "(samples, sample_rate), or array_rate="
            raise ConfigError(f"an array with sample rate {rate!r}", wanted=wanted)
        self._name, self.container = f"array of shape {samples.shape}", "array"
        self.source_rate = _whole(rate)
        self._promised, self.channels = self._array.shape

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
            self._file = file = Stream(data)
        except (soundfile.SoundFileError, ValueError, TypeError, OverflowError) as error:
            reason = str(getattr(error, "error_string", error))
            code = "unsupported_format" if "encoding" in reason and header.kind != "OGG" else "corrupt_header"
            raise self._error(f"a damaged {header.kind} header", code, wanted=ACCEPTED) from None
        self.source_rate, self.channels = file.samplerate, file.channels
        self.container = file.container
        if not file.supported:
            raise self._error(self.container, "unsupported_format", wanted=ACCEPTED)
        self._promised = file.frames if header.frames is None else header.frames
        if self._promised > MAX_DENSITY * data.size:
            self._promised = None
            if "length_unknown" not in header.flags:
                self._found.add("header_length_wrong")
        suffix = os.path.splitext(data.path)[1].lower()
        if suffix in AUDIO_SUFFIXES and suffix not in SUFFIXES[header.kind]:
            self._found.add("extension_mismatch")

    def _check_limits(self) -> None:
        """Refuse by rate, channels and promised length (None if the file could not hold it)."""
        limits, rate = self.limits, self.source_rate
        if not limits.min_sample_rate <= rate <= limits.max_sample_rate:
            wanted = f"{limits.min_sample_rate} to {limits.max_sample_rate} Hz"
            raise self._error(f"sample rate {rate} Hz", "unsupported_sample_rate", wanted=wanted)
        if not 1 <= self.channels <= limits.max_channels:
            wanted = f"1 to {limits.max_channels}, in arrays as (n, channels)"
            raise self._error(f"{self.channels} channels", "unsupported_channels", wanted=wanted)
        if self._promised is not None and self._promised > limits.max_seconds * rate:
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
        """Return float32 blocks (n, channels), each valid until the next one is asked for."""
        if self._array is not None:
            return sliced(self._array)
        assert self._file is not None
        return self._file.decoded(self._room)

    def _room(self) -> Samples | None:
        """Return where the next block may be decoded to: its place in the whole, if nothing is left to do to it."""
        if self.channels > 1 or self._resampler is not None:
            return None
        free = self._out[self._checks.frames :][:BLOCK_FRAMES]
        return free[:, np.newaxis] if len(free) == BLOCK_FRAMES else None

    def _finish(self) -> None:
        """Judge the whole: lengths against the header, then quality; raises where nothing useful came out."""
        frames, found = self._checks.frames, self._found
        failure = self._file.failure if self._file is not None else None
        if self._input is not None and self._input.error is not None:
            raise self._error(f"reading failed: {self._input.error!r}", "io_error")
        if failure is not None and frames == 0:
            raise self._error(f"no sound could be decoded: {failure}", "corrupt_audio")
        if frames == 0:
            raise self._error("no samples", "no_audio", wanted="a recording with sound in it")
        if frames < self.limits.min_seconds * self.source_rate:
            wanted = f"at least {self.limits.min_seconds:g} s"
            raise self._error(f"{frames} samples at {self.source_rate} Hz", "too_short", wanted=wanted)
        slack = 4096 if self.container.startswith("MP3") else 0  # encoder delay and padding
        promised = self._promised
        if frames < promised - slack if promised is not None else failure is not None:
            found.add("truncated")
        elif promised is not None and frames > promised + slack and "truncated" not in found:
            found.add("header_length_wrong")
        found |= self._checks.flags()
        if self.strict and found & FAULTS:
            raise self._error(
                ", ".join(sorted(found & FAULTS)), "corrupt_audio", cause="refused because of strict"
            )

    def _whole_recording(self) -> Samples:
        """Return all blocks as one array, whose memory follows what was decoded, not what was promised."""
        expected = (self._promised or BLOCK_FRAMES) * self.sample_rate // self.source_rate + 1
        self._out = out = np.empty(min(expected, PREALLOCATED), np.float32)
        n = 0
        for block in self._blocks:
            if n + len(block) > len(out):
                double = 2 * len(out)
                size = min(double, expected) if len(out) < expected else double
                grown = np.empty(max(n + len(block), size), np.float32)
                grown[:n] = out[:n]
                self._out = out = grown
            if block.base is not out:
                out[n : n + len(block)] = block
            n += len(block)
        return out[:n] if 8 * n > 7 * len(out) else out[:n].copy()


def _whole(rate: Any) -> int:
    """Return a sample rate as int, -1 if it is no whole number."""
    try:
        return int(rate) if not isinstance(rate, (bool, str)) and int(rate) == rate else -1
    except (TypeError, ValueError, OverflowError):
        return -1


def load(
    source: Source,
    *,
    sample_rate: int,
    limits: AudioLimits = AudioLimits(),  # noqa: B008 - frozen
    strict: bool = False,
    array_rate: int | None = None,
) -> Audio:
    """Return the whole recording as mono float32 at ``sample_rate``; arguments as of `Reader`.

    Raises:
        AudioError: with a code of `AUDIO_CODES`.
        ConfigError: the arguments make no sense.
    """
    with Reader(
        source, sample_rate=sample_rate, limits=limits, strict=strict, array_rate=array_rate
    ) as reader:
        try:
            samples = reader._whole_recording()
        except MemoryError:
            raise reader._error("does not fit in memory", "file_too_large") from None
        return Audio(
            samples=samples,
            sample_rate=reader.sample_rate,
            source_rate=reader.source_rate,
            channels=reader.channels,
            duration_s=reader.duration_s,
            flags=reader.flags,
            container=reader.container,
        )


def windows(samples: Samples, *, window_samples: int, hop_samples: int) -> Samples:
    """Return ``samples`` cut into windows, (n_windows, window_samples) float32, read-only.

    Window k starts at ``k * hop_samples`` and is kept if k is 0 or at least half of it holds samples; the rest
    of it is zeros. Only a last window that needs zeros costs a copy.

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
    step, unchanged = samples.itemsize, samples.data.toreadonly()
    return np.ndarray((count, window_samples), np.float32, unchanged, strides=(hop_samples * step, step))
